package render

import (
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/podspec"
)

// Workload is one Deployment of dedupd with what it needs. It has no objects if it is nil.
type Workload struct {
	name, namespace  string
	labels, selector map[string]string
	owners           []*metav1ac.OwnerReferenceApplyConfiguration

	// settings are how it is to run, stores what it has to reach.
	settings v1alpha1.DeploymentSpec
	stores   []v1alpha1.StoreSpec

	content        podspec.Content
	annotations    map[string]string // of the Deployment
	podAnnotations map[string]string // win over those of the settings
	options        Options
}

// Workload is the policy's own; nil if it is to be a member of a pool.
//
// Of the policy's meaning only the store is in the pod template, as a hash, so that a change of
// it rolls the pods; everything else reaches them through the ConfigMap while they run.
func (in Input) Workload() *Workload {
	if in.policy.Pool() != "" {
		return nil
	}
	w := &Workload{
		name: in.name(), namespace: in.policy.Namespace,
		labels: in.labels(), selector: in.selector(),
		owners:         []*metav1ac.OwnerReferenceApplyConfiguration{in.owner()},
		stores:         []v1alpha1.StoreSpec{in.policy.Spec.Store},
		content:        podspec.Of(in.policy),
		podAnnotations: map[string]string{v1alpha1.AnnotationStoreHash: in.compiled.StoreHash},
		options:        in.options,
	}
	if d := in.policy.Spec.Deployment; d != nil {
		w.settings = *d
	}
	return w
}

// ServiceAccount is dedupd's own, so that it has no rights by way of the namespace's default one.
func ServiceAccount(w *Workload) *corev1ac.ServiceAccountApplyConfiguration {
	if w == nil {
		return nil
	}
	return corev1ac.ServiceAccount(w.name, w.namespace).
		WithLabels(w.labels).
		WithOwnerReferences(w.owners...).
		WithAutomountServiceAccountToken(false)
}

func (w *Workload) labelSelector() *metav1ac.LabelSelectorApplyConfiguration {
	return metav1ac.LabelSelector().WithMatchLabels(w.selector)
}

// memory reports whether dedupd remembers in its process, which then is the only one.
func (w *Workload) memory() bool { return len(w.stores) == 1 && w.stores[0].Memory != nil }

// Replicas is how many pods are wanted; with autoscaling, how many at least.
func (w *Workload) Replicas() int32 {
	switch {
	case w.settings.Autoscaling != nil:
		return w.settings.Autoscaling.MinReplicas
	case w.settings.Replicas != nil:
		return *w.settings.Replicas
	case w.memory():
		return 1
	}
	return 2
}

// maxReplicas is how many pods there may be.
func (w *Workload) maxReplicas() int32 {
	if a := w.settings.Autoscaling; a != nil {
		return a.MaxReplicas
	}
	return w.Replicas()
}
