package podspec

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Sidecar is dedupd as a native sidecar, to be appended to a pod's init containers, with the
// volumes to be added to the pod. The pod's containers start once dedupd is ready, and a Job
// ends although dedupd still runs.
func Sidecar(p *v1alpha1.DedupPolicy, o Options) (*corev1.Container, []corev1.Volume, error) {
	container := Container(Of(p), o).
		WithName(v1alpha1.SidecarName).
		WithRestartPolicy(corev1.ContainerRestartPolicyAlways)
	for i := range container.Ports {
		// A Service of the application may select its target port by a name such as http.
		container.Ports[i].WithName(v1alpha1.SidecarName + "-" + *container.Ports[i].Name)
	}
	c, err := typed[corev1.Container](container)
	if err != nil {
		return nil, nil, err
	}
	volumes, err := typed[[]corev1.Volume](Volumes(Of(p)))
	if err != nil {
		return nil, nil, err
	}
	return c, *volumes, nil
}

// typed turns an apply configuration into the type of the API that it configures.
func typed[T any](configuration any) (*T, error) {
	data, err := json.Marshal(configuration)
	if err != nil {
		return nil, fmt.Errorf("writing the sidecar: %w", err)
	}
	var t T
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, fmt.Errorf("reading the sidecar: %w", err)
	}
	return &t, nil
}
