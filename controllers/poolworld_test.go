package controllers_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

// poolWorld is a world of several policies and pools.
type poolWorld struct {
	*world
	addresses map[string]string // of the pods, by the Deployment
}

func newPoolWorld(t *testing.T) *poolWorld {
	t.Helper()
	return &poolWorld{world: newWorld(t), addresses: map[string]string{}}
}

// pooled puts a policy into a pool.
func pooled(pool string) func(*v1alpha1.DedupPolicySpec) {
	return func(s *v1alpha1.DedupPolicySpec) {
		if s.Deployment == nil {
			s.Deployment = &v1alpha1.DeploymentSpec{}
		}
		s.Deployment.Pool = pool
	}
}

func withSecret(name string) func(*v1alpha1.DedupPolicySpec) {
	return func(s *v1alpha1.DedupPolicySpec) {
		s.Store.Redis.CredentialsSecretRef = &v1alpha1.SecretRef{Name: name}
	}
}

func (w *poolWorld) policies() []v1alpha1.DedupPolicy {
	w.Helper()
	var list v1alpha1.DedupPolicyList
	must(w, k8s.List(ctx, &list, client.InNamespace(w.namespace)))
	return list.Items
}

// pools are those that a controller knows of: by the policies, and by the objects.
func (w *poolWorld) pools() []string {
	w.Helper()
	pools := map[string]bool{}
	for _, p := range w.policies() {
		pools[p.Pool()] = true
	}
	for _, o := range w.objects() {
		pools[o.GetLabels()[v1alpha1.LabelPool]] = true
	}
	delete(pools, "")
	return slices.Sorted(maps.Keys(pools))
}

// reconcileAll lets both controllers look at everything once.
func (w *poolWorld) reconcileAll() error {
	w.Helper()
	for _, p := range w.policies() {
		if _, err := w.r.Reconcile(ctx, &p); err != nil {
			return err
		}
	}
	for _, name := range w.pools() {
		if err := w.reconcilePool(name); err != nil {
			return err
		}
	}
	return nil
}

func (w *poolWorld) reconcilePool(name string) error {
	pools := &controllers.PoolReconciler{Reconciler: w.r}
	_, err := pools.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKey{Namespace: w.namespace, Name: name}})
	return err
}

// step reconciles everything until nothing is written any more, while the pods stay as they are, and so
// may be touched again and again.
func (w *poolWorld) step() {
	w.Helper()
	for range 6 {
		must(w, w.reconcileAll())
		if !slices.ContainsFunc(w.written(), func(write string) bool { return !strings.HasPrefix(write, "patch *v1.Pod ") }) {
			return
		}
	}
	w.Fatal("there is no end of writes")
}

// run does the same while the pods follow.
func (w *poolWorld) run() {
	w.Helper()
	for range 6 {
		w.step()
		w.kubelet()
		must(w, w.reconcileAll())
		if w.written() == nil {
			return
		}
	}
	w.Fatal("there is no end of writes")
}

// kubelet plays the Deployments' controller and the kubelet: each Deployment has its replicas, of
// which one is asked, and that runs what its ConfigMap says now. What it says of its policies may be changed.
func (w *poolWorld) kubelet(changes ...func(*status.Policy)) {
	w.Helper()
	var deployments appsv1.DeploymentList
	must(w, k8s.List(ctx, &deployments, client.InNamespace(w.namespace)))
	for _, d := range deployments.Items {
		before, n := client.MergeFrom(d.DeepCopy()), *d.Spec.Replicas
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n}
		if err := k8s.Status().Patch(ctx, &d, before); apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			w.Fatal(err)
		}
		if w.addresses[d.Name] == "" {
			w.addresses[d.Name] = fmt.Sprintf("127.0.2.%d", len(w.addresses)+1)
		}
		w.startPod(d.Name, d.Spec.Template.Labels, w.addresses[d.Name])
		said := w.configured(d.Name)
		for i := range said {
			for _, change := range changes {
				change(&said[i])
			}
		}
		w.pods.set(w.addresses[d.Name]+":8080", status.Status{Policies: said})
	}
	var pods corev1.PodList
	must(w, k8s.List(ctx, &pods, client.InNamespace(w.namespace)))
	for _, pod := range pods.Items {
		if !slices.ContainsFunc(deployments.Items, func(d appsv1.Deployment) bool { return d.Name == pod.Name }) {
			must(w, client.IgnoreNotFound(k8s.Delete(ctx, &pod, client.GracePeriodSeconds(0))))
		}
	}
}

// configured is what a dedupd says of the files of the ConfigMap of that name.
func (w *poolWorld) configured(name string) []status.Policy {
	w.Helper()
	cm := &corev1.ConfigMap{}
	// A manager may have removed it meanwhile.
	must(w, client.IgnoreNotFound(k8s.Get(ctx, client.ObjectKey{Namespace: w.namespace, Name: name}, cm)))
	var all []status.Policy
	for _, file := range slices.Sorted(maps.Keys(cm.Data)) {
		if !v1alpha1.IsPolicyFile(file) {
			continue
		}
		policies, err := policy.Read([]byte(cm.Data[file]), false)
		must(w, err)
		hash := policies[0].ConfigHash
		if len(policies[0].Callers) > 0 {
			hash = policy.HashWithKeys(hash, []byte(cm.Data[v1alpha1.IssuerFile]))
		}
		all = append(all, status.Policy{
			Name: policies[0].Name, Namespace: policies[0].Namespace, ConfigHash: hash,
			Store: status.Store{Kind: policies[0].StoreSpec.Kind(), Reachable: true, Safety: "Safe"},
		})
	}
	return all
}

// objects are the operator's, by kind and name.
func (w *poolWorld) objects() map[string]client.Object {
	w.Helper()
	all := map[string]client.Object{}
	for kind, object := range every() {
		gvk, err := k8s.GroupVersionKindFor(object)
		must(w, err)
		list, err := scheme.New(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
		must(w, err)
		must(w, k8s.List(ctx, list.(client.ObjectList), client.InNamespace(w.namespace), client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}))
		items, err := meta.ExtractList(list)
		must(w, err)
		for _, item := range items {
			o := item.(client.Object)
			all[kind+" "+o.GetName()] = o
		}
	}
	return all
}

func (w *poolWorld) names() []string { return slices.Sorted(maps.Keys(w.objects())) }

// servedBy is the Deployment to which a policy's Service leads, if it runs the policy. Whatever happens, there
// is one.
func (w *poolWorld) servedBy(name string) string {
	w.Helper()
	service := &corev1.Service{}
	must(w, k8s.Get(ctx, client.ObjectKey{Namespace: w.namespace, Name: name + "-dedupd"}, service))
	var pods corev1.PodList
	must(w, k8s.List(ctx, &pods, client.InNamespace(w.namespace), client.MatchingLabels(service.Spec.Selector)))
	for _, pod := range pods.Items {
		err := k8s.Get(ctx, client.ObjectKey{Namespace: w.namespace, Name: pod.Name}, &appsv1.Deployment{})
		if apierrors.IsNotFound(err) {
			continue
		}
		must(w, err)
		said, err := w.pods.Status(ctx, w.addresses[pod.Name]+":8080")
		must(w, err)
		stands := slices.ContainsFunc(w.configured(pod.Name), func(p status.Policy) bool { return p.Name == name })
		if stands && slices.ContainsFunc(said.Policies, func(p status.Policy) bool { return p.Name == name }) {
			return pod.Name
		}
	}
	return ""
}

func (w *poolWorld) wantServed(by map[string]string) {
	w.Helper()
	for name, want := range by {
		if got := w.servedBy(name); got != want {
			w.Errorf("%s is served by %q, want %q", name, got, want)
		}
	}
}

// conditionOf is a policy's condition in short.
func (w *poolWorld) conditionOf(name, condition string) string {
	w.Helper()
	c := meta.FindStatusCondition(w.named(name).Status.Conditions, condition)
	if c == nil {
		return ""
	}
	return strings.Join([]string{string(c.Status), c.Reason, c.Message}, " ")
}

func (w *poolWorld) wantConditionOf(name, condition, prefix string) {
	w.Helper()
	if got := w.conditionOf(name, condition); !strings.HasPrefix(got, prefix) {
		w.Errorf("%s of %s is %q, want %q", condition, name, got, prefix)
	}
}
