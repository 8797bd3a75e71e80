package server

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/policy"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// agedStore is a memory store whose history begins when it is told to.
type agedStore struct {
	store.Store
	health *atomic.Pointer[store.Health]
}

func (a agedStore) Health(context.Context) store.Health { return *a.health.Load() }

func TestLostHistoryIsToldAndCountedOnce(t *testing.T) {
	first := time.UnixMilli(1_790_000_000_123).UTC()
	var health atomic.Pointer[store.Health]
	health.Store(&store.Health{Safety: store.Safe, HistorySince: first})
	f := start(t, func(o *options) {
		o.open = func(p *policy.Policy) (store.Store, error) {
			s, err := openMemory(p)
			return agedStore{s, &health}, err
		}
	})
	want := func(step string, since time.Time, losses int) {
		t.Helper()
		eventually(t, step, func() bool { return f.Status().Policies[0].Store.HistorySince.Equal(since) })
		text := f.do("GET", "/metrics", "").text
		for _, line := range []string{
			fmt.Sprintf(`dedupd_store_history_lost_total{policy="ids"} %d`, losses),
			`dedupd_store_history_since_timestamp_seconds{policy="ids"} ` + strconv.FormatFloat(float64(since.UnixMilli())/1000, 'g', -1, 64),
		} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("%s: no line %s", step, line)
			}
		}
	}
	want("the history is known", first, 0)

	health.Store(&store.Health{Err: store.ErrUnavailable, Safety: store.SafetyUnknown})
	eventually(t, "the store is down", func() bool { return !f.Status().Policies[0].Store.Reachable })
	want("a store that does not answer has lost nothing", first, 0)

	second := first.Add(time.Hour)
	health.Store(&store.Health{Safety: store.Safe, HistorySince: second})
	want("the history begins anew", second, 1)
	for range 3 {
		f.askStores(ctx(t), time.Second)
	}
	want("and is counted once", second, 1)

	said, err := f.rpc.Status(ctx(t), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if since := said.GetPolicies()[0].GetStore().GetHistorySince().AsTime(); !since.Equal(second) {
		t.Errorf("over gRPC: history since %s, want %s", since, second)
	}
	if text := f.do("GET", "/v1/status", "").text; !strings.Contains(text, `"historySince":"`+second.Format(time.RFC3339Nano)+`"`) {
		t.Errorf("over HTTP: %s", text)
	}
}
