package webhook

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Whatever the pod: injecting twice is injecting once, the patch does what Inject does, every
// container is connected, and with our things removed again the pod is the one that came.
func FuzzInject(f *testing.F) {
	f.Add("orders", "", "", "", "ReplicaSet/checkout-6d4cf56db6", []byte{0}, true)
	f.Add("orders", "sidecar", "", "", "Job/nightly-29459520", []byte{0, 64, 128}, true)
	f.Add("orders", "sidecar", "sidecar", "billing", "", []byte{0x4f, 0x0b, 0x41, 0x82}, false)
	f.Add("orders", "endpoint", "sidecar", "", "StatefulSet/db", []byte{0x41, 0x0e, 0x83, 0x05}, true)
	f.Add("Orders", "Endpoint", "", "", "Node/worker", []byte{}, true)
	policy := newPolicy()
	f.Fuzz(func(t *testing.T, name, mode, mark, consumer, owner string, shape []byte, found bool) {
		pod := fuzzedPod(owner, shape)
		pod.Labels = map[string]string{v1alpha1.LabelPolicy: name, "pod-template-hash": "6d4cf56db6"}
		setUnlessEmpty(pod.Labels, v1alpha1.LabelConsumer, consumer)
		if mode != "" || mark != "" {
			pod.Annotations = map[string]string{}
			setUnlessEmpty(pod.Annotations, v1alpha1.AnnotationInject, mode)
			setUnlessEmpty(pod.Annotations, v1alpha1.AnnotationInjected, mark)
		}
		pod = normal(t, pod)
		var p *v1alpha1.DedupPolicy
		if found {
			p = policy
		}
		before := pod.DeepCopy()
		got, err := Inject(pod, options, p)
		if diff := cmp.Diff(before, pod); diff != "" {
			t.Fatalf("Inject changed its input:\n%s", diff)
		}
		if err != nil {
			return
		}
		again, err := Inject(got, options, p)
		if err != nil {
			t.Fatalf("injecting again: %v", err)
		}
		if diff := cmp.Diff(got, again); diff != "" {
			t.Fatalf("injected again (-once +twice):\n%s", diff)
		}
		if got, want := string(marshal(t, patched(t, pod, p))), string(marshal(t, got)); got != want {
			t.Fatalf("the patch gives\n%s\nInject gives\n%s", got, want)
		}
		connected(t, got)
		if want, got := string(marshal(t, before)), string(marshal(t, withoutOurs(before, got))); got != want {
			t.Fatalf("with our things removed\n%s\nbut it came as\n%s", got, want)
		}
	})
}

func setUnlessEmpty(m map[string]string, key, value string) {
	if value != "" {
		m[key] = value
	}
}

// fuzzedPod is a pod of an owner, "kind/name", with a container, an init container or a volume per
// byte. The names are such as the webhook's own, and such as it must not mistake for them.
func fuzzedPod(owner string, shape []byte) *corev1.Pod {
	pod := newPod(func(p *corev1.Pod) { p.Spec.Containers = nil })
	if kind, name, ok := strings.Cut(owner, "/"); ok {
		owned(kind, name)(pod)
	} else {
		unowned(pod)
		pod.GenerateName = owner
	}
	names := []string{"app", v1alpha1.SidecarName, "dedupd-config", v1alpha1.TokenVolume}
	envs := [][]corev1.EnvVar{nil, env("A", "1", "A", "2"), env("X", "", "DEDUPD_URL", "http://mine"), env("DEDUPD_POLICY", "", "DEDUPD_CONSUMER", "c")}
	always := corev1.ContainerRestartPolicyAlways
	for _, b := range shape {
		c := corev1.Container{Name: names[b&3], Env: envs[b>>2&3]}
		if b&16 != 0 {
			c.RestartPolicy = &always
		}
		if b&32 != 0 {
			c.Ports = []corev1.ContainerPort{{ContainerPort: SidecarPortHTTP, Protocol: corev1.ProtocolUDP}}
			c.VolumeMounts = []corev1.VolumeMount{{Name: v1alpha1.TokenVolume, MountPath: []string{"/elsewhere", v1alpha1.TokenDir}[b&1]}}
		}
		switch b >> 6 {
		case 0:
			pod.Spec.Containers = append(pod.Spec.Containers, c)
		case 1:
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, c)
		case 2:
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: names[b&3]})
		default:
			pod.Spec.HostNetwork = b&1 == 0
			if b&2 != 0 {
				pod.Spec.ServiceAccountName = ""
			}
		}
	}
	return pod
}

// normal is a pod as the API server sends it: what is no valid text is mended.
func normal(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out := &corev1.Pod{}
	if err := json.Unmarshal(marshal(t, pod), out); err != nil {
		t.Fatal(err)
	}
	return out
}

// connected fails the test unless each container but the sidecar has our variables.
func connected(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == v1alpha1.SidecarName && pod.Annotations[v1alpha1.AnnotationInjected] == v1alpha1.InjectSidecar {
			continue
		}
		if pod.Spec.ServiceAccountName != "" && !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == v1alpha1.TokenDir }) {
			t.Fatalf("container %q has no token", c.Name)
		}
		for _, name := range ourVariables {
			if name == v1alpha1.EnvTokenFile && pod.Spec.ServiceAccountName == "" {
				continue
			}
			if !slices.ContainsFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == name }) {
				t.Fatalf("container %q has no %s", c.Name, name)
			}
		}
	}
}

var ourVariables = []string{v1alpha1.EnvURL, v1alpha1.EnvGRPC, v1alpha1.EnvPolicy, v1alpha1.EnvConsumer, v1alpha1.EnvTokenFile}

// withoutOurs is a pod without what the webhook may add: its mark, its variables where the user
// had none of the name, a mount of the token where the user mounted nothing, and at the ends of their
// lists the sidecar and the volumes.
func withoutOurs(before, after *corev1.Pod) *corev1.Pod {
	pod := after.DeepCopy()
	delete(pod.Annotations, v1alpha1.AnnotationInjected)
	if mark, ok := before.Annotations[v1alpha1.AnnotationInjected]; ok {
		pod.Annotations[v1alpha1.AnnotationInjected] = mark
	}
	if n := len(before.Spec.InitContainers); len(pod.Spec.InitContainers) == n+1 && pod.Spec.InitContainers[n].Name == v1alpha1.SidecarName {
		pod.Spec.InitContainers = pod.Spec.InitContainers[:n]
	}
	pod.Spec.Volumes = pod.Spec.Volumes[:len(before.Spec.Volumes)]
	strip := func(before, after []corev1.Container) {
		for i := range min(len(before), len(after)) {
			had := before[i].Env
			after[i].Env = slices.DeleteFunc(after[i].Env, func(v corev1.EnvVar) bool {
				return slices.Contains(ourVariables, v.Name) && !slices.ContainsFunc(had, func(h corev1.EnvVar) bool { return h.Name == v.Name })
			})
			if n := len(before[i].VolumeMounts); len(after[i].VolumeMounts) == n+1 && after[i].VolumeMounts[n].Name == v1alpha1.TokenVolume {
				after[i].VolumeMounts = after[i].VolumeMounts[:n]
			}
		}
	}
	strip(before.Spec.InitContainers, pod.Spec.InitContainers)
	strip(before.Spec.Containers, pod.Spec.Containers)
	return pod
}
