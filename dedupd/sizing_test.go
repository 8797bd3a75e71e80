package main

import (
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/key"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

func readable(s *sizing, n float64) float64 { return s.readable + redisTables(2*n) - redisTables(n) }

func compact(s *sizing, n float64) float64 { return s.compactBytes(2*n) - s.compactBytes(n) }

// The estimate is what a real server needs. Redis's own build of jemalloc has finer sizes than
// a distribution's, and so may need a little less.
func TestTheEstimateIsWhatRedisNeeds(t *testing.T) {
	for name, test := range map[string]struct {
		edit  *strings.Replacer
		bytes func(s *sizing, n float64) float64 // for n messages more than n
	}{
		"readable keys":  {strings.NewReplacer(), readable},
		"compact keys":   {strings.NewReplacer("addresses", "keyFormat: Compact, addresses"), compact},
		"compact claims": {strings.NewReplacer("addresses", "keyFormat: Compact, addresses", "ttl: 1h", "ttl: 1h\n  mode: Claim"), compact},
		"claims":         {strings.NewReplacer("ttl: 1h", "ttl: 1h\n  mode: Claim"), readable},
		"content that is verified": {
			strings.NewReplacer("{header: id}", "{header: id, verifyContent: true}", "ttl: 1h", "ttl: 1h\n  mode: Claim"),
			readable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			text := strings.Replace(headerPolicy, "memory: {}", fmt.Sprintf("redis: {addresses: [%q]}", server.Addr), 1)
			p := loadOne(t, test.edit.Replace(text))
			s, err := redis.New(redis.Options{Spec: *p.StoreSpec.Redis, Timeout: 10 * time.Second, Now: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			used := func() float64 {
				_, rest, _ := strings.Cut(fmt.Sprint(server.Must("info", "memory")), "used_memory:")
				number, _, _ := strings.Cut(rest, "\r\n")
				n, err := strconv.ParseFloat(number, 64)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			size := newSizing(p)
			fill(t, p, s, newSizing(p), "warm")
			before := used()
			n := fill(t, p, s, size, "id")
			needs := (used() - before) / n
			reckoned := test.bytes(size, n) / n
			if reckoned < needs*0.97 || reckoned > needs*1.2 {
				t.Errorf("reckoned %.0f bytes for each message, it needs %.0f", reckoned, needs)
			}
		})
	}
}

func TestTheEstimateIsWhatPostgresNeeds(t *testing.T) {
	server := postgrestest.Start(t)
	for name, edit := range map[string]*strings.Replacer{
		"marks":                    strings.NewReplacer(),
		"claims":                   strings.NewReplacer("ttl: 1h", "ttl: 1h\n  mode: Claim"),
		"content that is verified": strings.NewReplacer("{header: id}", "{header: id, verifyContent: true}"),
	} {
		t.Run(name, func(t *testing.T) {
			database := server.Database()
			p := loadOne(t, edit.Replace(strings.Replace(headerPolicy, "memory: {}", fmt.Sprintf(
				"postgres: {addresses: [%q], database: %s, credentialsSecretRef: {name: pg}}", server.Addr, database), 1)))
			s, err := postgres.New(postgres.Options{
				Spec: *p.StoreSpec.Postgres, Timeout: 20 * time.Second,
				SecretsDir: postgrestest.Secrets(t, map[string]string{"pg/username": "postgres", "pg/password": "unused"}),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			size := newSizing(p)
			n := fill(t, p, s, size, "id")
			var used float64
			server.Value(database, "SELECT sum(pg_total_relation_size(relid))::float8 FROM pg_partition_tree('dedupd.records')", &used)
			if reckoned := size.postgres / n; reckoned < used/n*0.85 || reckoned > used/n*1.3 {
				t.Errorf("reckoned %.0f bytes for each message, it needs %.0f", reckoned, used/n)
			}
		})
	}
}

func TestTheEstimateIsWhatMemoryNeeds(t *testing.T) {
	p := loadOne(t, headerPolicy)
	s := memory.New(memory.Options{MaxEntries: math.MaxInt, Now: time.Now})
	used := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	size := newSizing(p)
	before := used()
	n := fill(t, p, s, size, "id")
	needs := (used() - before) / n
	runtime.KeepAlive(s)
	if reckoned := size.memory / n; reckoned < needs*0.75 || reckoned > needs*1.4 {
		t.Errorf("reckoned %.0f bytes for each message, it needs %.0f", reckoned, needs)
	}
}

// fill has a store remember 32,768 messages, half of what a hash table of the next size holds.
func fill(t *testing.T, p *policy.Policy, s store.Store, size *sizing, name string) float64 {
	t.Helper()
	const batches, each = 64, 512
	e := engine.New(p, s, engine.Options{Now: time.Now, Timeout: 10 * time.Second})
	for b := range batches {
		requests := make([]engine.Request, each)
		for i := range requests {
			headers, err := key.NewMapHeaders(map[string]string{"Id": fmt.Sprintf("%s-7207bfe6-7b2d-685b-%06d", name, b*each+i)})
			if err != nil {
				t.Fatal(err)
			}
			requests[i] = engine.Request{Consumer: "billing", Message: key.Message{Headers: headers}}
		}
		var done []engine.Settle
		for _, a := range e.Check(t.Context(), requests) {
			if a.Decision != engine.Fresh {
				t.Fatalf("%+v", a)
			}
			size.add(a.Key)
			if a.Token != "" {
				done = append(done, engine.Settle{Verb: store.Complete, Key: a.Key, Token: a.Token})
			}
		}
		for _, settled := range e.Settle(t.Context(), done) {
			if settled.Err != nil {
				t.Fatal(settled.Err)
			}
		}
	}
	return batches * each
}

func loadOne(t *testing.T, manifest string) *policy.Policy {
	t.Helper()
	policies, err := policy.Load(policyFile(t, manifest), true)
	if err != nil {
		t.Fatal(err)
	}
	return policies[0]
}
