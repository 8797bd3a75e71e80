package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const operatorDeployment = "deployment/dedup-operator-controller-manager"

func TestRolloutsAndEvictionsUnderLoad(t *testing.T) {
	namespace := newNamespace(t, "e2e-rollout")
	redis := newRedis(t)
	apply(t, policyYAML(namespace, "orders", redis.address))
	awaitPolicy(t, namespace, "orders")
	calm := underLoad(t, namespace, "orders", "")
	t.Cleanup(func() {
		if err := install(context.Background(), manifest); err != nil {
			t.Error(err)
		}
	})

	before := identities(dedupdPods(t, namespace, "orders"))
	operate(t, "set", "image", operatorDeployment, "manager="+nextImage)
	calm()
	expectSame(t, before, identities(dedupdPods(t, namespace, "orders")))

	operate(t, "set", "env", operatorDeployment, "DEDUPD_IMAGE="+nextImage)
	eventually(t, 3*time.Minute, func() error {
		pods := dedupdPods(t, namespace, "orders")
		for _, pod := range pods {
			if pod.Spec.Containers[0].Image != nextImage {
				return fmt.Errorf("%s has the image %s", pod.Name, pod.Spec.Containers[0].Image)
			}
		}
		return nil
	})
	awaitDeployment(t, namespace, "orders-dedupd")
	awaitPolicy(t, namespace, "orders")
	calm()

	// As kubectl drain does, at once for all of a node's pods. A budget lets one go at a time.
	refused := 0
	for _, pod := range dedupdPods(t, namespace, "orders") {
		eventually(t, 2*time.Minute, func() error {
			err := core.PolicyV1().Evictions(namespace).Evict(t.Context(), &policyv1.Eviction{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod.Name},
			})
			if apierrors.IsTooManyRequests(err) {
				refused++
			}
			return err
		})
	}
	if refused == 0 {
		t.Error("the budget let all replicas go at once")
	}
	awaitDeployment(t, namespace, "orders-dedupd")
	calm()
}

// operate changes the operator's Deployment, and waits until it is rolled out.
func operate(t *testing.T, args ...string) {
	t.Helper()
	for _, args := range [][]string{append(args, "-n", operatorNamespace), {"rollout", "status", operatorDeployment, "-n", operatorNamespace, "--timeout=3m"}} {
		if _, err := kubectl(t.Context(), "", args...); err != nil {
			t.Fatal(err)
		}
	}
}
