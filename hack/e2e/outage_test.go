package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestWhileTheOperatorIsAwayOnlyNewConsumersWait(t *testing.T) {
	namespace := newNamespace(t, "e2e-outage")
	redis := newRedis(t)
	apply(t, policyYAML(namespace, "orders", redis.address))
	awaitPolicy(t, namespace, "orders")
	calm := underLoad(t, namespace, "orders", "")
	dedupd, load := identities(dedupdPods(t, namespace, "orders")), identities(appPods(t, namespace, "load"))

	scaleOperator(t, 0)
	t.Cleanup(func() { scaleOperator(t, 2) })
	unlabelled := workload{namespace: namespace, name: "unlabelled", replicas: 1, args: "[wait]"}
	labelled := workload{namespace: namespace, name: "labelled", policy: "orders", replicas: 1, args: "[load]"}
	apply(t, unlabelled.deployment()+"---"+labelled.deployment())
	awaitDeployment(t, namespace, "unlabelled")
	eventually(t, time.Minute, func() error {
		d := &appsv1.Deployment{}
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "labelled"}, d); err != nil {
			return err
		}
		for _, c := range d.Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure && c.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("the labelled Deployment doesn't say that its pods can't be made: %+v", d.Status.Conditions)
	})
	if pods := appPods(t, namespace, "labelled"); len(pods) > 0 {
		t.Errorf("%d labelled pods were made without the webhook", len(pods))
	}
	calm()

	scaleOperator(t, 2)
	awaitDeployment(t, namespace, "labelled")
	injected := appPods(t, namespace, "labelled")[0]
	if env := injected.Spec.Containers[0].Env; len(env) < 4 {
		t.Errorf("the labelled pod was not injected: %+v", env)
	}
	calm()
	expectSame(t, dedupd, identities(dedupdPods(t, namespace, "orders")))
	expectSame(t, load, identities(appPods(t, namespace, "load")))
}

func scaleOperator(t *testing.T, replicas int) {
	t.Helper()
	d := &appsv1.Deployment{}
	d.Namespace, d.Name = operatorNamespace, "dedup-operator-controller-manager"
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas))
	if err := api.Patch(contextOf(t), d, patch); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, func() error { return operatorRuns(contextOf(t), replicas) })
}

// operatorRuns is nil if exactly so many replicas are there and available. Those that are about to end
// count as well: they answer the API server, or lead, as long as they are there.
func operatorRuns(ctx context.Context, replicas int) error {
	var pods corev1.PodList
	err := api.List(ctx, &pods, client.InNamespace(operatorNamespace), client.MatchingLabels{"control-plane": "controller-manager"})
	if err != nil {
		return err
	}
	d := &appsv1.Deployment{}
	if err := api.Get(ctx, client.ObjectKey{Namespace: operatorNamespace, Name: "dedup-operator-controller-manager"}, d); err != nil {
		return err
	}
	if len(pods.Items) != replicas || int(d.Status.AvailableReplicas) != replicas || int(d.Status.Replicas) != replicas {
		return fmt.Errorf("%d operator pods, %d available, want %d", len(pods.Items), d.Status.AvailableReplicas, replicas)
	}
	return nil
}

// expectSame: no pod is another one, and none has restarted.
func expectSame(t *testing.T, before, after map[string]int32) {
	t.Helper()
	for pod, restarts := range after {
		if had, ok := before[pod]; !ok || restarts != had {
			t.Errorf("pod %s is new, or has restarted: it was %v", pod, before)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d pods, there were %d", len(after), len(before))
	}
}
