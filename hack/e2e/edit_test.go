package e2e_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// An edit is one that is loaded in place. It has arrived when every replica says that it runs it.
func TestAnEditReachesEveryReplicaWithinTenSeconds(t *testing.T) {
	const edits, limit = 20, 10 * time.Second
	namespace := newNamespace(t, "e2e-edit")
	redis := newRedis(t)
	apply(t, policyYAML(namespace, "orders", redis.address, "deployment: {replicas: 3}"))
	awaitPolicy(t, namespace, "orders")
	calm := underLoad(t, namespace, "orders", "")
	before := identities(dedupdPods(t, namespace, "orders"))

	var took []time.Duration
	for i := range edits {
		// At another moment of the kubelet's rounds each time.
		time.Sleep(time.Duration(i) * 137 * time.Millisecond)
		ttl := fmt.Sprintf("%dm", 90+i)
		began := time.Now()
		if _, err := kubectl(t.Context(), "", "patch", "ddp/orders", "-n", namespace, "--type=merge", "-p", `{"spec":{"ttl":"`+ttl+`"}}`); err != nil {
			t.Fatal(err)
		}
		hash := hashOf(t, namespace, "orders")
		eventually(t, 2*time.Minute, func() error { return runs(t, namespace, "orders", hash) })
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("from the edit to the last of 3 replicas, %d edits: median %s, slowest %s", edits, took[edits/2].Round(time.Millisecond), took[edits-1].Round(time.Millisecond))
	if p99 := took[edits-1]; p99 > limit {
		t.Errorf("the slowest of %d edits took %s, want at most %s", edits, p99, limit)
	}
	calm()
	expectSame(t, before, identities(dedupdPods(t, namespace, "orders")))
}

// hashOf is the hash of the configuration that the policy's pods should run.
func hashOf(t *testing.T, namespace, name string) string {
	t.Helper()
	p := &v1alpha1.DedupPolicy{}
	if err := api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, p); err != nil {
		t.Fatal(err)
	}
	v1alpha1.SetDefaults(p)
	manifest, err := policy.Manifest(p)
	if err != nil {
		t.Fatal(err)
	}
	return policy.HashConfig(manifest)
}

// runs is nil if every replica says that it runs the configuration.
func runs(t *testing.T, namespace, name, hash string) error {
	t.Helper()
	for _, pod := range dedupdPods(t, namespace, name) {
		said, err := statusOf(t.Context(), pod)
		if err != nil {
			return err
		}
		if len(said.Policies) != 1 || said.Policies[0].ConfigHash != hash {
			return fmt.Errorf("%s runs %+v, want the configuration %s", pod.Name, said.Policies, hash)
		}
	}
	return nil
}
