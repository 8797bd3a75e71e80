package webhook

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Whatever the pod: injecting twice is injecting once, the patch does what Inject does, every
// container is connected, and with our things removed again the pod is the one that came.
func FuzzInject(f *testing.F) {
	for _, pod := range []*corev1.Pod{
		newPod(),
		newPod(sidecar),
		newPod(sidecar, annotated(v1alpha1.AnnotationInjected, v1alpha1.InjectSidecar)),
		newPod(labelled(v1alpha1.LabelPolicy, "NO")),
		newPod(owned("Job", "nightly-29459520"), labelled(v1alpha1.LabelConsumer, "c")),
		newPod(func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = env("A", "1", "DEDUPD_URL", "http://mine", "A", "2")
			p.Spec.InitContainers = []corev1.Container{{Name: "dedupd"}, {Name: "b", Env: env("DEDUPD_POLICY", "")}}
			p.Spec.Volumes = []corev1.Volume{{Name: "dedupd"}}
		}),
	} {
		raw, err := json.Marshal(pod)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, true)
		f.Add(raw, false)
	}
	policy := newPolicy()
	f.Fuzz(func(t *testing.T, raw []byte, found bool) {
		pod := &corev1.Pod{}
		if json.Unmarshal(raw, pod) != nil {
			return
		}
		// As the API server sends it: what it does not know is gone, what is invalid is mended.
		normal := &corev1.Pod{}
		if json.Unmarshal(marshal(t, pod), normal) != nil {
			return
		}
		pod = normal
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

// connected fails the test unless each container but the sidecar has our variables.
func connected(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == v1alpha1.SidecarName && pod.Annotations[v1alpha1.AnnotationInjected] == v1alpha1.InjectSidecar {
			continue
		}
		for _, name := range []string{v1alpha1.EnvURL, v1alpha1.EnvGRPC, v1alpha1.EnvPolicy, v1alpha1.EnvConsumer} {
			if !slices.ContainsFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == name }) {
				t.Fatalf("container %q has no %s", c.Name, name)
			}
		}
	}
}

// withoutOurs is a pod without what the webhook may add: its mark, its four variables where the
// user had none of the name, and at the ends of their lists the sidecar and its volumes.
func withoutOurs(before, after *corev1.Pod) *corev1.Pod {
	pod := after.DeepCopy()
	delete(pod.Annotations, v1alpha1.AnnotationInjected)
	if mark, ok := before.Annotations[v1alpha1.AnnotationInjected]; ok {
		pod.Annotations[v1alpha1.AnnotationInjected] = mark
	}
	if n := len(before.Spec.InitContainers); len(pod.Spec.InitContainers) == n+1 && pod.Spec.InitContainers[n].Name == v1alpha1.SidecarName {
		pod.Spec.InitContainers = pod.Spec.InitContainers[:n]
		pod.Spec.Volumes = pod.Spec.Volumes[:len(before.Spec.Volumes)]
	}
	strip := func(before, after []corev1.Container) {
		for i := range min(len(before), len(after)) {
			had := before[i].Env
			after[i].Env = slices.DeleteFunc(after[i].Env, func(v corev1.EnvVar) bool {
				ours := v.Name == v1alpha1.EnvURL || v.Name == v1alpha1.EnvGRPC || v.Name == v1alpha1.EnvPolicy || v.Name == v1alpha1.EnvConsumer
				return ours && !slices.ContainsFunc(had, func(h corev1.EnvVar) bool { return h.Name == v.Name })
			})
		}
	}
	strip(before.Spec.InitContainers, pod.Spec.InitContainers)
	strip(before.Spec.Containers, pod.Spec.Containers)
	return pod
}
