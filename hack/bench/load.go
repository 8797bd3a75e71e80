package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// load is something that callers do over and over, each in its own goroutine.
type load struct {
	callers int

	// caller returns what the nth caller does in one turn, and what it leaves behind when it
	// is done. A turn answers how many messages it was.
	caller func(n int) (turn func(context.Context) (int, error), done func(), err error)
}

// sample is what a load came to.
type sample struct {
	messages int
	rate     float64       // messages per second
	median   time.Duration // of a turn
	cost     cost
}

// cost is processor time per message, by process.
type cost struct{ load, dedupd, redis time.Duration }

// drive has a load at work for a while. Callers are at the ready before the time begins; a turn
// that has begun when it ends is waited for, and both it and its time count.
func drive(ctx context.Context, l load, d time.Duration) (sample, error) {
	turns := make([]func(context.Context) (int, error), l.callers)
	for n := range turns {
		turn, done, err := l.caller(n)
		if err != nil {
			return sample{}, err
		}
		if done != nil {
			defer done()
		}
		turns[n] = turn
	}
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		messages int
		took     []time.Duration
		failed   error
	)
	start := time.Now()
	for _, turn := range turns {
		wg.Go(func() {
			count, own, err := repeat(ctx, turn, start.Add(d))
			mu.Lock()
			defer mu.Unlock()
			messages += count
			took = append(took, own...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return sample{}, failed
	}
	rate := float64(messages) / time.Since(start).Seconds()
	return sample{messages: messages, rate: rate, median: median(took)}, nil
}

func repeat(ctx context.Context, turn func(context.Context) (int, error), until time.Time) (messages int, took []time.Duration, err error) {
	for now := time.Now(); now.Before(until); {
		n, err := turn(ctx)
		if err != nil {
			return 0, nil, err
		}
		after := time.Now()
		messages += n
		took = append(took, after.Sub(now))
		now = after
	}
	return messages, took, nil
}

// typical is the cost of a side over rounds.
func typical(rounds []round, side func(round) cost) cost {
	part := func(of func(cost) time.Duration) time.Duration {
		all := make([]time.Duration, len(rounds))
		for i, r := range rounds {
			all[i] = of(side(r))
		}
		return median(all)
	}
	return cost{
		load:   part(func(c cost) time.Duration { return c.load }),
		dedupd: part(func(c cost) time.Duration { return c.dedupd }),
		redis:  part(func(c cost) time.Duration { return c.redis }),
	}
}

// capacity is how many messages a second some cores have time for if each costs so much. Redis
// has one thread for them.
func (c cost) capacity(cores int) float64 {
	all := float64(cores) / (c.load + c.dedupd + c.redis).Seconds()
	return min(all, 1/c.redis.Seconds())
}

// match is two loads in turn, and what is done before each run.
type match struct {
	rival, ours   load
	before        func(context.Context) error
	dedupd, redis *process
}

// side runs one side for a while and sees what it cost.
func (m match) side(ctx context.Context, l load, d time.Duration) (sample, error) {
	if err := m.before(ctx); err != nil {
		return sample{}, err
	}
	busy := func() (c cost, err error) {
		c.dedupd, err = busyTime(m.dedupd.cmd.Process.Pid)
		if err == nil {
			c.redis, err = busyTime(m.redis.cmd.Process.Pid)
		}
		if err == nil {
			c.load, err = busyTime(os.Getpid())
		}
		return c, err
	}
	was, err := busy()
	if err != nil {
		return sample{}, err
	}
	found, err := drive(ctx, l, d)
	if err != nil {
		return sample{}, err
	}
	is, err := busy()
	n := time.Duration(found.messages)
	found.cost = cost{load: (is.load - was.load) / n, dedupd: (is.dedupd - was.dedupd) / n, redis: (is.redis - was.redis) / n}
	return found, err
}

// round is one run of each.
type round struct{ rival, ours sample }

// play warms both sides up and then has them run in turn, so that whatever else the machine does
// falls on both.
func (m match) play(ctx context.Context, o options) ([]round, error) {
	for _, l := range []load{m.rival, m.ours} {
		if _, err := m.side(ctx, l, o.run/2); err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
	}
	rounds := make([]round, o.rounds)
	for i := range rounds {
		var err error
		if rounds[i].rival, err = m.side(ctx, m.rival, o.run); err != nil {
			return nil, fmt.Errorf("rival: %w", err)
		}
		if rounds[i].ours, err = m.side(ctx, m.ours, o.run); err != nil {
			return nil, fmt.Errorf("dedupd: %w", err)
		}
	}
	return rounds, nil
}

// spread is a figure of several rounds.
type spread struct{ low, mid, high float64 }

// over is the spread of a figure over rounds.
func over(rounds []round, figure func(round) float64) spread {
	all := make([]float64, len(rounds))
	for i, r := range rounds {
		all[i] = figure(r)
	}
	return of(all)
}

func of(all []float64) spread { return spread{slices.Min(all), median(all), slices.Max(all)} }

// median of what must not be empty.
func median[T float64 | time.Duration](all []T) T {
	sorted := slices.Sorted(slices.Values(all))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}
