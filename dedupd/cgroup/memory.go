// Package cgroup tells a program what the container that it runs in may have.
package cgroup

import (
	"os"
	"strconv"
	"strings"
)

// Memory is the container's memory limit in bytes; false if there is none, or no cgroup v2 that says so.
// See memory.max in https://docs.kernel.org/admin-guide/cgroup-v2.html.
func Memory() (int64, bool) {
	text, err := os.ReadFile("/sys/fs/cgroup/memory.max")
	if err != nil {
		return 0, false
	}
	return parseMemory(string(text))
}

// parseMemory reads the bytes that a cgroup may have; "max" is any number of them.
func parseMemory(text string) (int64, bool) {
	limit, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return limit, err == nil && limit > 0
}
