package controllers_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers"
)

// userAgent is by which the API server knows the managers of one test.
func (w *world) userAgent() string { return "dedup-operator/" + w.namespace }

// startManager runs the operator as it is run in a cluster, until stop is called.
func startManager(w *world) (stop func()) {
	w.Helper()
	return startManagerWith(w, interceptor.Funcs{})
}

// startManagerWith does so with a client of which something is different.
func startManagerWith(w *world, different interceptor.Funcs) (stop func()) {
	w.Helper()
	cfg := rest.CopyConfig(restConfig)
	cfg.UserAgent = w.userAgent()
	cacheOptions := controllers.CacheOptions()
	cacheOptions.DefaultNamespaces = map[string]cache.Config{w.namespace: {}} // the other tests' policies are theirs
	skip := true
	m, err := ctrl.NewManager(cfg, ctrl.Options{
		Scheme: scheme, Cache: cacheOptions, Metrics: metricsserver.Options{BindAddress: "0"},
		NewClient: func(config *rest.Config, o client.Options) (client.Client, error) {
			c, err := client.NewWithWatch(config, o)
			return interceptor.NewClient(c, different), err
		},
		Controller: config.Controller{SkipNameValidation: &skip}, // the second manager has a controller of the same name
	})
	must(w, err)
	must(w, controllers.SetupWithManager(m, controllers.Options{
		Image: "dedup-operator:test", OperatorNamespace: "dedup-system", StatusClient: w.pods,
	}))
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- m.Start(running) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Errorf("the manager: %v", err)
		}
	})
	w.Cleanup(stop)
	return stop
}

// eventually waits for what the manager does by itself.
func (w *world) eventually(what string, is func() bool) {
	w.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if is() {
			return
		}
	}
	w.Fatalf("never came true: %s", what)
}

func (w *world) isReady() bool {
	p := w.policy()
	return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady) && p.Status.ObservedGeneration == p.Generation
}

func TestManagerBringsAPolicyToReadyAndKeepsItSo(t *testing.T) {
	w := newWorld(t)
	stop := startManager(w)
	w.create(everythingSet)
	w.eventually("the Deployment is there", func() bool { return w.exists(&appsv1.Deployment{}) })
	w.eventually("the ConfigMap is there", func() bool { return w.exists(&corev1.ConfigMap{}) })
	w.roll("a", "b", "c")
	w.eventually("the policy is ready", w.isReady)

	w.eventually("the user is told", func() bool {
		var list eventsv1.EventList
		must(t, k8s.List(ctx, &list, client.InNamespace(w.namespace)))
		return slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool {
			return e.Regarding.Name == "orders" && e.Reason == v1alpha1.EventBecameReady && e.ReportingController == controllers.Name
		})
	})

	for kind, object := range every() {
		if kind == "HorizontalPodAutoscaler" {
			continue
		}
		must(t, k8s.Delete(ctx, get(w, object)))
		w.eventually("the "+kind+" is back", func() bool { return w.exists(object) })
	}
	w.roll("a", "b", "c")
	w.eventually("the policy is ready again", w.isReady)
	stop()

	// A restart: a new manager with an empty cache takes over what it finds.
	startManager(w)
	cm := get(w, &corev1.ConfigMap{})
	cm.Data["policy.yaml"] = "drifted"
	must(t, k8s.Update(ctx, cm))
	w.eventually("the ConfigMap is mended", func() bool {
		return strings.Contains(get(w, &corev1.ConfigMap{}).Data["policy.yaml"], "DedupPolicy")
	})

	// So does a change of the policy, all the way.
	w.change(func(s *v1alpha1.DedupPolicySpec) { s.TTL = "2h" })
	w.eventually("the change reached the ConfigMap", func() bool {
		return strings.Contains(get(w, &corev1.ConfigMap{}).Data["policy.yaml"], "ttl: 2h")
	})
	w.eventually("the policy waits for its pods", func() bool {
		return w.condition(v1alpha1.ConditionConfigLoaded).Reason == v1alpha1.ReasonOutdated
	})
	w.roll("a", "b", "c")
	w.eventually("the policy is ready with the change", w.isReady)
}

func TestManagerDoesNotTakeOverWhatItsCacheDoesNotShow(t *testing.T) {
	w := newWorld(t)
	theirs := &corev1.ConfigMap{}
	theirs.Namespace, theirs.Name, theirs.Data = w.namespace, "orders-dedupd", map[string]string{"whose": "theirs"}
	must(t, k8s.Create(ctx, theirs))
	startManager(w)
	w.create()
	w.eventually("the conflict is told", func() bool {
		c := meta.FindStatusCondition(w.policy().Status.Conditions, v1alpha1.ConditionAccepted)
		return c != nil && c.Reason == v1alpha1.ReasonConflict
	})
	if got := get(w, &corev1.ConfigMap{}); len(got.Labels) > 0 || len(got.OwnerReferences) > 0 {
		t.Errorf("it was taken over: %+v", got.ObjectMeta)
	}
}

// reconcileErrors is how many the metric has counted on which an alert rests.
func reconcileErrors(t *testing.T) (n float64) {
	t.Helper()
	families, err := metrics.Registry.Gather()
	must(t, err)
	for _, family := range families {
		if family.GetName() == "controller_runtime_reconcile_errors_total" {
			for _, m := range family.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

func TestConflictsAreNoErrorsAndAreTriedAgain(t *testing.T) {
	conflict := apierrors.NewConflict(v1alpha1.GroupVersion.WithResource("deduppolicies").GroupResource(), "orders", errors.New("modified"))
	for name, c := range map[string]struct {
		err    error
		change func(*v1alpha1.DedupPolicySpec)
		counts bool
	}{
		"a conflict":           {err: conflict, change: replicas(1)},
		"a conflict in a pool": {err: conflict, change: pooled("small")},
		"a failure":            {err: errFault, change: replicas(1), counts: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newPoolWorld(t)
			before := reconcileErrors(t)
			var patches atomic.Int32
			stop := startManagerWith(w.world, interceptor.Funcs{
				SubResourcePatch: func(ctx context.Context, cl client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
					if patches.Add(1) <= 2 {
						return c.err
					}
					return cl.SubResource(sub).Patch(ctx, o, p, opts...)
				},
			})
			w.create(c.change)
			w.followed("the policy is ready")
			stop()
			if n := reconcileErrors(t) - before; n > 0 != c.counts {
				t.Errorf("%v errors were counted", n)
			}
		})
	}
}

func TestTheOperatorsEndIsNoError(t *testing.T) {
	w := newWorld(t)
	before := reconcileErrors(t)
	writing := make(chan struct{})
	begun := sync.OnceFunc(func() { close(writing) })
	stop := startManagerWith(w, interceptor.Funcs{
		Apply: func(ctx context.Context, _ client.WithWatch, _ runtime.ApplyConfiguration, _ ...client.ApplyOption) error {
			begun()
			<-ctx.Done()
			return ctx.Err()
		},
	})
	w.create()
	<-writing
	stop()
	if n := reconcileErrors(t) - before; n > 0 {
		t.Errorf("%v errors were counted", n)
	}
}

func TestSetupWantsWhatItNeeds(t *testing.T) {
	for name, o := range map[string]controllers.Options{
		"Options.Image":             {OperatorNamespace: "a"},
		"Options.OperatorNamespace": {Image: "a"},
	} {
		if err := controllers.SetupWithManager(nil, o); err == nil || !strings.Contains(err.Error(), name+" is empty") {
			t.Errorf("without %s: %v", name, err)
		}
	}
}
