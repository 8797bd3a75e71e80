package controllers_test

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	policyv1 "k8s.io/api/policy/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Others change the status of a policy's objects again and again. Only the Deployment's is looked at.
func TestWhatNobodyLooksAtWakesNobody(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.DedupPolicySpec){
		"alone":     autoscaled,
		"in a pool": func(s *v1alpha1.DedupPolicySpec) { autoscaled(s); pooled("small")(s) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newPoolWorld(t)
			startManager(w.world)
			w.create(change)
			w.followed("the policy is ready")
			home := "orders-dedupd"
			if w.policy().Pool() != "" {
				home = "small-dedupd-pool"
			}
			quiet(t, w.world)

			objects := w.objects()
			h := objects["HorizontalPodAutoscaler "+home].(*autoscalingv2.HorizontalPodAutoscaler)
			b := objects["PodDisruptionBudget "+home].(*policyv1.PodDisruptionBudget)
			asked := w.pods.questions()
			for n := range int32(60) {
				h.Status.CurrentReplicas, h.Status.DesiredReplicas, b.Status.ExpectedPods = n, n, n
				must(t, k8s.Status().Update(ctx, h))
				must(t, k8s.Status().Update(ctx, b))
				time.Sleep(20 * time.Millisecond)
			}
			// Of itself it asks once in half a minute.
			if n := w.pods.questions() - asked; n > 6 {
				t.Errorf("the pods were asked %d times", n)
			}

			d := objects["Deployment "+home].(*appsv1.Deployment)
			for n := range 4 {
				asked = w.pods.questions()
				d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentProgressing, Status: "True", Message: fmt.Sprint(n)}}
				must(t, k8s.Status().Update(ctx, d))
				w.eventually("the Deployment was looked at", func() bool { return w.pods.questions() > asked })
			}
		})
	}
}
