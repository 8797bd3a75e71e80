package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// thresholds is the file of what was measured before, plus a fifth.
const thresholds = "hack/scale/thresholds.json"

// report is what was measured.
type report struct{ figures []figure }

type figure struct {
	name  string
	value float64
	unit  string
	limit float64 // that it has whatever was measured before; 0 for none
}

func (r *report) add(name string, value float64, unit string, limit float64) {
	r.figures = append(r.figures, figure{name, value, unit, limit})
	fmt.Printf("%-62s %9.4g %s\n", name, value, unit)
}

// percentiles adds those of durations, in seconds. The limit is the 99th's.
func (r *report) percentiles(name string, durations []time.Duration, limit float64) {
	sorted := slices.Sorted(slices.Values(durations))
	for _, p := range []int{50, 90, 99} {
		bound := 0.0
		if p == 99 {
			bound = limit
		}
		r.add(fmt.Sprintf("%s, p%d", name, p), sorted[(len(sorted)-1)*p/100].Seconds(), "s", bound)
	}
}

// record writes what was measured, plus a fifth, as the thresholds of the runs to come. What is far
// below its limit has none: there a fifth is noise.
func (r *report) record() error {
	recorded := map[string]float64{}
	for _, f := range r.figures {
		if f.limit == 0 || f.value > f.limit/10 {
			recorded[f.name] = f.value * 1.2
		}
	}
	data, err := json.MarshalIndent(recorded, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(thresholds, append(data, '\n'), 0o644)
}

// check compares what was measured with the limits and the thresholds.
func (r *report) check() error {
	data, err := os.ReadFile(thresholds)
	if err != nil {
		return fmt.Errorf("%w; record them with --record, from the repository's root", err)
	}
	var recorded map[string]float64
	if err := json.Unmarshal(data, &recorded); err != nil {
		return fmt.Errorf("%s: %w", thresholds, err)
	}
	var errs []error
	for _, f := range r.figures {
		if f.limit > 0 && f.value > f.limit {
			errs = append(errs, fmt.Errorf("%s: %.2f %s, at most %.2f are right", f.name, f.value, f.unit, f.limit))
		}
		if was, ok := recorded[f.name]; ok && was > 0 && f.value > was {
			errs = append(errs, fmt.Errorf("%s: %.2f %s, and %.2f is the recorded threshold", f.name, f.value, f.unit, was))
		}
	}
	return errors.Join(errs...)
}
