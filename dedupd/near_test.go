package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// A near cache is loaded in place, answers repeats of what was marked before, also while the
// store stands still, and notices what happens elsewhere when maxAge is over.
func TestANearCacheIsLoadedInPlace(t *testing.T) {
	redis := redistest.Start(t)
	manifest := strings.Replace(headerPolicy, "memory: {}", fmt.Sprintf("redis: {addresses: [%q]}", redis.Addr), 1)
	file := policyFile(t, manifest)
	s := startServe(t, "-f", file, "--store-timeout", "2s")
	client := &http.Client{Timeout: 30 * time.Second}
	want := func(id, decision string) {
		t.Helper()
		if code, got := s.post(t, client, id, nil); got != decision {
			t.Errorf("%s: %d %s, want %s", id, code, got, decision)
		}
	}
	const hits = `dedupd_near_cache_hits_total{policy="orders"}`
	want("1", "FRESH")
	want("1", "DUPLICATE")
	if n := s.metric(t, client, hits); n != 0 {
		t.Errorf("%v hits without a near cache", n)
	}

	load := func(nearCache string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(manifest+nearCache), 0o600); err != nil {
			t.Fatal(err)
		}
		reloads := `dedupd_config_reloads_total{result="success"}`
		before := s.metric(t, client, reloads)
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); s.metric(t, client, reloads) == before; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the file is not loaded anew")
			}
		}
	}
	load("  nearCache: {maxAge: 10m}\n")
	want("1", "DUPLICATE") // from the store, which is still the same
	want("2", "FRESH")
	redis.Pause()
	want("1", "DUPLICATE")
	want("2", "DUPLICATE")
	want("3", "UNAVAILABLE")
	redis.Resume()
	if n := s.metric(t, client, hits); n != 2 {
		t.Errorf("%v hits, want 2", n)
	}

	load("  nearCache: {maxAge: 100ms}\n")
	want("1", "DUPLICATE")
	redis.Must("FLUSHALL")
	deadline := time.Now().Add(20 * time.Second)
	for {
		code, got := s.post(t, client, "1", nil)
		if got == "FRESH" {
			break
		}
		if got != "DUPLICATE" || time.Now().After(deadline) {
			t.Fatalf("after the flush: %d %s, want DUPLICATE and then FRESH", code, got)
		}
	}
}
