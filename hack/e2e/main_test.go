// Package e2e_test runs the operator on a real cluster, as make e2e sets it up: dist/install.yaml
// is applied as it is, in namespaces that enforce Pod Security "restricted".
package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

const operatorNamespace = "dedup-system"

// What make e2e says in the environment. There is no default: a test that doesn't run fails.
var (
	kubeconfig = os.Getenv("E2E_KUBECONFIG")
	kubectlBin = os.Getenv("E2E_KUBECTL")
	host       = os.Getenv("E2E_HOST")       // an address of this machine that pods reach
	manifest   = os.Getenv("E2E_MANIFEST")   // dist/install.yaml
	image      = os.Getenv("E2E_IMAGE")      // the one that the manifest names
	nextImage  = os.Getenv("E2E_NEXT_IMAGE") // the same programs by another name
	appImage   = os.Getenv("E2E_APP_IMAGE")  // of ./app

	previousManifest = os.Getenv("E2E_PREVIOUS_MANIFEST") // dist/install.yaml of the version before
	previousImage    = os.Getenv("E2E_PREVIOUS_IMAGE")    // and its programs
)

var (
	admin *rest.Config
	api   client.Client
	core  *kubernetes.Clientset // for logs, evictions and proxied requests
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	for name, value := range map[string]string{
		"E2E_KUBECONFIG": kubeconfig, "E2E_KUBECTL": kubectlBin, "E2E_HOST": host, "E2E_MANIFEST": manifest,
		"E2E_IMAGE": image, "E2E_NEXT_IMAGE": nextImage, "E2E_APP_IMAGE": appImage,
		"E2E_PREVIOUS_MANIFEST": previousManifest, "E2E_PREVIOUS_IMAGE": previousImage,
	} {
		if value == "" {
			return 0, fmt.Errorf("%s is not set: run make e2e", name)
		}
	}
	log.SetLogger(klog.Background()) // or controller-runtime complains that it has none
	var err error
	if admin, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return 0, err
	}
	admin.QPS, admin.Burst = -1, -1
	admin.WarningHandler = rest.NoWarnings{}
	if core, err = kubernetes.NewForConfig(admin); err != nil {
		return 0, err
	}
	if err := v1alpha1.AddToScheme(clientgoscheme.Scheme); err != nil {
		return 0, err
	}
	if api, err = client.New(admin, client.Options{Scheme: clientgoscheme.Scheme}); err != nil {
		return 0, err
	}
	ctx := context.Background()
	if err := install(ctx, manifest); err != nil {
		return 0, err
	}
	code := m.Run()
	return code, errors.Join(awaitGone(ctx), uninstall(ctx))
}

// install does what the README says, and waits until the operator is there.
func install(ctx context.Context, manifest string) error {
	if _, err := kubectl(ctx, "", "apply", "--server-side", "--force-conflicts", "-f", manifest); err != nil {
		return err
	}
	if _, err := kubectl(ctx, "", "wait", "--for=condition=Established", "crd/deduppolicies.dedupd.io", "--timeout=1m"); err != nil {
		return err
	}
	return operatorIsRolledOut(ctx)
}

func operatorIsRolledOut(ctx context.Context) error {
	if _, err := kubectl(ctx, "", "rollout", "status", "-n", operatorNamespace, operatorDeployment, "--timeout=3m"); err != nil {
		return err
	}
	// An older replica may lead, and by its own lights, until it has ended.
	return until(time.Minute, func() error { return operatorRuns(ctx, 2) })
}

func uninstall(ctx context.Context) error {
	_, err := kubectl(ctx, "", "delete", "-f", manifest, "--ignore-not-found", "--timeout=2m")
	return err
}

// kubectl runs kubectl as the administrator.
func kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, kubectlBin, append([]string{"--kubeconfig", kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// until polls until check returns nil.
func until(limit time.Duration, check func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still not after %s: %w", limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	if err := until(limit, check); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, manifests string) {
	t.Helper()
	if _, err := kubectl(t.Context(), manifests, "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// leaving are the namespaces of tests that have ended. Each takes half a minute to go: the namespace
// controller looks after 5 s and, while pods are there, again after half of what they may take to end.
// So the next test doesn't wait for that, and awaitGone does for all of them.
var leaving []string

func awaitGone(ctx context.Context) error {
	if len(leaving) == 0 {
		return nil
	}
	_, err := kubectl(ctx, "", append([]string{"wait", "--for=delete", "--timeout=3m"}, leaving...)...)
	return err
}

// newNamespace enforces Pod Security "restricted", and has what every namespace gets. When the test has failed, what happened in it is
// shown; then it is deleted.
func newNamespace(t *testing.T, name string) string {
	t.Helper()
	ns := &corev1.Namespace{}
	ns.Name = name
	ns.Labels = map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
	if err := api.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		if t.Failed() {
			show(t, name)
		}
		if _, err := kubectl(ctx, "", "delete", "namespace", name, "--ignore-not-found", "--wait=false"); err != nil {
			t.Error(err)
		}
		leaving = append(leaving, "namespace/"+name)
	})
	eventually(t, time.Minute, func() error {
		return errors.Join(
			api.Get(t.Context(), client.ObjectKey{Namespace: name, Name: "default"}, &corev1.ServiceAccount{}),
			api.Get(t.Context(), client.ObjectKey{Namespace: name, Name: "kube-root-ca.crt"}, &corev1.ConfigMap{}),
		)
	})
	return name
}

func show(t *testing.T, namespace string) {
	t.Helper()
	ctx := context.Background()
	for _, args := range [][]string{
		{"get", "ddp,pods", "-n", namespace, "-o", "wide"},
		{"get", "ddp", "-n", namespace, "-o", "yaml"},
		{"get", "events", "-n", namespace, "--sort-by=.lastTimestamp"},
		{"logs", "-n", operatorNamespace, "-l", "control-plane=controller-manager", "--tail=30", "--prefix"},
	} {
		said, err := kubectl(ctx, "", args...)
		t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, said)
	}
	var pods corev1.PodList
	if err := api.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
		t.Log(err)
	}
	for _, p := range pods.Items {
		said, _ := kubectl(ctx, "", "logs", "-n", namespace, p.Name, "--all-containers", "--tail=15")
		t.Logf("log of %s:\n%s", p.Name, said)
	}
}

// contextOf is for what a cleanup does as well, when the test's own context has ended.
func contextOf(t *testing.T) context.Context {
	t.Helper()
	return context.WithoutCancel(t.Context())
}
