package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// result is a line of the table.
type result struct {
	what, rival, reach  string
	theirs, ours, ratio string

	// score is how much of the reach was reached: met from 1 on.
	score float64

	cost, theirCost cost // of a message, where that was measured
}

func (r result) met() string {
	if r.score >= 1 {
		return "met"
	}
	return "not met"
}

// String is the line for a terminal.
func (r result) String() string {
	line := fmt.Sprintf("%-56s %18s %26s  %-22s reach %-22s %-7s", r.what, r.theirs, r.ours, r.ratio, r.reach, r.met())
	if r.cost != (cost{}) {
		line += fmt.Sprintf("  %s; rival: %s; by processor time %.2f", r.cost, r.theirCost,
			r.cost.capacity(runtime.NumCPU())/r.theirCost.capacity(runtime.NumCPU()))
	}
	return line
}

// String is the processor time of a message.
func (c cost) String() string {
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	return fmt.Sprintf("dedupd %.1f, Redis %.1f, load %.1f µs", micros(c.dedupd), micros(c.redis), micros(c.load))
}

// String is a ratio.
func (s spread) String() string { return s.with("%.2f") }

// with is the middle of the spread and, in brackets, its ends.
func (s spread) with(format string) string {
	if s.low == s.high {
		return fmt.Sprintf(format, s.mid)
	}
	unit := ""
	if number, u, ok := strings.Cut(format, " "); ok {
		format, unit = number, " "+u
	}
	return fmt.Sprintf(format+" ("+format+"–"+format+")", s.mid, s.low, s.high) + unit
}

// perSecond is a rate in thousands.
func perSecond(s spread) string { return fmt.Sprintf("%.1fk/s", s.mid/1e3) }

// table is what stands in the documentation.
func table(found []result, where string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n![How much of each reach was reached](benchmarks.svg)\n\n", where)
	b.WriteString("| what | rival in the same run | reach | rival | dedupd | ratio (lowest–highest) | |\n|---|---|---|---|---|---|---|\n")
	for _, r := range found {
		met := r.met()
		if r.score < 1 {
			met = "**" + met + "**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", r.what, r.rival, r.reach, r.theirs, r.ours, r.ratio, met)
	}
	b.WriteString(costTable(found))
	return b.String()
}

// costTable is what a message costs in processor time.
func costTable(found []result) string {
	var b strings.Builder
	cores := runtime.NumCPU()
	fmt.Fprintf(&b, `
Processor time per message, in µs, and the ratio of what %d cores would have time for if they did nothing else, Redis on one of them:

| load | rival: load + Redis | dedupd: load + dedupd + Redis | ratio by processor time |
|---|---|---|---|
`, cores)
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	for _, r := range found {
		if r.cost == (cost{}) {
			continue
		}
		theirs := fmt.Sprintf("%.1f + %.1f", micros(r.theirCost.load), micros(r.theirCost.redis))
		if r.theirCost.dedupd > r.cost.dedupd/20 { // the rival is a dedupd too
			theirs = fmt.Sprintf("%.1f + %.1f (dedupd) + %.1f", micros(r.theirCost.load), micros(r.theirCost.dedupd), micros(r.theirCost.redis))
		}
		ratio := r.cost.capacity(cores) / r.theirCost.capacity(cores)
		fmt.Fprintf(&b, "| %s | %s | %.1f + %.1f + %.1f | %.2f |\n", r.what, theirs,
			micros(r.cost.load), micros(r.cost.dedupd), micros(r.cost.redis), ratio)
	}
	return b.String()
}

// machine says where the figures come from.
func machine(ctx context.Context, s *stand, busy string) (string, error) {
	store, err := s.startRedis(ctx)
	if err != nil {
		return "", err
	}
	defer store.stop()
	info, err := store.client.InfoMap(ctx, "server").Result()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Measured on %s: %d cores for Redis, dedupd and the load together, %s, Redis %s. The load average before it began, of other work on the machine, was %s.",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), runtime.Version(), info["Server"]["redis_version"], busy), nil
}

// rewrite puts text between the marks of that name in a document, and leaves the rest of it as it is.
func rewrite(file, name, text string) error {
	document, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := "<!-- "+name+": begin -->", "<!-- "+name+": end -->"
	before, rest, found := strings.Cut(string(document), begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return fmt.Errorf("%s has no place for what was measured: want the lines %s and %s", file, begin, end)
	}
	return os.WriteFile(file, []byte(before+begin+"\n"+strings.TrimSpace(text)+"\n"+end+after), 0o644)
}
