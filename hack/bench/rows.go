package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// row is a question that is measured. Most have one answer.
type row struct {
	name    string
	measure func(ctx context.Context, s *stand, o options) ([]result, error)
}

func rows() []row {
	return []row{
		{"batch", versus(contest{
			what: "batches of 256 over gRPC, Mark", rival: "go-redis `Pipeline` of 256", reach: 0.8,
			theirs: func(on hosts) load { return pipeline(on.redis, 4) },
			ours:   func(on hosts) load { return batches(on.grpc, "marks", 4, false) },
		})},
		{"stream", versus(contest{
			what: "one stream, 64 concurrent callers", rival: "64 goroutines, each its own `SetNX`", reach: 1.5,
			theirs: func(on hosts) load { return setNX(on.redis, 64) },
			ours:   func(on hosts) load { return stream(on.grpc, "marks", 64) },
		})},
		{"http", versus(contest{
			what: "single HTTP/1.1 checks, 64 callers", rival: "64 goroutines, each its own `SetNX`", reach: 0.4,
			theirs: func(on hosts) load { return setNX(on.redis, 64) },
			ours:   func(on hosts) load { return web(on.http, "marks", 64) },
		})},
		{"latency", latency},
		{"claim", versus(contest{
			what: "Claim + Complete, batches of 256", rival: "`Pipeline` of 256 pairs of commands", reach: 0.7,
			theirs: func(on hosts) load { return pairs(on.redis, 4) },
			ours:   func(on hosts) load { return batches(on.grpc, "claims", 4, true) },
		})},
		{"near", versus(contest{
			what: "duplicates from the near cache, batches of 256", rival: "dedupd without it", reach: 3,
			theirs: func(on hosts) load { return repeats(on.grpc, "marks", 4) },
			ours:   func(on hosts) load { return repeats(on.grpc, "near", 4) },
		})},
		{"commands", commands},
		{"memory", memory},
		{"daemon", footprint},
	}
}

// The policies that are measured: a key that is a header of the message, and all else as it is
// by default.
const (
	marksPolicy = `
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: marks, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  mode: Mark
  store: {redis: {addresses: ["REDIS"]}}
`
	claimsPolicy = `
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: claims, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  mode: Claim
  claim: {lease: 30s}
  store: {redis: {addresses: ["REDIS"]}}
`
)

// nearPolicy is the policy marks with a near cache.
var nearPolicy = strings.Replace(marksPolicy, "name: marks", "name: near", 1) + "  nearCache: {}\n"

// hosts are the addresses that a load may go to.
type hosts struct{ redis, grpc, http string }

// contest is a load and a rival's, over the same Redis.
type contest struct {
	what, rival  string
	reach        float64 // of the rival's throughput
	theirs, ours func(hosts) load
}

func versus(c contest) func(context.Context, *stand, options) ([]result, error) {
	return func(ctx context.Context, s *stand, o options) ([]result, error) {
		rounds, err := play(ctx, s, o, c)
		if err != nil {
			return nil, err
		}
		ratio := over(rounds, func(r round) float64 { return r.ours.rate / r.rival.rate })
		return []result{{
			what:      c.what,
			rival:     c.rival,
			reach:     fmt.Sprintf("%.2g × its throughput", c.reach),
			theirs:    perSecond(over(rounds, func(r round) float64 { return r.rival.rate })),
			ours:      perSecond(over(rounds, func(r round) float64 { return r.ours.rate })),
			ratio:     ratio.String(),
			score:     ratio.mid / c.reach,
			cost:      typical(rounds, func(r round) cost { return r.ours.cost }),
			theirCost: typical(rounds, func(r round) cost { return r.rival.cost }),
		}}, nil
	}
}

// play has a contest played on processes of its own.
func play(ctx context.Context, s *stand, o options, c contest) ([]round, error) {
	store, err := s.startRedis(ctx)
	if err != nil {
		return nil, err
	}
	defer store.stop()
	dedupd, err := s.startDedupd(ctx, store.addr, marksPolicy, claimsPolicy, nearPolicy)
	if err != nil {
		return nil, err
	}
	defer dedupd.stop()
	on := hosts{redis: store.addr, grpc: dedupd.grpc, http: dedupd.http}
	m := match{
		rival: c.theirs(on), ours: c.ours(on),
		before: func(ctx context.Context) error { return store.client.FlushAll(ctx).Err() },
		dedupd: dedupd.process, redis: store.process,
	}
	rounds, err := m.play(ctx, o)
	if err != nil || o.profiles == "" {
		return rounds, err
	}
	return rounds, profile(ctx, dedupd, m.ours, filepath.Join(o.profiles, o.only+".pprof"))
}

// profile writes what dedupd does with its time under a load.
func profile(ctx context.Context, d *daemon, l load, file string) error {
	const seconds = 5
	failed := make(chan error, 1)
	go func() {
		failed <- fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", d.pprof, seconds), file)
	}()
	if _, err := drive(ctx, l, (seconds+1)*1e9); err != nil {
		return err
	}
	return <-failed
}

func fetch(ctx context.Context, url, file string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	to, err := os.Create(file)
	if err != nil {
		return err
	}
	defer to.Close()
	_, err = io.Copy(to, response.Body)
	return err
}

// latency is what the way over dedupd adds for a caller that is alone: by a call for each
// message, and on a stream that stays open.
func latency(ctx context.Context, s *stand, o options) ([]result, error) {
	const reach = 100.0 // microseconds
	var results []result
	for _, way := range []struct {
		name string
		ours func(hosts) load
	}{
		{"a call", func(on hosts) load { return single(on.grpc, "marks") }},
		{"on a stream", func(on hosts) load { return stream(on.grpc, "marks", 1) }},
	} {
		rounds, err := play(ctx, s, o, contest{
			theirs: func(on hosts) load { return setNX(on.redis, 1) },
			ours:   way.ours,
		})
		if err != nil {
			return nil, err
		}
		micros := func(side func(round) time.Duration) spread {
			return over(rounds, func(r round) float64 { return float64(side(r).Nanoseconds()) / 1e3 })
		}
		added := micros(func(r round) time.Duration { return r.ours.median - r.rival.median })
		results = append(results, result{
			what:   "single check, one caller, gRPC, " + way.name + ": p50",
			rival:  "one `SetNX`",
			reach:  "100 µs more",
			theirs: micros(func(r round) time.Duration { return r.rival.median }).with("%.0f µs"),
			ours:   micros(func(r round) time.Duration { return r.ours.median }).with("%.0f µs"),
			ratio:  added.with("+%.0f µs"),
			score:  reach / added.mid,
		})
	}
	return results, nil
}
