package render

import (
	"slices"

	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/podspec"
)

// Pool is what the objects of a pool are built from. One without members wants none.
type Pool struct {
	Namespace, Name string

	// Members are the policies that it runs, always in the same order.
	Members []Input

	// Settings are how it is to run.
	Settings v1alpha1.DeploymentSpec

	// Departures is the value of v1alpha1.AnnotationDepartures, empty for none.
	Departures string

	Options Options
}

// Workload is what the members share; nil if there are none.
//
// Nothing in the pod template is a single policy's but the Secrets, so that members come and change
// while the pods run. One whose Secret does not exist must not keep the others waiting.
func (p Pool) Workload() *Workload {
	if len(p.Members) == 0 {
		return nil
	}
	w := &Workload{
		name: p.childName(), namespace: p.Namespace,
		labels: v1alpha1.PoolLabels(p.Name), selector: v1alpha1.PoolSelectorLabels(p.Name),
		owners:   p.owners(),
		settings: p.Settings,
		content:  podspec.Content{ConfigMap: p.childName(), Patient: true, Resources: p.Settings.Resources},
		options:  p.Options,
	}
	for _, m := range p.Members {
		w.stores = append(w.stores, m.policy.Spec.Store)
		w.content.Secrets = append(w.content.Secrets, m.policy.Spec.Store.Secrets()...)
	}
	if p.Departures != "" {
		w.annotations = map[string]string{v1alpha1.AnnotationDepartures: p.Departures}
		w.podAnnotations = w.annotations
	}
	// Sorted, so that they do not depend on which of the members came first.
	slices.Sort(w.content.Secrets)
	w.content.Secrets = slices.Compact(w.content.Secrets)
	return w
}

// PoolConfigMap holds a file for each member and, where any of them has callers, their issuer's keys, which
// are the same for all. It is nil if there are no members.
func PoolConfigMap(p Pool) *corev1ac.ConfigMapApplyConfiguration {
	if len(p.Members) == 0 {
		return nil
	}
	files := make(map[string]string, len(p.Members))
	for _, m := range p.Members {
		files[v1alpha1.PoolFile(m.policy.Name)] = string(m.manifest)
		if len(m.keys) > 0 {
			files[v1alpha1.IssuerFile] = string(m.keys)
		}
	}
	return corev1ac.ConfigMap(p.childName(), p.Namespace).
		WithLabels(v1alpha1.PoolLabels(p.Name)).
		WithOwnerReferences(p.owners()...).
		WithData(files)
}

func (p Pool) childName() string { return v1alpha1.PoolChildName(p.Name) }

// owners make the pool's objects go with the last of its members. None of them controls these.
func (p Pool) owners() []*metav1ac.OwnerReferenceApplyConfiguration {
	owners := make([]*metav1ac.OwnerReferenceApplyConfiguration, len(p.Members))
	for i, m := range p.Members {
		owners[i] = m.reference()
	}
	return owners
}

// A ConfigMap holds 1 MiB, and etcd takes half as much again in one write. So what a member takes
// beside its file, in owner references and records of who set which field, is counted generously, and
// something is left for the issuer's keys.
const (
	poolRoom   = 1<<20 - 16<<10
	memberRoom = 512
)

// Fit names the policies that one pool has room for. Who comes first is served first.
func Fit(policies []Input) map[string]bool {
	room := poolRoom
	fit := map[string]bool{}
	for _, in := range policies {
		if needs := len(v1alpha1.PoolFile(in.policy.Name)) + len(in.manifest) + memberRoom; needs <= room {
			room -= needs
			fit[in.policy.Name] = true
		}
	}
	return fit
}
