// Package webhook connects consumers to dedupd: a pod that names a policy gets the address of
// that policy's dedupd, or a dedupd of its own beside its containers, when it is created.
//
// What a pod gets is decided by Inject, which is pure; Handler is its wire.
package webhook

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Options are the operator's settings that an injection depends on.
type Options struct {
	// Image is the image of the injected sidecar.
	Image string
}

// Inject returns the pod as it is to be created, connected to the policy that its label
// v1alpha1.LabelPolicy names. The pod's namespace must be set. Of what the user wrote nothing is
// changed, an environment variable of ours that the user set included: it keeps the user's value.
//
// The policy is needed with v1alpha1.InjectSidecar only, nil there means that it does not exist.
//
// Every error is the pod author's to read: it names the field, the value and what would be right.
// Injecting twice is injecting once.
func Inject(pod *corev1.Pod, o Options, policy *v1alpha1.DedupPolicy) (*corev1.Pod, error) {
	a, err := plan(pod, o, policy)
	if err != nil {
		return nil, err
	}
	injected := pod.DeepCopy()
	a.apply(injected)
	return injected, nil
}

// additions is all that an injection does to a pod. Nothing is ever removed or replaced, but for
// the webhook's own mark.
type additions struct {
	mark    string              // the value of v1alpha1.AnnotationInjected
	env     []corev1.EnvVar     // to each container that has no variable of the name
	mount   *corev1.VolumeMount // to each container that mounts nothing there, nil for none
	skip    string              // the init container that gets neither: our own sidecar
	sidecar *corev1.Container   // to the init containers, nil for none
	volumes []corev1.Volume     // to the pod
}

// plan decides what is added to a pod.
func plan(pod *corev1.Pod, o Options, policy *v1alpha1.DedupPolicy) (*additions, error) {
	name, err := PolicyName(pod)
	if err != nil {
		return nil, err
	}
	mode, err := Mode(pod)
	if err != nil {
		return nil, err
	}
	consumer, err := consumerName(pod)
	if err != nil {
		return nil, err
	}
	a := &additions{mark: mode}
	host, http, grpc := v1alpha1.EndpointHost(pod.Namespace, name), int32(v1alpha1.PortHTTP), int32(v1alpha1.PortGRPC)
	if mode == v1alpha1.InjectSidecar {
		if err := a.addSidecar(pod, o, policy); err != nil {
			return nil, err
		}
		host, http, grpc = "localhost", SidecarPortHTTP, SidecarPortGRPC
	}
	a.env = []corev1.EnvVar{
		{Name: v1alpha1.EnvURL, Value: "http://" + hostPort(host, http)},
		{Name: v1alpha1.EnvGRPC, Value: hostPort(host, grpc)},
		{Name: v1alpha1.EnvPolicy, Value: name},
		{Name: v1alpha1.EnvConsumer, Value: consumer},
	}
	a.addToken(pod)
	return a, nil
}

// apply makes the additions to a pod, in place. Variables come first, so that the user's own may
// refer to them: $(DEDUPD_URL).
func (a *additions) apply(pod *corev1.Pod) {
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[v1alpha1.AnnotationInjected] = a.mark
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name != a.skip {
			a.connect(c)
		}
	}
	for i := range pod.Spec.Containers {
		a.connect(&pod.Spec.Containers[i])
	}
	if a.sidecar != nil {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, *a.sidecar.DeepCopy())
	}
	pod.Spec.Volumes = append(pod.Spec.Volumes, a.volumes...)
}

func (a *additions) connect(c *corev1.Container) {
	c.Env = append(a.missingEnv(c), c.Env...)
	c.VolumeMounts = append(c.VolumeMounts, a.missingMounts(c)...)
}

// missingEnv are the variables that a container does not have yet.
func (a *additions) missingEnv(c *corev1.Container) []corev1.EnvVar {
	var missing []corev1.EnvVar
	for _, v := range a.env {
		if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == v.Name }) {
			missing = append(missing, v)
		}
	}
	return missing
}

// The names that the API's rules allow a policy; held to them by a test.
var policyName = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)

const maxPolicyName = 52

var (
	labels      = field.NewPath("metadata", "labels")
	annotations = field.NewPath("metadata", "annotations")
)

// PolicyName is the name of the policy that a pod's label asks for.
func PolicyName(pod *corev1.Pod) (string, error) {
	name := pod.Labels[v1alpha1.LabelPolicy]
	if len(name) > maxPolicyName || !policyName.MatchString(name) {
		return "", field.Invalid(labels.Key(v1alpha1.LabelPolicy), name, fmt.Sprintf(
			"no DedupPolicy can have this name: lower-case letters, digits and '-', starting with a letter, at most %d characters", maxPolicyName))
	}
	return name, nil
}

// Mode is how a pod wants to be connected: v1alpha1.InjectEndpoint or v1alpha1.InjectSidecar.
func Mode(pod *corev1.Pod) (string, error) {
	mode, ok := pod.Annotations[v1alpha1.AnnotationInject]
	if !ok {
		return v1alpha1.InjectEndpoint, nil
	}
	if mode != v1alpha1.InjectEndpoint && mode != v1alpha1.InjectSidecar {
		return "", field.NotSupported(annotations.Key(v1alpha1.AnnotationInject), mode,
			[]string{v1alpha1.InjectEndpoint, v1alpha1.InjectSidecar})
	}
	return mode, nil
}

func hostPort(host string, port int32) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
