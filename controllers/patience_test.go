package controllers

import (
	"errors"
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestOnlyConflicts(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, "a", errors.New("modified"))
	other := errors.New("other")
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"a conflict":                        {conflict, true},
		"one that was wrapped":              {&applyError{"Pod", "a", fmt.Errorf("b: %w", conflict)}, true},
		"several":                           {errors.Join(conflict, nil, fmt.Errorf("a: %w", errors.Join(conflict, conflict))), true},
		"another error":                     {other, false},
		"another beside it":                 {errors.Join(conflict, other), false},
		"another beside it, wrapped":        {fmt.Errorf("a: %w", errors.Join(conflict, fmt.Errorf("b: %w", other))), false},
		"another of the same code":          {apierrors.NewAlreadyExists(schema.GroupResource{}, "a"), false},
		"one of which another is the cause": {fmt.Errorf("%w, for %w", conflict, other), false},
	} {
		if got := onlyConflicts(c.err); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
