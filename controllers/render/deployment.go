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
//
// Of the policy's meaning only the store is in the pod template, as a hash, so that a change of
// it rolls the pods; everything else reaches them through the ConfigMap while they run.
func Deployment(in Input) *appsv1ac.DeploymentApplyConfiguration {
	spec := appsv1ac.DeploymentSpec().
		WithSelector(in.labelSelector()).
		WithStrategy(in.strategy()).
		WithRevisionHistoryLimit(3).
		WithTemplate(in.template())
	if in.autoscaling() == nil {
		spec.WithReplicas(in.Replicas())
	}
	return appsv1ac.Deployment(in.name(), in.policy.Namespace).
		WithLabels(in.labels()).
		WithOwnerReferences(in.owner()).
		WithSpec(spec)
}

func (in Input) strategy() *appsv1ac.DeploymentStrategyApplyConfiguration {
	if in.memory() {
		// Two processes at once would each have a memory of their own.
		return appsv1ac.DeploymentStrategy().WithType(appsv1.RecreateDeploymentStrategyType)
	}
	return appsv1ac.DeploymentStrategy().
		WithType(appsv1.RollingUpdateDeploymentStrategyType).
		WithRollingUpdate(appsv1ac.RollingUpdateDeployment().
			WithMaxUnavailable(intstr.FromInt32(0)).
			WithMaxSurge(intstr.FromInt32(1)))
}

func (in Input) template() *corev1ac.PodTemplateSpecApplyConfiguration {
	var d v1alpha1.DeploymentSpec
	if in.policy.Spec.Deployment != nil {
		d = *in.policy.Spec.Deployment
	}
	pod := corev1ac.PodSpec().
		WithServiceAccountName(in.name()).
		WithAutomountServiceAccountToken(false).
		WithEnableServiceLinks(false).
		WithSecurityContext(corev1ac.PodSecurityContext().
			WithRunAsNonRoot(true).
			WithRunAsUser(podspec.UserID).
			WithRunAsGroup(podspec.UserID).
			WithFSGroup(podspec.UserID).
			WithSeccompProfile(corev1ac.SeccompProfile().WithType(corev1.SeccompProfileTypeRuntimeDefault))).
		WithContainers(podspec.Container(in.policy, in.pod())).
		WithVolumes(podspec.Volumes(in.policy)...).
		WithTopologySpreadConstraints(in.spread("kubernetes.io/hostname"), in.spread("topology.kubernetes.io/zone"))
	if len(d.NodeSelector) > 0 {
		pod.WithNodeSelector(d.NodeSelector)
	}
	for _, t := range d.Tolerations {
		pod.WithTolerations(toleration(t))
	}
	if d.PriorityClassName != "" {
		pod.WithPriorityClassName(d.PriorityClassName)
	}
	podLabels := over(d.PodLabels, in.labels())
	delete(podLabels, v1alpha1.LabelPolicy) // or the webhook would connect dedupd to itself
	return corev1ac.PodTemplateSpec().
		WithLabels(podLabels).
		WithAnnotations(over(d.PodAnnotations, map[string]string{
			v1alpha1.AnnotationStoreHash: in.compiled.StoreHash,
		})).
		WithSpec(pod)
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
func (in Input) spread(topology string) *corev1ac.TopologySpreadConstraintApplyConfiguration {
	return corev1ac.TopologySpreadConstraint().
		WithTopologyKey(topology).
		WithMaxSkew(1).
		WithWhenUnsatisfiable(corev1.ScheduleAnyway).
		WithLabelSelector(in.labelSelector()).
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
