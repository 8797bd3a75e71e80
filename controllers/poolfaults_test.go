package controllers_test

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// live is the life of two policies in a pool: made, ready, one moves out and the other is edited, ready again.
func (w *poolWorld) live() {
	w.Helper()
	w.add("first", pooled("small"))
	w.add("second", pooled("small"), withSecret("auth"))
	w.settleAll()
	w.kubelet()
	w.settleAll()
	w.edit("first", func(s *v1alpha1.DedupPolicySpec) { s.Deployment, s.TTL = nil, "2h" })
	w.edit("second", pooled("other"))
	for range 3 {
		w.settleAll()
		w.kubelet()
	}
	w.settleAll()
}

func (w *poolWorld) settleAll() {
	w.Helper()
	w.untilSettled(w.reconcileAll)
}

// end is what everything has come to.
func (w *poolWorld) end() map[string]string {
	w.Helper()
	all := map[string]string{}
	for name, o := range w.objects() {
		o := essence(o)
		o.SetOwnerReferences(nil)
		annotations := maps.Clone(o.GetAnnotations())
		delete(annotations, v1alpha1.AnnotationApplied) // it covers the owners' UIDs
		o.SetAnnotations(annotations)
		if d, ok := o.(*appsv1.Deployment); ok {
			delete(d.Spec.Template.Annotations, v1alpha1.AnnotationDepartures) // it tells when
		}
		all[name] = w.json(o)
	}
	for _, p := range w.policies() {
		all[p.Name] = w.json(p.Status)
	}
	return all
}

// A fifth of the calls in each run, since each costs a life; which, and whether the process crashes there,
// is by chance.
func TestAfterAFailureOrACrashAtAnyCallPoolsEndTheSame(t *testing.T) {
	w := newPoolWorld(t)
	f := w.faulty(0, false)
	w.live()
	calls, want := f.calls, w.end()
	if calls < 40 {
		t.Fatalf("%d calls: a fault among them proves little", calls)
	}
	for n := 1 + rand.IntN(5); n <= calls; n += 5 {
		w.clearAll()
		crash := rand.IntN(2) == 0
		f := w.faulty(n, crash)
		w.live()
		if f.calls < n {
			t.Fatalf("only %d calls", f.calls)
		}
		if diff := cmp.Diff(want, w.end()); diff != "" {
			t.Errorf("call %d of %d, crash %v (-without +with the fault):\n%s", n, calls, crash, diff)
		}
	}
}

// The members are told of what keeps the pool's objects from being applied. Where nobody is left to be told, it
// is tried again all the same.
func TestAFailureThatNoMemberIsToldOfIsTriedAgain(t *testing.T) {
	for name, leave := range map[string]func(w *poolWorld){
		"nobody is left": func(w *poolWorld) {
			for _, p := range w.policies() {
				must(w, k8s.Delete(ctx, &p))
			}
		},
		"everybody is refused": func(w *poolWorld) {
			for _, p := range w.policies() {
				w.edit(p.Name, func(s *v1alpha1.DedupPolicySpec) { s.TTL = "0s" })
			}
			must(w, w.reconcileAll())
			for name, o := range w.objects() {
				if name != "ConfigMap small-dedupd-pool" && ofPoolItself(o) {
					must(w, k8s.Delete(ctx, o))
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newPoolWorld(t)
			life := func(at int) (calls int, end []string) {
				w.clearAll()
				w.add("first", pooled("small"))
				w.add("second", pooled("small"))
				w.step()
				leave(w)
				f := w.faulty(at, false)
				w.settleAll()
				return f.calls, w.names()
			}
			calls, want := life(0)
			if calls < 4 {
				t.Fatalf("%d calls: a fault among them proves little", calls)
			}
			for n := 1; n <= calls; n++ {
				_, end := life(n)
				if diff := cmp.Diff(want, end); diff != "" {
					t.Errorf("call %d of %d (-without +with the fault):\n%s", n, calls, diff)
				}
			}
		})
	}
}

// ofPoolItself reports whether an object is shared by a pool's members.
func ofPoolItself(o client.Object) bool {
	return o.GetLabels()[v1alpha1.LabelPool] != "" && o.GetLabels()[v1alpha1.LabelOwner] == ""
}

// clearAll deletes everything, as the garbage collector would.
func (w *poolWorld) clearAll() {
	w.Helper()
	must(w, k8s.DeleteAllOf(ctx, &v1alpha1.DedupPolicy{}, client.InNamespace(w.namespace)))
	must(w, k8s.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(w.namespace), client.GracePeriodSeconds(0)))
	for _, o := range w.objects() {
		must(w, k8s.Delete(ctx, o))
	}
	w.sound()
}
