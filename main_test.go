package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/hack/apiservertest"
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

// The manager as two processes, under the permissions that config/rbac grants and no others,
// against a real API server with config/default installed.
func TestManager(t *testing.T) {
	c, kubeconfig, m := install(t, "config/default")
	webhookPort := routeWebhook(t, c)
	first := startManager(t, kubeconfig, webhookPort)
	second := startManager(t, kubeconfig, apiservertest.FreePort(t))
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
		apiservertest.Poll(t, func() error {
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
		apiservertest.Poll(t, func() error { return c.Create(context.Background(), pod) })
		if !slices.Contains(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: v1alpha1.EnvConsumer, Value: "consumer"}) {
			t.Errorf("env %v", pod.Spec.Containers[0].Env)
		}
	})
	t.Run("both replicas say when their certificate expires and how the policies are", func(t *testing.T) {
		for _, replica := range []*managerProcess{first, second} {
			// The first scrape is refused if its policies are not there in time, as on a busy machine.
			apiservertest.Poll(t, func() error {
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
		apiservertest.Poll(t, func() error {
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
		dir, port := t.TempDir(), apiservertest.FreePort(t)
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
		apiservertest.Poll(t, func() error { return c.Get(context.Background(), key, secret) })
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
		apiservertest.Poll(t, func() error { return c.Get(context.Background(), key, &corev1.ConfigMap{}) })
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
