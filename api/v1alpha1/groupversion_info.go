// Package v1alpha1 is the dedupd.io/v1alpha1 API: the DedupPolicy, its validation
// rules and defaults, its conditions, and the names of everything that belongs to one.
//
// +kubebuilder:object:generate=true
// +groupName=dedupd.io
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of every type in this package.
var GroupVersion = schema.GroupVersion{Group: "dedupd.io", Version: "v1alpha1"}

// AddToScheme registers the types of this package with a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &DedupPolicy{}, &DedupPolicyList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
