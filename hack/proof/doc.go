// Package proof puts the guarantees to the test from outside: real dedupd processes before real
// Redis and PostgreSQL servers, a queue that delivers at least once, and consumers that are
// killed, stopped and started again, while everything that anybody asked, was answered and did
// is written down. After each run the history is judged by what docs/guarantees.md promises.
//
// What goes wrong, and when, is chosen by a seed that a failing test prints; DEDUPD_SEED runs it
// again.
package proof
