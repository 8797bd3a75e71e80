package webhook

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/podspec"
)

// tokens are pods that have volumes, or may have no token.
var tokens = map[string]*corev1.Pod{
	"a static pod": newPod(func(p *corev1.Pod) { static(p); unowned(p); p.Name = "edge" }),
	"volumes and mounts of the user's": newPod(func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		p.Spec.InitContainers = []corev1.Container{{Name: "first", Image: "x", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/d"}}}}
	}),
	"a token of the user's own": newPod(func(p *corev1.Pod) {
		mine := *token.DeepCopy()
		*mine.Projected.Sources[0].ServiceAccountToken.ExpirationSeconds = 900
		p.Spec.Volumes = []corev1.Volume{mine}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: mine.Name, MountPath: "/mine"}}
		p.Spec.Containers[0].Env = env("DEDUPD_TOKEN_FILE", "/mine/token")
	}),
	"something of the user's in the token's place": newPod(func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/var/run/secrets/dedupd.io"}}
	}),
}

func TestInjectEndpoint(t *testing.T) {
	marked := annotated(v1alpha1.AnnotationInjected, v1alpha1.InjectEndpoint)
	withEnv := func(p *corev1.Pod) { p.Spec.Containers[0].Env = endpointEnv; withToken(p) }
	for name, test := range map[string]struct{ in, out *corev1.Pod }{
		"a container gets the variables and the token, and the pod the mark": {
			in:  newPod(),
			out: newPod(marked, withEnv),
		},
		"asking for the endpoint is the default": {
			in:  newPod(annotated(v1alpha1.AnnotationInject, v1alpha1.InjectEndpoint)),
			out: newPod(annotated(v1alpha1.AnnotationInject, v1alpha1.InjectEndpoint), marked, withEnv),
		},
		"init containers get them too": {
			in: newPod(func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "replay"}} }),
			out: newPod(marked, withEnv, func(p *corev1.Pod) {
				p.Spec.InitContainers = []corev1.Container{{Name: "replay", Env: endpointEnv, VolumeMounts: tokenMount}}
			}),
		},
		"they come before the user's own, which may refer to them": {
			in: newPod(func(p *corev1.Pod) { p.Spec.Containers[0].Env = env("CHECK", "$(DEDUPD_URL)/check") }),
			out: newPod(marked, withEnv, func(p *corev1.Pod) {
				p.Spec.Containers[0].Env = slices.Concat(endpointEnv, env("CHECK", "$(DEDUPD_URL)/check"))
			}),
		},
		"a variable that the user set keeps the user's value": {
			in: newPod(func(p *corev1.Pod) { p.Spec.Containers[0].Env = env("DEDUPD_CONSUMER", "mine") }),
			out: newPod(marked, withToken, func(p *corev1.Pod) {
				p.Spec.Containers[0].Env = slices.Concat(endpointEnv[:3], endpointEnv[4:], env("DEDUPD_CONSUMER", "mine"))
			}),
		},
		"a mark of another mode is corrected": {
			in:  newPod(annotated(v1alpha1.AnnotationInjected, v1alpha1.InjectSidecar)),
			out: newPod(marked, withEnv),
		},
		"the token's volume and mounts come after the user's own": {
			in: tokens["volumes and mounts of the user's"],
			out: changed(tokens["volumes and mounts of the user's"], marked, withEnv, func(p *corev1.Pod) {
				c := &p.Spec.InitContainers[0]
				c.Env, c.VolumeMounts = endpointEnv, append(c.VolumeMounts, tokenMount...)
			}),
		},
		"a token of the user's own stays as it is": {
			in: tokens["a token of the user's own"],
			out: changed(tokens["a token of the user's own"], marked, func(p *corev1.Pod) {
				c := &p.Spec.Containers[0]
				c.Env, c.VolumeMounts = slices.Concat(endpointEnv[:4], c.Env), append(c.VolumeMounts, tokenMount...)
			}),
		},
		"what the user mounts in the token's place stays there": {
			in: tokens["something of the user's in the token's place"],
			out: changed(tokens["something of the user's in the token's place"], marked, func(p *corev1.Pod) {
				p.Spec.Containers[0].Env, p.Spec.Volumes = endpointEnv, append(p.Spec.Volumes, token)
			}),
		},
		"a static pod has no ServiceAccount, and may have no token": {
			in:  newPod(static),
			out: newPod(static, marked, func(p *corev1.Pod) { p.Spec.Containers[0].Env = endpointEnv[:4] }),
		},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, test.in, nil, test.out)
		})
	}
}

func TestInjectSidecar(t *testing.T) {
	container, volumes, err := podspec.Sidecar(newPolicy(), podspec.Options{
		Image: options.Image, PortHTTP: SidecarPortHTTP, PortGRPC: SidecarPortGRPC,
	})
	if err != nil {
		t.Fatal(err)
	}
	sidecarEnv := env(
		"DEDUPD_URL", "http://localhost:18080",
		"DEDUPD_GRPC", "localhost:19090",
		"DEDUPD_POLICY", "orders",
		"DEDUPD_CONSUMER", "checkout",
		"DEDUPD_TOKEN_FILE", "/var/run/secrets/dedupd.io/token",
	)
	marked := annotated(v1alpha1.AnnotationInjected, v1alpha1.InjectSidecar)
	withEnv := func(p *corev1.Pod) {
		p.Spec.Containers[0].Env, p.Spec.Containers[0].VolumeMounts = sidecarEnv, tokenMount
	}
	always := corev1.ContainerRestartPolicyAlways
	theirs := corev1.Container{Name: v1alpha1.SidecarName, Image: "mirror/dedup-operator:test", RestartPolicy: &always}
	for name, test := range map[string]struct{ in, out *corev1.Pod }{
		"dedupd comes after the init containers and the volumes that are there": {
			in: newPod(sidecar, func(p *corev1.Pod) {
				p.Spec.InitContainers = []corev1.Container{{Name: "mesh", RestartPolicy: &always}}
				p.Spec.Volumes = []corev1.Volume{{Name: "data"}}
			}),
			out: newPod(sidecar, marked, withEnv, func(p *corev1.Pod) {
				p.Spec.InitContainers = []corev1.Container{{Name: "mesh", RestartPolicy: &always, Env: sidecarEnv, VolumeMounts: tokenMount}, *container}
				p.Spec.Volumes = slices.Concat([]corev1.Volume{{Name: "data"}}, volumes, []corev1.Volume{token})
			}),
		},
		"a sidecar that another webhook changed since stays as it is, and a container it added is connected": {
			in: newPod(sidecar, marked, withEnv, func(p *corev1.Pod) {
				p.Spec.InitContainers = []corev1.Container{theirs, {Name: "late"}}
			}),
			out: newPod(sidecar, marked, withEnv, func(p *corev1.Pod) {
				p.Spec.InitContainers = []corev1.Container{theirs, {Name: "late", Env: sidecarEnv, VolumeMounts: tokenMount}}
				p.Spec.Volumes = []corev1.Volume{token}
			}),
		},
		"a UDP port of the same number is no conflict": {
			in: newPod(sidecar, func(p *corev1.Pod) {
				p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: SidecarPortHTTP, Protocol: corev1.ProtocolUDP}}
			}),
			out: newPod(sidecar, marked, withEnv, func(p *corev1.Pod) {
				p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: SidecarPortHTTP, Protocol: corev1.ProtocolUDP}}
				p.Spec.InitContainers = []corev1.Container{*container}
				p.Spec.Volumes = slices.Concat(volumes, []corev1.Volume{token})
			}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, test.in, newPolicy(), test.out)
		})
	}
	if container.RestartPolicy == nil || *container.RestartPolicy != always || container.StartupProbe == nil {
		t.Errorf("not a native sidecar with a startup probe: %v", container)
	}
	for _, v := range volumes {
		if !strings.HasPrefix(v.Name, v1alpha1.SidecarName+"-") {
			t.Errorf("volume %q may be a name of the user's: it does not start with dedupd-", v.Name)
		}
	}
}

// check fails the test unless in becomes out, however it gets there: by Inject, by Inject of what
// Inject returned, and by the patch.
func check(t *testing.T, in *corev1.Pod, policy *v1alpha1.DedupPolicy, out *corev1.Pod) {
	t.Helper()
	before := in.DeepCopy()
	got, err := Inject(in, options, policy)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(out, got); diff != "" {
		t.Errorf("injected (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, in); diff != "" {
		t.Errorf("Inject changed its input (-before +after):\n%s", diff)
	}
	again, err := Inject(got, options, policy)
	if err != nil {
		t.Fatalf("injecting again: %v", err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("injected again (-once +twice):\n%s", diff)
	}
	if diff := cmp.Diff(got, patched(t, in, policy)); diff != "" {
		t.Errorf("the patch does something else than Inject (-Inject +patch):\n%s", diff)
	}
}

func TestDenials(t *testing.T) {
	for name, test := range map[string]struct {
		pod    *corev1.Pod
		policy *v1alpha1.DedupPolicy
		want   []string
	}{
		"a policy name that starts with a digit": {
			newPod(labelled(v1alpha1.LabelPolicy, "1st")), nil,
			[]string{"metadata.labels[dedupd.io/policy]", `"1st"`, "starting with a letter"},
		},
		"a policy name with an upper-case letter": {
			newPod(labelled(v1alpha1.LabelPolicy, "Orders")), nil,
			[]string{"metadata.labels[dedupd.io/policy]", `"Orders"`, "lower-case"},
		},
		"an empty policy name": {
			newPod(labelled(v1alpha1.LabelPolicy, "")), nil,
			[]string{"metadata.labels[dedupd.io/policy]", `""`},
		},
		"a policy name that is too long": {
			newPod(labelled(v1alpha1.LabelPolicy, strings.Repeat("a", 53))), nil,
			[]string{"metadata.labels[dedupd.io/policy]", "at most 52"},
		},
		"an unknown way of connecting": {
			newPod(annotated(v1alpha1.AnnotationInject, "Sidecar")), nil,
			[]string{"metadata.annotations[dedupd.io/inject]", `"Sidecar"`, `"endpoint"`, `"sidecar"`},
		},
		"an empty way of connecting": {
			newPod(annotated(v1alpha1.AnnotationInject, "")), nil,
			[]string{"metadata.annotations[dedupd.io/inject]", `"endpoint"`, `"sidecar"`},
		},
		"an empty consumer": {
			newPod(labelled(v1alpha1.LabelConsumer, "")), nil,
			[]string{"metadata.labels[dedupd.io/consumer]", "remove the label"},
		},
		"a sidecar without its policy": {
			newPod(sidecar), nil,
			[]string{"metadata.labels[dedupd.io/policy]", `"orders"`, "does not exist in namespace shop", "tries again"},
		},
		"a sidecar for a policy that remembers in memory": {
			newPod(sidecar), newPolicy(inMemory),
			[]string{"metadata.annotations[dedupd.io/inject]", "memory", "use endpoint, or store.redis"},
		},
		"a sidecar on the node's network": {
			newPod(sidecar, func(p *corev1.Pod) { p.Spec.HostNetwork = true }), newPolicy(),
			[]string{"metadata.annotations[dedupd.io/inject]", "hostNetwork", "18080", "use endpoint"},
		},
		"a sidecar beside a container of its name": {
			newPod(sidecar, func(p *corev1.Pod) { p.Spec.Containers[0].Name = "dedupd" }), newPolicy(),
			[]string{"spec.containers[0].name", `"dedupd"`},
		},
		"a sidecar beside an init container of its name": {
			newPod(sidecar, func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "x"}, {Name: "dedupd"}} }), newPolicy(),
			[]string{"spec.initContainers[1].name", `"dedupd"`},
		},
		"a sidecar beside a container with its port": {
			newPod(sidecar, func(p *corev1.Pod) {
				p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80}, {ContainerPort: 19090}}
			}), newPolicy(),
			[]string{"spec.containers[0].ports[1].containerPort", "19090"},
		},
		"a sidecar beside a volume of its name": {
			newPod(sidecar, func(p *corev1.Pod) { p.Spec.Volumes = []corev1.Volume{{Name: "dedupd-config"}} }), newPolicy(),
			[]string{"spec.volumes[0].name", `"dedupd-config"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod, err := Inject(test.pod, options, test.policy)
			if err == nil {
				t.Fatalf("injected: %v", pod)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is missing in: %v", want, err)
				}
			}
		})
	}
}
