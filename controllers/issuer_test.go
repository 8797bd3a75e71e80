package controllers_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/dedupd/dedup-operator/controllers"
	"github.com/dedupd/dedup-operator/dedupd/caller"
	"github.com/dedupd/dedup-operator/dedupd/caller/callertest"
)

func TestTheIssuerIsAskedOnceForAllPolicies(t *testing.T) {
	var looks, down atomic.Int64
	var keys atomic.Value
	keys.Store("rsa")
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case down.Load() > 0:
			http.Error(w, "no", http.StatusForbidden)
		case r.URL.Path == caller.DiscoveryPath:
			_, _ = w.Write(callertest.Discovery())
		case r.URL.Path == caller.KeysPath:
			looks.Add(1)
			_, _ = w.Write(callertest.Set(t, keys.Load().(string)))
		}
	}))
	t.Cleanup(api.Close)
	clock := clocktesting.NewFakePassiveClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	down.Store(1)
	issuer, err := controllers.NewIssuer(&rest.Config{Host: api.URL}, clock)
	must(t, err)
	want := func(name string, n int64) {
		t.Helper()
		got, err := issuer.Keys(ctx)
		if err != nil || !strings.Contains(string(got), `"`+name+`"`) || looks.Load() != n {
			t.Errorf("%s, %v after %d looks; want those of %s after %d", got, err, looks.Load(), name, n)
		}
	}
	later := func() { clock.SetTime(clock.Now().Add(30 * time.Second)) }

	if _, err := issuer.Keys(ctx); err == nil || !strings.Contains(err.Error(), "GET "+caller.DiscoveryPath) {
		t.Errorf("with nothing to be had: %v", err)
	}
	down.Store(0)
	if _, err := issuer.Keys(ctx); err == nil {
		t.Error("asked again at once")
	}
	later()
	var policies sync.WaitGroup
	for range 20 {
		policies.Go(func() { want("rsa", 1) })
	}
	policies.Wait()
	keys.Store("another")
	want("rsa", 1)
	later()
	want("another", 2)
	down.Store(1)
	later()
	want("another", 2) // a look that failed
	down.Store(0)
	later()
	want("another", 3)
}
