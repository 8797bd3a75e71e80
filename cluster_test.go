package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/dedupd/dedup-operator/hack/apiservertest"
)

func assets(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("KUBEBUILDER_ASSETS")
	if dir == "" {
		t.Fatal("KUBEBUILDER_ASSETS is not set: run make test, or export KUBEBUILDER_ASSETS=$(hack/setup.sh)")
	}
	return dir
}

// install starts an API server, applies a folder of config, and returns the administrator's client
// and the path of a kubeconfig that acts as the operator's ServiceAccount.
func install(t *testing.T, folder string) (client.Client, string, manifests) {
	t.Helper()
	server := apiservertest.Start(t, &envtest.Environment{BinaryAssetsDirectory: assets(t)})
	admin := filepath.Join(t.TempDir(), "admin")
	if err := os.WriteFile(admin, server.KubeConfig, 0o600); err != nil {
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
	operator, err := clientcmd.Load(server.KubeConfig)
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
	return server.Client, path, m
}

// routeWebhook leads the API server from the webhook's Service to a port of this machine, since
// nothing routes Services here.
func routeWebhook(t *testing.T, c client.Client) int {
	t.Helper()
	ctx, port := context.Background(), apiservertest.FreePort(t)
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
