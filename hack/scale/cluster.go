package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/hack/apiservertest"
	"github.com/dedupd/dedup-operator/hack/freeport"
)

// cluster is an API server with the operator as a process of its own.
type cluster struct {
	dir     string
	server  *apiservertest.Server
	api     client.WithWatch // the server's
	kubelet *kubelet
	manager *exec.Cmd

	webhook, probes, auditLog string
	made                      int // policies
}

// operatorAgent begins the operator's user agent.
const operatorAgent = "dedup-operator/"

const namespaces = 20

// containerMiB is the memory limit of config/manager.
const containerMiB = 256

func startCluster(ctx context.Context) (*cluster, error) {
	c := &cluster{}
	var err error
	if c.dir, err = os.MkdirTemp("", "dedup-scale-"); err != nil {
		return c, err
	}
	environment := &envtest.Environment{CRDDirectoryPaths: []string{"config/crd/bases"}, ErrorIfCRDPathMissing: true}
	// The default is too small for that many Services.
	environment.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", "10.0.0.0/16")
	if c.auditLog, err = apiservertest.Audit(environment, c.dir); err != nil {
		return c, err
	}
	if c.server, err = apiservertest.Launch(environment); err != nil {
		return c, err
	}
	c.api = c.server.Client
	if err := c.createNamespaces(ctx); err != nil {
		return c, err
	}
	if c.kubelet, err = startKubelet(ctx, c.server.Config, c.api); err != nil {
		return c, err
	}
	return c, c.startManager(ctx)
}

func namespace(i int) string { return fmt.Sprintf("scale-%d", i%namespaces) }

func (c *cluster) createNamespaces(ctx context.Context) error {
	names := []string{"dedup-system", "unrelated"}
	for i := range namespaces {
		names = append(names, namespace(i))
	}
	for _, name := range names {
		if err := c.api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	return nil
}

// startManager builds and starts the operator, and waits until it is ready.
func (c *cluster) startManager(ctx context.Context) error {
	binary, kubeconfig := filepath.Join(c.dir, "manager"), filepath.Join(c.dir, "kubeconfig")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		return fmt.Errorf("building the operator: %w\n%s", err, out)
	}
	if err := os.WriteFile(kubeconfig, c.server.KubeConfig, 0o600); err != nil {
		return err
	}
	port, err := freeport.On("")
	if err != nil {
		return err
	}
	c.webhook = "https://127.0.0.1:" + port + "/mutate-pods"
	if err := c.installWebhook(ctx); err != nil {
		return err
	}
	probes, err := freeport.On("")
	if err != nil {
		return err
	}
	c.probes = "127.0.0.1:" + probes
	log, err := os.Create(filepath.Join(c.dir, "manager.log"))
	if err != nil {
		return err
	}
	c.manager = exec.Command(binary, "--dedupd-image=dedup-operator:scale", "--webhook-port="+port,
		"--metrics-bind-address=0", "--health-probe-bind-address="+c.probes)
	// No container tells the process what it may have.
	c.manager.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "POD_NAMESPACE=dedup-system", fmt.Sprintf("GOMEMLIMIT=%dMiB", containerMiB*9/10))
	c.manager.Stdout, c.manager.Stderr = log, log
	if err := c.manager.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if response, err := http.Get("http://" + c.probes + "/readyz"); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("the operator does not become ready")
}

// installWebhook installs the webhook's configuration, at a URL of this machine.
func (c *cluster) installWebhook(ctx context.Context) error {
	data, err := os.ReadFile("config/webhook/manifests.yaml")
	if err != nil {
		return err
	}
	configuration := &admissionv1.MutatingWebhookConfiguration{}
	if err := yaml.UnmarshalStrict(data, configuration); err != nil {
		return err
	}
	configuration.Name = "dedup-operator-webhook"
	configuration.Webhooks[0].ClientConfig = admissionv1.WebhookClientConfig{URL: &c.webhook}
	return c.api.Create(ctx, configuration)
}

// stop ends what was started, the operator first.
func (c *cluster) stop() error {
	var errs []error
	if c.manager != nil && c.manager.Process != nil {
		_ = c.manager.Process.Signal(syscall.SIGTERM)
		_ = c.manager.Wait()
	}
	if c.kubelet != nil {
		c.kubelet.stop()
	}
	if c.server != nil {
		errs = append(errs, c.server.Stop())
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

// create makes n policies; the i-th when its time has come.
func (c *cluster) create(ctx context.Context, n int, when func(i int) <-chan time.Time) error {
	first := c.made
	c.made += n
	return each(ctx, n, func(i int) error {
		if due := when(i); due != nil {
			<-due
		}
		p := &v1alpha1.DedupPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace(first + i), Name: fmt.Sprintf("policy-%d", first+i)}}
		p.Spec = v1alpha1.DedupPolicySpec{
			Key:   v1alpha1.KeySpec{Strategy: v1alpha1.StrategyMessageID, MessageID: &v1alpha1.MessageIDKey{Header: "message-id"}},
			TTL:   "1h",
			Store: v1alpha1.StoreSpec{Redis: &v1alpha1.RedisStore{Addresses: []string{"redis:6379"}, CredentialsSecretRef: &v1alpha1.SecretRef{Name: "redis"}}},
		}
		c.kubelet.expect(client.ObjectKeyFromObject(p), first+i, time.Now())
		return c.api.Create(ctx, p)
	})
}

// createUnrelated makes n objects, a third each of Secrets, ConfigMaps and Pods.
func (c *cluster) createUnrelated(ctx context.Context, n int) error {
	text := strings.Repeat("x", 4096)
	return each(ctx, n, func(i int) error {
		meta := metav1.ObjectMeta{Namespace: "unrelated", Name: fmt.Sprintf("object-%d", i)}
		switch i % 3 {
		case 0:
			return c.api.Create(ctx, &corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"text": text}})
		case 1:
			return c.api.Create(ctx, &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"text": text}})
		}
		return c.api.Create(ctx, &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}}})
	})
}

// each calls f for 0 to n-1, by several workers, each number in its turn.
func each(ctx context.Context, n int, f func(i int) error) error {
	const workers = 16
	next, errs := make(chan int), make(chan error, workers)
	for range workers {
		go func() {
			var first error
			for i := range next {
				if first == nil {
					first = f(i)
				}
			}
			errs <- first
		}()
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		next <- i
	}
	close(next)
	all := []error{ctx.Err()}
	for range workers {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// written are the operator's writes, as the API server has logged them.
type written struct{ objects, events int }

func (c *cluster) writes() (written, error) {
	var w written
	f, err := os.Open(c.auditLog)
	if err != nil {
		return w, err
	}
	defer f.Close()
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return w, nil
		} else if err != nil {
			return w, err
		}
		var event struct{ RequestURI, UserAgent string }
		if err := json.Unmarshal(line, &event); err != nil {
			return w, fmt.Errorf("%s: %w", c.auditLog, err)
		}
		switch {
		case !strings.HasPrefix(event.UserAgent, operatorAgent):
		case strings.Contains(event.RequestURI, "/events"):
			w.events++
		default:
			w.objects++
		}
	}
}

// residentMiB is the operator's memory, as its container's limit counts it; peakMiB is the most that
// it has been.
func (c *cluster) residentMiB() (float64, error) { return c.statusMiB("VmRSS:") }
func (c *cluster) peakMiB() (float64, error)     { return c.statusMiB("VmHWM:") }

func (c *cluster) statusMiB(field string) (float64, error) {
	path := fmt.Sprintf("/proc/%d/status", c.manager.Process.Pid)
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); fields[0] == field {
			kib, err := strconv.ParseFloat(fields[1], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, field)
}

// cpuSeconds is what the operator has computed so far. Unlike the time that passes, it does not
// depend on what else the machine does.
func (c *cluster) cpuSeconds() (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.manager.Process.Pid))
	if err != nil {
		return 0, err
	}
	// After the command's name, which may hold spaces, utime and stime are the 12th and 13th.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, userErr := strconv.ParseFloat(fields[11], 64)
	system, systemErr := strconv.ParseFloat(fields[12], 64)
	const ticks = 100 // a second, on Linux
	return (user + system) / ticks, errors.Join(userErr, systemErr)
}
