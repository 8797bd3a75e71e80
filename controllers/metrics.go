package controllers

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// conditionMetrics tell the policies' conditions, as the cache shows them when it is asked. So
// there is nothing to keep in step, and nothing left of a policy that is gone.
type conditionMetrics struct{ cache client.Reader }

// collectTimeout bounds a scrape that comes before the cache is filled.
const collectTimeout = 5 * time.Second

var conditionDesc = prometheus.NewDesc("dedup_operator_policy_condition",
	"1 for each condition of each policy, by its status.",
	[]string{"policy_namespace", "policy", "condition", "status"}, nil)

// Describe implements prometheus.Collector.
func (conditionMetrics) Describe(descs chan<- *prometheus.Desc) { descs <- conditionDesc }

// Collect implements prometheus.Collector.
func (m conditionMetrics) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	var list v1alpha1.DedupPolicyList
	if err := m.cache.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		metrics <- prometheus.NewInvalidMetric(conditionDesc, err)
		return
	}
	for i := range list.Items {
		for _, c := range conditions(&list.Items[i]) {
			metrics <- prometheus.MustNewConstMetric(conditionDesc, prometheus.GaugeValue, 1,
				list.Items[i].Namespace, list.Items[i].Name, c.Type, string(c.Status))
		}
	}
}

// conditions are a policy's; one that was not reconciled yet is not ready.
func conditions(p *v1alpha1.DedupPolicy) []metav1.Condition {
	if len(p.Status.Conditions) == 0 {
		return []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionUnknown}}
	}
	return p.Status.Conditions
}
