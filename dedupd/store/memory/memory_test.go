package memory_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/record"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
	"github.com/dedupd/dedup-operator/dedupd/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(testing.TB) storetest.Fixture {
		c := storetest.NewClock()
		return storetest.Fixture{
			Store:   memory.New(memory.Options{MaxEntries: 1_000_000, Now: c.Now}),
			Advance: c.Advance,
		}
	})
}

func mark(key, attempt string, ttl time.Duration) store.Op {
	return store.Op{Verb: store.Mark, Key: key, Token: record.Token{Owner: record.OwnerOf(attempt)}, TTL: ttl}
}

func apply(s store.Store, op store.Op) store.Result {
	results := make([]store.Result, 1)
	s.Apply(context.Background(), []store.Op{op}, results)
	return results[0]
}

func TestAFullStoreRefusesWhatIsNewAndForgetsNothing(t *testing.T) {
	c := storetest.NewClock()
	s := memory.New(memory.Options{MaxEntries: 3, Now: c.Now})
	for i := range 3 {
		if r := apply(s, mark(fmt.Sprint(i), "a", time.Duration(i+1)*time.Minute)); r.Outcome != store.Granted {
			t.Fatalf("mark %d: %+v", i, r)
		}
	}
	r := apply(s, mark("new", "a", time.Minute))
	if !errors.Is(r.Err, store.ErrFull) || !errors.Is(r.Err, store.ErrUnavailable) || r.Outcome != 0 {
		t.Errorf("a new message in a full store: %+v, want ErrFull and ErrUnavailable and no outcome", r)
	}
	if r.Err != nil && !strings.Contains(r.Err.Error(), "store.memory.maxEntries 3") {
		t.Errorf("the error does not name the field and its value: %v", r.Err)
	}
	for i := range 3 {
		if r := apply(s, mark(fmt.Sprint(i), "b", time.Minute)); r.Outcome != store.Seen {
			t.Errorf("duplicate %d in a full store: %+v, want Seen", i, r)
		}
	}
	if h := s.Health(context.Background()); h.Err != nil || !strings.Contains(h.Reason, "full") {
		t.Errorf("health of a full store: %+v, want a reason that says so", h)
	}

	c.Advance(time.Minute)
	if r := apply(s, mark("new", "a", time.Hour)); r.Outcome != store.Granted {
		t.Errorf("a new message when the first record has expired: %+v, want Granted", r)
	}
	if r := apply(s, mark("newer", "a", time.Hour)); !errors.Is(r.Err, store.ErrFull) {
		t.Errorf("one more: %+v, want ErrFull", r)
	}
	if r := apply(s, store.Op{Verb: store.Forget, Key: "1"}); r.Outcome != store.Granted {
		t.Errorf("forgetting in a full store: %+v", r)
	}
	if r := apply(s, mark("newer", "a", time.Hour)); r.Outcome != store.Granted {
		t.Errorf("a new message in the place of a forgotten one: %+v, want Granted", r)
	}
}

func TestAFullStoreLetsClaimsBeTakenOverAndSettled(t *testing.T) {
	c := storetest.NewClock()
	s := memory.New(memory.Options{MaxEntries: 1, Now: c.Now})
	claim := mark("k", "a", time.Hour)
	claim.Verb, claim.Lease = store.Claim, time.Minute
	if r := apply(s, claim); r.Outcome != store.Granted {
		t.Fatalf("claim: %+v", r)
	}
	c.Advance(time.Minute)
	claim.Token.Owner = record.OwnerOf("b")
	r := apply(s, claim)
	if r.Outcome != store.Granted || r.Record.Fence != 2 {
		t.Fatalf("takeover: %+v, want Granted with fence 2", r)
	}
	complete := claim
	complete.Verb, complete.Token.Fence = store.Complete, 2
	if r := apply(s, complete); r.Outcome != store.Granted {
		t.Errorf("complete: %+v, want Granted", r)
	}
}

func TestHealthSaysThatARestartForgets(t *testing.T) {
	clock := storetest.NewClock()
	born := clock.Now()
	s := memory.New(memory.Options{MaxEntries: 1, Now: clock.Now})
	clock.Advance(time.Hour)
	h := s.Health(context.Background())
	if !h.HistorySince.Equal(born) {
		t.Errorf("history since %s, want %s", h.HistorySince, born)
	}
	if h.Err != nil || h.Safety != store.Unsafe || !strings.Contains(h.Reason, "a restart forgets everything") {
		t.Errorf("health: %+v", h)
	}
}
