package e2e_test

import (
	"fmt"
	"testing"
)

// Another ServiceAccount's pod, connected or not, can neither check nor forget: what the policy
// remembers stays.
func TestOnlyItsCallersMayAskAPolicy(t *testing.T) {
	namespace := newNamespace(t, "e2e-callers")
	redis := newRedis(t)
	for _, account := range []string{"checkout", "other"} {
		apply(t, fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {name: %s, namespace: %s}}", account, namespace))
	}
	apply(t, policyYAML(namespace, "orders", redis.address, "scope: Policy", "callers: {serviceAccounts: [checkout]}"))
	awaitPolicy(t, namespace, "orders")

	endpoint := map[string]string{"DEDUPD_URL": "http://orders-dedupd." + namespace + ".svc:8080", "DEDUPD_POLICY": "orders"}
	for _, job := range []struct {
		workload
		want string
	}{
		{workload{name: "first", account: "checkout", policy: "orders", args: "[once, a]"}, "a FRESH\n"},
		{workload{name: "other", account: "other", policy: "orders", args: "[ask, a]"}, "check 403 forget 403\n"},
		{workload{name: "unconnected", account: "checkout", env: endpoint, args: "[ask, a]"}, "check 401 forget 401\n"},
		{workload{name: "second", account: "checkout", policy: "orders", args: "[once, a]"}, "a DUPLICATE\n"},
		{workload{name: "sidecar", account: "checkout", policy: "orders", inject: "sidecar", args: "[once, a]"}, "a DUPLICATE\n"},
		// The same questions by one who may ask.
		{workload{name: "third", account: "checkout", policy: "orders", args: "[ask, a]"}, "check 200 forget 200\n"},
		{workload{name: "fourth", account: "checkout", policy: "orders", args: "[once, a]"}, "a FRESH\n"},
	} {
		job.namespace = namespace
		if said := runJob(t, job.workload); said != job.want {
			t.Errorf("the Job %s of the ServiceAccount %s said %q, want %q", job.name, job.account, said, job.want)
		}
	}
}
