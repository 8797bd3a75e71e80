package render

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	autoscalingv2ac "k8s.io/client-go/applyconfigurations/autoscaling/v2"
	policyv1ac "k8s.io/client-go/applyconfigurations/policy/v1"
)

// PodDisruptionBudget lets one pod go at a time; nil where there is only one, which a budget
// would keep on its node for ever.
func PodDisruptionBudget(w *Workload) *policyv1ac.PodDisruptionBudgetApplyConfiguration {
	if w == nil || w.maxReplicas() < 2 {
		return nil
	}
	return policyv1ac.PodDisruptionBudget(w.name, w.namespace).
		WithLabels(w.labels).
		WithOwnerReferences(w.owners...).
		WithSpec(policyv1ac.PodDisruptionBudgetSpec().
			WithSelector(w.labelSelector()).
			WithMaxUnavailable(intstr.FromInt32(1)).
			// A pod that is not ready answers nobody: it must not keep its node from being drained.
			WithUnhealthyPodEvictionPolicy(policyv1.AlwaysAllow))
}

// HorizontalPodAutoscaler sets the Deployment's replicas; nil unless the policy asks for it.
func HorizontalPodAutoscaler(w *Workload) *autoscalingv2ac.HorizontalPodAutoscalerApplyConfiguration {
	if w == nil || w.settings.Autoscaling == nil {
		return nil
	}
	a := w.settings.Autoscaling
	return autoscalingv2ac.HorizontalPodAutoscaler(w.name, w.namespace).
		WithLabels(w.labels).
		WithOwnerReferences(w.owners...).
		WithSpec(autoscalingv2ac.HorizontalPodAutoscalerSpec().
			WithScaleTargetRef(autoscalingv2ac.CrossVersionObjectReference().
				WithAPIVersion("apps/v1").WithKind("Deployment").WithName(w.name)).
			WithMinReplicas(a.MinReplicas).
			WithMaxReplicas(a.MaxReplicas).
			WithMetrics(autoscalingv2ac.MetricSpec().
				WithType(autoscalingv2.ResourceMetricSourceType).
				WithResource(autoscalingv2ac.ResourceMetricSource().
					WithName(corev1.ResourceCPU).
					WithTarget(autoscalingv2ac.MetricTarget().
						WithType(autoscalingv2.UtilizationMetricType).
						WithAverageUtilization(a.TargetCPUUtilization)))))
}
