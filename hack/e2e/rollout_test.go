package e2e_test

import (
	"context"
	"fmt"
	"testing"
	"time"
)

const operatorDeployment = "deployment/dedup-operator-controller-manager"

func TestRolloutsUnderLoad(t *testing.T) {
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
}

// operate changes the operator's Deployment, and waits until it is rolled out.
func operate(t *testing.T, args ...string) {
	t.Helper()
	if _, err := kubectl(t.Context(), "", append(args, "-n", operatorNamespace)...); err != nil {
		t.Fatal(err)
	}
	if err := operatorIsRolledOut(t.Context()); err != nil {
		t.Fatal(err)
	}
}
