package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Everything that a policy may bring into being. Events and the namespace's own objects are not among it.
const children = "deployments,replicasets,pods,services,endpointslices,configmaps,serviceaccounts,poddisruptionbudgets,networkpolicies,horizontalpodautoscalers"

func TestWhatIsDeletedLeavesNothingBehindAndHangsNowhere(t *testing.T) {
	redis := newRedis(t)
	namespace := newNamespace(t, "e2e-removal")
	untouched := everything(t, namespace)

	t.Run("a policy", func(t *testing.T) {
		apply(t, policyYAML(namespace, "orders", redis.address))
		awaitPolicy(t, namespace, "orders")
		remove(t, "ddp/orders", "-n", namespace)
		eventually(t, time.Minute, func() error { return same(t, namespace, untouched) })
	})

	t.Run("a namespace with a policy and its consumer", func(t *testing.T) {
		other := newNamespace(t, "e2e-removal-whole")
		apply(t, policyYAML(other, "orders", redis.address))
		awaitPolicy(t, other, "orders")
		consumer := workload{namespace: other, name: "consumer", policy: "orders", inject: "sidecar", replicas: 1, args: "[wait]"}
		apply(t, consumer.deployment())
		awaitDeployment(t, other, "consumer")
		remove(t, "namespace/"+other)
	})

	t.Run("the operator while policies exist", func(t *testing.T) {
		t.Cleanup(func() {
			if err := install(context.Background(), manifest); err != nil {
				t.Error(err)
			}
		})
		apply(t, policyYAML(namespace, "orders", redis.address))
		awaitPolicy(t, namespace, "orders")
		if err := uninstall(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The policies went with their kind, and their objects with them, without an operator.
		eventually(t, time.Minute, func() error { return same(t, namespace, untouched) })
		left, err := kubectl(t.Context(), "", "get", "namespaces,crds,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,"+
			"validatingadmissionpolicies,validatingadmissionpolicybindings", "-o", "name")
		if err != nil {
			t.Fatal(err)
		}
		for name := range strings.Lines(left) {
			if strings.Contains(name, "dedup-") || strings.Contains(name, "dedupd") {
				t.Errorf("%s is left", strings.TrimSpace(name))
			}
		}
	})
}

// remove deletes as a user does, and fails if it hangs.
func remove(t *testing.T, args ...string) {
	t.Helper()
	if _, err := kubectl(t.Context(), "", append([]string{"delete", "--timeout=90s"}, args...)...); err != nil {
		t.Error(err)
	}
}

func everything(t *testing.T, namespace string) string {
	t.Helper()
	there, err := kubectl(t.Context(), "", "get", children, "-n", namespace, "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	return there
}

func same(t *testing.T, namespace, want string) error {
	t.Helper()
	if there := everything(t, namespace); there != want {
		return fmt.Errorf("in the namespace there is\n%s\nand there was\n%s", there, want)
	}
	return nil
}
