package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Three policies and two Deployments, then one, then two again, while a consumer of the policy that moves
// goes on.
func TestAPolicyMovesIntoAPoolAndOutUnderLoad(t *testing.T) {
	namespace := newNamespace(t, "e2e-pool")
	redis := newRedis(t)
	apply(t, policyYAML(namespace, "first", redis.address, "deployment: {pool: small}"))
	apply(t, policyYAML(namespace, "second", redis.address, "deployment: {pool: small}"))
	apply(t, policyYAML(namespace, "orders", redis.address))
	own, pool := v1alpha1.ChildName("orders"), v1alpha1.PoolChildName("small")
	for _, name := range []string{"first", "second", "orders"} {
		awaitPolicy(t, namespace, name)
	}
	awaitDeployments(t, namespace, own, pool)
	calm := underLoad(t, namespace, "orders", "")

	move := func(patch string) {
		t.Helper()
		if _, err := kubectl(t.Context(), "", "patch", "ddp/orders", "-n", namespace, "--type=json", "-p", patch); err != nil {
			t.Fatal(err)
		}
		awaitPolicy(t, namespace, "orders")
	}
	move(`[{"op": "add", "path": "/spec/deployment", "value": {"pool": "small"}}]`)
	awaitDeployments(t, namespace, pool)
	calm()

	move(`[{"op": "remove", "path": "/spec/deployment"}]`)
	awaitDeployments(t, namespace, own, pool)
	// Its pods roll, so that no connection is left to one that no longer runs the policy.
	awaitDeployment(t, namespace, pool)
	calm()
}

// awaitDeployments waits until dedupd's Deployments in the namespace are these.
func awaitDeployments(t *testing.T, namespace string, names ...string) {
	t.Helper()
	eventually(t, 3*time.Minute, func() error {
		var list appsv1.DeploymentList
		if err := api.List(t.Context(), &list, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
			return err
		}
		var there []string
		for _, d := range list.Items {
			there = append(there, d.Name)
		}
		slices.Sort(names)
		if slices.Sort(there); !slices.Equal(there, names) {
			return fmt.Errorf("deployments %v, want %v", there, names)
		}
		return nil
	})
}
