package e2e_test

import (
	"strconv"
	"strings"
	"testing"
)

// That the collector knows the limit keeps an operator with many policies from being killed at it.
func TestTheOperatorKnowsItsMemoryLimit(t *testing.T) {
	pods, err := podsOf(t.Context(), "dedup-system", map[string]string{"control-plane": "controller-manager"})
	if err != nil || len(pods) == 0 {
		t.Fatalf("%d pods of the operator: %v", len(pods), err)
	}
	limit := pods[0].Spec.Containers[0].Resources.Limits.Memory().Value()
	said, err := core.CoreV1().Pods(pods[0].Namespace).ProxyGet("http", pods[0].Name, "8080", "metrics", nil).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(said), "\ngo_gc_gomemlimit_bytes ")
	value, _, _ := strings.Cut(after, "\n")
	if got, err := strconv.ParseFloat(value, 64); err != nil || int64(got) != limit/10*9 {
		t.Errorf("the collector's limit is %q, want nine tenths of the container's %d", value, limit)
	}
}
