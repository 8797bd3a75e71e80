package webhook

import (
	"encoding/json"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// patched is the pod after the patch that the API server gets.
func patched(t *testing.T, pod *corev1.Pod, policy *v1alpha1.DedupPolicy) *corev1.Pod {
	t.Helper()
	a, err := plan(pod, options, policy)
	if err != nil {
		t.Fatal(err)
	}
	var out corev1.Pod
	if err := json.Unmarshal(applyPatch(t, marshal(t, pod), a, pod), &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

func applyPatch(t *testing.T, raw []byte, a *additions, pod *corev1.Pod) []byte {
	t.Helper()
	ops := a.patch(pod)
	if len(ops) == 0 {
		return raw
	}
	patch, err := jsonpatch.DecodePatch(marshal(t, ops))
	if err != nil {
		t.Fatal(err)
	}
	out, err := patch.Apply(raw)
	if err != nil {
		t.Fatalf("applying %s: %v", marshal(t, ops), err)
	}
	return out
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestThePatchKeepsFieldsThatWeDoNotKnow(t *testing.T) {
	raw := []byte(`{"metadata":{"name":"a","namespace":"shop","labels":{"dedupd.io/policy":"orders"},"fromTheFuture":1},
		"spec":{"containers":[{"name":"app","env":[{"name":"A","value":"1","fromTheFuture":2}],"fromTheFuture":3}],"fromTheFuture":4}}`)
	pod := &corev1.Pod{}
	if err := json.Unmarshal(raw, pod); err != nil {
		t.Fatal(err)
	}
	a, err := plan(pod, options, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := string(applyPatch(t, raw, a, pod))
	for _, want := range []string{`"fromTheFuture":1`, `{"name":"A","value":"1","fromTheFuture":2}`, `"fromTheFuture":3`, `"fromTheFuture":4`, `DEDUPD_URL`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in %s", want, got)
		}
	}
}
