package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// memory is what Redis needs for an id that is remembered under the same key as the rival's, or
// in its other formats under the same prefix.
func memory(ctx context.Context, s *stand, o options) ([]result, error) {
	bare, err := perID(ctx, s, o.ids, "", func(on hosts) load { return pipeline(on.redis, 1) })
	if err != nil {
		return nil, err
	}
	var results []result
	for _, format := range []struct {
		name  string
		reach float64 // of the rival's
	}{
		{"Readable", 1}, {"Compact", 0.7}, {"Dense", 0.25},
	} {
		policy := strings.NewReplacer(
			"addresses:", "keyFormat: "+format.name+`, keyPrefix: "`+prefix+`", addresses:`, "mode: Mark", "mode: Mark\n  scope: Policy",
		).Replace(marksPolicy)
		if format.name == "Dense" {
			policy = strings.Replace(policy, "addresses:", fmt.Sprintf("dense: {expectedMessages: %d}, addresses:", max(o.ids, 1000)), 1)
		}
		ours, err := perID(ctx, s, o.ids, policy, func(on hosts) load { return batches(on.grpc, "marks", 1, false) })
		if err != nil {
			return nil, fmt.Errorf("%s: %w", format.name, err)
		}
		results = append(results, result{
			what:   "memory of Redis per id, keyFormat " + format.name,
			rival:  "`SET dedup:orders:<uuid> 1 EX`",
			reach:  fmt.Sprintf("%.2g of it", format.reach),
			theirs: fmt.Sprintf("%.0f B", bare),
			ours:   fmt.Sprintf("%.0f B", ours),
			ratio:  fmt.Sprintf("%.2f", ours/bare),
			score:  format.reach * bare / ours,
		})
	}
	return results, nil
}

// perID is by how many bytes an empty server grows for each id of a load.
func perID(ctx context.Context, s *stand, ids int, policy string, with func(hosts) load) (float64, error) {
	store, err := s.startRedis(ctx)
	if err != nil {
		return 0, err
	}
	defer store.stop()
	on := hosts{redis: store.addr}
	if policy != "" {
		dedupd, err := s.startDedupd(ctx, store.addr, policy)
		if err != nil {
			return 0, err
		}
		defer dedupd.stop()
		on.grpc = dedupd.grpc
	}
	turn, done, err := with(on).caller(0)
	if err != nil {
		return 0, err
	}
	if done != nil {
		defer done()
	}
	// The first messages make the connections, whose buffers are no part of an id.
	const first = 1024
	last := first + ids
	var before int64
	for n := 0; n < last; {
		k, err := turn(ctx)
		if err != nil {
			return 0, err
		}
		if n += k; n == first {
			if before, err = store.used(ctx); err != nil {
				return 0, err
			}
		}
	}
	after, err := store.used(ctx)
	return float64(after-before) / float64(last-first), err
}

// used is the memory that the server says it uses.
func (r *redisServer) used(ctx context.Context) (int64, error) {
	info, err := r.client.InfoMap(ctx, "memory").Result()
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(info["Memory"]["used_memory"], 10, 64)
}

// commands is how many commands a message costs the server, by what MONITOR shows.
func commands(ctx context.Context, s *stand, _ options) ([]result, error) {
	var results []result
	for _, of := range []struct {
		what  string
		load  func(hosts) load
		reach float64
	}{
		{"Mark", func(on hosts) load { return batches(on.grpc, "marks", 1, false) }, 1},
		{"Claim + Complete", func(on hosts) load { return batches(on.grpc, "claims", 1, true) }, 2},
		{"a duplicate from the near cache", func(on hosts) load { return repeats(on.grpc, "near", 1) }, 0},
	} {
		n, err := commandsPerMessage(ctx, s, of.load)
		if err != nil {
			return nil, err
		}
		score := 1.0
		if n > 0 {
			score = of.reach / n
		}
		results = append(results, result{
			what:  "commands per message, " + of.what,
			rival: "—", theirs: "—", ratio: "—",
			reach: fmt.Sprintf("%.0f", of.reach),
			ours:  fmt.Sprintf("%.2f", n),
			score: score,
		})
	}
	return results, nil
}

func commandsPerMessage(ctx context.Context, s *stand, of func(hosts) load) (float64, error) {
	store, err := s.startRedis(ctx)
	if err != nil {
		return 0, err
	}
	defer store.stop()
	dedupd, err := s.startDedupd(ctx, store.addr, marksPolicy, claimsPolicy, nearPolicy)
	if err != nil {
		return 0, err
	}
	defer dedupd.stop()
	turn, done, err := of(hosts{grpc: dedupd.grpc}).caller(0)
	if err != nil {
		return 0, err
	}
	defer done()
	for range 4 { // connections, the script, and what a near cache has to have seen
		if _, err := turn(ctx); err != nil {
			return 0, err
		}
	}
	monitor, err := net.Dial("tcp", store.addr)
	if err != nil {
		return 0, err
	}
	defer monitor.Close()
	if _, err := fmt.Fprint(monitor, "MONITOR\r\n"); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(monitor)
	lines.Buffer(nil, 1<<20)
	lines.Scan() // +OK
	const turns = 20
	for range turns {
		if _, err := turn(ctx); err != nil {
			return 0, err
		}
	}
	const end = "the end of what is counted"
	if err := store.client.Echo(ctx, end).Err(); err != nil {
		return 0, err
	}
	n := 0
	for lines.Scan() && !strings.Contains(lines.Text(), end) {
		// What a script does is not a command that was sent; what names no key of a consumer's
		// is a question about the server.
		if line := lines.Text(); strings.Contains(line, ":"+consumer+":") && !strings.Contains(line, " lua]") {
			n++
		}
	}
	return float64(n) / (turns * batchSize), lines.Err()
}
