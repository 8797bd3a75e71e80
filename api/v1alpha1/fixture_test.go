package v1alpha1_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// A policy is built as a client would send it, so that absent and empty stay different.
type change func(t *testing.T, object map[string]any)

// policy is the smallest policy that the API server accepts, changed.
func policy(t *testing.T, changes ...change) *unstructured.Unstructured {
	t.Helper()
	object := map[string]any{
		"apiVersion": "dedupd.io/v1alpha1",
		"kind":       "DedupPolicy",
		"metadata":   map[string]any{"name": "orders", "namespace": "default"},
		"spec": map[string]any{
			"key":   map[string]any{"strategy": "MessageID", "messageID": map[string]any{"header": "message-id"}},
			"ttl":   "1h",
			"store": map[string]any{"redis": map[string]any{"addresses": []any{"redis.shop.svc:6379"}}},
		},
	}
	for _, c := range changes {
		c(t, object)
	}
	return &unstructured.Unstructured{Object: object}
}

// set puts a value, written as YAML, at a place such as spec.key.
func set(place, value string) change {
	return func(t *testing.T, object map[string]any) {
		t.Helper()
		var v any
		if err := yaml.Unmarshal([]byte(value), &v); err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		setRaw(place, v)(t, object)
	}
}

// setRaw puts a value at a place as it is.
func setRaw(place string, value any) change {
	return func(t *testing.T, object map[string]any) {
		t.Helper()
		if err := unstructured.SetNestedField(object, value, strings.Split(place, ".")...); err != nil {
			t.Fatal(err)
		}
	}
}

// without removes what stands at a place.
func without(place string) change {
	return func(_ *testing.T, object map[string]any) {
		unstructured.RemoveNestedField(object, strings.Split(place, ".")...)
	}
}

// newNamespace makes a namespace for one test.
func newNamespace(t *testing.T) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	if err := k8s.Create(context.Background(), ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

// ensureNamespace makes a namespace of that name if there is none.
func ensureNamespace(t *testing.T, name string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := client.IgnoreAlreadyExists(k8s.Create(context.Background(), ns)); err != nil {
		t.Fatal(err)
	}
}
