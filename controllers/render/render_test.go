package render_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

var update = flag.Bool("update", false, "write what is rendered to the out.yaml files")

var options = render.Options{Image: "example.com/dedup-operator:v1", OperatorNamespace: "dedup-system"}

// input compiles a policy from YAML and gives it the UID that the API server would.
func input(t *testing.T, manifest []byte) render.Input {
	t.Helper()
	var p v1alpha1.DedupPolicy
	if err := yaml.UnmarshalStrict(manifest, &p); err != nil {
		t.Fatal(err)
	}
	p.UID = "11111111-2222-3333-4444-555555555555"
	compiled, errs := policy.Compile(&p)
	if len(errs) > 0 {
		t.Fatal(errs.ToAggregate())
	}
	var keys []byte
	if p.Spec.Callers != nil {
		keys = []byte(`{"issuer": "https://cluster", "keys": []}`)
	}
	in, err := render.NewInput(&p, compiled, keys, options)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// all renders every kind, in the order in which they are applied.
func all(in render.Input) []any {
	return []any{
		render.ServiceAccount(in.Workload()), render.ConfigMap(in), render.NetworkPolicy(in.Workload()), render.Service(in),
		render.Deployment(in.Workload()), render.PodDisruptionBudget(in.Workload()), render.HorizontalPodAutoscaler(in.Workload()),
	}
}

func TestGolden(t *testing.T) {
	golden(t, "*", func(t *testing.T, manifest []byte) []any {
		t.Helper()
		return all(input(t, manifest))
	})
}

// golden holds what is rendered of each in.yaml of some folders to the out.yaml beside it.
func golden(t *testing.T, folders string, rendered func(t *testing.T, manifest []byte) []any) {
	t.Helper()
	cases, err := filepath.Glob(filepath.Join("testdata", folders, "in.yaml"))
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases in testdata/%s (%v)", folders, err)
	}
	for _, in := range cases {
		folder := filepath.Dir(in)
		t.Run(filepath.Base(folder), func(t *testing.T) {
			manifest, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			for _, object := range rendered(t, manifest) {
				if reflect.ValueOf(object).IsNil() {
					continue
				}
				text, err := yaml.Marshal(object)
				if err != nil {
					t.Fatal(err)
				}
				got.WriteString("---\n")
				got.Write(text)
			}
			out := filepath.Join(folder, "out.yaml")
			if *update {
				if err := os.WriteFile(out, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("run go test ./controllers/render -update and review the difference (-want +got):\n%s", diff)
			}
		})
	}
}

const redisPolicy = `
metadata: {name: orders, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  store: {redis: {addresses: ["redis:6379"]}}
`

func deployment(t *testing.T, in render.Input) *appsv1.Deployment {
	t.Helper()
	data, err := json.Marshal(render.Deployment(in.Workload()))
	if err != nil {
		t.Fatal(err)
	}
	d := &appsv1.Deployment{}
	if err := json.Unmarshal(data, d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestOnlyAChangeOfTheStoreOrThePodsRollsThem(t *testing.T) {
	base := deployment(t, input(t, []byte(redisPolicy)))
	cases := map[string]struct {
		from, to string
		rolls    bool
	}{
		"another ttl":                  {"ttl: 1h", "ttl: 2h", false},
		"mode Claim with a lease":      {"ttl: 1h", "ttl: 1h\n  mode: Claim\n  claim: {lease: 5s}", false},
		"another enforcement":          {"ttl: 1h", "ttl: 1h\n  enforcement: Shadow", false},
		"another policy on failure":    {"ttl: 1h", "ttl: 1h\n  onStoreFailure: FailOpen", false},
		"another key in another epoch": {"header: message-id", "header: id}}\n  epoch: 2\n  scope: Policy\n  deployment: {nodeSelector: {", false},
		"more replicas":                {"ttl: 1h", "ttl: 1h\n  deployment: {replicas: 5}", false},
		"a default written out":        {`["redis:6379"]`, `["redis:6379"], mode: Standalone, keyFormat: Readable`, false},
		"another address":              {"redis:6379", "redis2:6379", true},
		"credentials":                  {`["redis:6379"]`, `["redis:6379"], credentialsSecretRef: {name: auth}`, true},
		"TLS":                          {`["redis:6379"]`, `["redis:6379"], tls: {}`, true},
		"another kind of store":        {`redis: {addresses: ["redis:6379"]}`, "memory: {}", true},
		"other resources":              {"ttl: 1h", "ttl: 1h\n  deployment: {resources: {limits: {cpu: 1}}}", true},
		"a label for the pods":         {"ttl: 1h", "ttl: 1h\n  deployment: {podLabels: {team: orders}}", true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			changed := bytes.Replace([]byte(redisPolicy), []byte(c.from), []byte(c.to), 1)
			if bytes.Equal(changed, []byte(redisPolicy)) {
				t.Fatalf("%q is not in the policy", c.from)
			}
			got := deployment(t, input(t, changed))
			if diff := cmp.Diff(base.Spec.Template, got.Spec.Template); (diff != "") != c.rolls {
				t.Errorf("rolls: %v, want %v; the pod template differs by:\n%s", !c.rolls, c.rolls, diff)
			}
		})
	}
}

func TestAnotherImageRollsThePods(t *testing.T) {
	base := deployment(t, input(t, []byte(redisPolicy)))
	defer func(image string) { options.Image = image }(options.Image)
	options.Image = "example.com/dedup-operator:v2"
	if got := deployment(t, input(t, []byte(redisPolicy))); cmp.Equal(base.Spec.Template, got.Spec.Template) {
		t.Error("the pod template is the same")
	}
}

func TestTheUsersLabelsDoNotReplaceOurs(t *testing.T) {
	d := deployment(t, input(t, []byte(redisPolicy+`
  deployment:
    podLabels: {app.kubernetes.io/managed-by: me, dedupd.io/policy: orders, dedupd.io/pool: small, team: orders}
    podAnnotations: {dedupd.io/store-hash: mine, note: hello}
`)))
	if got := d.Spec.Template.Labels; got["app.kubernetes.io/managed-by"] != "dedup-operator" || got["team"] != "orders" {
		t.Errorf("labels %v", got)
	}
	if _, connected := d.Spec.Template.Labels["dedupd.io/policy"]; connected {
		t.Error("the webhook would connect dedupd's own pods")
	}
	if _, found := d.Spec.Template.Labels["dedupd.io/pool"]; found {
		t.Error("the Services of a pool's members would lead here")
	}
	if got := d.Spec.Template.Annotations; got["dedupd.io/store-hash"] == "mine" || got["note"] != "hello" {
		t.Errorf("annotations %v", got)
	}
	for k, v := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Labels[k] != v {
			t.Errorf("the selector's %s=%s is not on the pods", k, v)
		}
	}
}

func TestTheLongestPolicyNameFitsEverywhere(t *testing.T) {
	name := "a-name-of-fifty-two-characters-the-longest-permitted"
	in := input(t, bytes.Replace([]byte(redisPolicy), []byte("orders"), []byte(name), 1))
	if len(name) != 52 {
		t.Fatalf("the name has %d characters", len(name))
	}
	d := deployment(t, in)
	if problems := validation.IsDNS1035Label(d.Name); problems != nil {
		t.Errorf("%s is no name for a Service: %v", d.Name, problems)
	}
	for k, v := range d.Labels {
		if problems := validation.IsValidLabelValue(v); problems != nil {
			t.Errorf("label %s=%s: %v", k, v, problems)
		}
	}
}

// What the Pod Security Standard "restricted" looks at in a pod; the container's part is held
// to it where it is made, in podspec.
func TestPodsAreRestricted(t *testing.T) {
	pod := deployment(t, input(t, []byte(redisPolicy))).Spec.Template.Spec
	sc := pod.SecurityContext
	if sc == nil || sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot || sc.RunAsUser == nil || *sc.RunAsUser == 0 {
		t.Errorf("may run as root: %+v", sc)
	}
	if sc == nil || sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("no seccomp profile: %+v", sc)
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC || (sc != nil && len(sc.Sysctls) > 0) {
		t.Error("reaches out of its namespaces")
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("has a token for the API server, which it never asks")
	}
	for _, v := range pod.Volumes {
		if v.ConfigMap == nil && v.Secret == nil {
			t.Errorf("volume %s is neither a ConfigMap nor a Secret", v.Name)
		}
	}
	if len(pod.Containers) != 1 || pod.Containers[0].SecurityContext == nil {
		t.Fatalf("containers: %+v", pod.Containers)
	}
}
