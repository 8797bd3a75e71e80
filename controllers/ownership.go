package controllers

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// manifest is an apply configuration as the API server reads it, with a mark of what it says in
// v1alpha1.AnnotationApplied.
type manifest struct {
	*unstructured.Unstructured

	mark string
}

func newManifest(want runtime.ApplyConfiguration) (manifest, error) {
	data, err := json.Marshal(want)
	if err != nil {
		return manifest{}, fmt.Errorf("writing an apply configuration: %w", err)
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(data, &u.Object); err != nil {
		return manifest{}, fmt.Errorf("reading an apply configuration: %w", err)
	}
	sum := sha256.Sum256(data)
	mark := hex.EncodeToString(sum[:8])
	annotations := maps.Clone(u.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[v1alpha1.AnnotationApplied] = mark
	u.SetAnnotations(annotations)
	return manifest{u, mark}, nil
}

// stands reports whether a live object is what its last apply made of the manifest: it was this
// one that was applied, and nobody has taken a field of it since.
//
// The values are not compared. Where a webhook changes what the operator applies, they differ
// for ever, and to apply the same once more would change nothing. Whoever else changes a field
// becomes its owner, and that is what is looked at.
func (m manifest) stands(live client.Object) (bool, error) {
	if live.GetAnnotations()[v1alpha1.AnnotationApplied] != m.mark {
		return false, nil
	}
	fields, err := ownFields(live)
	if err != nil || fields == nil {
		return false, err
	}
	wanted := maps.Clone(m.Object)
	delete(wanted, "apiVersion")
	delete(wanted, "kind")
	metadata := maps.Clone(wanted["metadata"].(map[string]any))
	delete(metadata, "name")
	delete(metadata, "namespace")
	wanted["metadata"] = metadata
	return covers(fields, wanted), nil
}

// ownFields are the fields of a live object that the operator has applied and that nobody has
// changed since, nil if there are none. For their form see metav1.FieldsV1.
func ownFields(live client.Object) (map[string]any, error) {
	for _, entry := range live.GetManagedFields() {
		if !isOwn(entry) || entry.FieldsV1 == nil {
			continue
		}
		var fields map[string]any
		if err := json.Unmarshal(entry.FieldsV1.GetRawBytes(), &fields); err != nil {
			return nil, fmt.Errorf("reading the operator's fields of %s: %w", live.GetName(), err)
		}
		return fields, nil
	}
	return nil, nil
}

// isOwn reports whether an entry of an object's managed fields is the operator's.
func isOwn(entry metav1.ManagedFieldsEntry) bool {
	return entry.Manager == v1alpha1.FieldOwner && entry.Operation == metav1.ManagedFieldsOperationApply && entry.Subresource == ""
}

// owns reports whether the field at a path is among the fields.
func owns(fields map[string]any, path ...string) bool {
	for _, name := range path {
		sub, ok := fields["f:"+name].(map[string]any)
		if !ok {
			return false
		}
		fields = sub
	}
	return true
}

// covers reports whether every field of a value is among the fields.
func covers(fields map[string]any, value any) bool {
	if len(fields) == 0 {
		return true // a scalar, or a list or map that is owned as a whole
	}
	switch v := value.(type) {
	case map[string]any:
		for name, member := range v {
			sub, ok := fields["f:"+name].(map[string]any)
			if !ok || !covers(sub, member) {
				return false
			}
		}
	case []any:
		for _, item := range v {
			sub, ok := itemFields(fields, item)
			if !ok || !covers(sub, item) {
				return false
			}
		}
	}
	return true
}

// itemFields are those of one item of a list that several may own parts of. The item is found by
// its keys, or, in a list that is a set, by its value.
func itemFields(fields map[string]any, item any) (map[string]any, bool) {
	for name, sub := range fields {
		if len(name) < 2 || name[1] != ':' {
			continue // ".", the list itself
		}
		var key any
		if json.Unmarshal([]byte(name[2:]), &key) != nil || !matches(key, item) {
			continue
		}
		found, ok := sub.(map[string]any)
		return found, ok
	}
	return nil, false
}

// matches reports whether an item has the key. A member of the key that the item leaves out
// stands there by default.
func matches(key, item any) bool {
	members, ok := key.(map[string]any)
	if !ok {
		return key == item
	}
	object, ok := item.(map[string]any)
	if !ok {
		return false
	}
	for name, value := range members {
		if has, ok := object[name]; ok && has != value {
			return false
		}
	}
	return true
}
