//go:build !race

package engine_test

const pooled = 0
