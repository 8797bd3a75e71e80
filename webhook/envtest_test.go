package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/hack/apiservertest"
	"github.com/dedupd/dedup-operator/webhook/certs"
)

// A real API server calls the webhook as config/webhook tells it to, at a URL of this machine.
func TestAPIServer(t *testing.T) {
	c, config := controlPlane(t)
	stop := serve(t, c, config)

	t.Run("a pod is connected to its policy's endpoint before the policy exists", func(t *testing.T) {
		pod := create(t, c, newPod(unowned, named("early")))
		want := slices.Concat(endpointEnv[:3], env(v1alpha1.EnvConsumer, "early"), endpointEnv[4:])
		if !slices.Equal(pod.Spec.Containers[0].Env, want) {
			t.Errorf("env %v, want %v", pod.Spec.Containers[0].Env, want)
		}
	})
	t.Run("a pod of a Deployment is connected under the Deployment's name", func(t *testing.T) {
		pod := create(t, c, newPod())
		if !slices.Equal(pod.Spec.Containers[0].Env, endpointEnv) {
			t.Errorf("env %v, want %v", pod.Spec.Containers[0].Env, endpointEnv)
		}
	})
	t.Run("a pod that names no ServiceAccount has a token of its namespace's default one", func(t *testing.T) {
		pod := create(t, c, newPod(unowned, named("token"), noAccount))
		if diff := cmp.Diff(token, volumeOf(pod, v1alpha1.TokenVolume)); diff != "" {
			t.Errorf("volume (-want +got):\n%s", diff)
		}
		if mounts := connection(pod).Mounts["app"]; !cmp.Equal(mounts, tokenMount) {
			t.Errorf("mounts %v", mounts)
		}
	})
	t.Run("a static pod, which may have no token, is created", func(t *testing.T) {
		pod := create(t, c, newPod(unowned, named("static"), static))
		if want := slices.Concat(endpointEnv[:3], env(v1alpha1.EnvConsumer, "static")); !slices.Equal(pod.Spec.Containers[0].Env, want) {
			t.Errorf("env %v, want %v", pod.Spec.Containers[0].Env, want)
		}
	})
	t.Run("a dry run is answered too", func(t *testing.T) {
		if err := c.Create(context.Background(), newPod(unowned, named("dry")), client.DryRunAll); err != nil {
			t.Error(err)
		}
	})
	t.Run("a denial tells the user what would be right", func(t *testing.T) {
		err := c.Create(context.Background(), newPod(unowned, named("wrong"), annotated(v1alpha1.AnnotationInject, "Sidecar")))
		if err == nil || !strings.Contains(err.Error(), `supported values: "endpoint", "sidecar"`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a sidecar is denied until its policy exists, and then comes at once", func(t *testing.T) {
		err := c.Create(context.Background(), newPod(unowned, named("beside"), sidecar))
		if err == nil || !strings.Contains(err.Error(), "does not exist in namespace shop") {
			t.Errorf("got %v", err)
		}
		if err := c.Create(context.Background(), newPolicy()); err != nil {
			t.Fatal(err)
		}
		pod := create(t, c, newPod(unowned, named("beside"), sidecar))
		if n := len(pod.Spec.InitContainers); n != 1 || pod.Spec.InitContainers[0].Name != v1alpha1.SidecarName {
			t.Errorf("init containers %v", pod.Spec.InitContainers)
		}
	})
	t.Run("a sidecar is denied where the policy remembers in memory", func(t *testing.T) {
		if err := c.Create(context.Background(), newPolicy(inMemory, func(p *v1alpha1.DedupPolicy) { p.Name = "tryout" })); err != nil {
			t.Fatal(err)
		}
		err := c.Create(context.Background(), newPod(unowned, named("tryout"), sidecar, labelled(v1alpha1.LabelPolicy, "tryout")))
		if err == nil || !strings.Contains(err.Error(), "remembers in memory") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a sidecar meets Pod Security restricted", func(t *testing.T) {
		namespace(t, c, "strict", map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
		policy := newPolicy(func(p *v1alpha1.DedupPolicy) { p.Namespace = "strict" })
		if err := c.Create(context.Background(), policy); err != nil {
			t.Fatal(err)
		}
		create(t, c, newPod(unowned, named("strict"), sidecar, restricted, func(p *corev1.Pod) { p.Namespace = "strict" }))
	})
	t.Run("a container that another webhook adds afterwards is connected too, and the sidecar comes once", func(t *testing.T) {
		late := readConfiguration(t)
		late.Name = "zz-after-ours"
		w := &late.Webhooks[0]
		w.Name = "late.dedupd.io"
		w.ClientConfig = clientConfig(t, c)
		*w.ClientConfig.URL = strings.Replace(*w.ClientConfig.URL, Path, latePath, 1)
		w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"late": "yes"}}
		if err := c.Create(context.Background(), late); err != nil {
			t.Fatal(err)
		}
		apiservertest.Poll(t, func() error {
			pod := newPod(unowned, named("late"), sidecar, labelled("late", "yes"))
			if err := c.Create(context.Background(), pod, client.DryRunAll); err != nil {
				return err
			}
			if len(pod.Spec.Containers) != 2 {
				return errors.New("the late webhook is not called yet")
			}
			connected(t, pod)
			if len(pod.Spec.InitContainers) != 1 {
				t.Errorf("%d init containers, want the sidecar alone", len(pod.Spec.InitContainers))
			}
			return nil
		})
	})

	t.Run("a label is denied exactly if no policy can have the name", func(t *testing.T) {
		for _, name := range []string{"a", "a-1", "a1", "1a", "a-", "-a", "a.b", "a_b", "A", strings.Repeat("a", 52), strings.Repeat("a", 53)} {
			policy := newPolicy(func(p *v1alpha1.DedupPolicy) { p.Name = name })
			_, denied := PolicyName(newPod(labelled(v1alpha1.LabelPolicy, name)))
			if err := c.Create(context.Background(), policy, client.DryRunAll); (err == nil) != (denied == nil) {
				t.Errorf("%q: the API server says %v, the webhook %v", name, err, denied)
			}
		}
	})

	stop()
	t.Run("with the webhook down a labelled pod is not created", func(t *testing.T) {
		err := c.Create(context.Background(), newPod(unowned, named("labelled")))
		if err == nil || !strings.Contains(err.Error(), "pods.dedupd.io") {
			t.Errorf("got %v, want an error that names the webhook", err)
		}
	})
	t.Run("with the webhook down other pods are: it was never asked", func(t *testing.T) {
		pod := create(t, c, newPod(unowned, named("unlabelled"), func(p *corev1.Pod) { p.Labels = nil }))
		if len(pod.Spec.Containers[0].Env) != 0 {
			t.Errorf("env %v", pod.Spec.Containers[0].Env)
		}
	})
	for _, excluded := range []string{"kube-system", "dedup-system"} {
		t.Run("with the webhook down even labelled pods of "+excluded+" are", func(t *testing.T) {
			create(t, c, newPod(unowned, named("system"), func(p *corev1.Pod) { p.Namespace = excluded }))
		})
	}
	testAdmissionPolicies(t, c)
}

const (
	webhookName = "webhook"
	latePath    = "/late"
)

// controlPlane starts an API server with the CRD, the namespaces and the webhook's configuration.
func controlPlane(t *testing.T) (client.Client, *rest.Config) {
	t.Helper()
	environment := &envtest.Environment{CRDDirectoryPaths: []string{"../config/crd/bases"}, ErrorIfCRDPathMissing: true}
	// As in a cluster: the plugin for ServiceAccounts, which envtest leaves out, names a pod's before we are asked.
	environment.ControlPlane.GetAPIServer().Configure().Disable("disable-admission-plugins")
	server := apiservertest.Start(t, environment)
	c := server.Client
	for _, name := range []string{"shop", "dedup-system"} {
		namespace(t, c, name, nil)
	}
	account(t, c, metav1.NamespaceSystem)
	return c, server.Config
}

// serve runs the webhook and its certificate, installs the configuration, and returns when pods
// are injected. The function it returns stops all that.
func serve(t *testing.T, c client.Client, config *rest.Config) (stop func()) {
	t.Helper()
	port := apiservertest.FreePort(t)
	url := fmt.Sprintf("https://127.0.0.1:%d%s", port, Path)
	configuration := readConfiguration(t)
	configuration.Webhooks[0].ClientConfig = admissionv1.WebhookClientConfig{URL: &url}
	if err := c.Create(context.Background(), configuration); err != nil {
		t.Fatal(err)
	}
	o := certs.Options{
		Secret:  types.NamespacedName{Namespace: "dedup-system", Name: "certificate"},
		Webhook: webhookName, Metrics: prometheus.NewRegistry(), Now: time.Now,
	}
	certificate, err := certs.New(o)
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:  apiservertest.Scheme(),
		Metrics: metricsserver.Options{BindAddress: "0"},
		Cache:   cache.Options{ByObject: o.ByObject()},
		WebhookServer: webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, TLSOpts: []func(*tls.Config){
			func(c *tls.Config) { c.GetCertificate = certificate.GetCertificate },
		}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := certificate.SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	SetupWithManager(mgr, options)
	mgr.GetWebhookServer().Register(latePath, &webhook.Admission{Handler: admission.HandlerFunc(addContainer)})

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	apiservertest.Poll(t, func() error {
		if err := certificate.Ready(nil); err != nil {
			return err
		}
		return c.Create(context.Background(), newPod(unowned, named("probe")), client.DryRunAll)
	})
	return stop
}

// addContainer is another webhook, which adds a container once.
func addContainer(_ context.Context, req admission.Request) admission.Response {
	if strings.Contains(string(req.Object.Raw), `"late-container"`) {
		return admission.Allowed("")
	}
	return admission.Patched("", add("/spec/containers/-", corev1.Container{Name: "late-container", Image: "late"}))
}

func clientConfig(t *testing.T, c client.Client) admissionv1.WebhookClientConfig {
	t.Helper()
	configuration := &admissionv1.MutatingWebhookConfiguration{}
	if err := c.Get(context.Background(), types.NamespacedName{Name: webhookName}, configuration); err != nil {
		t.Fatal(err)
	}
	return *configuration.Webhooks[0].ClientConfig.DeepCopy()
}

func readConfiguration(t *testing.T) *admissionv1.MutatingWebhookConfiguration {
	t.Helper()
	raw, err := os.ReadFile("../config/webhook/manifests.yaml")
	if err != nil {
		t.Fatal(err)
	}
	configuration := &admissionv1.MutatingWebhookConfiguration{}
	if err := yaml.UnmarshalStrict(raw, configuration); err != nil {
		t.Fatal(err)
	}
	return configuration
}

func namespace(t *testing.T, c client.Client, name string, labels map[string]string) {
	t.Helper()
	if err := c.Create(context.Background(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}); err != nil {
		t.Fatal(err)
	}
	account(t, c, name)
}

// account makes the ServiceAccount that a namespace has by a controller, of which there is none here. The API
// server may yet be making the namespace itself.
func account(t *testing.T, c client.Client, namespace string) {
	t.Helper()
	apiservertest.Poll(t, func() error {
		return client.IgnoreAlreadyExists(c.Create(context.Background(), &corev1.ServiceAccount{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "default"},
		}))
	})
}

func create(t *testing.T, c client.Client, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	if err := c.Create(context.Background(), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

// static is what a pod has that the kubelet runs from a file of its own.
func static(p *corev1.Pod) {
	noAccount(p)
	annotated(corev1.MirrorPodAnnotationKey, "1")(p)
	p.Spec.NodeName = "worker-1"
}

// volumeOf is a pod's volume of that name, without what the API server fills in.
func volumeOf(pod *corev1.Pod, name string) corev1.Volume {
	for _, v := range pod.Spec.Volumes {
		if v.Name == name {
			v = *v.DeepCopy()
			v.Projected.DefaultMode = nil
			return v
		}
	}
	return corev1.Volume{}
}

func named(name string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Name = name } }

// restricted makes the consumer itself meet Pod Security restricted.
func restricted(p *corev1.Pod) {
	yes, no := true, false
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}
