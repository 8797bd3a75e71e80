package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// world is an API server with the operator's objects, and one replica of the operator.
type world struct {
	client.Client
	reconciler *Reconciler
	metrics    *prometheus.Registry
	now        time.Time
	writes     int
}

var secretName = types.NamespacedName{Namespace: "dedup-system", Name: "cert"}

func newWorld(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	w := &world{now: epoch, metrics: prometheus.NewRegistry()}
	w.Client = fake.NewClientBuilder().WithScheme(scheme.Scheme).WithObjects(objects...).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				w.writes++
				return c.Create(ctx, o, opts...)
			},
			Update: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
				w.writes++
				return c.Update(ctx, o, opts...)
			},
		}).Build()
	w.reconciler = w.replica(t, w.metrics)
	return w
}

func (w *world) replica(t *testing.T, metrics prometheus.Registerer) *Reconciler {
	t.Helper()
	r, err := New(Options{Secret: secretName, Webhook: "webhook", Metrics: metrics, Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	r.client = w.Client
	return r
}

func (w *world) reconcile(t *testing.T) reconcile.Result {
	t.Helper()
	result, err := w.reconciler.Reconcile(context.Background(), reconcile.Request{})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// trusts fails the test unless the API server accepts what the replica serves.
func (w *world) trusts(t *testing.T, r *Reconciler) {
	t.Helper()
	c, err := r.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(&Pair{TLS: *c}, w.published(t), w.now); err != nil {
		t.Errorf("at %v: %v", w.now, err)
	}
}

// published is what the API server trusts.
func (w *world) published(t *testing.T) []byte {
	t.Helper()
	configuration := &admissionv1.MutatingWebhookConfiguration{}
	if err := w.Get(context.Background(), types.NamespacedName{Name: "webhook"}, configuration); err != nil {
		t.Fatal(err)
	}
	return configuration.Webhooks[0].ClientConfig.CABundle
}

func webhookConfiguration(webhooks ...admissionv1.WebhookClientConfig) *admissionv1.MutatingWebhookConfiguration {
	c := &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "webhook"}}
	for _, w := range webhooks {
		c.Webhooks = append(c.Webhooks, admissionv1.MutatingWebhook{ClientConfig: w})
	}
	return c
}

func service() admissionv1.WebhookClientConfig {
	return admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "dedup-system", Name: "dedup-operator-webhook"}}
}

func TestReconcilerMakesTheCertificateAndIsThenQuiet(t *testing.T) {
	w := newWorld(t, webhookConfiguration(service()))
	if err := w.reconciler.Ready(nil); err == nil {
		t.Error("ready before there is a certificate")
	}
	w.reconcile(t)
	w.trusts(t, w.reconciler)
	if err := w.reconciler.Ready(nil); err != nil {
		t.Error(err)
	}
	if w.writes != 2 {
		t.Errorf("%d writes, want 2: the Secret and the webhook configuration", w.writes)
	}
	for range 3 {
		w.reconcile(t)
	}
	if w.writes != 2 {
		t.Errorf("%d writes after nothing changed, want none beyond the first 2", w.writes)
	}
	want := float64(epoch.Add(Lifetime).Unix())
	if got := testutil.ToFloat64(w.reconciler.expiry); got != want {
		t.Errorf("expiry metric %v, want %v", got, want)
	}
}

// Two servers run all the while. An API server that trusts what is published accepts them at each step, and
// is answered over a new connection whenever a certificate or what is published has changed.
func TestTheServersAnswerOverTwoRenewals(t *testing.T) {
	w := newWorld(t, webhookConfiguration(service()))
	slow := w.replica(t, prometheus.NewRegistry())
	servers := map[*Reconciler]*httptest.Server{w.reconciler: serve(t, w.reconciler), slow: serve(t, slow)}
	asked, served := map[string]bool{}, map[string]bool{}
	for w.now.Before(epoch.Add(2*RenewAfter + Lifetime)) {
		result := w.reconcile(t)
		for r, server := range servers {
			if r.serving.Load() == nil {
				continue
			}
			w.trusts(t, r)
			c, err := r.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			state := server.URL + string(c.Leaf.Raw) + string(w.published(t))
			if !asked[state] {
				asked[state] = true
				served[w.ask(t, server)] = true
			}
		}
		if _, err := slow.Reconcile(context.Background(), reconcile.Request{}); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(result.RequeueAfter)
	}
	if len(served) < 3 {
		t.Errorf("%d certificates were served, want at least 3", len(served))
	}
}

// serve answers every request, with the replica's certificate.
func serve(t *testing.T, r *Reconciler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.TLS = &tls.Config{GetCertificate: r.GetCertificate}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

// ask sends a request as the API server would now, and returns the certificate that it was answered with.
func (w *world) ask(t *testing.T, server *httptest.Server) string {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.published(t))
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		RootCAs: roots, ServerName: hosts[0], Time: func() time.Time { return w.now },
	}}
	response, err := (&http.Client{Transport: transport}).Get(server.URL)
	if err != nil {
		t.Fatalf("at %v: %v", w.now, err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return string(response.TLS.PeerCertificates[0].Raw)
}

func TestReconcilerMends(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, w *world){
		"a caBundle that was removed": func(t *testing.T, w *world) {
			t.Helper()
			c := &admissionv1.MutatingWebhookConfiguration{}
			if err := w.Get(context.Background(), types.NamespacedName{Name: "webhook"}, c); err != nil {
				t.Fatal(err)
			}
			c.Webhooks[0].ClientConfig.CABundle = nil
			if err := w.Update(context.Background(), c); err != nil {
				t.Fatal(err)
			}
		},
		"a Secret that was deleted": func(t *testing.T, w *world) {
			t.Helper()
			if err := w.Delete(context.Background(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: secretName.Namespace, Name: secretName.Name}}); err != nil {
				t.Fatal(err)
			}
		},
		"a webhook configuration that was installed again": func(t *testing.T, w *world) {
			t.Helper()
			c := webhookConfiguration(service())
			if err := w.Delete(context.Background(), c); err != nil {
				t.Fatal(err)
			}
			if err := w.Create(context.Background(), c); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, webhookConfiguration(service(), service()))
			w.reconcile(t)
			damage(t, w)
			w.reconcile(t)
			w.trusts(t, w.reconciler)
		})
	}
}

func TestReconcilerNamesWhatIsWrongWithTheConfiguration(t *testing.T) {
	badURL, noHost := "https://[", "https:///mutate-pods"
	for name, test := range map[string]struct {
		objects []client.Object
		want    string
	}{
		"it does not exist":    {nil, "MutatingWebhookConfiguration webhook: does not exist"},
		"it has no webhooks":   {[]client.Object{webhookConfiguration()}, "has no webhooks"},
		"a URL that is none":   {[]client.Object{webhookConfiguration(admissionv1.WebhookClientConfig{URL: &badURL})}, "webhooks[0].clientConfig.url"},
		"a URL without a host": {[]client.Object{webhookConfiguration(service(), admissionv1.WebhookClientConfig{URL: &noHost})}, "webhooks[1].clientConfig: names no host"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, test.objects...)
			_, err := w.reconciler.Reconcile(context.Background(), reconcile.Request{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
			if ready := w.reconciler.Ready(nil); ready == nil || !strings.Contains(ready.Error(), test.want) {
				t.Errorf("ready: %v, want an error with %q", ready, test.want)
			}
			if w.writes != 0 {
				t.Errorf("%d writes, want none", w.writes)
			}
		})
	}
}

func TestAReplicaThatIsReadyStaysSo(t *testing.T) {
	w := newWorld(t, webhookConfiguration(service()))
	w.reconcile(t)
	if err := w.Delete(context.Background(), webhookConfiguration()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.reconciler.Reconcile(context.Background(), reconcile.Request{}); err == nil {
		t.Error("no error without a webhook configuration")
	}
	if err := w.reconciler.Ready(nil); err != nil {
		t.Errorf("not ready any more: %v", err)
	}
}

func TestALostRaceIsNotAnError(t *testing.T) {
	w := newWorld(t, webhookConfiguration(service()))
	other := w.replica(t, prometheus.NewRegistry())
	if _, err := other.Reconcile(context.Background(), reconcile.Request{}); err != nil {
		t.Fatal(err)
	}
	// A cache that is behind: it does not know the Secret yet, that the other replica made.
	behind := interceptor.NewClient(w.Client.(client.WithWatch), interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, ok := o.(*corev1.Secret); ok {
				key.Name = "not-there-yet"
			}
			return c.Get(ctx, key, o, opts...)
		},
	})
	w.reconciler.client = behind
	if result := w.reconcile(t); result.RequeueAfter == 0 {
		t.Error("a lost race is not tried again")
	}
	if w.reconciler.serving.Load() != nil {
		t.Error("serves a certificate that was not kept")
	}
	w.reconciler.client = w.Client
	w.reconcile(t)
	w.trusts(t, w.reconciler)
}
