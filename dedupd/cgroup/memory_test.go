package cgroup

import (
	"testing"
	"testing/fstest"
)

func TestMemory(t *testing.T) {
	const v1, v2 = "memory/memory.limit_in_bytes", "memory.max"
	for name, c := range map[string]struct {
		file, text string
		want       int64 // 0: no limit
	}{
		"version 2":                  {v2, "268435456\n", 256 << 20},
		"version 2, without a limit": {v2, "max\n", 0},
		"version 2, empty":           {v2, "", 0},
		"version 2, nothing":         {v2, "0\n", 0},
		"version 1":                  {v1, "268435456\n", 256 << 20},
		"version 1, without a limit": {v1, "9223372036854771712\n", 0},
		"no cgroup":                  {"other", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := memory(fstest.MapFS{c.file: {Data: []byte(c.text)}})
			if ok != (c.want > 0) || ok && got != c.want {
				t.Errorf("%d, %v; want %d", got, ok, c.want)
			}
		})
	}
}
