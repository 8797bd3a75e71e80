package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// The test binary is the manager when this is set.
const beManager = "DEDUP_TEST_BE_MANAGER"

func TestMain(m *testing.M) {
	if os.Getenv(beManager) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestSettings(t *testing.T) {
	environment := map[string]string{"POD_NAMESPACE": "dedup-system", "DEDUPD_IMAGE": "dedup-operator:1"}
	for name, test := range map[string]struct {
		args    []string
		without string // of the environment
		want    string // in the error, empty for none
	}{
		"the environment alone is enough": {},
		"an image by flag":                {args: []string{"--dedupd-image=x"}, without: "DEDUPD_IMAGE"},
		"no image":                        {without: "DEDUPD_IMAGE", want: "--dedupd-image is empty: set it, or DEDUPD_IMAGE"},
		"an image with a space":           {args: []string{"--dedupd-image=a b"}, want: `--dedupd-image "a b"`},
		"no namespace":                    {without: "POD_NAMESPACE", want: "POD_NAMESPACE is not set"},
		"a port that is none":             {args: []string{"--webhook-port=70000"}, want: "--webhook-port 70000: a port is from 1 to 65535"},
		"no webhook":                      {args: []string{"--webhook-port=0"}},
		"a certificate of no webhook":     {args: []string{"--webhook-port=0", "--webhook-cert-dir=x"}, want: "there is no webhook"},
		"some namespaces":                 {args: []string{"--namespaces=a,b"}},
		"a namespace that is none":        {args: []string{"--namespaces=a,B"}, want: `"B": a lowercase`},
		"an empty namespace":              {args: []string{"--namespaces=a,"}, want: `"": a lowercase`},
		"metrics and probes off":          {args: []string{"--metrics-bind-address=0", "--health-probe-bind-address=0"}},
		"an address without a port":       {args: []string{"--metrics-bind-address=localhost"}, want: `--metrics-bind-address "localhost": want host:port`},
		"a folder without certificates":   {args: []string{"--webhook-cert-dir=/nonexistent"}, want: `--webhook-cert-dir "/nonexistent"`},
		"an unknown flag":                 {args: []string{"--frobnicate"}, want: "frobnicate"},
		"an argument that is no flag":     {args: []string{"serve"}, want: `"serve": there are no arguments but flags`},
		"a log level that is none":        {args: []string{"--log-level=loud"}, want: "log-level"},
		"a log level":                     {args: []string{"--log-level=debug"}},
	} {
		t.Run(name, func(t *testing.T) {
			getenv := func(key string) string {
				if key == test.without {
					return ""
				}
				return environment[key]
			}
			_, err := parseSettings(test.args, getenv, io.Discard)
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

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

// The manager as two processes, under the permissions that config/rbac grants and no others,
// against a real API server with config/default installed.
func TestManager(t *testing.T) {
	c, kubeconfig, m := install(t, "config/default")
	webhookPort := routeWebhook(t, c)
	first := startManager(t, kubeconfig, webhookPort)
	second := startManager(t, kubeconfig, freePort(t))
	first.awaitReady(t)
	second.awaitReady(t)

	t.Run("the operator's own pod meets Pod Security restricted", func(t *testing.T) {
		template := m.deployment.Spec.Template
		pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Namespace, pod.Name = m.deployment.Namespace, "manager"
		if err := c.Create(context.Background(), pod, client.DryRunAll); err != nil {
			t.Error(err)
		}
	})
	t.Run("a policy gets its Deployment", func(t *testing.T) {
		policy := &v1alpha1.DedupPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "orders"}}
		policy.Spec = v1alpha1.DedupPolicySpec{
			Key:   v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "message-id"}},
			TTL:   "1h",
			Store: v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{Addresses: []string{"redis.shop.svc:6379"}}},
		}
		if err := c.Create(context.Background(), policy); err != nil {
			t.Fatal(err)
		}
		deployment := &appsv1.Deployment{}
		poll(t, func() error {
			return c.Get(context.Background(), types.NamespacedName{Namespace: "default", Name: v1alpha1.ChildName("orders")}, deployment)
		})
		if image := deployment.Spec.Template.Spec.Containers[0].Image; image != "dedup-operator:test" {
			t.Errorf("image %s", image)
		}
		if !metav1.IsControlledBy(deployment, policy) {
			t.Errorf("owners %v", deployment.OwnerReferences)
		}
	})
	t.Run("a pod gets its variables", func(t *testing.T) {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "consumer", Labels: map[string]string{v1alpha1.LabelPolicy: "orders"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
		poll(t, func() error { return c.Create(context.Background(), pod) })
		if !slices.Contains(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: v1alpha1.EnvConsumer, Value: "consumer"}) {
			t.Errorf("env %v", pod.Spec.Containers[0].Env)
		}
	})
	t.Run("both replicas say when their certificate expires and how the policies are", func(t *testing.T) {
		for _, replica := range []*managerProcess{first, second} {
			// The first scrape is refused if its policies are not there in time, as on a busy machine.
			poll(t, func() error {
				body, err := get("http://" + replica.metrics + "/metrics")
				if err != nil {
					return err
				}
				for _, want := range []string{
					"dedup_operator_webhook_certificate_expiry_timestamp_seconds 1.",
					`dedup_operator_policy_condition{condition="Ready",policy="orders",policy_namespace="default",status="False"} 1`,
				} {
					if !strings.Contains(body, want) {
						return fmt.Errorf("no %s in:\n%s", want, body)
					}
				}
				return nil
			})
		}
	})
	t.Run("every metric of the operator that is looked at is exported", func(t *testing.T) {
		names := lookedAt(t, `\b(dedup_operator|controller_runtime|leader_election)_\w+`)
		poll(t, func() error {
			body, err := get("http://" + first.metrics + "/metrics")
			if err != nil {
				return err
			}
			also, err := get("http://" + second.metrics + "/metrics")
			if err != nil {
				return err
			}
			for _, name := range names {
				if !strings.Contains(body+also, "\n"+name) {
					return fmt.Errorf("%s is not exported", name)
				}
			}
			return nil
		})
	})
	t.Run("with a certificate of one's own that one is served", func(t *testing.T) {
		secret := &corev1.Secret{}
		key := types.NamespacedName{Namespace: "dedup-system", Name: certificateSecret}
		if err := c.Get(context.Background(), key, secret); err != nil {
			t.Fatal(err)
		}
		dir, port := t.TempDir(), freePort(t)
		for _, file := range []string{"tls.crt", "tls.key"} {
			if err := os.WriteFile(filepath.Join(dir, file), secret.Data[file], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Delete(context.Background(), secret); err != nil {
			t.Fatal(err)
		}
		third := startManager(t, kubeconfig, port, "--webhook-cert-dir="+dir)
		third.awaitReady(t)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(secret.Data["tls.crt"])
		conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), &tls.Config{RootCAs: roots, ServerName: "dedup-operator-webhook.dedup-system.svc"})
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		third.terminate(t)
		// The other replicas keep theirs: they make the Secret that was deleted anew.
		poll(t, func() error { return c.Get(context.Background(), key, secret) })
	})
	t.Run("the one that reconciles is killed, and another takes over", func(t *testing.T) {
		leader, other := first, second
		if reconciles(t, second) {
			leader, other = second, first
		}
		leader.kill(t)
		key := types.NamespacedName{Namespace: "default", Name: v1alpha1.ChildName("orders")}
		if err := c.Delete(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}); err != nil {
			t.Fatal(err)
		}
		poll(t, func() error { return c.Get(context.Background(), key, &corev1.ConfigMap{}) })
		if !reconciles(t, other) {
			t.Error("it says that it does not")
		}
	})
	t.Run("SIGTERM ends the other cleanly", func(t *testing.T) {
		for _, replica := range []*managerProcess{first, second} {
			if !replica.ended {
				replica.terminate(t)
			}
		}
	})
	t.Run("nothing was forbidden", func(t *testing.T) {
		for _, replica := range []*managerProcess{first, second} {
			for line := range strings.Lines(replica.log.String()) {
				if strings.Contains(line, "forbidden") {
					t.Error(line)
				}
			}
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

func assets(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("KUBEBUILDER_ASSETS")
	if dir == "" {
		t.Fatal("KUBEBUILDER_ASSETS is not set: run make test, or export KUBEBUILDER_ASSETS=$(hack/setup.sh)")
	}
	return dir
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

// install starts an API server, applies a folder of config, and returns the administrator's client
// and the path of a kubeconfig that acts as the operator's ServiceAccount.
func install(t *testing.T, folder string) (client.Client, string, manifests) {
	t.Helper()
	environment := &envtest.Environment{BinaryAssetsDirectory: assets(t)}
	// Before it is started: a start that fails halfway has processes to stop, too.
	t.Cleanup(func() {
		if err := environment.Stop(); err != nil {
			t.Error(err)
		}
	})
	config, err := environment.Start()
	if err != nil {
		t.Fatal(err)
	}
	admin := filepath.Join(t.TempDir(), "admin")
	if err := os.WriteFile(admin, environment.KubeConfig, 0o600); err != nil {
		t.Fatal(err)
	}
	rendered := render(t, folder)
	m := parse(t, rendered)
	for _, args := range [][]string{
		{"create", "namespace", "team-a"}, // is there before the operator is, as are others
		{"create", "namespace", "team-b"},
		{"apply", "--server-side", "-f", "-"},
		{"wait", "--for=condition=Established", "crd/deduppolicies.dedupd.io"},
	} {
		kubectl := exec.Command(filepath.Join(assets(t), "kubectl"), append([]string{"--kubeconfig", admin}, args...)...)
		kubectl.Stdin = bytes.NewReader(rendered)
		if out, err := kubectl.CombinedOutput(); err != nil {
			t.Fatalf("kubectl %v: %v\n%s", args, err, out)
		}
	}
	operator, err := clientcmd.Load(environment.KubeConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range operator.AuthInfos {
		user.Impersonate = fmt.Sprintf("system:serviceaccount:%s:%s", m.deployment.Namespace, m.deployment.Spec.Template.Spec.ServiceAccountName)
	}
	path := filepath.Join(t.TempDir(), "operator")
	if err := clientcmd.WriteToFile(*operator, path); err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c, path, m
}

// routeWebhook leads the API server from the webhook's Service to a port of this machine, since
// nothing routes Services here.
func routeWebhook(t *testing.T, c client.Client) int {
	t.Helper()
	ctx, port := context.Background(), freePort(t)
	configuration := &admissionv1.MutatingWebhookConfiguration{}
	if err := c.Get(ctx, types.NamespacedName{Name: webhookName}, configuration); err != nil {
		t.Fatal(err)
	}
	reference := configuration.Webhooks[0].ClientConfig.Service
	meta := metav1.ObjectMeta{Namespace: reference.Namespace, Name: reference.Name}
	if err := c.Delete(ctx, &corev1.Service{ObjectMeta: meta}); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(ctx, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}); err != nil {
		t.Fatal(err)
	}
	servicePort := int32(port)
	reference.Port = &servicePort
	if err := c.Update(ctx, configuration); err != nil {
		t.Fatal(err)
	}
	return port
}

type managerProcess struct {
	cmd             *exec.Cmd
	log             *bytes.Buffer // read it only after the process has ended
	probes, metrics string
	ended           bool
}

func startManager(t *testing.T, kubeconfig string, webhookPort int, args ...string) *managerProcess {
	t.Helper()
	return startProcess(t, kubeconfig, append(args, "--webhook-port="+strconv.Itoa(webhookPort))...)
}

func startProcess(t *testing.T, kubeconfig string, args ...string) *managerProcess {
	t.Helper()
	address := func() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t))) }
	p := &managerProcess{log: &bytes.Buffer{}, probes: address(), metrics: address()}
	p.cmd = exec.Command(os.Args[0], append(args, "--leader-elect", "--dedupd-image=dedup-operator:test",
		"--health-probe-bind-address="+p.probes, "--metrics-bind-address="+p.metrics)...)
	p.cmd.Env = append(os.Environ(), beManager+"=1", "KUBECONFIG="+kubeconfig, "POD_NAMESPACE=dedup-system")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !p.ended {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("log of the manager with probes on %s:\n%s", p.probes, p.log)
		}
	})
	return p
}

func (p *managerProcess) awaitReady(t *testing.T) {
	t.Helper()
	poll(t, func() error {
		_, err := get("http://" + p.probes + "/readyz?verbose")
		return err
	})
}

// lookedAt are the metrics of a pattern that alerts and dashboard ask for.
func lookedAt(t *testing.T, pattern string) []string {
	t.Helper()
	var all []string
	for _, file := range []string{"alerts.yaml", "dashboard.json"} {
		data, err := os.ReadFile(filepath.Join("config", "monitoring", file))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, regexp.MustCompile(pattern).FindAllString(string(data), -1)...)
	}
	if len(all) == 0 {
		t.Fatalf("none of %s", pattern)
	}
	return all
}

// reconciles reports whether a replica says that it is the elected one.
func reconciles(t *testing.T, p *managerProcess) bool {
	t.Helper()
	body, err := get("http://" + p.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(body, `leader_election_master_status{name="`+leaseName+`"} 1`)
}

// kill ends the process at once, so that it can release nothing.
func (p *managerProcess) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	p.ended = true
}

// terminate sends SIGTERM and fails the test unless the process ends by itself with exit code 0.
func (p *managerProcess) terminate(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		p.ended = true
		if err != nil {
			t.Error(err)
		}
	case <-time.After(40 * time.Second):
		t.Error("still runs 40 s after SIGTERM")
		_ = p.cmd.Process.Kill()
		t.Logf("killed: %v", <-done)
		p.ended = true
	}
}

// get is what the URL answers; an answer other than 200 is an error.
func get(url string) (string, error) {
	response, err := http.Get(url)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return string(body), nil
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return port
}

// poll waits until the function returns nil, for a minute at most.
func poll(t *testing.T, f func() error) {
	t.Helper()
	deadline, tick := time.After(time.Minute), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-tick.C:
		}
	}
}
