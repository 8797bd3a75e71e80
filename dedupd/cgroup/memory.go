// Package cgroup tells a program what the container that it runs in may have.
package cgroup

import (
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Memory is the container's memory limit in bytes; false if there is none, or no cgroup that says so. See
// memory.max in https://docs.kernel.org/admin-guide/cgroup-v2.html, and memory.limit_in_bytes in
// https://docs.kernel.org/admin-guide/cgroup-v1/memory.html, of nodes that are older.
func Memory() (int64, bool) { return memory(os.DirFS("/sys/fs/cgroup")) }

func memory(mounted fs.FS) (int64, bool) {
	text, err := fs.ReadFile(mounted, "memory.max")
	if err != nil {
		text, err = fs.ReadFile(mounted, "memory/memory.limit_in_bytes")
	}
	if err != nil {
		return 0, false
	}
	// Without a limit version 2 says max, and version 1 the largest number of whole pages.
	const unlimited = 1 << 62
	limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return limit, err == nil && limit > 0 && limit < unlimited
}
