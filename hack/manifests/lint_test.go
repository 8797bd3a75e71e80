package manifests_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
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
// names. Each says what it finds.
var podChecks = map[string]func(d *appsv1.Deployment, pod *corev1.PodSpec, c *corev1.Container) bool{
	"no-anti-affinity": func(d *appsv1.Deployment, pod *corev1.PodSpec, _ *corev1.Container) bool {
		return *d.Spec.Replicas > 1 && (pod.Affinity == nil || pod.Affinity.PodAntiAffinity == nil)
	},
	"mismatching-selector": func(d *appsv1.Deployment, _ *corev1.PodSpec, _ *corev1.Container) bool {
		return !labels.SelectorFromSet(d.Spec.Selector.MatchLabels).Matches(labels.Set(d.Spec.Template.Labels))
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
		yes := func(b *bool) bool { return b != nil && *b }
		return !yes(c.SecurityContext.RunAsNonRoot) && (pod.SecurityContext == nil || !yes(pod.SecurityContext.RunAsNonRoot))
	},
	"privileged-container, privilege-escalation-container": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		p, e := c.SecurityContext.Privileged, c.SecurityContext.AllowPrivilegeEscalation
		return p != nil && *p || e == nil || *e
	},
	"drop-net-raw-capability": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return c.SecurityContext.Capabilities == nil || !slices.Contains(c.SecurityContext.Capabilities.Drop, "ALL")
	},
	"no-read-only-root-fs": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem
	},
	"unset-cpu-requirements": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return c.Resources.Requests.Cpu().Cmp(resource.Quantity{}) == 0
	},
	"unset-memory-requirements": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return c.Resources.Limits.Memory().Cmp(resource.Quantity{}) == 0
	},
	"latest-tag": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return regexp.MustCompile(`:latest$|^[^:]+$`).MatchString(c.Image)
	},
	"env-var-secret": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
			return strings.Contains(strings.ToLower(e.Name), "secret") && e.Value != ""
		})
	},
	"ssh-port": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return hasPort(c, intstr.FromInt32(22))
	},
	"liveness-port, readiness-port, startup-port": func(_ *appsv1.Deployment, _ *corev1.PodSpec, c *corev1.Container) bool {
		return slices.ContainsFunc([]*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe}, func(p *corev1.Probe) bool {
			return p != nil && p.HTTPGet != nil && !hasPort(c, p.HTTPGet.Port)
		})
	},
}

func hasPort(c *corev1.Container, port intstr.IntOrString) bool {
	return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool {
		return p.Name == port.StrVal && port.StrVal != "" || p.ContainerPort == port.IntVal
	})
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
			for i := range pod.Containers {
				c := pod.Containers[i]
				if c.SecurityContext == nil {
					c.SecurityContext = &corev1.SecurityContext{}
				}
				c.Image = strings.ReplaceAll(c.Image, "controller:latest", "registry.example.com/dedup-operator:v1") // as make build-installer does
				if finds(&d, pod, &c) {
					find(name, "Deployment", d.Name)
				}
			}
		}
		if _, ok := all[fmt.Sprintf("ServiceAccount %s/%s", d.Namespace, pod.ServiceAccountName)]; !ok {
			find("non-existent-service-account", "Deployment", d.Name)
		}
	}
	selected := func(selector map[string]string) *appsv1.Deployment {
		for i, d := range deployments {
			if labels.SelectorFromSet(selector).Matches(labels.Set(d.Spec.Template.Labels)) {
				return &deployments[i]
			}
		}
		return nil
	}
	for _, s := range as[corev1.Service](t, all, "Service") {
		d := selected(s.Spec.Selector)
		if d == nil {
			find("dangling-service", "Service", s.Name)
			continue
		}
		for _, p := range s.Spec.Ports {
			if !hasPort(&d.Spec.Template.Spec.Containers[0], p.TargetPort) {
				find("invalid-target-ports", "Service", s.Name)
			}
		}
	}
	for _, b := range as[policyv1.PodDisruptionBudget](t, all, "PodDisruptionBudget") {
		d := selected(b.Spec.Selector.MatchLabels)
		none, most := b.Spec.MaxUnavailable, b.Spec.MinAvailable
		if none != nil && (none.String() == "0" || none.String() == "0%") {
			find("pdb-max-unavailable", "PodDisruptionBudget", b.Name)
		}
		if most != nil && (most.String() == "100%" || d == nil || most.IntVal >= *d.Spec.Replicas) {
			find("pdb-min-available", "PodDisruptionBudget", b.Name)
		}
		if b.Spec.UnhealthyPodEvictionPolicy == nil {
			find("pdb-unhealthy-pod-eviction-policy", "PodDisruptionBudget", b.Name)
		}
	}
	for name, object := range all {
		if strings.HasPrefix(object["apiVersion"].(string), "extensions/v1beta") {
			find("no-extensions-v1beta", "", name)
		}
	}
	return findings
}

func TestKubeLintersChecksFindNothing(t *testing.T) {
	for _, folder := range []string{"default", "cert-manager", "namespaced"} {
		t.Run(folder, func(t *testing.T) {
			for _, finding := range lint(t, kustomize(t, folder)) {
				t.Error(finding)
			}
		})
	}
}

// Whatever is taken away is found missing.
func TestKubeLintersChecksFindWhatIsWrong(t *testing.T) {
	for check, text := range map[string]string{
		"no-anti-affinity":                  "affinity",
		"run-as-non-root":                   "securityContext",
		"unset-memory-requirements":         "resources",
		"non-existent-service-account":      "serviceAccountName",
		"pdb-unhealthy-pod-eviction-policy": "unhealthyPodEvictionPolicy",
		"invalid-target-ports":              "ports",
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
			if !slices.ContainsFunc(lint(t, all), func(f string) bool { return strings.HasPrefix(f, check+":") }) {
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
