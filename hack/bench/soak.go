package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// soaked is a look at a dedupd under load.
type soaked struct {
	at       time.Duration
	resident float64 // MiB
	rate     float64 // messages a second since the last look
}

// soak puts full load on a dedupd, of every kind that there is, and looks at its memory.
func soak(ctx context.Context, s *stand, o options, out io.Writer) error {
	store, err := s.startRedis(ctx)
	if err != nil {
		return err
	}
	defer store.stop()
	dedupd, err := s.startDedupd(ctx, store.addr, brief(marksPolicy), brief(claimsPolicy))
	if err != nil {
		return err
	}
	defer dedupd.stop()
	var looks []soaked
	for start := time.Now(); time.Since(start) < o.soak; {
		n := 0.0
		began := time.Now()
		// One after another within each look, so that each is at full load.
		for _, l := range []load{
			batches(dedupd.grpc, "marks", 2, false), stream(dedupd.grpc, "marks", 64),
			batches(dedupd.grpc, "claims", 2, true), web(dedupd.http, "marks", 64),
		} {
			found, err := drive(ctx, l, o.soak/120)
			if err != nil {
				return err
			}
			n += float64(found.messages)
		}
		bytes, err := resident(dedupd.cmd.Process.Pid)
		if err != nil {
			return err
		}
		looks = append(looks, soaked{time.Since(start), float64(bytes) / (1 << 20), n / time.Since(began).Seconds()})
		fmt.Fprintf(out, "%6.0f s  %6.1f MiB  %7.0f messages/s\n", looks[len(looks)-1].at.Seconds(), looks[len(looks)-1].resident, looks[len(looks)-1].rate)
	}
	text, grown := verdict(looks)
	fmt.Fprintln(out, text)
	if o.docs != "" {
		if err := rewrite(filepath.Join(o.docs, "benchmarks.md"), "soak", text+"\n\n![Resident memory of dedupd](soak.svg)"); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(o.docs, "soak.svg"), plotSoak(looks), 0o644); err != nil {
			return err
		}
	}
	if grown {
		return errGrown
	}
	return nil
}

// brief is a policy that forgets within seconds, so that what grows is not Redis.
func brief(policy string) string {
	return strings.NewReplacer("ttl: 1h", "ttl: 10s", "lease: 30s", "lease: 5s").Replace(policy)
}

// verdict says whether memory grew from the second quarter of a soak to its last: the first is
// what pools and tables need to fill.
func verdict(looks []soaked) (text string, grown bool) {
	resident := func(looks []soaked) []float64 {
		var all []float64
		for _, l := range looks {
			all = append(all, l.resident)
		}
		return all
	}
	quarter := max(len(looks)/4, 1)
	early := median(resident(looks[min(quarter, len(looks)-1):min(2*quarter, len(looks))]))
	late := median(resident(looks[len(looks)-quarter:]))
	messages := 0.0
	last := time.Duration(0)
	for _, l := range looks {
		messages += l.rate * (l.at - last).Seconds()
		last = l.at
	}
	grown = late > 1.1*early+2
	word := "no growth"
	if grown {
		word = "**growth**"
	}
	return fmt.Sprintf("%s of full load, %.0f million messages: %.0f MiB resident in its second quarter, %.0f MiB in its last, %.0f MiB at most: %s.",
		last.Round(time.Second), messages/1e6, early, late, slices.Max(resident(looks)), word), grown
}

var errGrown = errors.New("dedupd's memory grew")
