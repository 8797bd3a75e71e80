package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

func TestAnEndpointAndASidecarDecideByTheSameRecords(t *testing.T) {
	namespace := newNamespace(t, "e2e-pods")
	redis := newRedis(t)
	// Of the whole policy: else each Job were a consumer of its own.
	apply(t, policyYAML(namespace, "orders", redis.address, "scope: Policy"))
	awaitPolicy(t, namespace, "orders")

	if said := runJob(t, workload{namespace: namespace, name: "first", policy: "orders", args: "[once, a, a]"}); said != "a FRESH\na DUPLICATE\n" {
		t.Errorf("the Job with an endpoint said %q", said)
	}
	// The app tries once: it does not start before dedupd is ready. The Job ends although dedupd runs.
	sidecar := workload{namespace: namespace, name: "second", policy: "orders", inject: v1alpha1.InjectSidecar, args: "[once, a, b]"}
	if said := runJob(t, sidecar); said != "a DUPLICATE\nb FRESH\n" {
		t.Errorf("the Job with a sidecar said %q", said)
	}
	pods := jobPods(t, namespace, "second")
	if n := len(pods); n != 1 || len(pods[0].Spec.InitContainers) != 1 || len(pods[0].Spec.Containers) != 1 {
		t.Fatalf("%d pods of the Job, want 1 with a sidecar: %+v", n, pods)
	}
	app, dedupd := pods[0].Status.ContainerStatuses[0], pods[0].Status.InitContainerStatuses[0]
	if dedupd.Started == nil || dedupd.State.Terminated == nil || app.State.Terminated.StartedAt.Before(&dedupd.State.Terminated.StartedAt) {
		t.Errorf("the app did not start after dedupd: %+v, %+v", app, dedupd)
	}
}

func TestAPodThatIsCreatedBeforeItsPolicy(t *testing.T) {
	namespace := newNamespace(t, "e2e-early")
	redis := newRedis(t)
	endpoint := workload{namespace: namespace, name: "endpoint", policy: "orders", replicas: 1, args: "[load]"}
	sidecar := workload{namespace: namespace, name: "sidecar", policy: "orders", inject: v1alpha1.InjectSidecar, replicas: 1, args: "[load]"}
	apply(t, endpoint.deployment()+"---"+sidecar.deployment())

	// With an endpoint the names are known, and the pod starts. With a sidecar its ReplicaSet is told why not.
	awaitDeployment(t, namespace, "endpoint")
	eventually(t, time.Minute, func() error {
		var events corev1.EventList
		if err := api.List(t.Context(), &events, client.InNamespace(namespace)); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "FailedCreate" && strings.Contains(e.Message, "DedupPolicy does not exist in namespace "+namespace) {
				return nil
			}
		}
		return fmt.Errorf("no event says that the policy is missing: %+v", events.Items)
	})
	if pods := appPods(t, namespace, "sidecar"); len(pods) > 0 {
		t.Errorf("%d pods run without the sidecar that they asked for", len(pods))
	}

	apply(t, policyYAML(namespace, "orders", redis.address))
	awaitPolicy(t, namespace, "orders")
	for _, name := range []string{"endpoint", "sidecar"} {
		awaitDeployment(t, namespace, name)
		pod := appPods(t, namespace, name)[0]
		eventually(t, time.Minute, func() error {
			last, err := lastTally(t.Context(), namespace, pod.Name)
			if err == nil && last.Checks-last.Failed < 100 {
				err = fmt.Errorf("%s has %+v", name, last)
			}
			return err
		})
	}
	// The pod that was there first waited and lost nothing: it was not made anew.
	for pod, restarts := range identities(appPods(t, namespace, "endpoint")) {
		if restarts > 0 {
			t.Errorf("%s restarted %d times", pod, restarts)
		}
	}
}

// runJob returns what the Job's pod wrote.
func runJob(t *testing.T, w workload) string {
	t.Helper()
	apply(t, w.job())
	eventually(t, 2*time.Minute, func() error {
		job := &batchv1.Job{}
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: w.name}, job); err != nil {
			return err
		}
		for _, c := range job.Status.Conditions {
			if c.Type == batchv1.JobComplete && c.Status == corev1.ConditionTrue {
				return nil
			}
			if c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue {
				t.Fatalf("the Job %s failed: %s", w.name, c.Message)
			}
		}
		return fmt.Errorf("the Job %s has not ended: %+v", w.name, job.Status)
	})
	said, err := logOf(t.Context(), w.namespace, jobPods(t, w.namespace, w.name)[0].Name)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func jobPods(t *testing.T, namespace, job string) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := api.List(t.Context(), &list, client.InNamespace(namespace), client.MatchingLabels{"app": job}); err != nil {
		t.Fatal(err)
	}
	return list.Items
}
