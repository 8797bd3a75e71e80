package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/hack/freeport"
)

// Where config/default puts the operator.
const (
	operatorNamespace = "dedup-system"
	operatorAccount   = "dedup-operator-controller-manager"
)

func (s *stage) build(ctx context.Context) error {
	root, err := command(ctx, ".", nil, "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return err
	}
	s.root = strings.TrimSpace(root)
	if s.dir, err = os.MkdirTemp("", "dedup-demo-"); err != nil {
		return err
	}
	for name, pkg := range map[string]string{"manager": ".", "dedupd": "./dedupd"} {
		if _, err := command(ctx, s.root, nil, "go", "build", "-o", filepath.Join(s.dir, name), pkg); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) startRedis(ctx context.Context) error {
	port, err := freeport.On("")
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "redis")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	s.redis = net.JoinHostPort("127.0.0.1", port)
	_, err = s.start("redis-server", "redis-server", "--bind", "127.0.0.1", "--port", port,
		"--dir", data, "--appendonly", "yes", "--maxmemory-policy", "noeviction")
	if err != nil {
		return err
	}
	s.say("redis-server on %s, with persistence, evicting nothing", s.redis)
	return s.await(ctx, 10*time.Second, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.redis)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

func (s *stage) startControlPlane(context.Context) error {
	assets := os.Getenv("KUBEBUILDER_ASSETS")
	if assets == "" {
		return fmt.Errorf("KUBEBUILDER_ASSETS is not set: run make demo, or export KUBEBUILDER_ASSETS=$(hack/setup.sh)")
	}
	s.kubectl = filepath.Join(assets, "kubectl")
	s.env = &envtest.Environment{BinaryAssetsDirectory: assets}
	config, err := s.env.Start()
	if err != nil {
		return err
	}
	if err := v1alpha1.AddToScheme(clientgoscheme.Scheme); err != nil {
		return err
	}
	if s.api, err = client.New(config, client.Options{Scheme: clientgoscheme.Scheme}); err != nil {
		return err
	}
	s.kubeconfig = filepath.Join(s.dir, "kubeconfig")
	if err := os.WriteFile(s.kubeconfig, s.env.KubeConfig, 0o600); err != nil {
		return err
	}
	s.say("kube-apiserver on %s", config.Host)
	return nil
}

// install applies config/default as it is, but for one thing: nothing routes Services here,
// so the webhook's becomes an ExternalName that leads the API server to this machine.
func (s *stage) install(ctx context.Context) error {
	manifests, err := command(ctx, s.root, nil, s.kubectl, "kustomize", "config/default")
	if err != nil {
		return err
	}
	if _, err := s.kubectlRun(ctx, manifests, "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	return s.await(ctx, 20*time.Second, func(ctx context.Context) error {
		_, err := s.kubectlRun(ctx, "", "wait", "--for=condition=Established", "crd/deduppolicies.dedupd.io")
		return err
	})
}

func (s *stage) startOperator(ctx context.Context) error {
	port, err := freeport.On("")
	if err != nil {
		return err
	}
	probes, err := freeport.On("")
	if err != nil {
		return err
	}
	if err := s.routeWebhook(ctx, port); err != nil {
		return err
	}
	kubeconfig, err := s.operatorKubeconfig(ctx)
	if err != nil {
		return err
	}
	probe := net.JoinHostPort("127.0.0.1", probes)
	_, err = s.start("manager", "env", "KUBECONFIG="+kubeconfig, "POD_NAMESPACE="+operatorNamespace,
		filepath.Join(s.dir, "manager"), "--webhook-port="+port,
		"--health-probe-bind-address="+probe, "--metrics-bind-address=0", "--dedupd-image=dedup-operator:demo")
	if err != nil {
		return err
	}
	return s.await(ctx, 60*time.Second, func(ctx context.Context) error { return get(ctx, "http://"+probe+"/readyz") })
}

func (s *stage) routeWebhook(ctx context.Context, port string) error {
	var hooks admissionv1.MutatingWebhookConfigurationList
	if err := s.api.List(ctx, &hooks); err != nil {
		return err
	}
	for i := range hooks.Items {
		hook := &hooks.Items[i].Webhooks[0]
		ref := hook.ClientConfig.Service
		service := &corev1.Service{}
		service.Name, service.Namespace = ref.Name, ref.Namespace
		if err := s.api.Delete(ctx, service); err != nil {
			return err
		}
		service = &corev1.Service{}
		service.Name, service.Namespace = ref.Name, ref.Namespace
		service.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}
		if err := s.api.Create(ctx, service); err != nil {
			return err
		}
		patch := fmt.Sprintf(`[{"op":"add","path":"/webhooks/0/clientConfig/service/port","value":%s}]`, port)
		if _, err := s.kubectlRun(ctx, "", "patch", "mutatingwebhookconfiguration", hooks.Items[i].Name, "--type=json", "-p", patch); err != nil {
			return err
		}
	}
	return nil
}

// operatorKubeconfig signs in as the operator's ServiceAccount: it runs with the permissions
// that config/rbac grants, and no others.
func (s *stage) operatorKubeconfig(ctx context.Context) (string, error) {
	token, err := s.kubectlRun(ctx, "", "create", "token", "-n", operatorNamespace, operatorAccount, "--duration=24h")
	if err != nil {
		return "", err
	}
	admin, err := os.ReadFile(s.kubeconfig)
	if err != nil {
		return "", err
	}
	var config struct {
		Clusters []any `json:"clusters"`
	}
	if err := yaml.Unmarshal(admin, &config); err != nil {
		return "", err
	}
	cluster := config.Clusters[0].(map[string]any)["name"]
	mine, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "operator",
		"clusters": config.Clusters,
		"contexts": []any{map[string]any{"name": "operator", "context": map[string]any{"cluster": cluster, "user": "operator"}}},
		"users":    []any{map[string]any{"name": "operator", "user": map[string]any{"token": strings.TrimSpace(token)}}},
	})
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, "operator-kubeconfig")
	return path, os.WriteFile(path, mine, 0o600)
}

// kubectlRun runs kubectl as the administrator.
func (s *stage) kubectlRun(ctx context.Context, stdin string, args ...string) (string, error) {
	argv := append([]string{s.kubectl, "--kubeconfig", s.kubeconfig}, args...)
	return command(ctx, s.root, strings.NewReader(stdin), argv...)
}

// get is nil if the URL answers 200.
func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, res.Status)
	}
	return nil
}
