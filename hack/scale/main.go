// Command scale measures the operator with many policies, against a real API server and a
// stand-in for the kubelet: how soon children are applied, how many writes that takes, how much
// memory, how fast pods are injected. It fails past its recorded thresholds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
)

// plan is how much is done.
type plan struct {
	burst     int
	rate      int
	rateFor   time.Duration
	unrelated int
	pods      int // that are injected
	record    bool
}

func main() {
	var p plan
	flag.IntVar(&p.burst, "burst", 1000, "policies that are created at once")
	flag.IntVar(&p.rate, "rate", 10, "policies a second, after the burst")
	flag.DurationVar(&p.rateFor, "rate-for", 20*time.Second, "for how long")
	flag.IntVar(&p.unrelated, "unrelated", 10000, "Secrets, ConfigMaps and Pods, together, that are none of the operator's business")
	flag.IntVar(&p.pods, "pods", 2000, "pods whose injection is asked for")
	flag.BoolVar(&p.record, "record", false, "record what is measured, plus a fifth, as the thresholds")
	flag.Parse()
	ctrl.SetLogger(logr.Discard())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, p)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, p plan) (err error) {
	c, err := startCluster(ctx)
	if err != nil {
		return errors.Join(err, c.stop())
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	r := report{policies: p.burst}
	for _, step := range []func(context.Context, *cluster, plan, *report) error{burst, steady, injections, unrelated} {
		if err := step(ctx, c, p, &r); err != nil {
			return err
		}
	}
	if p.record {
		return r.record()
	}
	return r.check()
}

// burst creates all policies at once.
func burst(ctx context.Context, c *cluster, p plan, r *report) error {
	before, err := c.writes()
	if err != nil {
		return err
	}
	// The limits are for a thousand.
	share := float64(p.burst) / 1000
	started := time.Now()
	if err := c.create(ctx, p.burst, func(int) <-chan time.Time { return nil }); err != nil {
		return err
	}
	created := time.Since(started)
	latencies, err := c.kubelet.awaitChildren(ctx, c.made)
	if err != nil {
		return err
	}
	took := time.Since(started)
	fmt.Printf("burst: %d policies are created in %.4g s\n", p.burst, created.Seconds()) // the API server's part, not the operator's
	r.add("burst: all children are applied", took.Seconds(), "s", 60*share)
	cpu, err := c.cpuSeconds()
	if err != nil {
		return err
	}
	r.add("burst: the operator has computed", cpu, "s", 0)
	r.percentiles("burst: create -> children", latencies, 0)
	ready, err := c.kubelet.awaitReady(ctx, c.made)
	if err != nil {
		return err
	}
	r.percentiles("burst: create -> Ready, with pods that start at once", ready, 0)
	objects, err := c.children(ctx)
	if err != nil {
		return err
	}
	r.add("objects per policy", float64(objects)/float64(p.burst), "", 6)
	if err := pause(ctx, 10*time.Second); err != nil { // events are written behind
		return err
	}
	after, err := c.writes()
	if err != nil {
		return err
	}
	r.add("writes per policy, events aside", float64(after.objects-before.objects)/float64(p.burst), "", 8)
	r.add("events per policy", float64(after.events-before.events)/float64(p.burst), "", 0)
	resident, residentErr := c.residentMiB()
	peak, peakErr := c.peakMiB()
	r.add("memory with the policies", resident, "MiB", 100*share)
	r.add("memory until then, at most", peak, "MiB", containerMiB)
	return errors.Join(residentErr, peakErr)
}

// steady creates policies at a rate, in the operator's company of those of before.
func steady(ctx context.Context, c *cluster, p plan, r *report) error {
	first := c.made
	start := time.Now()
	n := p.rate * int(p.rateFor.Seconds())
	err := c.create(ctx, n, func(i int) <-chan time.Time {
		return time.After(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(p.rate))))
	})
	if err != nil {
		return err
	}
	latencies, err := c.kubelet.awaitChildren(ctx, c.made)
	if err != nil {
		return err
	}
	r.percentiles(fmt.Sprintf("at %d a second: create -> children", p.rate), latencies[first:], 5)
	_, err = c.kubelet.awaitReady(ctx, c.made)
	return err
}

// unrelated fills the cluster with what the operator does not look at.
func unrelated(ctx context.Context, c *cluster, p plan, r *report) error {
	before, err := c.residentMiB()
	if err != nil {
		return err
	}
	if err := c.createUnrelated(ctx, p.unrelated); err != nil {
		return err
	}
	if err := pause(ctx, 10*time.Second); err != nil {
		return err
	}
	after, err := c.residentMiB()
	if err != nil {
		return err
	}
	r.add(fmt.Sprintf("memory for %d unrelated objects", p.unrelated), after-before, "MiB", 5)
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
