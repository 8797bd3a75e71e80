package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

func memorySpec(entries int64) v1alpha1.StoreSpec {
	return v1alpha1.StoreSpec{Memory: &v1alpha1.MemoryStore{MaxEntries: entries}}
}

func TestMetrics(t *testing.T) {
	s := &stores{}
	f := start(t, func(o *options) { o.open = s.open })
	check := func(policy, name string) {
		f.do("POST", "/v1/policies/"+policy+"/check", "", "Dedup-Consumer: a", "Message-Id: "+name)
	}
	check("ids", "1")
	check("ids", "1")
	check("watched", "1")
	check("watched", "1")
	f.do("POST", "/v1/policies/ids/check", "", "Dedup-Consumer: a")
	claim := f.do("POST", "/v1/policies/orders/check", `{"user_id":1,"event_type":"a"}`, "Dedup-Consumer: a")
	f.do("POST", "/v1/policies/orders/check", `{"user_id":2,"event_type":"a"}`, "Dedup-Consumer: a")
	f.do("POST", "/v1/policies/orders/check", `{"user_id":3,"event_type":"a"}`, "Dedup-Consumer: a")
	f.do("POST", "/v1/policies/orders/complete", fmt.Sprintf(`{"key":%q,"token":%q}`, claim.field("key"), claim.field("token")))
	if _, err := f.rpc.Check(ctx(t), &pb.CheckRequest{Policy: "nope"}); err == nil {
		t.Fatal("no error")
	}
	s.fail.Store(true)
	check("ids", "2")
	eventually(t, "an unreachable store", func() bool { return !f.Status().Policies[1].Store.Reachable })

	text := f.do("GET", "/metrics", "").text
	for _, want := range []string{
		`dedupd_decisions_total{decision="FRESH",policy="ids",shadow=""} 1`,
		`dedupd_decisions_total{decision="DUPLICATE",policy="ids",shadow=""} 1`,
		`dedupd_decisions_total{decision="KEY_MISSING",policy="ids",shadow=""} 1`,
		`dedupd_decisions_total{decision="UNAVAILABLE",policy="ids",shadow=""} 1`,
		`dedupd_decisions_total{decision="FRESH",policy="watched",shadow="FRESH"} 1`,
		`dedupd_decisions_total{decision="FRESH",policy="watched",shadow="DUPLICATE"} 1`,
		`dedupd_duplicate_age_seconds_count{policy="ids"} 1`,
		`dedupd_duplicate_age_seconds_bucket{policy="ids",le="604800"} 1`,
		`dedupd_claims_in_flight{policy="orders"} 2`,
		`dedupd_settlements_total{code="OK",policy="orders",verb="complete"} 1`,
		`dedupd_store_duration_seconds_count{op="mark",policy="ids"} 3`,
		`dedupd_store_duration_seconds_count{op="complete",policy="orders"} 1`,
		`dedupd_store_errors_total{code="unavailable",policy="ids"} 1`,
		`dedupd_store_reachable{policy="ids"} 0`,
		`dedupd_requests_total{code="400",protocol="http",route="POST /v1/policies/{policy}/check"} 1`,
		`dedupd_requests_total{code="NotFound",protocol="grpc",route="Check"} 1`,
		`dedupd_config_reloads_total{result="success"} 1`,
		`dedupd_config_reload_success 1`,
		`dedupd_build_info{version="test"} 1`,
		`dedupd_panics_total 0`,
		"go_goroutines ", "process_cpu_seconds_total ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s", want)
		}
	}
}

func TestClaimsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClaims(time.Now)
		grant := func(token string) {
			c.granted("p", []engine.Answer{{Decision: engine.Fresh, Token: token, Lease: 30 * time.Second}, {Decision: engine.Duplicate}})
		}
		settle := func(verb store.Verb, token string, s engine.Settled) {
			c.settled("p", []engine.Settle{{Verb: verb, Token: token}}, []engine.Settled{s})
		}
		want := func(n int) {
			t.Helper()
			if got := c.sweep()["p"]; got != n {
				t.Errorf("%d in flight, want %d", got, n)
			}
		}
		for _, token := range []string{"a", "b", "c", "d", "d"} { // d: asked again after a lost answer
			grant(token)
		}
		want(4)
		settle(store.Complete, "a", engine.Settled{State: "COMPLETED"})
		settle(store.Complete, "a", engine.Settled{State: "COMPLETED"})
		want(3)
		settle(store.Release, "b", engine.Settled{Err: &engine.Error{Code: engine.Unavailable}})
		want(3)
		settle(store.Release, "b", engine.Settled{Err: &engine.Error{Code: engine.StaleToken}})
		want(2)
		time.Sleep(20 * time.Second)
		settle(store.Renew, "c", engine.Settled{State: "CLAIMED", Lease: 30 * time.Second})
		time.Sleep(20 * time.Second)
		want(1)
		time.Sleep(20 * time.Second)
		want(0)
	})
}

// A check of nothing is none of the store's calls.
func TestACallOfNoOperationsIsNotMeasured(t *testing.T) {
	s := &stores{}
	inner, err := s.open(nil)
	if err != nil {
		t.Fatal(err)
	}
	m := NewMetrics("test", time.Now)
	m.Measure(inner, "ids", slog.New(slog.DiscardHandler)).Apply(t.Context(), nil, nil)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "dedupd_store_duration_seconds" {
			t.Errorf("%v", family)
		}
	}
}

// panicking is a store with a bug.
type panicking struct{ store.Store }

func (panicking) Apply(context.Context, []store.Op, []store.Result) { panic("a bug") }

func TestAPanicIsAnswered(t *testing.T) {
	f := start(t, func(o *options) {
		o.open = func(p *policy.Policy) (store.Store, error) {
			s, err := openMemory(p)
			return panicking{s}, err
		}
	})
	r := f.do("POST", "/v1/policies/ids/check", "", "Dedup-Consumer: a", "Message-Id: 1")
	if r.status != 500 || r.field("code") != "INTERNAL" || strings.Contains(r.text, "a bug") {
		t.Errorf("HTTP: %d %s", r.status, r.text)
	}
	if _, err := f.rpc.Check(ctx(t), &pb.CheckRequest{Policy: "ids", Consumer: "a", Message: id("1")}); err == nil ||
		!strings.Contains(err.Error(), "Internal") || strings.Contains(err.Error(), "a bug") {
		t.Errorf("gRPC: %v", err)
	}
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.CheckStreamRequest{Id: 1, Request: &pb.CheckStreamRequest_Check{
		Check: &pb.CheckRequest{Policy: "ids", Consumer: "a", Message: id("1")},
	}}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err == nil || !strings.Contains(err.Error(), "Internal") {
		t.Errorf("stream: %v %v", r, err)
	}
	text := f.do("GET", "/metrics", "").text
	for _, want := range []string{
		"dedupd_panics_total 3", `code="500",protocol="http"`, `code="Internal",protocol="grpc",route="Check"`,
		`code="Internal",protocol="grpc",route="CheckStream"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if !strings.Contains(f.logs.String(), "a bug") {
		t.Error("the log does not have the cause")
	}
}

// After a panic in the middle of an answer only a broken connection tells the caller.
func TestAPanicAfterTheHeadersBreaksTheConnection(t *testing.T) {
	f := start(t)
	guarded := f.guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		panic("half way")
	}))
	defer func() {
		if cause, _ := recover().(error); !errors.Is(cause, http.ErrAbortHandler) {
			t.Errorf("got %v", cause)
		}
	}()
	guarded.ServeHTTP(discard{http.Header{}}, &http.Request{Pattern: "GET /"})
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}
