package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// thresholds is the file of what was measured before, plus a fifth, by the number of policies.
const thresholds = "hack/scale/thresholds.json"

// report is what was measured with that many policies.
type report struct {
	policies int
	figures  []figure
}

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
	recorded, err := readThresholds()
	if errors.Is(err, fs.ErrNotExist) {
		recorded = map[int]map[string]float64{}
	} else if err != nil {
		return err
	}
	mine := map[string]float64{}
	for _, f := range r.figures {
		if f.limit == 0 || f.value > f.limit/10 {
			mine[f.name] = f.value * 1.2
		}
	}
	recorded[r.policies] = mine
	data, err := json.MarshalIndent(recorded, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(thresholds, append(data, '\n'), 0o644)
}

// check compares what was measured with the limits and the thresholds.
func (r *report) check() error {
	recorded, err := readThresholds()
	if err != nil {
		return fmt.Errorf("%w; record them with --record, from the repository's root", err)
	}
	mine, ok := recorded[r.policies]
	if !ok {
		fmt.Printf("no thresholds are recorded for %d policies: the limits alone count\n", r.policies)
	}
	var errs []error
	for _, f := range r.figures {
		if f.limit > 0 && f.value > f.limit {
			errs = append(errs, fmt.Errorf("%s: %.4g %s, at most %.4g are right", f.name, f.value, f.unit, f.limit))
		}
		if was, ok := mine[f.name]; ok && was > 0 && f.value > was {
			errs = append(errs, fmt.Errorf("%s: %.4g %s, and %.4g is the recorded threshold", f.name, f.value, f.unit, was))
		}
	}
	return errors.Join(errs...)
}

func readThresholds() (map[int]map[string]float64, error) {
	data, err := os.ReadFile(thresholds)
	if err != nil {
		return nil, err
	}
	var recorded map[int]map[string]float64
	if err := json.Unmarshal(data, &recorded); err != nil {
		return nil, fmt.Errorf("%s: %w", thresholds, err)
	}
	return recorded, nil
}
