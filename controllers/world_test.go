package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/retry"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers"
	"github.com/dedupd/dedup-operator/controllers/render"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

var ctx = context.Background()

// world is one test's namespace, a reconciler that the test calls itself, and all that the
// reconciler looks at.
type world struct {
	*testing.T
	namespace string
	clock     *clocktesting.FakePassiveClock
	pods      *podStatus
	events    *eventLog
	r         *controllers.Reconciler

	// cached, if not nil, is the Deployment as the reconciler's cache shows it.
	cached *appsv1.Deployment

	mu     sync.Mutex
	writes []string // guarded by mu: what the reconciler wrote
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	must(t, k8s.Create(ctx, ns))
	w := &world{
		T: t, namespace: ns.Name,
		clock:  clocktesting.NewFakePassiveClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)),
		pods:   &podStatus{},
		events: &eventLog{},
	}
	issuer, err := controllers.NewIssuer(restConfig, w.clock)
	must(t, err)
	w.r = &controllers.Reconciler{
		Client: interceptor.NewClient(k8s, w.counting()),
		Live:   k8s,
		Events: w.events,
		Status: w.pods,
		Issuer: issuer,
		Clock:  w.clock,
		Render: render.Options{Image: "dedup-operator:test", OperatorNamespace: "dedup-system"},
	}
	return w
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// counting writes down every write of the reconciler, and plays its cache.
func (w *world) counting() interceptor.Funcs {
	wrote := func(format string, args ...any) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.writes = append(w.writes, fmt.Sprintf(format, args...))
	}
	return interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, o ...client.GetOption) error {
			if d, ok := object.(*appsv1.Deployment); ok && w.cached != nil {
				w.cached.DeepCopyInto(d)
				return nil
			}
			return c.Get(ctx, key, object, o...)
		},
		Apply: func(ctx context.Context, c client.WithWatch, a runtime.ApplyConfiguration, o ...client.ApplyOption) error {
			wrote("apply %T", a)
			return c.Apply(ctx, a, o...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, object client.Object, o ...client.DeleteOption) error {
			wrote("delete %T", object)
			return c.Delete(ctx, object, o...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, object client.Object, p client.Patch, o ...client.PatchOption) error {
			wrote("patch %T %s", object, object.GetName())
			return c.Patch(ctx, object, p, o...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, object client.Object, p client.Patch, o ...client.SubResourcePatchOption) error {
			wrote("patch %s", sub)
			return c.SubResource(sub).Patch(ctx, object, p, o...)
		},
		Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
			return errors.New("the reconciler creates by apply")
		},
		Update: func(context.Context, client.WithWatch, client.Object, ...client.UpdateOption) error {
			return errors.New("the reconciler never updates")
		},
	}
}

// written are the writes since it was last called.
func (w *world) written() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	written := w.writes
	w.writes = nil
	return written
}

// add makes a policy of a name and the store redis:6379, changed.
func (w *world) add(name string, changes ...func(*v1alpha1.DedupPolicySpec)) *v1alpha1.DedupPolicy {
	w.Helper()
	p := &v1alpha1.DedupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name},
		Spec: v1alpha1.DedupPolicySpec{
			Key:   v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "message-id"}},
			TTL:   "1h",
			Store: v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{Addresses: []string{"redis:6379"}}},
		},
	}
	for _, change := range changes {
		change(&p.Spec)
	}
	must(w, k8s.Create(ctx, p))
	return p
}

func (w *world) named(name string) *v1alpha1.DedupPolicy {
	w.Helper()
	p := &v1alpha1.DedupPolicy{}
	must(w, k8s.Get(ctx, client.ObjectKey{Namespace: w.namespace, Name: name}, p))
	return p
}

// edit updates a policy's spec.
func (w *world) edit(name string, change func(*v1alpha1.DedupPolicySpec)) {
	w.Helper()
	w.retried(func() error {
		p := w.named(name)
		change(&p.Spec)
		return k8s.Update(ctx, p)
	})
}

// retried reads and writes an object, again if a manager wrote it in between.
func (w *world) retried(write func() error) {
	w.Helper()
	must(w, retry.RetryOnConflict(retry.DefaultBackoff, write))
}

// Most tests are about one policy, orders.

func (w *world) create(changes ...func(*v1alpha1.DedupPolicySpec)) *v1alpha1.DedupPolicy {
	w.Helper()
	return w.add("orders", changes...)
}

func (w *world) change(change func(*v1alpha1.DedupPolicySpec)) {
	w.Helper()
	w.edit("orders", change)
}

func (w *world) policy() *v1alpha1.DedupPolicy {
	w.Helper()
	return w.named("orders")
}

// reconcile reconciles the policy as it now is, and wants no error.
func (w *world) reconcile() reconcile.Result {
	w.Helper()
	result, err := w.r.Reconcile(ctx, w.policy())
	must(w, err)
	return result
}

// get reads the policy's child of an object's kind.
func get[T client.Object](w *world, into T) T {
	w.Helper()
	must(w, k8s.Get(ctx, childKey(w), into))
	return into
}

func childKey(w *world) client.ObjectKey {
	return client.ObjectKey{Namespace: w.namespace, Name: "orders-dedupd"}
}

// exists reports whether the policy has a child of an object's kind.
func (w *world) exists(object client.Object) bool {
	w.Helper()
	err := k8s.Get(ctx, childKey(w), object)
	if client.IgnoreNotFound(err) != nil {
		w.Fatal(err)
	}
	return err == nil
}

func (w *world) condition(name string) metav1.Condition {
	w.Helper()
	c := meta.FindStatusCondition(w.policy().Status.Conditions, name)
	if c == nil {
		w.Fatalf("there is no condition %s", name)
	}
	return *c
}

// wantCondition compares status and reason.
func (w *world) wantCondition(name string, status metav1.ConditionStatus, reason string) {
	w.Helper()
	if c := w.condition(name); c.Status != status || c.Reason != reason {
		w.Errorf("%s is %s, %s (%s); want %s, %s", name, c.Status, c.Reason, c.Message, status, reason)
	}
}

// every is an empty object of each kind that a policy may have.
func every() map[string]client.Object {
	return map[string]client.Object{
		"ServiceAccount": &corev1.ServiceAccount{}, "ConfigMap": &corev1.ConfigMap{}, "Service": &corev1.Service{},
		"NetworkPolicy": &networkingv1.NetworkPolicy{}, "Deployment": &appsv1.Deployment{},
		"PodDisruptionBudget": &policyv1.PodDisruptionBudget{}, "HorizontalPodAutoscaler": &autoscalingv2.HorizontalPodAutoscaler{},
	}
}

// roll plays the Deployment's controller and the kubelet: the Deployment has its replicas, and
// the pods run and say that all is well.
func (w *world) roll(names ...string) {
	w.Helper()
	var d *appsv1.Deployment
	w.retried(func() error {
		d = get(w, &appsv1.Deployment{})
		n := int32(len(names))
		d.Status = appsv1.DeploymentStatus{
			ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n,
		}
		return k8s.Status().Update(ctx, d)
	})
	for i, name := range names {
		w.startPod(name, d.Spec.Template.Labels, fmt.Sprintf("127.0.1.%d", i+1))
		w.pods.set(address(i), w.well())
	}
}

// startPod makes a pod and has it run, or lets the one that is there run.
func (w *world) startPod(name string, labels map[string]string, ip string) {
	w.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name, Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "dedupd", Image: "dedupd"}}},
	}
	must(w, client.IgnoreAlreadyExists(k8s.Create(ctx, pod)))
	w.retried(func() error {
		if err := k8s.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, ip
		pod.Status.PodIPs = []corev1.PodIP{{IP: ip}}
		return k8s.Status().Update(ctx, pod)
	})
}

// address is where the pod of that number is asked.
func address(i int) string { return fmt.Sprintf("127.0.1.%d:8080", i+1) }

// well is the status of a pod that runs the ConfigMap's policy with a safe store.
func (w *world) well() status.Status {
	w.Helper()
	return status.Status{Version: "test", Policies: []status.Policy{{
		Name: "orders", Namespace: w.namespace, Mode: "Mark",
		ConfigHash: get(w, &corev1.ConfigMap{}).Annotations[v1alpha1.AnnotationConfigHash],
		Store:      status.Store{Kind: w.policy().Spec.Store.Kind(), Reachable: true, Safety: "Safe"},
	}}}
}

// ready brings the policy to Ready.
func (w *world) ready() {
	w.Helper()
	w.reconcile()
	w.roll("a", "b")
	w.reconcile()
	w.wantCondition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.written()
	w.events.take()
}

// podStatus answers for the pods.
type podStatus struct {
	mu    sync.Mutex
	said  map[string]status.Status // guarded by mu: by address
	asked int                      // guarded by mu
}

// questions is how often a pod was asked.
func (p *podStatus) questions() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (p *podStatus) set(addr string, s status.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said == nil {
		p.said = map[string]status.Status{}
	}
	p.said[addr] = s
}

// change changes what every pod says of the policy.
func (p *podStatus) change(change func(*status.Status, *status.Policy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, addr := range slices.Collect(maps.Keys(p.said)) {
		s := p.said[addr]
		s.Policies = slices.Clone(s.Policies)
		change(&s, &s.Policies[0])
		p.said[addr] = s
	}
}

func (p *podStatus) Status(_ context.Context, addr string) (status.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	s, ok := p.said[addr]
	if !ok {
		return s, fmt.Errorf("nobody answers at %s", addr)
	}
	return s, nil
}

// eventLog records events.
type eventLog struct {
	mu  sync.Mutex
	all []string // guarded by mu
}

func (l *eventLog) Eventf(_, _ runtime.Object, kind, reason, _, note string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, kind+" "+reason+": "+fmt.Sprintf(note, args...))
}

// take returns the events since it was last called.
func (l *eventLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.all
	l.all = nil
	return all
}
