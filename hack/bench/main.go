// Command bench measures what a decision of dedupd costs, beside what the same store does for a
// client that asks it directly. It starts a redis-server and a dedupd, each a process of its own,
// is itself the load, and writes the table and the plot of docs/benchmarks.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	dedupd   string        // the program
	docs     string        // the directory of benchmarks.md and its plots
	run      time.Duration // of one measurement
	rounds   int           // measurements of each side
	ids      int           // that Redis is to remember when its memory is measured
	only     string        // the row to measure, by its name; empty: all of them
	profiles string        // the directory for a CPU profile of dedupd under the load of the row; empty: none
	soak     time.Duration // load for so long instead of measuring
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.dedupd, "dedupd", "bin/dedupd", "the `PROGRAM` that is measured")
	flags.StringVar(&o.docs, "docs", "", "the `DIR` whose benchmarks.md gets the table, and the plot beside it; without it both go nowhere")
	flags.DurationVar(&o.run, "run", 2*time.Second, "how long one measurement takes")
	flags.IntVar(&o.rounds, "rounds", 7, "the `NUMBER` of measurements of each side")
	flags.IntVar(&o.ids, "ids", 200_000, "the `NUMBER` of messages that Redis is given when its memory is measured")
	flags.StringVar(&o.only, "only", "", "measure the row of this `NAME` alone")
	flags.StringVar(&o.profiles, "profiles", "", "the `DIR` for a CPU profile of dedupd under the load of the row that --only names")
	flags.DurationVar(&o.soak, "soak", 0, "put full load on dedupd for so long and watch its memory, in the place of everything else")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q; want flags only", flags.Arg(0))
	case o.run <= 0:
		return o, fmt.Errorf("--run: %s; want a positive duration, such as 2s", o.run)
	case o.rounds < 1:
		return o, fmt.Errorf("--rounds: %d; want at least 1", o.rounds)
	case o.ids < 1:
		return o, fmt.Errorf("--ids: %d; want at least 1", o.ids)
	case o.profiles != "" && o.only == "":
		return o, errors.New("--profiles: without --only; name the row whose load is to be profiled")
	case o.soak < 0:
		return o, fmt.Errorf("--soak: %s; want a duration that is not negative", o.soak)
	}
	return o, nil
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if err == nil {
		err = run(ctx, o, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out io.Writer) (err error) {
	s, err := newStand(o.dedupd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.strike()) }()
	if o.soak > 0 {
		return soak(ctx, s, o, out)
	}
	before, err := loadAverage()
	if err != nil {
		return err
	}
	found, err := measureAll(ctx, s, o, out)
	if err != nil {
		return err
	}
	if o.docs == "" {
		return nil
	}
	where, err := machine(ctx, s, before)
	if err != nil {
		return err
	}
	if err := rewrite(filepath.Join(o.docs, "benchmarks.md"), "measured", table(found, where)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.docs, "benchmarks.svg"), plot(found), 0o644)
}

// measureAll measures every row, or the one that is asked for.
func measureAll(ctx context.Context, s *stand, o options, out io.Writer) ([]result, error) {
	var found []result
	known := ""
	for _, r := range rows() {
		known += " " + r.name
		if o.only != "" && o.only != r.name {
			continue
		}
		results, err := r.measure(ctx, s, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		for _, one := range results {
			fmt.Fprintln(out, one)
		}
		found = append(found, results...)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("--only: %q; want one of%s", o.only, known)
	}
	return found, nil
}
