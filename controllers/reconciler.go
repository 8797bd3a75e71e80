// Package controllers keeps what runs in step with the DedupPolicies: compile, render, apply,
// observe, publish.
package controllers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// Reconciler reconciles DedupPolicies. Every field is required.
type Reconciler struct {
	// Client reads from the cache and writes to the API server. Live reads from the API server.
	Client client.Client
	Live   client.Reader

	Events events.EventRecorder
	Status StatusClient
	Issuer Issuer
	Clock  clock.PassiveClock
	Render render.Options

	// published are the resource versions of the statuses that the cache is not known to show yet, by
	// the policy's name.
	published sync.Map
}

// named reconciles the policy of a name, if there is one.
func (r *Reconciler) named(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	p := &v1alpha1.DedupPolicy{}
	if err := r.Client.Get(ctx, request.NamespacedName, p); err != nil {
		if apierrors.IsNotFound(err) {
			r.published.Delete(request.NamespacedName)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	return r.Reconcile(ctx, p)
}

// Reconcile brings the children of one policy, and its status, to what they should be.
func (r *Reconciler) Reconcile(ctx context.Context, p *v1alpha1.DedupPolicy) (reconcile.Result, error) {
	if p.DeletionTimestamp != nil {
		return reconcile.Result{}, nil // The children's owner references do the rest.
	}
	if p.Pool() != "" {
		return reconcile.Result{}, nil // See PoolReconciler.
	}
	before := p.DeepCopy()
	compiled, errs := policy.Compile(p)
	if len(errs) > 0 {
		refuse(p, v1alpha1.ReasonInvalid, sentence(errs), r.Clock.Now())
		return reconcile.Result{}, r.publish(ctx, before, p)
	}
	keys, err := r.issuerKeys(ctx, p)
	if err != nil {
		again, err := r.refused(p, err)
		return reconcile.Result{RequeueAfter: again}, errors.Join(err, r.publish(ctx, before, p))
	}
	in, err := render.NewInput(p, compiled, keys, r.Render)
	if err != nil {
		return reconcile.Result{}, err
	}
	moving, err := r.moving(ctx, p)
	if err != nil {
		return reconcile.Result{}, err
	}
	rolling, err := r.applyAll(ctx, p, in, moving)
	if err != nil {
		again, err := r.refused(p, err)
		return reconcile.Result{RequeueAfter: again}, errors.Join(err, r.publish(ctx, before, p))
	}
	saw, err := r.observe(ctx, home{policyParent(p).childName, v1alpha1.SelectorLabels(p.Name)})
	if err != nil {
		return reconcile.Result{}, err
	}
	seen := saw.of(p)
	seen.configHash, seen.replicas, seen.rolling = in.ConfigHash, in.Workload().Replicas(), rolling
	if moving && seen.serves() {
		if err := r.move(ctx, p, in); err != nil {
			return reconcile.Result{}, err
		}
	}
	judge(p, seen, r.Clock.Now())
	again := r.lookAgain(p)
	if err := errors.Join(r.publish(ctx, before, p), r.nudge(ctx, p.Namespace, seen.behind())); err != nil {
		return reconcile.Result{}, err
	}
	// Whoever looks again waits for those to whom something has happened.
	low := handler.LowPriority
	return reconcile.Result{RequeueAfter: again, Priority: &low}, nil
}

// applyAll writes a policy's own children that are not as they should be, and says whether the Deployment
// was among them. It writes nothing if any name is taken. While the policy is moving, its Service and
// what it leads to are left alone.
func (r *Reconciler) applyAll(ctx context.Context, p *v1alpha1.DedupPolicy, in render.Input, moving bool) (rolling bool, err error) {
	due, err := kinds.plan(ctx, r, policyParent(p), in)
	if err != nil {
		return false, err
	}
	if moving {
		due = slices.DeleteFunc(due, func(c *change) bool {
			_, service := c.object.(*corev1.Service)
			return service || c.removal
		})
	}
	return r.write(ctx, p, due)
}

// write makes changes, and tells what is news of the policy.
func (r *Reconciler) write(ctx context.Context, p *v1alpha1.DedupPolicy, due []*change) (rolling bool, err error) {
	for _, c := range due {
		if err := c.write(ctx); err != nil {
			return rolling, err
		}
		r.record(p, c.news)
		if _, ok := c.object.(*appsv1.Deployment); ok && !c.removal {
			rolling = true
		}
	}
	return rolling, nil
}

// refused judges a policy whose children could not be built or applied, where the user can do something
// about it, and says when it is worth another try. The error is left if that is at once.
func (r *Reconciler) refused(p *v1alpha1.DedupPolicy, err error) (again time.Duration, rest error) {
	now := r.Clock.Now()
	var conflict *conflictError
	var noKeys *noKeysError
	switch {
	case errors.As(err, &noKeys):
		refuse(p, v1alpha1.ReasonNoIssuerKeys, tidy(noKeys.Error()), now)
		return halfToOneMinute(), nil
	case errors.As(err, &conflict):
		// Nobody tells us when an object that is not ours goes.
		refuse(p, v1alpha1.ReasonConflict, conflict.Error(), now)
		return halfToOneMinute(), nil
	case apierrors.IsInvalid(err):
		// Such as resources of which the requests exceed the limits. It may also be a policy of the cluster
		// that says so, which may change without our notice.
		refuse(p, v1alpha1.ReasonInvalid, pathOf(err)+err.Error(), now)
		return halfToOneMinute(), nil
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return 0, nil
	case apierrors.IsForbidden(err):
		// A quota, or a policy of the cluster. It may change without our notice.
		stop(p, tidy(err.Error()), "the policy's objects are not applied", now)
	}
	return 0, err
}

// pathOf is the path of the field that is behind an error, as the beginning of a message: of what is applied,
// two kinds hold what the policy says in one field, and the API server judges.
func pathOf(err error) string {
	var unapplied *applyError
	if errors.As(err, &unapplied) && (unapplied.kind == "Deployment" || unapplied.kind == "HorizontalPodAutoscaler") {
		return "spec.deployment: "
	}
	return ""
}

// publish writes the status if it changed, and records the events of the change.
func (r *Reconciler) publish(ctx context.Context, before, p *v1alpha1.DedupPolicy) error {
	if equality.Semantic.DeepEqual(before.Status, p.Status) {
		return r.current(before)
	}
	after := p.Status.DeepCopy() // the patch overwrites p by the API server's answer
	// The lock makes sure that the transition starts at the status that it is judged by: a cache
	// that lags would tell an event twice.
	err := r.Client.Status().Patch(ctx, p, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	r.published.Store(client.ObjectKeyFromObject(p), p.ResourceVersion)
	r.record(p, statusNews(before.Status, *after))
	return nil
}

// current is a conflict if a policy is older than the status that was last published of it: what is as the
// cache shows it may not be so any more.
func (r *Reconciler) current(p *v1alpha1.DedupPolicy) error {
	key := client.ObjectKeyFromObject(p)
	published, ok := r.published.Load(key)
	if !ok {
		return nil
	}
	order, err := resourceversion.CompareResourceVersion(p.ResourceVersion, published.(string))
	if err == nil && order < 0 {
		return apierrors.NewConflict(v1alpha1.GroupVersion.WithResource("deduppolicies").GroupResource(), p.Name,
			fmt.Errorf("the cache shows version %s, and %s was published", p.ResourceVersion, published))
	}
	r.published.Delete(key)
	return nil
}

func (r *Reconciler) record(p *v1alpha1.DedupPolicy, news []event) {
	for _, e := range news {
		r.Events.Eventf(p, nil, e.kind, e.reason, e.action, "%s", e.note)
	}
}

// lookAgain is when the pods are asked again: soon while something is about to happen and less
// and less often while it does not, and from time to time when all is well, since nobody tells
// us when a store fails.
func (r *Reconciler) lookAgain(p *v1alpha1.DedupPolicy) time.Duration {
	is := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	if is.Status == metav1.ConditionTrue {
		return halfToOneMinute()
	}
	waited := r.Clock.Since(is.LastTransitionTime.Time)
	return min(max(waited/4, time.Second), 30*time.Second)
}

// halfToOneMinute is spread, so that many policies do not stay in step.
func halfToOneMinute() time.Duration {
	return 30*time.Second + rand.N(30*time.Second) //nolint:gosec // nothing is secret about it
}

// sentence puts errors, each of which starts with its field's path, into one message.
func sentence(errs field.ErrorList) string {
	all := make([]string, len(errs))
	for i, err := range errs {
		all[i] = err.Error()
	}
	return strings.Join(all, "; ")
}
