package controllers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// fault counts the calls of the API server, and fails the n-th: it is not sent. If it crashes,
// the n-th is sent, but nobody is there to read its answer, or to send another.
type fault struct {
	http.RoundTripper

	at, calls int
	crash     bool
}

var errFault = errors.New("the connection broke")

func (f *fault) RoundTrip(r *http.Request) (*http.Response, error) {
	f.calls++
	switch {
	case f.calls == f.at && !f.crash, f.calls > f.at && f.crash:
		return nil, errFault
	case f.calls == f.at:
		response, err := f.RoundTripper.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		return nil, errors.Join(errFault, response.Body.Close())
	}
	return f.RoundTripper.RoundTrip(r)
}

// faulty gives the reconciler a connection with a fault. What it reads from its cache is no call.
func (w *world) faulty(at int, crash bool) *fault {
	w.Helper()
	f := &fault{at: at, crash: crash}
	cfg := rest.CopyConfig(restConfig)
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		f.RoundTripper = rt
		return f
	})
	c, err := client.NewWithWatch(cfg, client.Options{Scheme: scheme, Mapper: k8s.RESTMapper()})
	must(w, err)
	w.r.Live = c
	w.r.Client = interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, _ client.WithWatch, key client.ObjectKey, object client.Object, o ...client.GetOption) error {
			return k8s.Get(ctx, key, object, o...)
		},
	})
	return f
}

// sound gives the reconciler a connection that works, as a new process has one.
func (w *world) sound() { w.r.Client, w.r.Live = k8s, k8s }

func (w *world) settle() {
	w.Helper()
	w.untilSettled(func() error {
		_, err := w.r.Reconcile(ctx, w.policy())
		return err
	})
}

// untilSettled reconciles as the controller does, again after an error. Of a process that crashed
// another takes over.
func (w *world) untilSettled(reconcile func() error) {
	w.Helper()
	for range 4 {
		err := reconcile()
		if err == nil {
			return
		}
		if !errors.Is(err, errFault) {
			w.Fatal(err)
		}
		w.sound()
	}
	w.Fatal("it does not settle")
}

// live is a policy's whole life but for its end: made, ready, changed so that objects go and
// others change, ready again.
func (w *world) live() {
	w.Helper()
	w.create(autoscaled)
	w.settle()
	w.roll("a", "b")
	w.settle()
	w.change(func(s *v1alpha1.DedupPolicySpec) {
		replicas(1)(s)
		s.TTL, s.Store.Redis.Addresses = "2h", []string{"other:6379"}
	})
	w.settle()
	w.roll("a", "b")
	w.settle()
}

func TestAfterAFailureOrACrashAtAnyCallTheEndIsTheSame(t *testing.T) {
	w := newWorld(t)
	f := w.faulty(0, false)
	w.live()
	calls, want := f.calls, w.state()
	if calls < 20 {
		t.Fatalf("%d calls: a fault among them proves little", calls)
	}
	for _, crash := range []bool{false, true} {
		for n := 1; n <= calls; n++ {
			w.clear()
			f := w.faulty(n, crash)
			w.live()
			if f.calls < n {
				t.Fatalf("only %d calls", f.calls)
			}
			if diff := cmp.Diff(want, w.state()); diff != "" {
				t.Errorf("call %d of %d, crash %v (-without +with the fault):\n%s", n, calls, crash, diff)
			}
		}
	}
}

// specs are what a policy may be changed to, each from a policy with the defaults.
var specs = map[string]func(*v1alpha1.DedupPolicySpec){
	"defaults":   func(*v1alpha1.DedupPolicySpec) {},
	"everything": everythingSet,
	"autoscaled": autoscaled,
	"memory":     inMemory,
	"one":        replicas(1),
	"five":       replicas(5),
	"sentinel": func(s *v1alpha1.DedupPolicySpec) {
		s.Store.Redis.Mode, s.Store.Redis.MasterName = v1alpha1.RedisSentinel, "main"
	},
	"claim, epoch 2": func(s *v1alpha1.DedupPolicySpec) {
		s.Mode, s.Claim, s.Epoch = v1alpha1.ModeClaim, &v1alpha1.ClaimSpec{Lease: "5s"}, 2
	},
}

func TestWhereverAPolicyComesFromItsObjectsAreTheSame(t *testing.T) {
	w := newWorld(t)
	w.sound()
	fresh := w.create().Spec
	become := func(name string) {
		w.change(func(s *v1alpha1.DedupPolicySpec) {
			*s = *fresh.DeepCopy()
			specs[name](s)
		})
		w.settle()
	}
	want := map[string]map[string]string{}
	var names []string
	for name := range specs {
		names = append(names, name)
		w.clear()
		w.create()
		become(name)
		want[name] = w.state()
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w.clear()
	w.create()
	walk := []string{}
	for range 40 {
		name := names[random.IntN(len(names))]
		walk = append(walk, name)
		become(name)
		if diff := cmp.Diff(want[name], w.state()); diff != "" {
			t.Fatalf("after %q (-fresh +walked):\n%s", walk, diff)
		}
	}
}

// state is what a policy has come to: its children and its status, without what differs from one
// object to its successor, and without the replicas that an autoscaler may set.
func (w *world) state() map[string]string {
	w.Helper()
	state := map[string]string{}
	scaled := false
	for kind, object := range every() {
		if !w.exists(object) {
			continue
		}
		scaled = scaled || kind == "HorizontalPodAutoscaler"
		for _, owner := range object.GetOwnerReferences() {
			if owner.UID != w.policy().UID {
				w.Errorf("the %s is owned by another %s", kind, owner.Name)
			}
		}
		object.SetUID("")
		object.SetResourceVersion("")
		object.SetGeneration(0)
		object.SetManagedFields(nil)
		object.SetCreationTimestamp(metav1.Time{})
		object.SetOwnerReferences(nil)
		annotations := object.GetAnnotations()
		delete(annotations, v1alpha1.AnnotationApplied) // it covers the owner's UID
		object.SetAnnotations(annotations)
		switch o := object.(type) {
		case *corev1.Service:
			o.Spec.ClusterIP, o.Spec.ClusterIPs = "", nil
		case *appsv1.Deployment:
			o.Status = appsv1.DeploymentStatus{}
		}
		state[kind] = w.json(object)
	}
	if scaled {
		d := get(w, &appsv1.Deployment{})
		state["Deployment"] = w.json(d.Spec.Template)
	}
	status := w.policy().Status
	status.ObservedGeneration = 0
	for i := range status.Conditions {
		status.Conditions[i].ObservedGeneration = 0
	}
	state["status"] = w.json(status)
	return state
}

func (w *world) json(v any) string {
	w.Helper()
	data, err := json.MarshalIndent(v, "", " ")
	must(w, err)
	return string(data)
}

// clear deletes the policy, and what belonged to it as the garbage collector would.
func (w *world) clear() {
	w.Helper()
	must(w, k8s.Delete(ctx, w.policy()))
	objects := every()
	objects["Pod"] = &corev1.Pod{}
	for kind, object := range objects {
		if err := k8s.DeleteAllOf(ctx, object, client.InNamespace(w.namespace), client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
			w.Fatal(fmt.Errorf("clearing %s: %w", kind, err))
		}
	}
	w.sound()
}
