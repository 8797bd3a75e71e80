package e2e_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// As kubectl drain does: the node takes no more pods, and dedupd's are evicted. On a single node that
// shows what the budget is for: the first goes, its successor finds no place, and so the second is held
// until there is one again. That replicas come up on other nodes, spread over them, and that a drained node
// gets empty, takes more than one node to show; the consumers, whose eviction is their own
// Deployment's matter, stay.
func TestANodeIsDrainedUnderLoad(t *testing.T) {
	namespace := newNamespace(t, "e2e-drain")
	redis := newRedis(t)
	apply(t, policyYAML(namespace, "orders", redis.address))
	awaitPolicy(t, namespace, "orders")
	calm := underLoad(t, namespace, "orders", "")
	before := dedupdPods(t, namespace, "orders")
	if len(before) != 2 {
		t.Fatalf("%d replicas, want 2", len(before))
	}

	var nodes corev1.NodeList
	if err := api.List(t.Context(), &nodes); err != nil {
		t.Fatal(err)
	}
	// One that somebody else has cordoned stays so afterwards.
	nodes.Items = slices.DeleteFunc(nodes.Items, func(n corev1.Node) bool { return n.Spec.Unschedulable })
	t.Cleanup(func() { setSchedulable(t, nodes, true) })
	setSchedulable(t, nodes, false)
	if err := evict(t, before[0]); err != nil {
		t.Fatalf("the first replica is not let go: %v", err)
	}
	eventually(t, time.Minute, func() error { return successorIsPending(t, namespace) })
	// It waits for as long as nothing takes its place, and serves alone.
	for range 5 {
		if err := evict(t, before[1]); !apierrors.IsTooManyRequests(err) {
			t.Fatalf("the eviction of the only replica left: %v, want a refusal by the budget", err)
		}
		calm()
	}

	setSchedulable(t, nodes, true)
	eventually(t, 2*time.Minute, func() error { return evict(t, before[1]) })
	awaitDeployment(t, namespace, "orders-dedupd")
	calm()
	after := identities(dedupdPods(t, namespace, "orders"))
	for pod := range identities(before) {
		if _, there := after[pod]; there {
			t.Errorf("%s was not drained", pod)
		}
	}
}

func evict(t *testing.T, pod corev1.Pod) error {
	t.Helper()
	return core.PolicyV1().Evictions(pod.Namespace).Evict(t.Context(), &policyv1.Eviction{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
	})
}

func successorIsPending(t *testing.T, namespace string) error {
	t.Helper()
	for _, pod := range dedupdPods(t, namespace, "orders") {
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
				return nil
			}
		}
	}
	return errors.New("no replica is waiting for a node")
}

// setSchedulable cordons nodes, or ends that.
func setSchedulable(t *testing.T, nodes corev1.NodeList, yes bool) {
	t.Helper()
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"unschedulable":%t}}`, !yes))
	for i := range nodes.Items {
		if err := api.Patch(contextOf(t), &nodes.Items[i], patch); err != nil {
			t.Error(err) // the others are to be schedulable again
		}
	}
}
