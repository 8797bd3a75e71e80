package policy

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

const minimal = `apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: orders, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: id}}
  ttl: 1h
  store: {memory: {}}
`

func TestReadTakesWhatKubectlPrintsAndWhatPeopleWrite(t *testing.T) {
	tests := map[string]struct {
		in   string
		want []string // names
	}{
		"one document":                 {minimal, []string{"orders"}},
		"several":                      {minimal + "---\n" + strings.Replace(minimal, "orders", "payments", 1), []string{"orders", "payments"}},
		"empty documents and comments": {"---\n# nothing\n---\n" + minimal + "---\n", []string{"orders"}},
		"JSON": {`{"apiVersion":"dedupd.io/v1alpha1","kind":"DedupPolicy","metadata":{"name":"orders"},
			"spec":{"key":{"strategy":"ContentHash"},"ttl":"1h","store":{"memory":{}}}}`, []string{"orders"}},
		"as kubectl prints it": {`apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata:
  name: orders
  namespace: shop
  uid: 6b9a1d1c-2f0e-4c57-8a38-5b3f0ec9c9e1
  resourceVersion: "17"
  generation: 3
  creationTimestamp: "2026-11-24T12:00:00Z"
  managedFields:
  - {apiVersion: dedupd.io/v1alpha1, fieldsType: FieldsV1, fieldsV1: {"f:spec": {}}, manager: kubectl, operation: Apply}
spec:
  key: {strategy: MessageID, messageID: {header: id}, onMissing: Reject}
  ttl: 1h
  store: {memory: {maxEntries: 10}}
  deployment: {replicas: 1, resources: {limits: {cpu: 1, memory: 64Mi}}}
status:
  observedGeneration: 3
  conditions:
  - {type: Ready, status: "True", reason: Ready, message: "", lastTransitionTime: "2026-11-24T12:00:00Z"}
`, []string{"orders"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			policies, err := Read([]byte(test.in), true)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, p := range policies {
				names = append(names, p.Name)
				if p.ConfigHash != HashConfig([]byte(test.in)) {
					t.Errorf("config hash %q, want the file's", p.ConfigHash)
				}
			}
			if diff := cmp.Diff(test.want, names); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAFileThatCannotBeReadSaysWhatWouldBeRight(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"empty":                 {"", "no DedupPolicy in it"},
		"comments":              {"# nothing\n", "no DedupPolicy in it"},
		"a list":                {"[1]", "want an object with apiVersion"},
		"text":                  {"orders", "want an object with apiVersion"},
		"no YAML":               {"a: [", "neither YAML nor JSON"},
		"not UTF-8":             {"a: \xff", "neither YAML nor JSON"},
		"another kind":          {strings.Replace(minimal, "DedupPolicy", "ConfigMap", 1), "kind: ConfigMap; want DedupPolicy"},
		"another version":       {strings.Replace(minimal, "v1alpha1", "v1", 1), "apiVersion: dedupd.io/v1; want dedupd.io/v1alpha1"},
		"no kind":               {strings.Replace(minimal, "kind: DedupPolicy\n", "", 1), "kind: missing; want DedupPolicy"},
		"a member twice":        {minimal + "  ttl: 2h\n", `"ttl" already set`},
		"the second document":   {minimal + "---\nkind: X\n", "document 2: apiVersion: missing"},
		"two of one name":       {minimal + "---\n" + minimal, `two policies are named "orders"`},
		"a spec that is a list": {strings.Split(minimal, "spec:")[0] + "spec: []\n", "spec: Invalid value: a array; want an object"},
		"a wrong type":          {strings.Replace(minimal, "ttl: 1h", "ttl: [1h]", 1), "spec.ttl: Invalid value: a array; want a string"},
		"no name":               {strings.Replace(minimal, "name: orders, ", "", 1), "policy in document 1: metadata.name: Required value"},
		"a wrong namespace":     {strings.Replace(minimal, "shop", "Shop", 1), "metadata.namespace: Invalid value"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Read([]byte(test.in), true)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q in it", err, test.want)
			}
		})
	}
}

func TestAnUnknownFieldIsAnErrorInAFileOfAUsersAndReportedInAMountedOne(t *testing.T) {
	in := []byte(strings.Replace(minimal, "ttl: 1h", "ttl: 1h\n  window: 0\n  TTL: 2h", 1) + "extra: {}\n")
	_, err := Read(in, true)
	for _, want := range []string{"spec.window: Forbidden: unknown field", "spec.TTL: Forbidden", "extra: Forbidden"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
	policies, err := Read(in, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"extra", "spec.TTL", "spec.window"}, policies[0].UnknownFields); diff != "" {
		t.Errorf("unknown fields (-want +got):\n%s", diff)
	}
}

func TestLoadTakesAFileOrADirectoryInOrder(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	named := func(name string) string { return strings.Replace(minimal, "orders", name, 1) }

	if _, err := Load(dir, true); err == nil || !strings.Contains(err.Error(), "no *.yaml") {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "absent"), true); err == nil {
		t.Error("a file that is not there was loaded")
	}
	// As a mounted ConfigMap: the files are links into a directory whose name begins with dots.
	write("..2026_11_24/policy.yaml", named("mounted"))
	if err := os.Symlink(filepath.Join("..2026_11_24", "policy.yaml"), filepath.Join(dir, "m.yaml")); err != nil {
		t.Fatal(err)
	}
	write("b.yml", named("b"))
	first := write("a.yaml", named("a"))
	write("c.json", `{"apiVersion":"dedupd.io/v1alpha1","kind":"DedupPolicy","metadata":{"name":"c"},"spec":{"key":{"strategy":"ContentHash"},"ttl":"1h","store":{"memory":{}}}}`)
	write(".hidden.yaml", "not: [read")
	write("messages.ndjson", "not read")
	write("sub/d.yaml", named("d"))
	policies, err := Load(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range policies {
		names = append(names, p.Name)
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "mounted"}, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	second := write("z.yaml", named("a"))
	if _, err := Load(dir, true); err == nil || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), second) {
		t.Errorf("%v, want an error that names %s and %s", err, first, second)
	}
	big := write("big.yaml", strings.Repeat("#", maxFile+1))
	if _, err := Load(big, true); err == nil || !strings.Contains(err.Error(), "4 MiB") {
		t.Errorf("%v, want an error that names the limit", err)
	}
}

func TestOfAMountedDirectoryOnlyPoliciesFilesCount(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("mesh.yaml", "mode: strict") // a ConfigMap may be added to by others
	if _, err := Load(dir, false); err == nil || !strings.Contains(err.Error(), "no policy.yaml or *.policy.yaml file") {
		t.Errorf("without a policy: %v", err)
	}
	write("a.policy.yaml", strings.Replace(minimal, "name: orders", "name: a", 1))
	write("b.policy.yaml", strings.Replace(minimal, "name: orders", "name: b", 1))
	write("c-policy.yaml", "no policy")
	policies, err := Load(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(policies) != 2 || policies[0].Name != "a" || policies[1].Name != "b" {
		t.Errorf("%+v", policies)
	}
	if _, err := Load(dir, true); err == nil {
		t.Error("a directory that a user names is read in full")
	}
}

func TestAManifestIsThePolicyWithoutItsDeployment(t *testing.T) {
	p := manifestOf(func(p *v1alpha1.DedupPolicy) {
		replicas := int32(3)
		p.Spec.Deployment = &v1alpha1.DeploymentSpec{Replicas: &replicas}
		p.Labels = map[string]string{"team": "shop"}
		p.Status.Endpoint = "x"
	})
	got, err := Manifest(p)
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata:
  name: orders
  namespace: shop
spec:
  key:
    messageID:
      header: Message-Id
    strategy: MessageID
  store:
    redis:
      addresses:
      - redis.shop.svc:6379
      keyPrefix: ""
  ttl: 1h
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if p.Spec.Deployment == nil {
		t.Error("the argument changed")
	}
}

func TestWhatIsAcceptedReadsBackEqualFromItsManifest(t *testing.T) {
	for name, data := range corpus(t, "valid") {
		t.Run(name, func(t *testing.T) { readsBack(t, data) })
	}
}

// readsBack holds a file's policies, if it is accepted, to what their manifests compile to.
func readsBack(t *testing.T, data []byte) {
	t.Helper()
	policies, err := Read(data, false)
	if err != nil {
		return
	}
	manifests, err := decodeAll(data, false)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range policies {
		written, err := Manifest(&manifests[i].policy)
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := Manifest(&manifests[i].policy); !bytes.Equal(written, again) {
			t.Errorf("two manifests of one policy:\n%s\n%s", written, again)
		}
		back, err := Read(written, true)
		if err != nil {
			t.Fatalf("%v, of the manifest\n%s", err, written)
		}
		want, got := *p, *back[0]
		want.ConfigHash, want.UnknownFields, got.ConfigHash = "", nil, ""
		if !reflect.DeepEqual(want, got) {
			t.Errorf("policy %+v, from its manifest %+v\n%s", want, got, written)
		}
	}
}

// FuzzRead: no file makes the compiler panic, and what it accepts is accepted again, and means
// the same, as the operator writes it.
func FuzzRead(f *testing.F) {
	for _, folder := range []string{"valid", "invalid", "beyond-crd"} {
		for _, data := range corpus(f, folder) {
			f.Add(data)
		}
	}
	for _, seed := range []string{minimal + "---\n" + minimal, "&a [*a]", "{", "\xff", "kind: {}", "metadata: 1", "spec: null"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(readsBack)
}
