package controllers

import (
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
)

// kinds are the kinds of a policy's children, in the order in which they are written: what a
// pod needs to start comes before the Deployment. Whatever is here is watched, cached, applied
// and pruned.
var kinds = family[render.Input]{
	of[*corev1.ServiceAccount](own(render.ServiceAccount)),
	of[*corev1.ConfigMap](render.ConfigMap).telling(historyNews),
	of[*networkingv1.NetworkPolicy](own(render.NetworkPolicy)),
	of[*corev1.Service](render.Service),
	of[*appsv1.Deployment](own(render.Deployment)).adjusted(keepReplicas),
	of[*policyv1.PodDisruptionBudget](own(render.PodDisruptionBudget)),
	of[*autoscalingv2.HorizontalPodAutoscaler](own(render.HorizontalPodAutoscaler)),
}

// own renders an object of a policy's own workload.
func own[A any](of func(*render.Workload) A) func(render.Input) A {
	return func(in render.Input) A { return of(in.Workload()) }
}

// kind is one kind of child, of parents from which an I is made.
type kind[I any] interface {
	// empty is a new object of the kind.
	empty() client.Object

	// plan compares what is there with what the parent wants. It reads only. The change is nil
	// if nothing has to be done; the error is a *conflictError if the child's name is taken.
	plan(ctx context.Context, r *Reconciler, p parent, in I) (*change, error)
}

// family are the kinds of what a parent's children are made from.
type family[I any] []kind[I]

// plan lists the writes that are due: what is wanted in the order of the kinds, and then, the other way
// round, what is not. It writes nothing, so that there is nothing half done if any name is taken.
func (f family[I]) plan(ctx context.Context, r *Reconciler, p parent, in I) ([]*change, error) {
	var due, removals []*change
	for _, k := range f {
		c, err := k.plan(ctx, r, p, in)
		switch {
		case err != nil:
			return nil, err
		case c == nil:
		case c.removal:
			removals = append(removals, c)
		default:
			due = append(due, c)
		}
	}
	slices.Reverse(removals)
	return append(due, removals...), nil
}

// parent is what has children: one of each kind at most, all of the same name.
type parent struct {
	kind      string // for errors, such as "policy"
	childName client.ObjectKey
	owns      func(child client.Object) bool
}

func policyParent(p *v1alpha1.DedupPolicy) parent {
	return parent{
		kind:      "policy",
		childName: client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.ChildName(p.Name)},
		owns:      func(child client.Object) bool { return metav1.IsControlledBy(child, p) },
	}
}

// change is one write that is due.
type change struct {
	object  client.Object
	removal bool
	write   func(context.Context) error

	// news is what the policy's user should know once the change is written.
	news []event
}

// conflictError says that a child's name is taken by an object that is not the parent's.
type conflictError struct {
	parent     string
	kind, name string
	controller *metav1.OwnerReference
}

func (e *conflictError) Error() string {
	whose := "is not controlled by this " + e.parent
	if e.controller != nil {
		whose = fmt.Sprintf("is controlled by %s %s", e.controller.Kind, e.controller.Name)
	}
	return fmt.Sprintf("%s %s exists and %s: delete it, or give the %s another name", e.kind, e.name, whose, e.parent)
}

type applyConfiguration interface {
	comparable
	runtime.ApplyConfiguration
}

type object[T any] interface {
	*T
	client.Object
}

// child is a kind by its Go types: T the object's, A that of its apply configuration.
type child[T any, O object[T], A applyConfiguration, I any] struct {
	render func(I) A
	adjust func(live O, want A) error
	news   func(live O, in I) []event
}

func of[O object[T], T any, A applyConfiguration, I any](render func(I) A) *child[T, O, A, I] {
	return &child[T, O, A, I]{render: render}
}

// adjusted lets what is wanted depend on the live object.
func (c *child[T, O, A, I]) adjusted(adjust func(live O, want A) error) *child[T, O, A, I] {
	c.adjust = adjust
	return c
}

// telling compares the live object with what is to be written over it.
func (c *child[T, O, A, I]) telling(news func(live O, in I) []event) *child[T, O, A, I] {
	c.news = news
	return c
}

func (c *child[T, O, A, I]) empty() client.Object { return O(new(T)) }

func (c *child[T, O, A, I]) plan(ctx context.Context, r *Reconciler, p parent, in I) (*change, error) {
	var none A
	want := c.render(in)
	live, err := c.read(ctx, r, p.childName, want != none)
	if err != nil {
		return nil, err
	}
	owned := live != nil && p.owns(live)
	switch {
	case want == none && !owned:
		return nil, nil
	case live != nil && !owned:
		return nil, &conflictError{parent: p.kind, kind: r.kindOf(live), name: live.GetName(), controller: metav1.GetControllerOf(live)}
	case live != nil && live.GetDeletionTimestamp() != nil:
		// Its end is an event that brings us back.
		return nil, nil
	case want == none:
		return &change{object: live, removal: true, write: func(ctx context.Context) error { return r.remove(ctx, live) }}, nil
	case live == nil:
		live = O(new(T)) // to be named in errors
		live.SetName(p.childName.Name)
		return r.planApply(live, want, nil)
	}
	if c.adjust != nil {
		if err := c.adjust(live, want); err != nil {
			return nil, err
		}
	}
	var news []event
	if c.news != nil {
		news = c.news(live, in)
	}
	return r.planApply(live, want, news)
}

// planApply is the write that makes the live object what is wanted, nil if it is that already.
func (r *Reconciler) planApply(live client.Object, want runtime.ApplyConfiguration, news []event) (*change, error) {
	m, err := newManifest(want)
	if err != nil {
		return nil, err
	}
	if stands, err := m.stands(live); err != nil || stands {
		return nil, err
	}
	return &change{object: live, news: news, write: func(ctx context.Context) error { return r.apply(ctx, m) }}, nil
}

// read returns the child, nil if there is none. The cache holds only what bears the operator's
// label, so that what it does not have is looked up before it is written: the name may be taken.
func (c *child[T, O, A, I]) read(ctx context.Context, r *Reconciler, key client.ObjectKey, wanted bool) (O, error) {
	live := O(new(T))
	err := r.Client.Get(ctx, key, live)
	if apierrors.IsNotFound(err) && wanted {
		err = r.Live.Get(ctx, key, live)
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %s: %w", r.kindOf(live), key.Name, err)
	}
	return live, nil
}

// apply writes what is wanted, and takes over the fields that others have changed since.
func (r *Reconciler) apply(ctx context.Context, m manifest) error {
	err := r.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(m.Unstructured), client.FieldOwner(v1alpha1.FieldOwner), client.ForceOwnership)
	if err != nil {
		return &applyError{m.GetKind(), m.GetName(), err}
	}
	return nil
}

// applyError says what could not be applied.
type applyError struct {
	kind, name string
	cause      error
}

func (e *applyError) Error() string {
	return fmt.Sprintf("applying %s %s: %s", e.kind, e.name, e.cause)
}

func (e *applyError) Unwrap() error { return e.cause }

// remove deletes this very object, not a successor of its name.
func (r *Reconciler) remove(ctx context.Context, live client.Object) error {
	uid := live.GetUID()
	err := r.Client.Delete(ctx, live, client.Preconditions{UID: &uid})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting %s %s: %w", r.kindOf(live), live.GetName(), err)
	}
	return nil
}

func (r *Reconciler) kindOf(o client.Object) string {
	gvk, err := r.Client.GroupVersionKindFor(o)
	if err != nil {
		return fmt.Sprintf("%T", o)
	}
	return gvk.Kind
}

// keepReplicas goes on applying the replicas that the operator owns when the policy has just
// left them to an autoscaler: a field that its only owner drops falls back to its default, one
// pod. The autoscaler owns them from the first time that it changes them.
func keepReplicas(live *appsv1.Deployment, want *appsv1ac.DeploymentApplyConfiguration) error {
	if want.Spec.Replicas != nil || live.Spec.Replicas == nil {
		return nil
	}
	fields, err := ownFields(live)
	if err == nil && owns(fields, "spec", "replicas") {
		want.Spec.WithReplicas(*live.Spec.Replicas)
	}
	return err
}
