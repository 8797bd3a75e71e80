package main

import (
	"context"
	"fmt"
)

// serve runs the server until ctx ends and returns the exit code.
func serve(_ context.Context, _ []string, env environment) int {
	fmt.Fprintln(env.err, "dedupd serve: not built in")
	return exitUsage
}
