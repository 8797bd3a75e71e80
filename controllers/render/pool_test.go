package render_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers/render"
	"github.com/dedupd/dedup-operator/dedupd/policy"
)

// pool is that of policies, each of which is older than the next.
func pool(t *testing.T, manifests ...[]byte) render.Pool {
	t.Helper()
	p := render.Pool{Namespace: "shop", Name: "small", Options: options}
	var policies []*v1alpha1.DedupPolicy
	for i, manifest := range manifests {
		m := &v1alpha1.DedupPolicy{}
		if err := yaml.UnmarshalStrict(manifest, m); err != nil {
			t.Fatal(err)
		}
		m.UID = types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i))
		m.CreationTimestamp = metav1.NewTime(time.Unix(int64(i), 0))
		compiled, errs := policy.Compile(m)
		if len(errs) > 0 {
			t.Fatal(errs.ToAggregate())
		}
		var keys []byte
		if m.Spec.Callers != nil {
			keys = []byte(`{"issuer": "https://cluster", "keys": []}`)
		}
		in, err := render.NewInput(m, compiled, keys, options)
		if err != nil {
			t.Fatal(err)
		}
		policies, p.Members = append(policies, m), append(p.Members, in)
	}
	p.Settings = render.Settings(render.Shaper(policies))
	return p
}

func ofPool(p render.Pool) []any {
	w := p.Workload()
	return []any{
		render.ServiceAccount(w), render.PoolConfigMap(p), render.NetworkPolicy(w),
		render.Deployment(w), render.PodDisruptionBudget(w), render.HorizontalPodAutoscaler(w),
	}
}

func TestGoldenPools(t *testing.T) {
	golden(t, "pools/*", func(t *testing.T, manifests []byte) []any {
		t.Helper()
		return ofPool(pool(t, bytes.Split(manifests, []byte("\n---\n"))...))
	})
}

func TestAPoolWithoutMembersWantsNothing(t *testing.T) {
	for i, object := range ofPool(render.Pool{Namespace: "shop", Name: "small", Options: options}) {
		if got := fmt.Sprint(object); got != "<nil>" {
			t.Errorf("object %d is %s", i, got)
		}
	}
}

func TestTheLongestPoolNameFitsEverywhere(t *testing.T) {
	name := strings.Repeat("a", 51)
	if problems := validation.IsDNS1123Label(v1alpha1.PoolChildName(name)); problems != nil {
		t.Error(problems)
	}
	for k, v := range v1alpha1.PoolLabels(name) {
		if problems := validation.IsValidLabelValue(v); problems != nil {
			t.Errorf("label %s=%s: %v", k, v, problems)
		}
	}
	policy := strings.Repeat("a", 52)
	if problems := validation.IsConfigMapKey(v1alpha1.PoolFile(policy)); problems != nil {
		t.Error(problems)
	}
}

// member is a policy of a pool with settings, made at a time.
func member(t *testing.T, name, settings string, made int64) *v1alpha1.DedupPolicy {
	t.Helper()
	p := &v1alpha1.DedupPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(made, 0))}}
	if err := yaml.UnmarshalStrict([]byte("{pool: small"+settings+"}"), &p.Spec.Deployment); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWhoShapesAPoolAndWhoDiffers(t *testing.T) {
	silent, early, late := member(t, "silent", "", 1), member(t, "early", ", replicas: 3", 2), member(t, "late", ", replicas: 5", 3)
	twin := member(t, "a-twin", ", replicas: 7", 2)
	for name, c := range map[string]struct {
		policies []*v1alpha1.DedupPolicy
		want     *v1alpha1.DedupPolicy
	}{
		"nobody":                            {nil, nil},
		"nobody says anything":              {[]*v1alpha1.DedupPolicy{silent}, nil},
		"the oldest that says something":    {[]*v1alpha1.DedupPolicy{late, silent, early}, early},
		"of two of one age the first name":  {[]*v1alpha1.DedupPolicy{early, twin}, twin},
		"the younger where it is by itself": {[]*v1alpha1.DedupPolicy{silent, late}, late},
	} {
		if got := render.Shaper(c.policies); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}

	shaper := member(t, "first", ", replicas: 3, resources: {limits: {cpu: '0.5', memory: 1Gi}}, podLabels: {a: b}", 1)
	for settings, want := range map[string]string{
		"":              "",
		", replicas: 3": "",
		", replicas: 4": "spec.deployment.replicas: 4, but pool small runs as its oldest member with settings says, and policy first says 3: ",
		", podLabels: {a: b}, resources: {limits: {memory: 1024Mi, cpu: 500m}}": "",
		", resources: {}":                  "spec.deployment.resources: {}, but pool small ",
		", priorityClassName: high":        `spec.deployment.priorityClassName: "high", but pool small runs as its oldest member with settings says, and policy first says nothing of it: `,
		", podLabels: {a: c}, replicas: 4": `spec.deployment.podLabels: {"a":"c"}, but `,
		", autoscaling: {maxReplicas: 5}":  `spec.deployment.autoscaling: {"maxReplicas":5,"minReplicas":2,"targetCPUUtilization":70}, but `,
	} {
		got := render.Difference(member(t, "other", settings, 2), shaper)
		if want == "" && got != "" || !strings.HasPrefix(got, want) {
			t.Errorf("%q: %q, want %q", settings, got, want)
		}
	}
	if got := render.Difference(shaper, shaper); got != "" {
		t.Errorf("it differs from itself: %s", got)
	}
	if got := render.Difference(shaper, nil); got != "" {
		t.Errorf("it differs from nobody: %s", got)
	}
}

func TestTheFirstFitAndASmallOneBehindALargeOneToo(t *testing.T) {
	sized := func(name string, addresses int) []byte {
		list := strings.Repeat(`"`+strings.Repeat("r", 250)+`:6379", `, addresses)
		return []byte(fmt.Sprintf(`
metadata: {name: %s, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  store: {redis: {mode: Cluster, addresses: [%s]}}
`, name, list))
	}
	manifests := [][]byte{sized("first", 16)} // so that what is left has room for less than a large one, and for a small one
	for i := range 130 {
		manifests = append(manifests, sized(fmt.Sprintf("large-%03d", i), 32))
	}
	manifests = append(manifests, sized("small", 1))
	p := pool(t, manifests...)
	fit := render.Fit(p.Members)
	n := len(fit)
	if n < 100 || n > 128 || !fit["large-000"] || fit["large-129"] || !fit["small"] {
		t.Fatalf("%d fit: %v", n, fit)
	}
	bytes := 0
	p.Members = p.Members[:n-1] // all but the small one
	for _, file := range render.PoolConfigMap(p).Data {
		bytes += len(file)
	}
	if bytes > 1<<20 {
		t.Errorf("%d bytes, more than a ConfigMap holds", bytes)
	}
	if diff := cmp.Diff(fit, render.Fit(append(p.Members, pool(t, sized("small", 1)).Members...))); diff != "" {
		t.Errorf("those that fit do not fit (-want +got):\n%s", diff)
	}
}
