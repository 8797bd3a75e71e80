package controllers_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// A cache may be behind the operator's own last writes.
func TestACacheThatIsBehindDoesNoHarm(t *testing.T) {
	versions := func(w *world) map[string]string {
		all := map[string]string{}
		for kind, object := range every() {
			if w.exists(object) {
				all[kind] = object.GetResourceVersion()
			}
		}
		return all
	}
	for name, before := range map[string]func(w *world){
		"it does not show the children yet": func(*world) {},
		"it shows the children before their last change": func(w *world) {
			w.reconcile()
			w.change(everythingSet)
		},
		"it shows children that are gone": func(w *world) {
			w.change(autoscaled)
			w.reconcile()
			w.change(replicas(1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create()
			before(w)
			old := every()
			for kind, object := range old {
				if !w.exists(object) {
					old[kind] = nil
				}
			}
			w.reconcile()
			want := versions(w)
			current := w.r.Client
			w.r.Client = interceptor.NewClient(k8s, interceptor.Funcs{
				Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, o ...client.GetOption) error {
					kind, err := w.kind(object)
					shown, isChild := old[kind]
					switch {
					case err != nil || !isChild:
						return c.Get(ctx, key, object, o...)
					case shown == nil:
						return apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource(kind).GroupResource(), key.Name)
					}
					return scheme.Convert(shown, object, nil)
				},
			})
			w.reconcile()
			w.r.Client = current
			for kind, version := range versions(w) {
				if version != want[kind] {
					t.Errorf("the %s was changed", kind)
				}
			}
			w.written()
			w.reconcile()
			if written := w.written(); written != nil {
				t.Errorf("once it has caught up it wrote %v", written)
			}
		})
	}
}

func (w *world) kind(object client.Object) (string, error) {
	gvk, err := k8s.GroupVersionKindFor(object)
	return gvk.Kind, err
}

func TestAPolicyOfYesterdayIsNotPublishedAndIsMended(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	yesterday := w.policy()
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
	w.reconcile()
	want := w.policy().Status
	if _, err := w.r.Reconcile(ctx, yesterday); err != nil && !apierrors.IsConflict(err) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, w.policy().Status); diff != "" {
		t.Errorf("published (-before +after):\n%s", diff)
	}
	// The ConfigMap that it wrote is an event, which brings the policy of today.
	w.reconcile()
	if cm := get(w, &corev1.ConfigMap{}); !strings.Contains(cm.Data[v1alpha1.PolicyFile], "ttl: 2h") {
		t.Errorf("the ConfigMap holds\n%s", cm.Data[v1alpha1.PolicyFile])
	}
	if p := w.policy(); p.Status.ObservedGeneration != p.Generation {
		t.Errorf("observed generation %d of %d", p.Status.ObservedGeneration, p.Generation)
	}
}

// What it would publish is what a cache that is behind shows, and not what the policy's status is.
func TestAStatusThatIsAsTheCacheShowsItIsNotTakenForPublished(t *testing.T) {
	w := newWorld(t)
	w.create()
	w.ready()
	yesterday := w.policy()
	d := get(w, &appsv1.Deployment{})
	d.Status.AvailableReplicas = 1
	must(t, k8s.Status().Update(ctx, d))
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionReady, isFalse, v1alpha1.ReasonNotReady)
	w.roll("a", "b")
	w.written()
	if _, err := w.r.Reconcile(ctx, yesterday); !apierrors.IsConflict(err) {
		t.Errorf("%v, want a conflict, for another try", err)
	}
	if written := w.written(); written != nil {
		t.Errorf("wrote %v, which cannot succeed", written)
	}
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionReady, isTrue, v1alpha1.ReasonReady)
	w.written()
	w.reconcile()
	if written := w.written(); written != nil {
		t.Errorf("wrote %v", written)
	}
}

func TestOfAPolicyThatIsGoneNothingIsKept(t *testing.T) {
	w := newWorld(t)
	named := func() {
		t.Helper()
		_, err := w.r.Named(ctx, reconcile.Request{NamespacedName: client.ObjectKey{Namespace: w.namespace, Name: "orders"}})
		must(t, err)
	}
	w.create()
	named()
	if n := w.r.Remembered(); n != 1 {
		t.Errorf("after a status was published, something is kept of %d policies", n)
	}
	must(t, k8s.Delete(ctx, w.policy()))
	named()
	if n := w.r.Remembered(); n != 0 {
		t.Errorf("something is kept of %d policies", n)
	}
}

// Leader election keeps one at work, but one that has lost its lease may not know it yet.
func TestTwoOperatorsAtOnceAgree(t *testing.T) {
	w := newWorld(t)
	startManager(w)
	startManager(w)
	w.create(everythingSet)
	w.becomesReady()
	must(t, k8s.Delete(ctx, get(w, &appsv1.Deployment{})))
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
	w.eventually("the change is applied", func() bool {
		return strings.Contains(get(w, &corev1.ConfigMap{}).Data[v1alpha1.PolicyFile], "ttl: 2h")
	})
	w.becomesReady()
	end := quiet(t, w)
	for range 10 {
		w.poke(time.Now().String())
		time.Sleep(300 * time.Millisecond)
	}
	if writes, _ := audited(t, w.userAgent(), end); len(writes) > 0 {
		t.Errorf("agreed, they write %v", writes)
	}
}
