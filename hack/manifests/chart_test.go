// Package manifests_test reads what is rendered for a cluster with the libraries of the programs
// that will: Helm, Prometheus, Argo CD's Lua.
package manifests_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/util/yaml"
)

const root = "../.."

type values = map[string]any

// objects are rendered manifests, by kind, namespace and name.
type objects map[string]map[string]any

// chart renders the Helm chart. An error is Helm's, of the schema for example.
func chart(t *testing.T, v values) (objects, error) {
	t.Helper()
	c, err := loader.Load(filepath.Join(root, "config", "helm"))
	if err != nil {
		t.Fatal(err)
	}
	release := chartutil.ReleaseOptions{Name: "dedup", Namespace: "dedup-system", IsInstall: true}
	all, err := chartutil.ToRenderValues(c, v, release, chartutil.DefaultCapabilities.Copy())
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	rendered := objects{}
	for name, text := range files {
		if strings.HasSuffix(name, ".yaml") {
			maps.Copy(rendered, parse(t, []byte(text)))
		}
	}
	return rendered, nil
}

// kustomize renders folders of config.
func kustomize(t *testing.T, folders ...string) objects {
	t.Helper()
	kubectl := filepath.Join(os.Getenv("KUBEBUILDER_ASSETS"), "kubectl")
	rendered := objects{}
	for _, folder := range folders {
		out, err := exec.Command(kubectl, "kustomize", filepath.Join(root, "config", folder)).Output()
		if err != nil {
			t.Fatalf("rendering config/%s with %s: %v; run make test-manifests", folder, kubectl, err)
		}
		// As make build-installer does, to the chart's own.
		maps.Copy(rendered, parse(t, bytes.ReplaceAll(out, []byte("controller:latest"), []byte("controller:0.1.0"))))
	}
	return rendered
}

func parse(t *testing.T, text []byte) objects {
	t.Helper()
	all := objects{}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		var object map[string]any
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if object == nil {
			continue
		}
		metadata := object["metadata"].(map[string]any)
		namespace, _ := metadata["namespace"].(string)
		all[object["kind"].(string)+" "+namespace+"/"+metadata["name"].(string)] = object
	}
}

func TestTheChartRendersWhatTheKustomizationsDo(t *testing.T) {
	for name, test := range map[string]struct {
		values  values
		folders []string
	}{
		"as it is":                    {values{}, []string{"default"}},
		"with cert-manager":           {values{"webhook": values{"certManager": true}}, []string{"cert-manager"}},
		"for some namespaces":         {values{"connect": "AdmissionPolicy", "namespaces": []any{"team-a", "team-b"}}, []string{"namespaced"}},
		"with Prometheus and Grafana": {values{"monitoring": values{"enabled": true}}, []string{"default", "monitoring"}},
	} {
		t.Run(name, func(t *testing.T) {
			want := kustomize(t, test.folders...)
			delete(want, "Namespace /dedup-system") // is Helm's to make
			got, err := chart(t, test.values)
			if err != nil {
				t.Fatal(err)
			}
			annotations := got["CustomResourceDefinition /deduppolicies.dedupd.io"]["metadata"].(map[string]any)["annotations"].(map[string]any)
			if annotations["helm.sh/resource-policy"] != "keep" {
				t.Error("uninstalling the chart deletes the CRD, and with it every policy")
			}
			delete(annotations, "helm.sh/resource-policy")
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-kustomize +helm:\n%s", diff)
			}
		})
	}
}

func TestTheChartsValuesAreChecked(t *testing.T) {
	for want, v := range map[string]values{
		"additional properties 'tga' not allowed": {"image": values{"repository": "a", "tga": "1"}},
		"at '/webhook/port'":                      {"webhook": values{"port": "9443"}},
		"at '/connect'":                           {"connect": "webhook"},
		"at '/namespaces/0'":                      {"namespaces": []any{"A"}},
		"at '/image/digest'":                      {"image": values{"digest": "sha256:1"}},
		"set connect to AdmissionPolicy":          {"namespaces": []any{"a"}},
	} {
		if _, err := chart(t, v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one with %q", v, err, want)
		}
	}
}

// A webhook on the port of the metrics or of the probes would keep the manager from starting.
func TestTheChartsWebhookHasAPortOfItsOwn(t *testing.T) {
	got, err := chart(t, values{"webhook": values{"port": 10250}})
	if err != nil {
		t.Fatal(err)
	}
	pod := got["Deployment dedup-system/dedup-operator-controller-manager"]["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
	others := 0
	for _, port := range pod["containers"].([]any)[0].(map[string]any)["ports"].([]any) {
		taken := port.(map[string]any)["containerPort"]
		if fmt.Sprint(taken) == "10250" {
			continue
		}
		others++
		if _, err := chart(t, values{"webhook": values{"port": taken}}); err == nil || !strings.Contains(err.Error(), "at '/webhook/port'") {
			t.Errorf("port %v: error %v, want one of the schema", taken, err)
		}
	}
	if others != 2 {
		t.Errorf("%d ports besides the webhook's, want those of the metrics and the probes", others)
	}
}

func TestTheChartsOtherValues(t *testing.T) {
	got, err := chart(t, values{
		"image":    values{"repository": "r.example.com/dedup", "digest": "sha256:" + strings.Repeat("a", 64), "pullPolicy": "Always"},
		"logLevel": "debug", "replicas": 3, "nodeSelector": values{"a": "b"}, "priorityClassName": "high",
		"imagePullSecrets": []any{values{"name": "pull"}}, "tolerations": []any{values{"operator": "Exists"}},
		"podAnnotations": values{"c": "d"}, "crds": values{"install": false},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := got["CustomResourceDefinition /deduppolicies.dedupd.io"]; ok {
		t.Error("crds.install false installs the CRD")
	}
	pod := got["Deployment dedup-system/dedup-operator-controller-manager"]["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
	container := pod["containers"].([]any)[0].(map[string]any)
	image := "r.example.com/dedup@sha256:" + strings.Repeat("a", 64)
	if container["image"] != image || container["env"].([]any)[1].(map[string]any)["value"] != image || container["imagePullPolicy"] != "Always" {
		t.Errorf("container %v", container)
	}
	if !slices.Contains(container["args"].([]any), any("--log-level=debug")) {
		t.Errorf("arguments %v", container["args"])
	}
	for _, key := range []string{"nodeSelector", "priorityClassName", "imagePullSecrets", "tolerations"} {
		if pod[key] == nil {
			t.Errorf("no %s in %v", key, pod)
		}
	}
}
