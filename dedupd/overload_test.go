package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// A store that stands still under a load that does not: memory stays within its bounds, every
// caller gets an answer, and when the store goes on, so does everything else.
func TestAStalledStoreCostsNeitherMemoryNorAnswers(t *testing.T) {
	for _, failure := range []string{"FailClosed", "FailOpen"} {
		t.Run(failure, func(t *testing.T) {
			t.Parallel()
			redis := redistest.Start(t)
			manifest := strings.Replace(headerPolicy, "memory: {}", fmt.Sprintf("redis: {addresses: [%q]}", redis.Addr), 1) +
				"  onStoreFailure: " + failure + "\n"
			// A connection that was opened ahead of need is to be there when a request is sent on it.
			s := startServe(t, "-f", policyFile(t, manifest), "--store-timeout", "2s", "--header-timeout", "1m", "--max-batch", "20", "--max-pending", "20",
				"--max-body", "256KiB", "--max-batch-bytes", "256KiB", "--max-in-flight", "1MiB")
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 400}, Timeout: 30 * time.Second}
			t.Cleanup(client.CloseIdleConnections)
			if code, decision := s.post(t, client, "before", nil); decision != "FRESH" {
				t.Fatalf("before: %d %s", code, decision)
			}
			redis.Pause()
			resumed := false
			defer func() {
				if !resumed {
					redis.Resume()
				}
			}()
			idle := s.metric(t, client, "process_resident_memory_bytes")

			// 200 callers with nothing to carry, against --max-pending; 200 with 50 MB between
			// them, against --max-in-flight.
			var load sync.WaitGroup
			var over atomic.Bool
			answers := &tally{}
			large := bytes.Repeat([]byte("x"), 250<<10)
			for caller := range 400 {
				load.Go(func() {
					var body []byte
					if caller < 200 {
						body = large
					}
					for i := 0; !over.Load(); i++ {
						code, decision := s.post(t, client, fmt.Sprintf("%d-%d", caller, i), body)
						answers.add(fmt.Sprint(code, " ", decision))
						if decision == "OVERLOADED" {
							time.Sleep(20 * time.Millisecond) // a polite caller waits for much longer
						}
					}
				})
			}
			peak, pending, held := 0.0, 0.0, 0.0
			for begun := time.Now(); time.Since(begun) < 6*time.Second; time.Sleep(50 * time.Millisecond) {
				peak = max(peak, s.metric(t, client, "process_resident_memory_bytes"))
				pending = max(pending, s.metric(t, client, `dedupd_store_pending_operations{policy="orders"}`))
				held = max(held, s.metric(t, client, "dedupd_requests_in_flight_bytes"))
			}
			over.Store(true)
			load.Wait()
			stalled := "503 UNAVAILABLE"
			if failure == "FailOpen" {
				stalled = "200 UNCHECKED"
			}
			t.Logf("%v; at most %v pending, %v MiB held, %v MiB more resident", answers, pending, held/(1<<20), (peak-idle)/(1<<20))
			answers.want(t, stalled, "503 OVERLOADED")
			if pending > 20 || held > 1<<20 {
				t.Errorf("%v operations pending, at most 20 wanted; %v bytes held, at most %d wanted", pending, held, 1<<20)
			}
			// Beside what is held: 400 connections, and the garbage that is not collected yet.
			if peak-idle > ballastSize+raceMemory*64<<20 {
				t.Errorf("%v MiB more than when idle", (peak-idle)/(1<<20))
			}
			for _, metric := range []string{`dedupd_store_refused_operations_total{policy="orders"}`, `dedupd_requests_refused_total{protocol="http"}`} {
				if s.metric(t, client, metric) == 0 {
					t.Errorf("%s: none", metric)
				}
			}

			redis.Resume()
			resumed = true
			deadline := time.Now().Add(20 * time.Second)
			for i := 0; ; i++ {
				code, decision := s.post(t, client, fmt.Sprint("after-", i), nil)
				if decision == "FRESH" {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("the store has gone on, and the answer is still %d %s", code, decision)
				}
			}
			after := &tally{}
			for i := range 100 {
				code, decision := s.post(t, client, fmt.Sprint("new-", i), nil)
				after.add(fmt.Sprint(code, " ", decision))
			}
			after.want(t, "200 FRESH")
			if n := s.metric(t, client, `dedupd_store_pending_operations{policy="orders"}`); n != 0 {
				t.Errorf("%v operations pending when nobody waits", n)
			}
			if n := s.metric(t, client, "dedupd_requests_in_flight_bytes"); n != 0 {
				t.Errorf("%v bytes held when nobody waits", n)
			}
		})
	}
}

// tally counts answers.
type tally struct {
	mu     sync.Mutex
	counts map[string]int // guarded by mu
}

func (c *tally) add(answer string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[answer]++
}

func (c *tally) String() string { return fmt.Sprint(c.counts) }

// want expects each of these answers, and no other.
func (c *tally) want(t *testing.T, answers ...string) {
	t.Helper()
	others := len(c.counts)
	for _, a := range answers {
		if c.counts[a] == 0 {
			t.Errorf("never answered %s: %v", a, c)
		} else {
			others--
		}
	}
	if others > 0 {
		t.Errorf("answers beside %q: %v", answers, c)
	}
}

// post checks a message of the policy orders. It returns the status, and the decision or the
// error's code; an error that asks for a retry says when.
func (s *served) post(t *testing.T, client *http.Client, id string, body []byte) (status int, answer string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodPost, s.url+"/v1/policies/orders/check", bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	request.Header.Set("Id", id)
	request.Header.Set("Dedup-Consumer", "billing")
	// A connection that was opened ahead of need may be closed by the server, whose wait for a request is
	// over, just as one is sent on it. Go's client asks again if it knows that it may.
	attempt := rand.Text()
	request.Header.Set("Dedup-Attempt", attempt)
	request.Header.Set("Idempotency-Key", attempt)
	response, err := client.Do(request)
	if err != nil {
		return 0, "no answer: " + err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	var fields struct{ Decision, Code string }
	if err := json.NewDecoder(response.Body).Decode(&fields); err != nil {
		return response.StatusCode, "no answer: " + err.Error()
	}
	if response.StatusCode == http.StatusServiceUnavailable && response.Header.Get("Retry-After") == "" {
		return response.StatusCode, fields.Code + " without Retry-After"
	}
	return response.StatusCode, fields.Decision + fields.Code
}

// metric is the value of a metric without labels, or with those that its name has.
func (s *served) metric(t *testing.T, client *http.Client, name string) float64 {
	t.Helper()
	response, err := client.Get(s.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?m)^" + regexp.QuoteMeta(name) + " (.*)$").FindSubmatch(text)
	if found == nil {
		return 0
	}
	value, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}
