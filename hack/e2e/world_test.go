package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

// policyYAML is a policy whose messages have their identifier in a header. more is further lines of the spec.
func policyYAML(namespace, name, redis string, more ...string) string {
	return fmt.Sprintf(`
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: %s, namespace: %s}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  store: {redis: {addresses: ["%s"]}}
  %s
`, name, namespace, redis, strings.Join(more, "\n  "))
}

// workload is a consumer of the policy, of the tests' own image.
type workload struct {
	namespace, name string
	policy          string // empty: no label
	inject          string
	account         string // ServiceAccount; empty: default
	replicas        int
	args            string // of the app, as a YAML list
	env             map[string]string
}

// podSpec meets Pod Security "restricted", as a user's would.
func (w workload) podSpec(restartPolicy string) string {
	var env []string
	for name, value := range w.env {
		env = append(env, fmt.Sprintf("{name: %s, value: %q}", name, value))
	}
	return fmt.Sprintf(`
      restartPolicy: %s
      terminationGracePeriodSeconds: 20
      serviceAccountName: %s
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: app
        image: %s
        args: %s
        env: [%s]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}`,
		restartPolicy, cmp.Or(w.account, "default"), appImage, w.args, strings.Join(env, ", "))
}

func (w workload) podMeta() string {
	labels := "app: " + w.name
	if w.policy != "" {
		labels += ", " + v1alpha1.LabelPolicy + ": " + w.policy
	}
	annotations := ""
	if w.inject != "" {
		annotations = v1alpha1.AnnotationInject + ": " + w.inject
	}
	return fmt.Sprintf("{labels: {%s}, annotations: {%s}}", labels, annotations)
}

func (w workload) deployment() string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %s, namespace: %s}
spec:
  replicas: %d
  selector: {matchLabels: {app: %s}}
  template:
    metadata: %s
    spec: %s
`, w.name, w.namespace, w.replicas, w.name, w.podMeta(), w.podSpec("Always"))
}

func (w workload) job() string {
	return fmt.Sprintf(`
apiVersion: batch/v1
kind: Job
metadata: {name: %s, namespace: %s}
spec:
  backoffLimit: 0
  template:
    metadata: %s
    spec: %s
`, w.name, w.namespace, w.podMeta(), w.podSpec("Never"))
}

// awaitPolicy waits until the policy's current spec is Ready.
func awaitPolicy(t *testing.T, namespace, name string) *v1alpha1.DedupPolicy {
	t.Helper()
	p := &v1alpha1.DedupPolicy{}
	eventually(t, 2*time.Minute, func() error {
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, p); err != nil {
			return err
		}
		ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		if ready == nil || ready.Status != "True" || ready.ObservedGeneration != p.Generation {
			return fmt.Errorf("policy %s: %+v", name, p.Status.Conditions)
		}
		return nil
	})
	return p
}

// awaitDeployment waits until every replica of the current template is available, and no other is left. A
// ReplicaSet whose pods were refused waits before its next try about as long as it was refused so far.
func awaitDeployment(t *testing.T, namespace, name string) {
	t.Helper()
	eventually(t, 6*time.Minute, func() error {
		d := &appsv1.Deployment{}
		if err := api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, d); err != nil {
			return err
		}
		s, want := d.Status, *d.Spec.Replicas
		if s.ObservedGeneration != d.Generation || s.UpdatedReplicas != want || s.AvailableReplicas != want || s.Replicas != want {
			return fmt.Errorf("deployment %s: %d of %d available", name, s.AvailableReplicas, want)
		}
		return nil
	})
}

// podsOf are the pods with a label that are not about to end.
func podsOf(ctx context.Context, namespace string, selector map[string]string) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := api.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels(selector)); err != nil {
		return nil, err
	}
	var there []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded {
			there = append(there, p)
		}
	}
	return there, nil
}

func appPods(t *testing.T, namespace, name string) []corev1.Pod {
	t.Helper()
	pods, err := podsOf(t.Context(), namespace, map[string]string{"app": name})
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

func dedupdPods(t *testing.T, namespace, policy string) []corev1.Pod {
	t.Helper()
	pods, err := podsOf(t.Context(), namespace, v1alpha1.SelectorLabels(policy))
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

// identities tell pods and their restarts apart.
func identities(pods []corev1.Pod) map[string]int32 {
	all := map[string]int32{}
	for _, p := range pods {
		restarts := int32(0)
		for _, c := range append(p.Status.ContainerStatuses, p.Status.InitContainerStatuses...) {
			restarts += c.RestartCount
		}
		all[p.Name+"/"+string(p.UID)] = restarts
	}
	return all
}

// statusOf is what a dedupd pod says of itself, asked through the API server.
func statusOf(ctx context.Context, pod corev1.Pod) (status.Status, error) {
	var s status.Status
	said, err := core.CoreV1().Pods(pod.Namespace).ProxyGet("http", pod.Name, "8080", "v1/status", nil).DoRaw(ctx)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(said, &s)
}

func logOf(ctx context.Context, namespace, pod string) (string, error) {
	said, err := core.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: "app"}).DoRaw(ctx)
	return string(said), err
}

// tally is what app load prints.
type tally struct {
	Checks, Failed, Wrong int
	SlowestMillis         int64
	Last                  string
}

// underLoad starts consumers that check all the time, and returns a function that says, when
// enough has been checked since, that no check failed and none was wrong.
func underLoad(t *testing.T, namespace, policy, inject string) (calm func()) {
	t.Helper()
	w := workload{namespace: namespace, name: "load", policy: policy, inject: inject, replicas: 1, args: "[load]"}
	apply(t, w.deployment())
	awaitDeployment(t, namespace, w.name)
	pods := appPods(t, namespace, w.name)
	began := time.Now()
	progress := func(least int) tally {
		var last tally
		eventually(t, time.Minute, func() error {
			var err error
			last, err = lastTally(context.Background(), namespace, pods[0].Name)
			if err == nil && last.Checks < least {
				err = fmt.Errorf("%d checks so far, want %d", last.Checks, least)
			}
			return err
		})
		return last
	}
	progress(100)
	return func() {
		t.Helper()
		now := progress(0)
		end := progress(now.Checks + 200) // what the last event caused is answered by then
		slowest, err := slowestOf(context.Background(), namespace, pods[0].Name)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d checks in %s: %d failed, %d wrong; the slowest took %d ms", end.Checks, time.Since(began).Round(time.Second), end.Failed, end.Wrong, slowest)
		if end.Failed > 0 || end.Wrong > 0 {
			t.Errorf("the last of them: %s", end.Last)
		}
	}
}

func lastTally(ctx context.Context, namespace, pod string) (tally, error) {
	var last tally
	said, err := logOf(ctx, namespace, pod)
	if err != nil {
		return last, err
	}
	lines := strings.Split(strings.TrimSpace(said), "\n")
	if lines[len(lines)-1] == "" {
		return last, errors.New("nothing is in the log")
	}
	return last, json.Unmarshal([]byte(lines[len(lines)-1]), &last)
}

func slowestOf(ctx context.Context, namespace, pod string) (int64, error) {
	said, err := logOf(ctx, namespace, pod)
	var slowest int64
	for line := range strings.Lines(said) {
		var one tally
		if json.Unmarshal([]byte(line), &one) == nil {
			slowest = max(slowest, one.SlowestMillis)
		}
	}
	return slowest, err
}
