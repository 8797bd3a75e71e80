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

// load checks messages without a pause: each new one is FRESH, and each that was checked is
// DUPLICATE, the latest and an old one. Everything else is counted as wrong.
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
				t.expect(c, prefix+strconv.Itoa(i), client.Fresh)
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

// expect checks one message under no context of ours: each check that was begun gets its answer.
func (t *tally) expect(c *client.Client, id string, want client.Decision) {
	began := time.Now()
	answer, err := c.Check(context.Background(), message(id))
	took := time.Since(began).Milliseconds()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Checks++
	t.SlowestMillis = max(t.SlowestMillis, took)
	switch {
	case err != nil:
		t.Failed++
		t.Last = fmt.Sprintf("%s: %v", id, err)
	case answer.Decision != want:
		t.Wrong++
		t.Last = fmt.Sprintf("%s: %s, want %s", id, answer.Decision, want)
	}
}

func (t *tally) print() {
	t.mu.Lock()
	defer t.mu.Unlock()
	line, _ := json.Marshal(t.report)
	fmt.Println(string(line))
	t.SlowestMillis = 0
}
