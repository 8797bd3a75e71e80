package controllers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
)

// PoolReconciler reconciles pools: what the policies of a pool share, and these policies. That one
// reconciliation does both is what keeps two members from overwriting each other's part.
type PoolReconciler struct{ *Reconciler }

// poolKinds are the kinds of a pool's children. Of kinds, all but the Service.
var poolKinds = family[render.Pool]{
	of[*corev1.ServiceAccount](shared(render.ServiceAccount)),
	of[*corev1.ConfigMap](render.PoolConfigMap),
	of[*networkingv1.NetworkPolicy](shared(render.NetworkPolicy)),
	of[*appsv1.Deployment](shared(render.Deployment)).adjusted(keepReplicas),
	of[*policyv1.PodDisruptionBudget](shared(render.PodDisruptionBudget)),
	of[*autoscalingv2.HorizontalPodAutoscaler](shared(render.HorizontalPodAutoscaler)),
}

// shared renders an object of a pool's workload.
func shared[A any](of func(*render.Workload) A) func(render.Pool) A {
	return func(p render.Pool) A { return of(p.Workload()) }
}

// poolParent owns what the operator has applied under the pool's name and nobody controls. Its owner
// references do not say it: they change with the members.
func poolParent(key client.ObjectKey) parent {
	return parent{
		kind:      "pool",
		childName: client.ObjectKey{Namespace: key.Namespace, Name: v1alpha1.PoolChildName(key.Name)},
		owns: func(child client.Object) bool {
			return metav1.GetControllerOf(child) == nil && slices.ContainsFunc(child.GetManagedFields(), isOwn)
		},
	}
}

// running is what a pool runs, and what all its members are judged by.
type running struct {
	pool    render.Pool
	shaper  *v1alpha1.DedupPolicy // by whose settings it runs; nil for the defaults
	rolling bool
}

// Reconcile brings the objects of one pool, and its members' own with their status, to what they
// should be. A member that has a problem keeps none of the others from what they need.
func (r *PoolReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	members, err := r.gather(ctx, request.NamespacedName)
	if err != nil {
		return reconcile.Result{}, err
	}
	for _, m := range members {
		if err := r.prepare(ctx, m); err != nil {
			return reconcile.Result{}, err
		}
	}
	departures, err := r.seeOff(ctx, request.NamespacedName, members)
	if err != nil {
		return reconcile.Result{}, err
	}
	run := r.run(request.NamespacedName, members)
	run.pool.Departures = departures
	var problem error
	if run.rolling, err = r.applyPool(ctx, run.pool); err != nil {
		problem = r.refuseAll(members, err)
	} else if len(run.pool.Members) > 0 {
		problem = r.lookAtPool(ctx, run, members)
	}
	return r.finish(ctx, members, problem)
}

// seeOff decides how long those that have departed are still run: until every pod that their consumers may
// have connections to has ended, for which the pods roll. It returns the value of the annotation that rolls
// them.
func (r *PoolReconciler) seeOff(ctx context.Context, key client.ObjectKey, members []*member) (departures string, err error) {
	deployment := &appsv1.Deployment{}
	if err := r.Client.Get(ctx, poolParent(key).childName, deployment); client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("reading the Deployment of pool %s: %w", key.Name, err)
	}
	departed := sha256.New()
	some, others := false, false
	for _, m := range members {
		if m.departed {
			some = true
			_, _ = fmt.Fprintf(departed, "%s %s\n", m.policy.UID, m.ledSince) // a hash takes everything
		}
		others = others || m.runs && !m.departed
	}
	is := deployment.Annotations[v1alpha1.AnnotationDepartures]
	if !some {
		return is, nil
	}
	due := hex.EncodeToString(departed.Sum(nil)[:8])
	if others && (due != is || rollout(observation{deployment: deployment}) != "") {
		return due, nil
	}
	for _, m := range members {
		m.runs = m.runs && !m.departed
	}
	return is, nil
}

// finish publishes what the members' status has become, and says when to look again.
func (r *PoolReconciler) finish(ctx context.Context, members []*member, problem error) (reconcile.Result, error) {
	problems := []error{problem}
	var again time.Duration
	for _, m := range members {
		problems = append(problems, m.problem)
		if m.visiting {
			continue // Its status is its new home's to tell.
		}
		problems = append(problems, r.publish(ctx, m.before, m.policy))
		if m.again > 0 && (again == 0 || m.again < again) {
			again = m.again
		}
	}
	if err := errors.Join(problems...); err != nil {
		return reconcile.Result{}, err
	}
	low := handler.LowPriority
	return reconcile.Result{RequeueAfter: again, Priority: &low}, nil
}

// run decides what is to run: the policies that can, as their oldest member with settings says. Those
// that the pool has no room for are refused.
func (r *PoolReconciler) run(key client.ObjectKey, members []*member) running {
	var inputs []render.Input
	var shapers []*v1alpha1.DedupPolicy
	// Those that it runs already come first: nobody loses his place to one who was made earlier.
	for _, settled := range []bool{true, false} {
		for _, m := range members {
			if m.runs && (m.settled || m.departed) == settled {
				inputs = append(inputs, m.in)
			}
		}
	}
	fit := render.Fit(inputs)
	pool := render.Pool{Namespace: key.Namespace, Name: key.Name, Options: r.Render}
	for _, m := range members {
		if m.shapes {
			shapers = append(shapers, m.policy)
		}
		switch {
		case !m.runs:
		case fit[m.policy.Name]:
			pool.Members = append(pool.Members, m.in)
		default:
			m.runs = false
			r.noRoom(m, key.Name, len(fit))
		}
	}
	shaper := render.Shaper(shapers)
	pool.Settings = render.Settings(shaper)
	return running{pool: pool, shaper: shaper}
}

func (r *PoolReconciler) noRoom(m *member, pool string, others int) {
	if m.visiting || m.refused {
		return
	}
	m.refused = true
	refuse(m.policy, v1alpha1.ReasonPoolFull, fmt.Sprintf(
		"spec.deployment.pool: %s: its ConfigMap has no room for this policy beside the %d that it holds: name another pool, or none", pool, others), r.Clock.Now())
}

// applyPool writes the pool's objects that are not as they should be, and says whether the
// Deployment was among them.
func (r *PoolReconciler) applyPool(ctx context.Context, pool render.Pool) (rolling bool, err error) {
	due, err := poolKinds.plan(ctx, r.Reconciler, poolParent(client.ObjectKey{Namespace: pool.Namespace, Name: pool.Name}), pool)
	if err != nil {
		return false, err
	}
	return r.write(ctx, nil, due)
}

// refuseAll tells the members why the pool's objects could not be applied. The error is left if that is worth
// another try at once, or nobody is there to be told.
func (r *PoolReconciler) refuseAll(members []*member, err error) error {
	rest := err
	for _, m := range members {
		if !m.refused && !m.visiting {
			m.again, rest = r.refused(m.policy, err)
		}
	}
	return rest
}

// lookAtPool asks the pool's pods once for all members, judges these, and leads the Services of those that the
// pool now serves to it.
func (r *PoolReconciler) lookAtPool(ctx context.Context, run running, members []*member) error {
	key := client.ObjectKey{Namespace: run.pool.Namespace, Name: run.pool.Name}
	saw, err := r.observe(ctx, home{poolParent(key).childName, v1alpha1.PoolSelectorLabels(key.Name)})
	if err != nil {
		return err
	}
	var behind []string
	for _, m := range members {
		if !m.runs || m.refused || m.visiting {
			continue
		}
		seen := saw.of(m.policy)
		seen.configHash, seen.replicas, seen.rolling = m.in.ConfigHash, run.pool.Workload().Replicas(), run.rolling
		seen.difference = render.Difference(m.policy, run.shaper)
		if m.moving && seen.serves() {
			m.problem = r.move(ctx, m.policy, m.in)
		}
		judge(m.policy, seen, r.Clock.Now())
		m.again = r.lookAgain(m.policy)
		behind = append(behind, seen.behind()...)
	}
	slices.Sort(behind)
	return r.nudge(ctx, key.Namespace, slices.Compact(behind))
}
