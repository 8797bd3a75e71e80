package policy

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// corpus returns the files of a folder of testdata by name. The API server is held to the same
// folders, see the tests of the CRD.
func corpus(tb testing.TB, folder string) map[string][]byte {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", folder, "*.yaml"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no files in testdata/%s: %v", folder, err)
	}
	out := map[string][]byte{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		out[strings.TrimSuffix(filepath.Base(file), ".yaml")] = data
	}
	return out
}

// wantedPath is what the first line of an invalid policy names.
func wantedPath(t *testing.T, data []byte) string {
	t.Helper()
	first, _, _ := strings.Cut(string(data), "\n")
	path, ok := strings.CutPrefix(first, "# want: ")
	if !ok {
		t.Fatalf("the first line is %q; want `# want: <field path>`", first)
	}
	return path
}

func TestAValidPolicyCompiles(t *testing.T) {
	for name, data := range corpus(t, "valid") {
		t.Run(name, func(t *testing.T) {
			policies, err := Read(data, true)
			if err != nil {
				t.Fatal(err)
			}
			if len(policies) != 1 {
				t.Fatalf("%d policies, want 1", len(policies))
			}
			if p := policies[0]; p.Lease >= p.TTL {
				t.Errorf("lease %s is not shorter than ttl %s", p.Lease, p.TTL)
			}
		})
	}
}

// Folder invalid breaks rules that the CRD has as well, beyond-crd what only Compile can see.
func TestAnInvalidPolicyIsRefusedWithTheFieldsPath(t *testing.T) {
	for _, folder := range []string{"invalid", "beyond-crd"} {
		for name, data := range corpus(t, folder) {
			t.Run(folder+"/"+name, func(t *testing.T) {
				for _, strict := range []bool{true, false} {
					_, err := Read(data, strict)
					var invalid *InvalidError
					if !errors.As(err, &invalid) {
						t.Fatalf("error %v, want an InvalidError", err)
					}
					want := wantedPath(t, data)
					if !slices.ContainsFunc(invalid.Errors, func(e *field.Error) bool { return e.Field == want }) {
						t.Errorf("errors %v, want one of %s", invalid.Errors, want)
					}
					for _, e := range invalid.Errors {
						// What encloses the field may be wrong because the field is.
						if e.Field != want && !strings.HasPrefix(want, e.Field+".") {
							t.Errorf("%v: the file is to break the rule of %s only", e, want)
						}
					}
				}
			})
		}
	}
}
