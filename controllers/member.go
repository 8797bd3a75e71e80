package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// member is a policy that a pool runs, or is to run, on its way through a reconciliation.
type member struct {
	policy *v1alpha1.DedupPolicy
	before *v1alpha1.DedupPolicy // as it was read

	// settled: its Service leads to this pool. visiting: its spec does not name this pool any more, which
	// runs it until its Service leads elsewhere. departed: that it does, and consumers may still have
	// connections to the pool's pods. moving: its Service still leads elsewhere, and is to lead here.
	settled, visiting, departed, moving bool

	// ledSince tells when its Service was led where it leads now.
	ledSince string

	// runs: the pool is to run it, with in. shapes: its settings may be the pool's.
	runs, shapes bool
	in           render.Input

	// refused: its status says already what keeps it from being judged by its pods, or its problem is left
	// to another try. again is when it is worth another look.
	refused bool
	problem error
	again   time.Duration
}

// gather finds the policies that name a pool, those whose Services still lead to it, and those that it has a
// file of, the oldest first.
func (r *PoolReconciler) gather(ctx context.Context, pool client.ObjectKey) ([]*member, error) {
	var policies v1alpha1.DedupPolicyList
	if err := r.Client.List(ctx, &policies, client.InNamespace(pool.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing the policies of namespace %s: %w", pool.Namespace, err)
	}
	files := &corev1.ConfigMap{}
	if err := r.Client.Get(ctx, poolParent(pool).childName, files); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading the ConfigMap of pool %s: %w", pool.Name, err)
	}
	services, err := r.services(ctx, pool.Namespace)
	if err != nil {
		return nil, err
	}
	var members []*member
	for i := range policies.Items {
		p := &policies.Items[i]
		m := &member{before: p, visiting: p.Pool() != pool.Name}
		if service, led := services[p.UID]; led {
			leadsTo := service.Labels[v1alpha1.LabelPool]
			_, has := files.Data[v1alpha1.PoolFile(p.Name)]
			m.settled = leadsTo == pool.Name
			m.moving = !m.visiting && !m.settled
			m.departed = m.visiting && !m.settled && has
			m.ledSince = appliedAt(service)
		}
		if p.DeletionTimestamp != nil || m.visiting && !m.settled && !m.departed {
			continue
		}
		m.policy = p.DeepCopy()
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b *member) int { return render.Older(a.policy, b.policy) })
	return members, nil
}

// services are those of a namespace's policies, by the UIDs of these.
func (r *PoolReconciler) services(ctx context.Context, namespace string) (map[types.UID]*corev1.Service, error) {
	var list corev1.ServiceList
	if err := r.Client.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
		return nil, fmt.Errorf("listing the Services of namespace %s: %w", namespace, err)
	}
	services := make(map[types.UID]*corev1.Service, len(list.Items))
	for i := range list.Items {
		if owner := metav1.GetControllerOf(&list.Items[i]); owner != nil {
			services[owner.UID] = &list.Items[i]
		}
	}
	return services, nil
}

// appliedAt is when the operator last wrote an object.
func appliedAt(o client.Object) string {
	for _, entry := range o.GetManagedFields() {
		if isOwn(entry) && entry.Time != nil {
			return entry.Time.UTC().Format(time.RFC3339)
		}
	}
	return ""
}

// prepare compiles a member and applies what is its own.
func (r *PoolReconciler) prepare(ctx context.Context, m *member) error {
	compiled, errs := policy.Compile(m.policy)
	m.shapes = !m.visiting && !slices.ContainsFunc(errs, func(e *field.Error) bool {
		return strings.HasPrefix(e.Field, "spec.deployment")
	})
	if len(errs) > 0 {
		// What runs is left as it is.
		if !m.visiting {
			m.refused = true
			refuse(m.policy, v1alpha1.ReasonInvalid, sentence(errs), r.Clock.Now())
		}
		return r.recall(ctx, m)
	}
	keys, err := r.issuerKeys(ctx, m.policy)
	if err != nil {
		m.refused = true
		if !m.visiting {
			m.again, m.problem = r.refused(m.policy, err)
		}
		return r.recall(ctx, m)
	}
	if m.in, err = render.NewInput(m.policy, compiled, keys, r.Render); err != nil {
		return err
	}
	m.runs = true
	if m.visiting {
		return nil
	}
	if _, err := r.applyAll(ctx, m.policy, m.in, m.moving); err != nil {
		m.refused = true
		m.again, m.problem = r.refused(m.policy, err)
		// One that another try may bring is not taken out of the pool meanwhile.
		m.runs = m.settled || m.problem != nil
	}
	return nil
}

// recall has a member that is not accepted run as it was accepted last, which its own ConfigMap says.
func (r *PoolReconciler) recall(ctx context.Context, m *member) error {
	if !m.settled && !m.departed {
		return nil
	}
	was := &corev1.ConfigMap{}
	if err := r.Client.Get(ctx, policyParent(m.policy).childName, was); err != nil {
		return client.IgnoreNotFound(err)
	}
	manifest, keys := []byte(was.Data[v1alpha1.PolicyFile]), []byte(was.Data[v1alpha1.IssuerFile])
	if !metav1.IsControlledBy(was, m.policy) || was.Annotations[v1alpha1.AnnotationConfigHash] != render.ConfigHash(manifest, keys) {
		return nil // Not what the operator wrote.
	}
	var err error
	m.in, err = render.InputOf(m.policy, manifest, keys)
	m.runs = err == nil
	return err
}

// moving reports whether a policy's Service leads elsewhere than its spec says. Such a policy is served
// where it was until it is served where it is to be.
func (r *Reconciler) moving(ctx context.Context, p *v1alpha1.DedupPolicy) (bool, error) {
	parent := policyParent(p)
	service := &corev1.Service{}
	if err := r.Client.Get(ctx, parent.childName, service); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return parent.owns(service) && service.Labels[v1alpha1.LabelPool] != p.Pool(), nil
}

// move leads a policy's Service to where it is to be served, and removes what served it before.
func (r *Reconciler) move(ctx context.Context, p *v1alpha1.DedupPolicy, in render.Input) error {
	_, err := r.applyAll(ctx, p, in, false)
	return err
}
