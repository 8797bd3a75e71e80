package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/hack/apiservertest"
)

// The manager as config/namespaced starts it, under the Roles that it grants and no others.
func TestManagerOfSomeNamespaces(t *testing.T) {
	ctx := context.Background()
	c, kubeconfig, m := install(t, "config/namespaced")
	if len(m.clusterWide) > 0 {
		t.Errorf("there are ClusterRoleBindings: %v", m.clusterWide)
	}
	var args []string
	for _, arg := range m.deployment.Spec.Template.Spec.Containers[0].Args {
		if !strings.Contains(arg, "bind-address") { // the test has its own
			args = append(args, arg)
		}
	}
	manager := startProcess(t, kubeconfig, args...)
	manager.awaitReady(t)
	for _, namespace := range []string{"default", "team-a", "team-b"} {
		policy := &v1alpha1.DedupPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "orders"}}
		policy.Spec = v1alpha1.DedupPolicySpec{
			Key:   v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "message-id"}},
			TTL:   "1h",
			Store: v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{Addresses: []string{"redis.shop.svc:6379"}}},
		}
		if err := c.Create(ctx, policy); err != nil {
			t.Fatal(err)
		}
	}
	for _, namespace := range []string{"team-a", "team-b"} {
		apiservertest.Poll(t, func() error {
			return c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: v1alpha1.ChildName("orders")}, &appsv1.Deployment{})
		})
	}
	// It was made first, so it would be there by now.
	if err := c.Get(ctx, types.NamespacedName{Namespace: "default", Name: v1alpha1.ChildName("orders")}, &appsv1.Deployment{}); err == nil {
		t.Error("the policy of another namespace was served")
	}
	env := func(namespace string) []corev1.EnvVar {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "consumer", Labels: map[string]string{v1alpha1.LabelPolicy: "orders"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
		apiservertest.Poll(t, func() error { return c.Create(ctx, pod) })
		return pod.Spec.Containers[0].Env
	}
	if got := env("team-a"); !slices.Contains(got, corev1.EnvVar{Name: v1alpha1.EnvURL, Value: "http://orders-dedupd.team-a.svc:8080"}) {
		t.Errorf("a pod of team-a got %v", got)
	}
	if got := env("default"); len(got) > 0 {
		t.Errorf("a pod of another namespace got %v", got)
	}
	manager.terminate(t)
	t.Run("kubectl wait ends when the policy is ready", func(t *testing.T) {
		policy := &v1alpha1.DedupPolicy{}
		if err := c.Get(ctx, types.NamespacedName{Namespace: "team-a", Name: "orders"}, policy); err != nil {
			t.Fatal(err)
		}
		kubectl := func(timeout string) ([]byte, error) {
			return exec.Command(filepath.Join(assets(t), "kubectl"), "--kubeconfig", kubeconfig, "-n", "team-a",
				"wait", "--for=condition=Ready", "ddp/orders", "--timeout="+timeout).CombinedOutput()
		}
		if out, err := kubectl("1s"); err == nil {
			t.Errorf("it ends before: %s", out)
		}
		// As if its pods ran, which nothing makes here.
		meta.SetStatusCondition(&policy.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, ObservedGeneration: policy.Generation,
		})
		if err := c.Status().Update(ctx, policy); err != nil {
			t.Fatal(err)
		}
		if out, err := kubectl("20s"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	for line := range strings.Lines(manager.log.String()) {
		if strings.Contains(line, "forbidden") {
			t.Error(line)
		}
	}
}
