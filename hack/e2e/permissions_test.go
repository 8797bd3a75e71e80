package e2e_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestTheOperatorMayTouchDedupdsPodsAndNoMore(t *testing.T) {
	namespace := newNamespace(t, "e2e-permissions")
	redis := newRedis(t)
	other := workload{namespace: namespace, name: "other", replicas: 1, args: "[wait]"}
	apply(t, policyYAML(namespace, "orders", redis.address)+"---"+other.deployment())
	awaitPolicy(t, namespace, "orders")
	awaitDeployment(t, namespace, "other")
	dedupd, app := dedupdPods(t, namespace, "orders")[0], appPods(t, namespace, "other")[0]

	config := rest.CopyConfig(admin)
	config.Impersonate.UserName = "system:serviceaccount:dedup-system:dedup-operator-controller-manager"
	operator, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const nudge = `{"metadata":{"annotations":{"dedupd.io/nudged-at":"now"}}}`
	for name, c := range map[string]struct {
		pod   corev1.Pod
		patch string
		want  string // in the refusal; empty: none
	}{
		"the annotation of a dedupd pod":      {dedupd, nudge, ""},
		"the annotation of another pod":       {app, nudge, "no pods but dedupd's"},
		"the image of a dedupd pod":           {dedupd, `{"spec":{"containers":[{"name":"dedupd","image":"evil"}]}}`, "nothing of a pod but"},
		"another annotation of a dedupd pod":  {dedupd, `{"metadata":{"annotations":{"other":"x"}}}`, "nothing of a pod but"},
		"a label of a dedupd pod":             {dedupd, `{"metadata":{"labels":{"other":"x"}}}`, "nothing of a pod but"},
		"another pod, made to look as dedupd": {app, `{"metadata":{"labels":{"app.kubernetes.io/name":"dedupd"}}}`, "nothing of a pod but"},
	} {
		err := operator.Patch(t.Context(), c.pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, []byte(c.patch)))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want a refusal with %q", name, err, c.want)
		}
	}
}
