package main

import (
	"context"
	"fmt"
)

func check(_ context.Context, _ []string, env environment) int {
	fmt.Fprintln(env.err, "dedupd check: not built in")
	return exitUsage
}
