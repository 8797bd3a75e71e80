package v1alpha1_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	dedupdpolicy "github.com/dedupd/dedup-operator/dedupd/policy"
)

// The API server and dedupd are to say the same of one manifest. Folder beyond-crd holds what
// the CRD's rules cannot express and dedupd refuses.
func TestAPIServerAndCompileAgree(t *testing.T) {
	strict := client.WithFieldValidation(k8s, metav1.FieldValidationStrict)
	for folder, want := range map[string]struct{ server, compile bool }{
		"valid":      {server: true, compile: true},
		"invalid":    {server: false, compile: false},
		"beyond-crd": {server: true, compile: false},
	} {
		files, err := filepath.Glob(filepath.Join("..", "..", "dedupd", "policy", "testdata", folder, "*.yaml"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no files in %s: %v", folder, err)
		}
		for _, file := range files {
			t.Run(folder+"/"+strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := dedupdpolicy.Read(data, true); (err == nil) != want.compile {
					t.Errorf("dedupd accepts: %v, want %v (%v)", err == nil, want.compile, err)
				}
				object := &unstructured.Unstructured{}
				if err := yaml.Unmarshal(data, &object.Object); err != nil {
					t.Fatal(err)
				}
				if object.GetNamespace() == "" {
					object.SetNamespace("default")
				}
				if object.GetNamespace() != "default" {
					ensureNamespace(t, object.GetNamespace())
				}
				if err := strict.Create(context.Background(), object, client.DryRunAll); (err == nil) != want.server {
					t.Errorf("the API server accepts: %v, want %v (%v)", err == nil, want.server, err)
				}
			})
		}
	}
}
