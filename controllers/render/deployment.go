package render

import (
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsv1ac "k8s.io/client-go/applyconfigurations/apps/v1"
	corev1ac "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/podspec"
)

// Deployment runs dedupd. With autoscaling its replicas are the autoscaler's.
func Deployment(w *Workload) *appsv1ac.DeploymentApplyConfiguration {
	if w == nil {
		return nil
	}
	spec := appsv1ac.DeploymentSpec().
		WithSelector(w.labelSelector()).
		WithStrategy(w.strategy()).
		WithRevisionHistoryLimit(3).
		WithTemplate(w.template())
	if w.settings.Autoscaling == nil {
		spec.WithReplicas(w.Replicas())
	}
	deployment := appsv1ac.Deployment(w.name, w.namespace).
		WithLabels(w.labels).
		WithOwnerReferences(w.owners...).
		WithSpec(spec)
	if len(w.annotations) > 0 {
		deployment.WithAnnotations(w.annotations)
	}
	return deployment
}

func (w *Workload) strategy() *appsv1ac.DeploymentStrategyApplyConfiguration {
	if w.memory() {
		// Two processes at once would each have a memory of their own.
		return appsv1ac.DeploymentStrategy().WithType(appsv1.RecreateDeploymentStrategyType)
	}
	return appsv1ac.DeploymentStrategy().
		WithType(appsv1.RollingUpdateDeploymentStrategyType).
		WithRollingUpdate(appsv1ac.RollingUpdateDeployment().
			WithMaxUnavailable(intstr.FromInt32(0)).
			WithMaxSurge(intstr.FromInt32(1)))
}

func (w *Workload) template() *corev1ac.PodTemplateSpecApplyConfiguration {
	pod := corev1ac.PodSpec().
		WithServiceAccountName(w.name).
		WithAutomountServiceAccountToken(false).
		WithEnableServiceLinks(false).
		WithSecurityContext(corev1ac.PodSecurityContext().
			WithRunAsNonRoot(true).
			WithRunAsUser(podspec.UserID).
			WithRunAsGroup(podspec.UserID).
			WithFSGroup(podspec.UserID).
			WithSeccompProfile(corev1ac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))).
		WithContainers(podspec.Container(w.content, podspec.Options{Image: w.options.Image})).
		WithVolumes(podspec.Volumes(w.content)...).
		WithTopologySpreadConstraints(w.spread("kubernetes.io/hostname"), w.spread("topology.kubernetes.io/zone"))
	if len(w.settings.NodeSelector) > 0 {
		pod.WithNodeSelector(w.settings.NodeSelector)
	}
	for _, t := range w.settings.Tolerations {
		pod.WithTolerations(toleration(t))
	}
	if w.settings.PriorityClassName != "" {
		pod.WithPriorityClassName(w.settings.PriorityClassName)
	}
	template := corev1ac.PodTemplateSpec().WithLabels(w.podLabels()).WithSpec(pod)
	if annotations := over(w.settings.PodAnnotations, w.podAnnotations); len(annotations) > 0 {
		template.WithAnnotations(annotations)
	}
	return template
}

// podLabels are the user's and ours, but for those of the user's by which others would find the pods:
// the webhook, which would connect dedupd to itself, or the Service of another policy.
func (w *Workload) podLabels() map[string]string {
	all := over(w.settings.PodLabels, w.labels)
	for _, ours := range []string{v1alpha1.LabelPolicy, v1alpha1.LabelOwner, v1alpha1.LabelPool} {
		if _, set := w.labels[ours]; !set {
			delete(all, ours)
		}
	}
	return all
}

// over is theirs with ours on top.
func over(theirs, ours map[string]string) map[string]string {
	all := maps.Clone(theirs)
	if all == nil {
		return ours
	}
	maps.Copy(all, ours)
	return all
}

// spread keeps one node's or zone's failure from taking every pod, where there are several.
func (w *Workload) spread(topology string) *corev1ac.TopologySpreadConstraintApplyConfiguration {
	return corev1ac.TopologySpreadConstraint().
		WithTopologyKey(topology).
		WithMaxSkew(1).
		WithWhenUnsatisfiable(corev1.ScheduleAnyway).
		WithLabelSelector(w.labelSelector()).
		// Counts the pods of one rollout only, or the new ones would avoid the nodes of those they replace.
		WithMatchLabelKeys(appsv1.DefaultDeploymentUniqueLabelKey)
}

func toleration(t corev1.Toleration) *corev1ac.TolerationApplyConfiguration {
	ac := corev1ac.Toleration()
	if t.Key != "" {
		ac.WithKey(t.Key)
	}
	if t.Operator != "" {
		ac.WithOperator(t.Operator)
	}
	if t.Value != "" {
		ac.WithValue(t.Value)
	}
	if t.Effect != "" {
		ac.WithEffect(t.Effect)
	}
	if t.TolerationSeconds != nil {
		ac.WithTolerationSeconds(*t.TolerationSeconds)
	}
	return ac
}
