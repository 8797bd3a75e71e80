// Command dedupd deduplicates messages by DedupPolicies: as a server, and on a file of
// recorded messages.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

// environment is what a command has of the world around it.
type environment struct {
	in       io.Reader
	out, err io.Writer
	now      func() time.Time
}

// tell writes to standard error. Who does not listen cannot be told so.
func (e environment) tell(format string, args ...any) {
	_, _ = fmt.Fprintf(e.err, format, args...)
}

// print writes to standard output what is asked for, and returns the exit code.
func (e environment) print(text string) int {
	if _, err := io.WriteString(e.out, text); err != nil {
		e.tell("dedupd: writing to standard output: %v\n", err)
		return exitSome
	}
	return exitOK
}

// Exit codes.
const (
	exitOK    = 0
	exitSome  = 1 // check: some lines are no messages; serve: it could not go on
	exitUsage = 2 // wrong arguments, or no valid policy
)

const usage = `dedupd deduplicates messages by DedupPolicies.

Usage:

	dedupd serve -f FILE|DIR [flags]    answer checks over HTTP and gRPC
	dedupd check -f FILE [flags]        try a policy on recorded messages, from standard input
	dedupd version                      print the version

"dedupd serve --help" and "dedupd check --help" list the flags.
`

func main() {
	env := environment{in: os.Stdin, out: os.Stdout, err: os.Stderr, now: time.Now}
	os.Exit(run(os.Args[1:], env))
}

// run carries out a command line and returns the exit code.
func run(args []string, env environment) int {
	if len(args) == 0 {
		env.tell("%s", usage)
		return exitUsage
	}
	switch name, args := args[0], args[1:]; name {
	case "serve":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return serve(ctx, args, env)
	case "check":
		return check(context.Background(), args, env)
	case "version":
		return env.print(programVersion() + "\n")
	case "help", "-h", "-help", "--help":
		return env.print(usage)
	default:
		env.tell("dedupd: unknown command %q; want serve, check or version\n", name)
		return exitUsage
	}
}

// version is set by the linker, see the Makefile; empty with `go run`.
var version string

// programVersion is the version of a built program, or what the Go tool knows of the sources.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
