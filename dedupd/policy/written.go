package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// writtenZeros finds members that are written with a zero value (epoch: 0, mode: "", include:
// []) which the types cannot tell from an absent one. The API server refuses each, since it is
// below a minimum, not in an enumeration, or too short; a file must not mean something else
// than the same object in the cluster. What is written, known and not a null, but does not
// come back when the decoded object is written out again, is such a zero.
func writtenZeros(d *decoded, raw map[string]any) (field.ErrorList, error) {
	b, err := json.Marshal(&d.policy.Spec)
	if err != nil {
		return nil, fmt.Errorf("writing the spec as JSON: %w", err)
	}
	var back map[string]any
	if err := json.Unmarshal(b, &back); err != nil {
		return nil, fmt.Errorf("reading the spec back: %w", err)
	}
	c := &checker{}
	c.lostMembers(field.NewPath("spec"), descend(raw, "spec"), back)
	return slices.DeleteFunc(c.errs, func(e *field.Error) bool { return slices.Contains(d.unknown, e.Field) }), nil
}

// zeroAllowed are the members that may be written with a zero value, or whose types are those
// of Kubernetes itself and have such members.
var zeroAllowed = []string{"serverName", "priorityClassName", "tolerations", "resources"}

// lostMembers compares the members that were written with those that came back.
func (c *checker) lostMembers(at *field.Path, written, back map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(written)) {
		if slices.Contains(zeroAllowed, name) {
			continue
		}
		if kept, ok := back[name]; ok {
			c.lost(at.Child(name), written[name], kept)
		} else if isZero(written[name]) {
			c.invalid(at.Child(name), written[name], "a zero does not mean unset: remove the member to get its default, or write a value")
		}
	}
}

func (c *checker) lost(at *field.Path, written, back any) {
	switch w := written.(type) {
	case map[string]any:
		if b, ok := back.(map[string]any); ok {
			c.lostMembers(at, w, b)
		}
	case []any:
		b, ok := back.([]any)
		for i := 0; ok && i < min(len(w), len(b)); i++ {
			c.lost(at.Index(i), w[i], b[i])
		}
	}
}

// isZero says whether a value is a zero that the CRD refuses; false and {} are not.
func isZero(value any) bool {
	switch v := value.(type) {
	case string:
		return v == ""
	case int64:
		return v == 0
	case float64:
		return v == 0
	case []any:
		return len(v) == 0
	}
	return false
}

// quantities checks the compute resources, whose decoder does not name the field.
func quantities(raw map[string]any) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("spec", "deployment", "resources")
	resources := descend(raw, "spec", "deployment", "resources")
	for _, list := range []string{"limits", "requests"} {
		values := descend(resources, list)
		for _, name := range slices.Sorted(maps.Keys(values)) {
			at := at.Child(list).Key(name)
			switch v := values[name].(type) {
			case string:
				if _, err := resource.ParseQuantity(v); err != nil {
					errs = append(errs, field.Invalid(at, v, "a quantity, such as 50m or 64Mi"))
				}
			case int64:
			default:
				errs = append(errs, field.Invalid(at, v, "a quantity as a string or an integer, such as 50m or 64Mi"))
			}
		}
	}
	return errs
}

// descend follows names through nested objects; nil where one is missing.
func descend(m map[string]any, names ...string) map[string]any {
	for _, name := range names {
		m, _ = m[name].(map[string]any)
	}
	return m
}
