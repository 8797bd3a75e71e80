package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	autoscalingv2ac "k8s.io/client-go/applyconfigurations/autoscaling/v2"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	networkingv1ac "k8s.io/client-go/applyconfigurations/networking/v1"
	policyv1ac "k8s.io/client-go/applyconfigurations/policy/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
)

// kinds are the kinds of a policy's children, in the order in which they are written: what a
// pod needs to start comes before the Deployment. Whatever is here is watched, cached, applied
// and pruned.
var kinds = []kind{
	of(render.ServiceAccount, corev1ac.ExtractServiceAccount),
	of(render.ConfigMap, corev1ac.ExtractConfigMap).telling(historyNews),
	of(render.NetworkPolicy, networkingv1ac.ExtractNetworkPolicy),
	of(render.Service, corev1ac.ExtractService),
	of(render.Deployment, appsv1ac.ExtractDeployment).adjusted(keepReplicas),
	of(render.PodDisruptionBudget, policyv1ac.ExtractPodDisruptionBudget),
	of(render.HorizontalPodAutoscaler, autoscalingv2ac.ExtractHorizontalPodAutoscaler),
}

// kind is one kind of child.
type kind interface {
	// empty is a new object of the kind.
	empty() client.Object

	// plan compares what is there with what the policy wants. It reads only. The change is nil
	// if nothing has to be done; the error is a *conflictError if the child's name is taken.
	plan(ctx context.Context, r *Reconciler, p *v1alpha1.DedupPolicy, in render.Input) (*change, error)
}

// change is one write that is due.
type change struct {
	object client.Object
	write  func(context.Context) error

	// news is what the policy's user should know once the change is written.
	news []event
}

// conflictError says that a child's name is taken by an object that the policy does not control.
type conflictError struct {
	kind, name string
	controller *metav1.OwnerReference
}

func (e *conflictError) Error() string {
	whose := "is not controlled by this policy"
	if e.controller != nil {
		whose = fmt.Sprintf("is controlled by %s %s", e.controller.Kind, e.controller.Name)
	}
	return fmt.Sprintf("%s %s exists and %s: delete it, or give the policy another name", e.kind, e.name, whose)
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
type child[T any, O object[T], A applyConfiguration] struct {
	render  func(render.Input) A
	extract func(O, string) (A, error)
	adjust  func(owned, want A)
	news    func(live O, in render.Input) []event
}

func of[T any, O object[T], A applyConfiguration](render func(render.Input) A, extract func(O, string) (A, error)) *child[T, O, A] {
	return &child[T, O, A]{render: render, extract: extract}
}

// adjusted lets what is wanted depend on what the operator owns of the live object.
func (c *child[T, O, A]) adjusted(adjust func(owned, want A)) *child[T, O, A] {
	c.adjust = adjust
	return c
}

// telling compares the live object with what is to be written over it.
func (c *child[T, O, A]) telling(news func(live O, in render.Input) []event) *child[T, O, A] {
	c.news = news
	return c
}

func (c *child[T, O, A]) empty() client.Object { return O(new(T)) }

func (c *child[T, O, A]) plan(ctx context.Context, r *Reconciler, p *v1alpha1.DedupPolicy, in render.Input) (*change, error) {
	var none A
	want := c.render(in)
	live, err := c.read(ctx, r, p, want != none)
	if err != nil {
		return nil, err
	}
	controlled := live != nil && metav1.IsControlledBy(live, p)
	switch {
	case want == none && !controlled:
		return nil, nil
	case live != nil && !controlled:
		return nil, &conflictError{kind: r.kindOf(live), name: live.GetName(), controller: metav1.GetControllerOf(live)}
	case live != nil && live.GetDeletionTimestamp() != nil:
		// Its end is an event that brings us back.
		return nil, nil
	case want == none:
		return &change{object: live, write: func(ctx context.Context) error { return r.remove(ctx, live) }}, nil
	case live == nil:
		live = O(new(T)) // to be named in errors
		live.SetName(v1alpha1.ChildName(p.Name))
		return &change{object: live, write: func(ctx context.Context) error { return r.apply(ctx, live, want) }}, nil
	}
	owned, err := c.extract(live, v1alpha1.FieldOwner)
	if err != nil {
		return nil, fmt.Errorf("reading the operator's fields of %s %s: %w", r.kindOf(live), live.GetName(), err)
	}
	if c.adjust != nil {
		c.adjust(owned, want)
	}
	if equal, err := sameJSON(owned, want); err != nil || equal {
		return nil, err
	}
	due := &change{object: live, write: func(ctx context.Context) error { return r.apply(ctx, live, want) }}
	if c.news != nil {
		due.news = c.news(live, in)
	}
	return due, nil
}

// read returns the child, nil if there is none. The cache holds only what bears the operator's
// label, so that what it does not have is looked up before it is written: the name may be taken.
func (c *child[T, O, A]) read(ctx context.Context, r *Reconciler, p *v1alpha1.DedupPolicy, wanted bool) (O, error) {
	key := client.ObjectKey{Namespace: p.Namespace, Name: v1alpha1.ChildName(p.Name)}
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
func (r *Reconciler) apply(ctx context.Context, live client.Object, want runtime.ApplyConfiguration) error {
	if err := r.Client.Apply(ctx, want, client.FieldOwner(v1alpha1.FieldOwner), client.ForceOwnership); err != nil {
		return fmt.Errorf("applying %s %s: %w", r.kindOf(live), live.GetName(), err)
	}
	return nil
}

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

// sameJSON compares apply configurations as the API server would read them: what is absent and
// what is empty in Go is the same there.
func sameJSON(a, b any) (bool, error) {
	var values [2]any
	for i, v := range []any{a, b} {
		data, err := json.Marshal(v)
		if err != nil {
			return false, fmt.Errorf("comparing apply configurations: %w", err)
		}
		if err := json.Unmarshal(data, &values[i]); err != nil {
			return false, fmt.Errorf("comparing apply configurations: %w", err)
		}
	}
	return reflect.DeepEqual(values[0], values[1]), nil
}

// keepReplicas goes on applying the replicas that the operator owns when the policy has just
// left them to an autoscaler: a field that its only owner drops falls back to its default, one
// pod. The autoscaler owns them from the first time that it changes them.
func keepReplicas(owned, want *appsv1ac.DeploymentApplyConfiguration) {
	if want.Spec.Replicas == nil && owned.Spec != nil && owned.Spec.Replicas != nil {
		want.Spec.WithReplicas(*owned.Spec.Replicas)
	}
}
