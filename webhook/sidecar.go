package webhook

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/podspec"
)

// Ports of the sidecar. They are not those of dedupd's own pods, v1alpha1.PortHTTP and PortGRPC,
// because the containers of a pod share its ports, and 8080 is what most consumers listen on.
const (
	SidecarPortHTTP int32 = 18080
	SidecarPortGRPC int32 = 19090
)

var spec = field.NewPath("spec")

// addSidecar adds dedupd to the init containers, the last of them: what brings up the pod's
// network, such as a mesh's proxy, comes before it, and the pod's containers after it.
//
// A sidecar that an earlier call added stays as it is, whatever other webhooks did to it since.
func (a *additions) addSidecar(pod *corev1.Pod, o Options, policy *v1alpha1.DedupPolicy) error {
	a.skip = v1alpha1.SidecarName
	if injected(pod) {
		return nil
	}
	if err := sidecarPossible(pod, policy); err != nil {
		return err
	}
	container, volumes, err := podspec.Sidecar(policy, podspec.Options{
		Image: o.Image, PortHTTP: SidecarPortHTTP, PortGRPC: SidecarPortGRPC,
	})
	if err != nil {
		return err
	}
	if err := sidecarFits(pod, volumes); err != nil {
		return err
	}
	a.sidecar, a.volumes = container, volumes
	return nil
}

// injected reports whether a pod has our sidecar already.
func injected(pod *corev1.Pod) bool {
	return pod.Annotations[v1alpha1.AnnotationInjected] == v1alpha1.InjectSidecar &&
		slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
			return c.Name == v1alpha1.SidecarName && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		})
}

// sidecarPossible denies the sidecar where it could not do its work.
func sidecarPossible(pod *corev1.Pod, policy *v1alpha1.DedupPolicy) error {
	name, mode := labels.Key(v1alpha1.LabelPolicy), annotations.Key(v1alpha1.AnnotationInject)
	switch {
	case policy == nil:
		return field.Invalid(name, pod.Labels[v1alpha1.LabelPolicy], fmt.Sprintf(
			"DedupPolicy does not exist in namespace %s, and a sidecar needs it: create it, and the pod's controller tries again", pod.Namespace))
	case policy.Spec.Store.Memory != nil:
		return field.Invalid(mode, v1alpha1.InjectSidecar, fmt.Sprintf(
			"DedupPolicy %s remembers in memory, which two sidecars would not share: use %s, or store.redis or store.postgres", policy.Name, v1alpha1.InjectEndpoint))
	case pod.Spec.HostNetwork:
		return field.Invalid(mode, v1alpha1.InjectSidecar, fmt.Sprintf(
			"with spec.hostNetwork its ports %d and %d would be the node's: use %s", SidecarPortHTTP, SidecarPortGRPC, v1alpha1.InjectEndpoint))
	}
	return nil
}

// sidecarFits denies the sidecar where a name or port of it is the user's already.
func sidecarFits(pod *corev1.Pod, volumes []corev1.Volume) error {
	for _, list := range []struct {
		path       *field.Path
		containers []corev1.Container
	}{
		{spec.Child("initContainers"), pod.Spec.InitContainers},
		{spec.Child("containers"), pod.Spec.Containers},
	} {
		for i, c := range list.containers {
			path := list.path.Index(i)
			if c.Name == v1alpha1.SidecarName {
				return field.Invalid(path.Child("name"), c.Name, "is the name of the injected sidecar: give the container another")
			}
			for j, p := range c.Ports {
				tcp := p.Protocol == corev1.ProtocolTCP || p.Protocol == ""
				if tcp && (p.ContainerPort == SidecarPortHTTP || p.ContainerPort == SidecarPortGRPC) {
					return field.Invalid(path.Child("ports").Index(j).Child("containerPort"), p.ContainerPort,
						"is a port of the injected sidecar: use another, or the annotation "+v1alpha1.AnnotationInject+": "+v1alpha1.InjectEndpoint)
				}
			}
		}
	}
	for i, v := range pod.Spec.Volumes {
		if slices.ContainsFunc(volumes, func(ours corev1.Volume) bool { return ours.Name == v.Name }) {
			return field.Invalid(spec.Child("volumes").Index(i).Child("name"), v.Name, fmt.Sprintf(
				"is the name of a volume of the injected sidecar: give the volume a name that does not start with %s-", v1alpha1.SidecarName))
		}
	}
	return nil
}
