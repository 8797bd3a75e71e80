package webhook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/hack/apiservertest"
)

// testAdmissionPolicies installs config/admission-policy in the webhook's place, and holds what
// the API server then makes of pods to what Inject does.
func testAdmissionPolicies(t *testing.T, c client.Client) {
	t.Helper()
	if err := c.DeleteAllOf(context.Background(), &admissionv1.MutatingWebhookConfiguration{}); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"connect.yaml", "guard.yaml"} {
		install(t, c, filepath.Join("..", "config", "admission-policy", file))
	}
	apiservertest.Poll(t, func() error { // until both are at work
		pod := newPod()
		switch err := c.Create(context.Background(), pod, client.DryRunAll); {
		case err != nil:
			return err
		case len(pod.Spec.Containers[0].Env) == 0:
			return errors.New("the pod is not connected")
		}
		if c.Create(context.Background(), newPod(sidecar), client.DryRunAll) == nil {
			return errors.New("a sidecar is not denied")
		}
		return nil
	})
	pods := map[string]*corev1.Pod{
		"variables of the user's": newPod(func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = env("A", "$(DEDUPD_URL)/x", v1alpha1.EnvConsumer, "mine")
		}),
		"several containers": newPod(func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "first", Image: "x", Env: env("B", "c")}, {Name: "second", Image: "x"}}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "more", Image: "x"})
		}),
		"other annotations":     newPod(annotated("example.com/note", "d")),
		"endpoint, said so":     newPod(annotated(v1alpha1.AnnotationInject, v1alpha1.InjectEndpoint)),
		"connected before":      newPod(annotated(v1alpha1.AnnotationInjected, v1alpha1.InjectEndpoint), func(p *corev1.Pod) { p.Spec.Containers[0].Env = endpointEnv }),
		"a name of many dashes": newPod(unowned, func(p *corev1.Pod) { p.GenerateName = "adhoc--" }),
	}
	for name, test := range consumers {
		pods[name] = test.pod
	}
	for name, pod := range tokens {
		pods[name] = pod
	}
	for name, pod := range pods {
		t.Run("by admission policy: "+name, func(t *testing.T) {
			want, err := Inject(pod, options, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := pod.DeepCopy()
			if err := c.Create(context.Background(), got, client.DryRunAll); err != nil {
				if strings.Contains(err.Error(), "node") && strings.Contains(name, "static") {
					t.Skip("the API server takes static pods from nodes alone")
				}
				t.Fatal(err)
			}
			if diff := cmp.Diff(connection(want), connection(got)); diff != "" {
				t.Errorf("-the webhook's +the policy's:\n%s", diff)
			}
		})
	}
	for name, pod := range map[string]*corev1.Pod{
		"supports \"endpoint\" alone":  newPod(sidecar),
		"inject]: \"Sidecar\"":         newPod(annotated(v1alpha1.AnnotationInject, "Sidecar")),
		"policy]: \"1st\"":             newPod(labelled(v1alpha1.LabelPolicy, "1st")),
		"policy]: \"\"":                newPod(labelled(v1alpha1.LabelPolicy, "")),
		"at most 52 characters":        newPod(labelled(v1alpha1.LabelPolicy, strings.Repeat("a", 53))),
		"consumer]: names no consumer": newPod(labelled(v1alpha1.LabelConsumer, "")),
		"the pod is not connected":     nil,
	} {
		t.Run("by admission policy a pod is denied: "+name, func(t *testing.T) {
			if pod == nil {
				binding := &admissionv1.MutatingAdmissionPolicyBinding{}
				binding.Name = "dedup-operator-connect"
				if err := c.Delete(context.Background(), binding); err != nil {
					t.Fatal(err)
				}
				apiservertest.Poll(t, func() error {
					if err := c.Create(context.Background(), newPod(), client.DryRunAll); err == nil || !strings.Contains(err.Error(), name) {
						return errors.Join(errors.New("not denied for that reason"), err)
					}
					return nil
				})
				return
			}
			if err := c.Create(context.Background(), pod.DeepCopy(), client.DryRunAll); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// connectionOf is what an injection decides of a pod: the mark, each container's variables and its
// mounts of the token, and the token's volume.
type connectionOf struct {
	Mark    string
	Env     map[string][]corev1.EnvVar
	Mounts  map[string][]corev1.VolumeMount
	Volumes []corev1.Volume
}

func connection(pod *corev1.Pod) connectionOf {
	all := connectionOf{
		Mark: pod.Annotations[v1alpha1.AnnotationInjected], Env: map[string][]corev1.EnvVar{}, Mounts: map[string][]corev1.VolumeMount{},
	}
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		all.Env[c.Name] = c.Env
		for _, m := range c.VolumeMounts {
			if m.Name == v1alpha1.TokenVolume || m.MountPath == v1alpha1.TokenDir {
				all.Mounts[c.Name] = append(all.Mounts[c.Name], m)
			}
		}
	}
	if v := volumeOf(pod, v1alpha1.TokenVolume); v.Name != "" {
		all.Volumes = []corev1.Volume{v}
	}
	return all
}

// install creates the objects of a file.
func install(t *testing.T, c client.Client, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096); ; {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if err := c.Create(context.Background(), object); err != nil {
			t.Fatal(err)
		}
	}
}
