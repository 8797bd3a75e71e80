package e2e_test

import (
	"fmt"
	"testing"
	"time"
)

// The sentinel makes the replica the primary: told to, while the old one goes on, and because the
// old one was killed. Each FRESH was acknowledged by the replica (durability), so none is granted
// twice. While there is no replica to do so checks are UNAVAILABLE: the client library asks again,
// with the same attempt, and within its 30 seconds no check fails.
func TestRedisFailsOverUnderLoad(t *testing.T) {
	namespace := newNamespace(t, "e2e-failover")
	redis := newSentinel(t, 10*time.Second) // longer than a busy machine stands still
	apply(t, fmt.Sprintf(`
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: orders, namespace: %s}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  store:
    redis:
      mode: Sentinel
      masterName: %s
      addresses: ["%s"]
      durability: {replicas: 1, timeout: 100ms}
`, namespace, masterName, redis.address))
	awaitPolicy(t, namespace, "orders")
	before := identities(dedupdPods(t, namespace, "orders"))
	calm := underLoad(t, namespace, "orders", "")

	t.Log("told to")
	old := redis.failOver(t)
	redis.awaitPrimary(t, old)
	redis.awaitReplica(t) // the old one, when the sentinel has told it
	calm()

	t.Log("killed")
	old, err := redis.primary()
	if err != nil {
		t.Fatal(err)
	}
	old.process.kill()
	promoted := redis.awaitPrimary(t, old)
	// As whatever starts it again would: it asks the sentinel whom to follow.
	old.start(t, replicaOf(promoted)...)
	redis.awaitReplica(t)
	calm()

	awaitPolicy(t, namespace, "orders")
	expectSame(t, before, identities(dedupdPods(t, namespace, "orders")))
}
