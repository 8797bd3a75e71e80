package manifests_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// as reads the objects of a kind.
func as[T any](t *testing.T, all objects, kind string) []T {
	t.Helper()
	var found []T
	for name, object := range all {
		if !strings.HasPrefix(name, kind+" ") {
			continue
		}
		data, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		var one T
		if err := json.Unmarshal(data, &one); err != nil {
			t.Fatal(err)
		}
		found = append(found, one)
	}
	return found
}

// podChecks are those of kube-linter that look at a workload and are on by default (docs.kubelinter.io, Checks), by its
// names. Each says what it finds, of the init containers as well.
var podChecks = map[string]func(d *appsv1.Deployment, pod *corev1.PodSpec, c *corev1.Container) bool{
	"no-anti-affinity": func(d *appsv1.Deployment, _ *corev1.PodSpec, _ *corev1.Container) bool {
		return replicas(d) > 1 && !spreadOverNodes(d)
	},
	"mismatching-selector": func(d *appsv1.Deployment, _ *corev1.PodSpec, _ *corev1.Container) bool {
		return !selects(d.Spec.Selector, d.Spec.Template.Labels)
	},
	"host-ipc, host-network, host-pid": func(_ *appsv1.Deployment, pod *corev1.PodSpec, _ *corev1.Container) bool {
		return pod.HostIPC || pod.HostNetwork || pod.HostPID
	},
	"docker-sock, sensitive-host-mounts": func(_ *appsv1.Deployment, pod *corev1.PodSpec, _ *corev1.Container) bool {
		return slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil })
	},
	"deprecated-service-account-field": func(_ *appsv1.Deployment, pod *corev1.PodSpec, _ *corev1.Container) bool {
		return pod.DeprecatedServiceAccount != "" && pod.DeprecatedServiceAccount != pod.ServiceAccountName
	},
	"unsafe-sysctls": func(_ *appsv1.Deployment, pod *corev1.PodSpec, _ *corev1.Container) bool {
		return pod.SecurityContext != nil && len(pod.SecurityContext.Sysctls) > 0
	},
	"run-as-non-root": func(_ *appsv1.Deployment, pod *corev1.PodSpec, c *corev1.Container) bool {
		ofPod := cmp.Or(pod.SecurityContext, &corev1.PodSecurityContext{})
		nonRoot, user := cmp.Or(c.SecurityContext.RunAsNonRoot, ofPod.RunAsNonRoot), cmp.Or(c.SecurityContext.RunAsUser, ofPod.RunAsUser)
		return nonRoot == nil || !*nonRoot || user != nil && *user == 0
	},
	"privileged-container, privilege-escalation-container": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		p, e := c.SecurityContext.Privileged, c.SecurityContext.AllowPrivilegeEscalation
		return p != nil && *p || e == nil || *e || adds(c, "SYS_ADMIN")
	},
	"drop-net-raw-capability": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		has := cmp.Or(c.SecurityContext.Capabilities, &corev1.Capabilities{})
		return !slices.Contains(has.Drop, "ALL") && !slices.Contains(has.Drop, "NET_RAW") || adds(c, "ALL") || adds(c, "NET_RAW")
	},
	"no-read-only-root-fs": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem
	},
	"unset-cpu-requirements": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return c.Resources.Requests.Cpu().IsZero()
	},
	"unset-memory-requirements": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return c.Resources.Limits.Memory().IsZero()
	},
	"latest-tag": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return regexp.MustCompile(`:latest$|^[^:]*$|/[^:]+$`).MatchString(c.Image)
	},
	"env-var-secret": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
			return strings.Contains(strings.ToLower(e.Name), "secret") && e.Value != ""
		})
	},
	"duplicate-env-var": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		names := map[string]bool{}
		for _, e := range c.Env {
			names[e.Name] = true
		}
		return len(names) < len(c.Env)
	},
	"ssh-port": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return hasPort(c, intstr.FromInt32(22))
	},
	"liveness-port, readiness-port, startup-port": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return slices.ContainsFunc([]*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe}, func(p *corev1.Probe) bool {
			switch {
			case p == nil:
				return false
			case p.HTTPGet != nil:
				return !hasPort(c, p.HTTPGet.Port)
			case p.TCPSocket != nil:
				return !hasPort(c, p.TCPSocket.Port)
			case p.GRPC != nil:
				return !hasPort(c, intstr.FromInt32(p.GRPC.Port))
			}
			return false
		})
	},
	"invalid-target-ports": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool {
			return !valid(intstr.FromInt32(p.ContainerPort)) || p.Name != "" && !valid(intstr.FromString(p.Name))
		})
	},
}

func replicas(d *appsv1.Deployment) int32 { return *cmp.Or(d.Spec.Replicas, new(int32(1))) }

func selects(selector *metav1.LabelSelector, of map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && !s.Empty() && s.Matches(labels.Set(of))
}

// spreadOverNodes says whether pods of a Deployment avoid one another's nodes: by anti-affinity, or by a spread constraint,
// which kube-linter has let count since its pull request 1224.
func spreadOverNodes(d *appsv1.Deployment) bool {
	pod := d.Spec.Template
	var terms []corev1.PodAffinityTerm
	if pod.Spec.Affinity != nil && pod.Spec.Affinity.PodAntiAffinity != nil {
		anti := pod.Spec.Affinity.PodAntiAffinity
		terms = slices.Clone(anti.RequiredDuringSchedulingIgnoredDuringExecution)
		for _, preferred := range anti.PreferredDuringSchedulingIgnoredDuringExecution {
			terms = append(terms, preferred.PodAffinityTerm)
		}
	}
	for _, spread := range pod.Spec.TopologySpreadConstraints {
		terms = append(terms, corev1.PodAffinityTerm{TopologyKey: spread.TopologyKey, LabelSelector: spread.LabelSelector})
	}
	return slices.ContainsFunc(terms, func(term corev1.PodAffinityTerm) bool {
		return term.TopologyKey == corev1.LabelHostname && selects(term.LabelSelector, pod.Labels) &&
			(len(term.Namespaces) == 0 || slices.Contains(term.Namespaces, d.Namespace))
	})
}

func adds(c *corev1.Container, capability corev1.Capability) bool {
	return c.SecurityContext.Capabilities != nil && slices.Contains(c.SecurityContext.Capabilities.Add, capability)
}

// hasPort says whether a container says that it listens on a port, over TCP.
func hasPort(c *corev1.Container, port intstr.IntOrString) bool {
	return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool {
		return (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) && (p.Name == port.StrVal && port.StrVal != "" || p.ContainerPort == port.IntVal)
	})
}

func valid(port intstr.IntOrString) bool {
	if port.Type == intstr.String {
		return len(validation.IsValidPortName(port.StrVal)) == 0
	}
	return len(validation.IsValidPortNum(port.IntValue())) == 0
}

// lint is what kube-linter would find in rendered manifests, as "check: object".
func lint(t *testing.T, all objects) (findings []string) {
	t.Helper()
	find := func(check, kind, name string) {
		findings = append(findings, fmt.Sprintf("%s: %s %s", check, kind, name))
	}
	deployments := as[appsv1.Deployment](t, all, "Deployment")
	for _, d := range deployments {
		pod := &d.Spec.Template.Spec
		for name, finds := range podChecks {
			for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
				c.SecurityContext = cmp.Or(c.SecurityContext, &corev1.SecurityContext{})
				if finds(&d, pod, &c) {
					find(name, "Deployment", d.Name)
				}
			}
		}
		if _, ok := all[fmt.Sprintf("ServiceAccount %s/%s", d.Namespace, pod.ServiceAccountName)]; !ok {
			find("non-existent-service-account", "Deployment", d.Name)
		}
	}
	selected := func(namespace string, selector *metav1.LabelSelector) *appsv1.Deployment {
		for i, d := range deployments {
			if d.Namespace == namespace && selects(selector, d.Spec.Template.Labels) {
				return &deployments[i]
			}
		}
		return nil
	}
	for _, s := range as[corev1.Service](t, all, "Service") {
		d := selected(s.Namespace, &metav1.LabelSelector{MatchLabels: s.Spec.Selector})
		if d == nil {
			find("dangling-service", "Service", s.Name)
			continue
		}
		for _, p := range s.Spec.Ports {
			if !valid(p.TargetPort) {
				find("invalid-target-ports", "Service", s.Name)
			}
			if !hasPort(&d.Spec.Template.Spec.Containers[0], p.TargetPort) {
				find("a port that no container has", "Service", s.Name) // kube-linter does not ask
			}
		}
	}
	for _, b := range as[policyv1.PodDisruptionBudget](t, all, "PodDisruptionBudget") {
		d := selected(b.Namespace, b.Spec.Selector)
		of := 1
		if d != nil {
			of = int(replicas(d))
		}
		if n, err := intstr.GetScaledValueFromIntOrPercent(cmp.Or(b.Spec.MaxUnavailable, new(intstr.FromInt32(1))), 100, true); err != nil || n == 0 {
			find("pdb-max-unavailable", "PodDisruptionBudget", b.Name)
		}
		if n, err := intstr.GetScaledValueFromIntOrPercent(cmp.Or(b.Spec.MinAvailable, new(intstr.FromInt32(0))), of, true); err != nil || n >= of {
			find("pdb-min-available", "PodDisruptionBudget", b.Name)
		}
		if b.Spec.UnhealthyPodEvictionPolicy == nil {
			find("pdb-unhealthy-pod-eviction-policy", "PodDisruptionBudget", b.Name)
		}
	}
	for name, object := range all {
		if strings.Contains(object["apiVersion"].(string), "extensions/v1beta") {
			find("no-extensions-v1beta", "", name)
		}
	}
	return findings
}

func TestKubeLintersChecksFindNothing(t *testing.T) {
	sets := map[string]objects{
		"default":      kustomize(t, "default"),
		"cert-manager": kustomize(t, "cert-manager"),
		"namespaced":   kustomize(t, "namespaced"),
		"monitoring":   kustomize(t, "default", "monitoring"),
	}
	// What the operator makes of policies that leave it the workload.
	for _, policy := range []string{"autoscaling", "callers", "memory", "postgres", "redis", "sentinel-with-secrets-and-placement"} {
		text, err := os.ReadFile(filepath.Join(root, "controllers", "render", "testdata", policy, "out.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		sets["policy "+policy] = parse(t, text)
	}
	for name, all := range sets {
		t.Run(name, func(t *testing.T) {
			if len(all) == 0 {
				t.Error("there is nothing to look at")
			}
			for _, finding := range lint(t, all) {
				t.Error(finding)
			}
		})
	}
}

// Whatever is taken away is found missing.
func TestKubeLintersChecksFindWhatIsWrong(t *testing.T) {
	for check, text := range map[string]string{
		"no-anti-affinity":                  "labelSelector",
		"run-as-non-root":                   "securityContext",
		"unset-memory-requirements":         "resources",
		"non-existent-service-account":      "serviceAccountName",
		"pdb-unhealthy-pod-eviction-policy": "unhealthyPodEvictionPolicy",
		"a port that no container has":      "ports",
		"unset-cpu-requirements":            "requests",
		"no-read-only-root-fs":              "readOnlyRootFilesystem",
		"liveness-port":                     "ports",
		"mismatching-selector":              "matchLabels",
		"dangling-service":                  "labels",
		"drop-net-raw-capability":           "capabilities",
	} {
		t.Run(check, func(t *testing.T) {
			all := kustomize(t, "default")
			for _, object := range all {
				if kind := object["kind"]; kind == "Deployment" || kind == "PodDisruptionBudget" {
					without(object["spec"], text)
				}
			}
			if !slices.ContainsFunc(lint(t, all), func(f string) bool { return strings.HasPrefix(f, check) }) {
				t.Error("it is not found")
			}
		})
	}
}

// without removes what stands under a key, wherever that is.
func without(node any, key string) {
	switch n := node.(type) {
	case map[string]any:
		delete(n, key)
		for _, child := range n {
			without(child, key)
		}
	case []any:
		for _, child := range n {
			without(child, key)
		}
	}
}
