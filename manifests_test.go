package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

func TestManifests(t *testing.T) {
	rendered := render(t, "config/default")
	if bytes.Contains(rendered, []byte("caBundle")) {
		t.Error("a caBundle is rendered: a deployment tool would fight the operator over it")
	}
	m := parse(t, rendered)
	if len(m.webhook.Webhooks) != 1 {
		t.Fatalf("%d webhooks", len(m.webhook.Webhooks))
	}

	t.Run("no ClusterRole reads Secrets, or can grant itself more", func(t *testing.T) {
		for _, folder := range []string{"config/default", "config/cert-manager", "config/namespaced"} {
			roles := parse(t, render(t, folder)).clusterRoles
			if len(roles) == 0 {
				t.Errorf("%s: there is none", folder)
			}
			for _, role := range roles {
				for _, rule := range role.Rules {
					for _, forbidden := range []string{"*", "secrets", "escalate", "bind", "impersonate"} {
						if slices.Contains(slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs), forbidden) {
							t.Errorf("%s: %s has %q in %v", folder, role.Name, forbidden, rule)
						}
					}
				}
			}
		}
	})
	t.Run("in its own namespace the operator reads one Secret", func(t *testing.T) {
		for _, role := range m.roles {
			for _, rule := range role.Rules {
				create := slices.Equal(rule.Verbs, []string{"create"})
				if slices.Contains(rule.Resources, "secrets") && !create && !slices.Equal(rule.ResourceNames, []string{certificateSecret}) {
					t.Errorf("%s allows %v", role.Name, rule)
				}
				if slices.Contains(rule.Resources, "leases") && !create && !slices.Equal(rule.ResourceNames, []string{leaseName}) {
					t.Errorf("%s allows %v", role.Name, rule)
				}
			}
			if role.Namespace != "dedup-system" {
				t.Errorf("Role %s is in namespace %s", role.Name, role.Namespace)
			}
		}
	})
	t.Run("the webhook is as the operator expects it", func(t *testing.T) {
		if m.webhook.Name != webhookName {
			t.Errorf("its name is %s, want %s", m.webhook.Name, webhookName)
		}
		w := m.webhook.Webhooks[0]
		if *w.FailurePolicy != admissionv1.Fail || *w.SideEffects != admissionv1.SideEffectClassNone || *w.ReinvocationPolicy != admissionv1.IfNeededReinvocationPolicy {
			t.Errorf("policies %v %v %v", *w.FailurePolicy, *w.SideEffects, *w.ReinvocationPolicy)
		}
		if w.ObjectSelector.MatchExpressions[0].Key != v1alpha1.LabelPolicy {
			t.Errorf("it selects by %s", w.ObjectSelector)
		}
		if !slices.Contains(w.NamespaceSelector.MatchExpressions[0].Values, m.deployment.Namespace) {
			t.Errorf("the operator's own namespace is not excluded: %s", w.NamespaceSelector)
		}
	})
	t.Run("every image is the placeholder that build-installer replaces", func(t *testing.T) {
		container := m.deployment.Spec.Template.Spec.Containers[0]
		images := []string{container.Image}
		for _, v := range container.Env {
			if v.Name == "DEDUPD_IMAGE" {
				images = append(images, v.Value)
			}
		}
		if !slices.Equal(images, []string{"controller:latest", "controller:latest"}) {
			t.Errorf("images %v", images)
		}
		if n := bytes.Count(rendered, []byte("image: ")); n != 1 {
			t.Errorf("%d images are rendered, want the manager's alone", n)
		}
	})
	t.Run("with cert-manager the operator reads no Secret, and serves from the folder that is mounted", func(t *testing.T) {
		m := parse(t, render(t, "config/cert-manager"))
		for _, role := range m.roles {
			for _, rule := range role.Rules {
				if slices.Contains(rule.Resources, "secrets") {
					t.Errorf("%s allows %v", role.Name, rule)
				}
			}
		}
		container := m.deployment.Spec.Template.Spec.Containers[0]
		if !slices.Contains(container.Args, "--webhook-cert-dir="+container.VolumeMounts[0].MountPath) {
			t.Errorf("arguments %v, mounts %v", container.Args, container.VolumeMounts)
		}
	})
	t.Run("the manager accepts its arguments", func(t *testing.T) {
		container := m.deployment.Spec.Template.Spec.Containers[0]
		s, err := parseSettings(container.Args, func(string) string { return "set" }, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if !s.leaderElect || !slices.ContainsFunc(container.Ports, func(p corev1.ContainerPort) bool { return int(p.ContainerPort) == s.webhookPort }) {
			t.Errorf("settings %+v, ports %v", s, container.Ports)
		}
		if !*container.SecurityContext.ReadOnlyRootFilesystem {
			t.Error("its root file system can be written")
		}
	})
}

// manifests is what a folder of config renders to, as far as the tests look at it.
type manifests struct {
	clusterRoles []rbacv1.ClusterRole
	clusterWide  []rbacv1.ClusterRoleBinding
	roles        []rbacv1.Role
	deployment   appsv1.Deployment
	webhook      admissionv1.MutatingWebhookConfiguration
}

func render(t *testing.T, folder string) []byte {
	t.Helper()
	out, err := exec.Command(filepath.Join(assets(t), "kubectl"), "kustomize", folder).Output()
	if err != nil {
		t.Fatalf("rendering %s: %v", folder, err)
	}
	return out
}

func parse(t *testing.T, rendered []byte) manifests {
	t.Helper()
	var m manifests
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(rendered), 4096)
	for {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		var meta metav1.TypeMeta
		if err := json.Unmarshal(raw, &meta); err != nil {
			t.Fatal(err)
		}
		var err error
		switch meta.Kind {
		case "ClusterRole":
			m.clusterRoles = append(m.clusterRoles, rbacv1.ClusterRole{})
			err = json.Unmarshal(raw, &m.clusterRoles[len(m.clusterRoles)-1])
		case "ClusterRoleBinding":
			m.clusterWide = append(m.clusterWide, rbacv1.ClusterRoleBinding{})
			err = json.Unmarshal(raw, &m.clusterWide[len(m.clusterWide)-1])
		case "Role":
			m.roles = append(m.roles, rbacv1.Role{})
			err = json.Unmarshal(raw, &m.roles[len(m.roles)-1])
		case "Deployment":
			err = json.Unmarshal(raw, &m.deployment)
		case "MutatingWebhookConfiguration":
			err = json.Unmarshal(raw, &m.webhook)
		}
		if err != nil {
			t.Fatalf("%s: %v", meta.Kind, err)
		}
	}
	if len(m.roles) == 0 || len(m.deployment.Spec.Template.Spec.Containers) != 1 {
		t.Fatalf("the manifests lack roles or the Deployment: %+v", m)
	}
	return m
}
