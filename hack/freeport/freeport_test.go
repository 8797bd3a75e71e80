package freeport

import (
	"strconv"
	"testing"
)

// Two servers that start together would else be given one port, now and then.
func TestAPortIsToldOfOnce(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		port, err := On("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := strconv.Atoi(port); err != nil || n < first || n > last || seen[port] {
			t.Fatalf("%s, %v: it is told of twice, or one that the system gives to connections", port, err)
		}
		seen[port] = true
	}
}
