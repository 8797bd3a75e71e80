package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/client"
)

// report counts since the start. It is printed as one line of JSON, four times a second.
type report struct {
	Checks, Failed, Wrong int
	SlowestMillis         int64  // of the checks since the last line
	Last                  string // what failed or was wrong
}

type tally struct {
	mu sync.Mutex
	report
}

// load checks messages without a pause. Each new one is checked by two callers at once, of whom
// one is told FRESH and one DUPLICATE, and then is DUPLICATE, as is an old one. Everything else is
// counted as wrong.
func load(ctx context.Context) error {
	c, err := client.New(client.FromEnv(os.Getenv))
	if err != nil {
		return err
	}
	defer c.Close()
	var t tally
	var workers sync.WaitGroup
	for n := range 4 {
		workers.Go(func() {
			prefix := os.Getenv("HOSTNAME") + "-" + strconv.Itoa(n) + "-"
			for i := 0; ctx.Err() == nil; i++ {
				t.race(c, prefix+strconv.Itoa(i))
				t.expect(c, prefix+strconv.Itoa(i), client.Duplicate)
				t.expect(c, prefix+strconv.Itoa(i/2), client.Duplicate)
				time.Sleep(10 * time.Millisecond) // the machine has other work too
			}
		})
	}
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ticker.C:
			t.print()
		case <-ctx.Done():
		}
	}
	workers.Wait()
	t.print()
	return nil
}

// race has two callers check a new message. The replicas of dedupd take turns, so each asks another one.
func (t *tally) race(c *client.Client, id string) {
	var other client.Decision
	var callers sync.WaitGroup
	callers.Go(func() { other = t.check(c, id) })
	one := t.check(c, id)
	callers.Wait()
	switch [2]client.Decision{one, other} {
	case [2]client.Decision{client.Fresh, client.Duplicate}, [2]client.Decision{client.Duplicate, client.Fresh}:
	default:
		if one != "" && other != "" {
			t.wrong(id, "two callers were told %s and %s", one, other)
		}
	}
}

func (t *tally) expect(c *client.Client, id string, want client.Decision) {
	if got := t.check(c, id); got != "" && got != want {
		t.wrong(id, "%s, want %s", got, want)
	}
}

// check asks under no context of ours: each check that was begun gets its answer. One that
// fails is counted, and has no decision.
func (t *tally) check(c *client.Client, id string) client.Decision {
	began := time.Now()
	answer, err := c.Check(context.Background(), message(id))
	took := time.Since(began).Milliseconds()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Checks++
	t.SlowestMillis = max(t.SlowestMillis, took)
	if err != nil {
		t.Failed++
		t.Last = fmt.Sprintf("%s: %v", id, err)
		return ""
	}
	return answer.Decision
}

func (t *tally) wrong(id, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Wrong++
	t.Last = id + ": " + fmt.Sprintf(format, args...)
}

func (t *tally) print() {
	t.mu.Lock()
	defer t.mu.Unlock()
	line, _ := json.Marshal(t.report)
	fmt.Println(string(line))
	t.SlowestMillis = 0
}
