package controllers_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

func TestLostHistoryIsToldOnce(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	since := func(when time.Time) func(*status.Status, *status.Policy) {
		return func(_ *status.Status, p *status.Policy) { p.Store.HistorySince = when }
	}
	want := func(step string, when time.Time, event string) {
		t.Helper()
		w.reconcile()
		said := "; history is complete since " + when.Format(time.RFC3339)
		if m := w.condition(v1alpha1.ConditionStoreSafe).Message; !strings.HasSuffix(m, said) {
			t.Errorf("%s: StoreSafe says %q, want at its end %q", step, m, said)
		}
		if got := w.policy().Status.HistorySince; got == nil || !got.Time.Equal(when.Truncate(time.Second)) {
			t.Errorf("%s: history since %s, want %s", step, got, when)
		}
		if e := w.events.take(); event == "" && e != nil || event != "" && (len(e) != 1 || !strings.HasPrefix(e[0], event)) {
			t.Errorf("%s: events %q, want %q", step, e, event)
		}
	}
	first := time.UnixMilli(1_790_000_000_123).UTC()
	w.pods.change(since(first))
	want("the first look", first, "")

	w.pods.change(since(time.Time{}))
	want("pods that do not know yet", first, "")

	second := first.Add(time.Hour)
	said := w.well()
	said.Policies[0].Store.HistorySince = second
	w.pods.change(since(first))
	w.pods.set(address(0), said)
	want("one pod has noticed", second, "Warning HistoryLost: the store has lost what it remembered")
	w.written()
	w.pods.change(since(second))
	want("all have", second, "")
	if written := w.written(); written != nil {
		t.Errorf("written again: %q", written)
	}
}

func TestWhatHappensToHistoryIsTold(t *testing.T) {
	cases := map[string]struct {
		change func(*v1alpha1.DedupPolicySpec)
		event  string
	}{
		"other addresses": {
			func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Addresses = []string{"redis2:6379"} },
			"Warning StoreMoved: the store is now Standalone [redis2:6379] and was Standalone [redis:6379]: ",
		},
		"another topology": {
			func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Mode = v1alpha1.RedisCluster },
			"Warning StoreMoved: ",
		},
		"a higher epoch": {
			func(s *v1alpha1.DedupPolicySpec) { s.Epoch = 2 },
			"Normal EpochRaised: epoch 2 begins: what was remembered in epoch 1 no longer counts",
		},
		"a higher epoch at other addresses": {
			func(s *v1alpha1.DedupPolicySpec) { s.Epoch, s.Store.Redis.Addresses = 2, []string{"redis2:6379"} },
			"Normal EpochRaised: ",
		},
		"credentials": {
			func(s *v1alpha1.DedupPolicySpec) {
				s.Store.Redis.CredentialsSecretRef = &v1alpha1.SecretRef{Name: "auth"}
			}, "",
		},
		"ttl": {func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" }, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create()
			w.ready()
			w.change(c.change)
			w.reconcile()
			w.reconcile()
			e := w.events.take()
			if c.event == "" && e != nil || c.event != "" && (len(e) != 1 || !strings.HasPrefix(e[0], c.event)) {
				t.Errorf("events %q, want one %q", e, c.event)
			}
		})
	}
}

func TestAMoveWithinPostgresIsTold(t *testing.T) {
	cases := map[string]struct {
		change func(*v1alpha1.PostgresStore)
		event  string
	}{
		"other addresses": {
			func(s *v1alpha1.PostgresStore) { s.Addresses = []string{"pg-2:5432"} },
			"Warning StoreMoved: the store is now schema dedupd of database dedup at [pg-2:5432] and was schema dedupd of database dedup at [pg:5432]: ",
		},
		"another database": {
			func(s *v1alpha1.PostgresStore) { s.Database = "other" }, "Warning StoreMoved: the store is now schema dedupd of database other ",
		},
		"another schema": {
			func(s *v1alpha1.PostgresStore) { s.Schema = "other" }, "Warning StoreMoved: the store is now schema other of ",
		},
		"credentials": {func(s *v1alpha1.PostgresStore) { s.CredentialsSecretRef.Name = "other" }, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create(inPostgres)
			w.ready()
			w.change(func(s *v1alpha1.DedupPolicySpec) { c.change(s.Store.Postgres) })
			w.reconcile()
			e := w.events.take()
			if c.event == "" && e != nil || c.event != "" && (len(e) != 1 || !strings.HasPrefix(e[0], c.event)) {
				t.Errorf("events %q, want one %q", e, c.event)
			}
		})
	}
}

func TestAMendedConfigMapIsNoMove(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	cm := get(w, &corev1.ConfigMap{})
	cm.Data["policy.yaml"] = strings.ReplaceAll(cm.Data["policy.yaml"], "redis:6379", "elsewhere:6379")
	must(t, k8s.Update(ctx, cm))
	w.reconcile()
	if e := w.events.take(); e != nil {
		t.Errorf("events %q", e)
	}
}

func TestOrderOfClusterNodesIsNoMove(t *testing.T) {
	w := newWorld(t)
	w.create(func(s *v1alpha1.DedupPolicySpec) {
		s.Store.Redis.Mode, s.Store.Redis.Addresses = v1alpha1.RedisCluster, []string{"a:1", "b:1"}
	})
	w.ready()
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.Store.Redis.Addresses = []string{"b:1", "a:1"} })
	w.reconcile()
	if e := w.events.take(); e != nil {
		t.Errorf("events %q", e)
	}
}

func inPostgres(s *v1alpha1.DedupPolicySpec) {
	s.Store = v1alpha1.StoreSpec{Postgres: &v1alpha1.PostgresStore{
		Addresses: []string{"pg:5432"}, Database: "dedup", CredentialsSecretRef: v1alpha1.SecretRef{Name: "auth"},
	}}
}

// Another store has a history of its own, and the one of before has lost nothing.
func TestAnotherKindOfStoreIsNoLossOfHistory(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.DedupPolicySpec){"Postgres": inPostgres, "Memory": inMemory} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create()
			w.ready()
			since := func(when time.Time) *metav1.Time {
				t.Helper()
				w.pods.change(func(_ *status.Status, p *status.Policy) { p.Store.HistorySince = when })
				w.reconcile()
				return w.policy().Status.HistorySince
			}
			first := time.Unix(1_790_000_000, 0)
			since(first)
			w.change(func(s *v1alpha1.DedupPolicySpec) {
				change(s)
				s.Epoch = 2
			})
			if got := since(first); got != nil { // The pods are of before.
				t.Errorf("while no pod has the new store its history is complete since %s", got)
			}
			w.roll("a", "b")
			second := first.Add(time.Hour)
			if got := since(second); got == nil || !got.Time.Equal(second) {
				t.Errorf("the new store's history is complete since %s, want %s", got, second)
			}
			e := w.events.take()
			if slices.ContainsFunc(e, func(e string) bool { return strings.Contains(e, v1alpha1.EventHistoryLost) }) {
				t.Errorf("events %q", e)
			}
		})
	}
}
