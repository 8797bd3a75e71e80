package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	ctrlevent "sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// Creating by server-side apply needs create and patch; what a policy leaves behind that moves into a
// pool or out of it needs delete, and so does a pool that nobody is left in. update of the finalizers subresource is
// what clusters with OwnerReferencesPermissionEnforcement want of who sets blockOwnerDeletion.
//
// +kubebuilder:rbac:groups=dedupd.io,resources=deduppolicies,verbs=get;list;watch
// +kubebuilder:rbac:groups=dedupd.io,resources=deduppolicies/status,verbs=patch
// +kubebuilder:rbac:groups=dedupd.io,resources=deduppolicies/finalizers,verbs=update
// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch;create;patch
// +kubebuilder:rbac:groups="",resources=configmaps;serviceaccounts,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups="",resources=pods,verbs=list;patch
// +kubebuilder:rbac:groups=apps,resources=deployments,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=networking.k8s.io,resources=networkpolicies,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=policy,resources=poddisruptionbudgets,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=autoscaling,resources=horizontalpodautoscalers,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Options are the operator's settings.
type Options struct {
	// Image is the image that holds /dedupd. Required.
	Image string

	// OperatorNamespace is where the operator runs: dedupd's NetworkPolicies let it in. Required.
	OperatorNamespace string

	// StatusClient asks dedupd's pods; nil for NewStatusClient.
	StatusClient StatusClient

	// Metrics gets the policies' conditions; nil for no metrics.
	Metrics prometheus.Registerer
}

// Name is the controller's, in its metrics, its log and the events it reports.
const Name = "dedup-operator"

// workers is how many policies, and how many pools, are reconciled at once: one may wait seconds for a pod
// to answer.
const workers = 8

// SetupWithManager adds the controllers to a manager whose cache has the CacheOptions.
func SetupWithManager(m ctrl.Manager, o Options) error {
	switch {
	case o.Image == "":
		return errors.New("controllers: Options.Image is empty: name the image that holds /dedupd")
	case o.OperatorNamespace == "":
		return errors.New("controllers: Options.OperatorNamespace is empty: name the namespace that the operator runs in")
	}
	if o.StatusClient == nil {
		o.StatusClient = NewStatusClient()
	}
	if o.Metrics != nil {
		if err := o.Metrics.Register(conditionMetrics{m.GetClient()}); err != nil {
			return fmt.Errorf("registering the policies' metric: %w", err)
		}
	}
	issuer, err := NewIssuer(m.GetConfig(), clock.RealClock{})
	if err != nil {
		return err
	}
	r := &Reconciler{
		Client: m.GetClient(),
		Live:   m.GetAPIReader(),
		Events: m.GetEventRecorder(Name),
		Status: o.StatusClient,
		Issuer: issuer,
		Clock:  clock.RealClock{},
		Render: render.Options{Image: o.Image, OperatorNamespace: o.OperatorNamespace},
	}
	b := ctrl.NewControllerManagedBy(m).
		Named("deduppolicy").
		// A new generation is a new spec; the status is our own.
		For(&v1alpha1.DedupPolicy{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers})
	// That a child was made is no news: the operator made it. At the start all of them are new to
	// the cache, and the policies themselves bring every reconciliation that is due.
	none := func(client.Object) bool { return false }
	for _, k := range kinds {
		b = b.Owns(k.empty(), builder.WithPredicates(newsOf(none)))
	}
	if err := b.Complete(patient(reconcile.Func(r.named))); err != nil {
		return err
	}
	return setupPools(m, r)
}

// setupPools adds the controller of the pools. A change of a policy is one of the pool that it names, and of
// the one that it named before.
func setupPools(m ctrl.Manager, r *Reconciler) error {
	b := ctrl.NewControllerManagedBy(m).
		Named("deduppolicy-pool").
		Watches(&v1alpha1.DedupPolicy{}, handler.EnqueueRequestsFromMapFunc(r.poolsOf),
			builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers})
	// Of what is new only a pool's own objects are news: at the start they bring the pools that no policy
	// names any more.
	for _, k := range kinds {
		b = b.Watches(k.empty(), handler.EnqueueRequestsFromMapFunc(r.poolsOf), builder.WithPredicates(newsOf(ofPool)))
	}
	return b.Complete(patient(&PoolReconciler{r}))
}

// newsOf lets those events through of which there is something to see: of new objects those that matter, and of
// changes those that the cache keeps. An autoscaler, for one, changes its status every 15 seconds.
func newsOf(matters func(made client.Object) bool) predicate.Predicate {
	return predicate.Funcs{
		CreateFunc: func(e ctrlevent.CreateEvent) bool { return matters(e.Object) },
		UpdateFunc: func(e ctrlevent.UpdateEvent) bool {
			was := e.ObjectOld.DeepCopyObject().(client.Object)
			was.SetResourceVersion(e.ObjectNew.GetResourceVersion())
			return !equality.Semantic.DeepEqual(was, e.ObjectNew)
		},
	}
}

// ofPool reports whether an object is shared by the members of a pool.
func ofPool(o client.Object) bool {
	_, shared := o.GetLabels()[v1alpha1.LabelPool]
	return shared && metav1.GetControllerOf(o) == nil
}

// poolsOf are the pools that a change of an object is one of: that which a policy names, or the policy
// whose child the object is, and that by which it is labelled.
func (r *Reconciler) poolsOf(ctx context.Context, o client.Object) []reconcile.Request {
	names := map[string]bool{o.GetLabels()[v1alpha1.LabelPool]: true}
	if p, ok := o.(*v1alpha1.DedupPolicy); ok {
		names = map[string]bool{p.Pool(): true}
	} else if owner := metav1.GetControllerOf(o); owner != nil && owner.Kind == policy.Kind {
		p := &v1alpha1.DedupPolicy{}
		if err := r.Client.Get(ctx, client.ObjectKey{Namespace: o.GetNamespace(), Name: owner.Name}, p); err == nil {
			names[p.Pool()] = true
		}
	}
	delete(names, "")
	var requests []reconcile.Request
	for name := range names {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKey{Namespace: o.GetNamespace(), Name: name}})
	}
	return requests
}

// CacheOptions keep the cache small: of the children's kinds, what bears the operator's label.
func CacheOptions() cache.Options {
	ours := labels.SelectorFromSet(labels.Set{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy})
	byObject := map[client.Object]cache.ByObject{}
	for _, k := range kinds {
		byObject[k.empty()] = cache.ByObject{Label: ours, Transform: slim}
	}
	return cache.Options{DefaultTransform: cache.TransformStripManagedFields(), ByObject: byObject}
}

// slim strips an object of what nobody looks at. Of the record of who set which field the
// operator's own part is kept: that is how it finds drift, and why it needs no specs.
var slim toolscache.TransformFunc = func(in any) (any, error) {
	object, err := meta.Accessor(in)
	if err != nil {
		return in, nil // such as a DeletedFinalStateUnknown, which is no object
	}
	object.SetManagedFields(slices.DeleteFunc(object.GetManagedFields(), func(entry metav1.ManagedFieldsEntry) bool {
		return !isOwn(entry)
	}))
	switch o := in.(type) {
	case *appsv1.Deployment:
		o.Spec.Template = corev1.PodTemplateSpec{}
	case *corev1.Service:
		o.Spec = corev1.ServiceSpec{}
	case *networkingv1.NetworkPolicy:
		o.Spec = networkingv1.NetworkPolicySpec{}
	case *policyv1.PodDisruptionBudget:
		o.Spec, o.Status = policyv1.PodDisruptionBudgetSpec{}, policyv1.PodDisruptionBudgetStatus{}
	case *autoscalingv2.HorizontalPodAutoscaler:
		o.Spec, o.Status = autoscalingv2.HorizontalPodAutoscalerSpec{}, autoscalingv2.HorizontalPodAutoscalerStatus{}
	}
	return in, nil
}
