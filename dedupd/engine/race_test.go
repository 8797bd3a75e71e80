//go:build race

package engine_test

// pooled is what a message costs more under the race detector, by which pools lose a part of what is put into them.
const pooled = 0.75
