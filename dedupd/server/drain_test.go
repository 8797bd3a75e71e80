package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dedupd/dedup-operator/dedupd/policy"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// keptStore outlives the service, so that a test can look up what was decided. It takes its
// time, so that there is always something on its way.
type keptStore struct{ store.Store }

func (keptStore) Close() error { return nil }

func (s keptStore) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	s.Store.Apply(ctx, ops, results)
	time.Sleep(2 * time.Millisecond)
}

// Callers over both protocols send as fast as they can while the service is stopped. What got
// no answer was not decided either.
func TestStoppingLosesNoAnswer(t *testing.T) {
	kept, err := openMemory(&policy.Policy{StoreSpec: memorySpec(1_000_000)})
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, func(o *options) {
		o.manifests = ids("1h", 1000)
		o.timing.DrainDelay = 100 * time.Millisecond
		o.open = func(*policy.Policy) (store.Store, error) { return keptStore{kept}, nil }
	})
	p := (*f.Registry.current.Load())["ids"].engine.Policy()
	var answered atomic.Int64
	var mu sync.Mutex
	var unanswered []string
	var load sync.WaitGroup
	for caller := range 8 {
		load.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			for i := 0; ; i++ {
				name := fmt.Sprintf("%d-%d", caller, i)
				var err error
				if caller%2 == 0 {
					err = f.checkHTTP(client, name)
				} else {
					_, err = f.rpc.Check(context.Background(), &pb.CheckRequest{Policy: "ids", Message: id(name)})
				}
				if err != nil {
					mu.Lock()
					unanswered = append(unanswered, name)
					mu.Unlock()
					return
				}
				answered.Add(1)
			}
		})
	}
	eventually(t, "load", func() bool { return answered.Load() > 500 })
	if err := f.stop(); err != nil {
		t.Errorf("stopping: %v", err)
	}
	load.Wait()
	results := make([]store.Result, 1)
	for _, name := range unanswered {
		kept.Apply(t.Context(), []store.Op{{Verb: store.Lookup, Key: p.StoreKey(name)}}, results)
		if results[0].Outcome != store.Absent {
			t.Errorf("%s was decided and not answered", name)
		}
	}
	kept.Apply(t.Context(), []store.Op{{Verb: store.Lookup, Key: p.StoreKey("0-0")}}, results)
	if results[0].Outcome != store.Granted {
		t.Fatal("0-0 is not found: this test looks in the wrong place")
	}
	t.Logf("%d answered, %d refused", answered.Load(), len(unanswered))
}

func (f *fixture) checkHTTP(client *http.Client, id string) error {
	request, err := http.NewRequest(http.MethodPost, f.url+"/v1/policies/ids/check", http.NoBody)
	if err != nil {
		return err
	}
	request.Header.Set("Message-Id", id)
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

func TestStoppingSaysSoAndGoesOnForAWhile(t *testing.T) {
	f := start(t, func(o *options) {
		o.manifests = ids("1h", 1000)
		o.timing.DrainDelay = 4 * time.Second // for four requests
	})
	f.cancel()
	eventually(t, "not ready", func() bool { return f.do("GET", "/readyz", "").status == 503 })
	r := f.do("POST", "/v1/policies/ids/check", "", "Message-Id: 1")
	if r.field("decision") != "FRESH" {
		t.Errorf("a request of a caller that does not know yet: %s", r.text)
	}
	conn := dial(t, f.url)
	_, _ = fmt.Fprintf(conn, "POST /v1/policies/ids/check HTTP/1.1\r\nHost: x\r\nMessage-Id: 2\r\nContent-Length: 0\r\n\r\n")
	if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "Connection: close") {
		t.Errorf("the connection is kept: %s %v", answer, err)
	}
	if f.do("GET", "/healthz", "").status != 200 {
		t.Error("healthz: the process would be killed for stopping")
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", f.grpcAddr); err == nil {
		t.Error("still listening")
	}
}

func TestStoppingEndsStreams(t *testing.T) {
	f := start(t, func(o *options) { o.manifests = ids("1h", 1000) })
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.CheckStreamRequest{Id: 1, Request: &pb.CheckStreamRequest_Check{
		Check: &pb.CheckRequest{Policy: "ids", Message: id("1")},
	}}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || r.GetAnswer().GetDecision() != pb.Decision_DECISION_FRESH {
		t.Fatalf("%v %v", r, err)
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("got %v", err)
	}
}

func TestStoppingDoesNotWaitForever(t *testing.T) {
	gate := &gatedStore{entered: make(chan int, 10), pass: make(chan struct{})}
	f := start(t, func(o *options) {
		o.manifests, o.open = ids("1h", 1000), gate.open
		o.timing.Drain = 50 * time.Millisecond
	})
	done := make(chan error, 1)
	go func() { done <- f.checkHTTP(&http.Client{Transport: &http.Transport{}}, "1") }()
	<-gate.entered
	err := f.stop()
	if err == nil || !strings.Contains(err.Error(), "still on their way") {
		t.Errorf("got %v", err)
	}
	f.stopErr = nil // as wanted
	close(gate.pass)
	if err := <-done; err == nil {
		t.Error("an answer from a server that was cut off")
	}
}
