package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Listing and watching by name, as the cache does, is what these rules allow. The rule for the
// Secret is in a Role of the operator's namespace, see config/rbac.
//
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations,resourceNames=dedup-operator-webhook,verbs=get;list;watch;update

// Options say which certificate is kept, and whose.
type Options struct {
	// Secret holds the certificate. It is made if it does not exist.
	Secret types.NamespacedName
	// Webhook is the name of the MutatingWebhookConfiguration that is to trust it. The
	// certificate's hosts are those that its webhooks name.
	Webhook string
	// Metrics gets the time of expiry.
	Metrics prometheus.Registerer
	// Now is the clock.
	Now func() time.Time
}

// ByObject limits a manager's cache to the two objects that the Reconciler reads.
func (o Options) ByObject() map[client.Object]cache.ByObject {
	return map[client.Object]cache.ByObject{
		&corev1.Secret{}: {
			Namespaces: map[string]cache.Config{o.Secret.Namespace: {
				LabelSelector: labels.Everything(),
				FieldSelector: fields.OneTermEqualSelector("metadata.name", o.Secret.Name),
			}},
		},
		&admissionv1.MutatingWebhookConfiguration{}: {
			Label: labels.Everything(),
			Field: fields.OneTermEqualSelector("metadata.name", o.Webhook),
		},
	}
}

// Reconciler keeps the Secret, the caBundle of the webhook configuration and the certificate
// that is served in step. Every replica of the operator runs one: they agree through the Secret,
// whose resourceVersion decides a race.
type Reconciler struct {
	options Options
	client  client.Client
	expiry  prometheus.Gauge
	serving atomic.Pointer[tls.Certificate]
	ready   atomic.Pointer[error] // nil until the first reconciliation; points to nil from the first that succeeds on
}

// New returns a Reconciler that has nothing to serve until it runs in a manager.
func New(o Options) (*Reconciler, error) {
	expiry := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "dedup_operator_webhook_certificate_expiry_timestamp_seconds",
		Help: "When the webhook's serving certificate expires, in seconds since 1970. It is renewed 30 days before.",
	})
	if err := o.Metrics.Register(expiry); err != nil {
		return nil, fmt.Errorf("registering the certificate's metric: %w", err)
	}
	return &Reconciler{options: o, expiry: expiry}, nil
}

// SetupWithManager runs the Reconciler on every replica, leader or not.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.client = mgr.GetClient()
	everyReplica := false
	request := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: r.options.Secret}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("webhook-certificate").
		Watches(&corev1.Secret{}, request).
		Watches(&admissionv1.MutatingWebhookConfiguration{}, request).
		WithOptions(controller.Options{NeedLeaderElection: &everyReplica}).
		Complete(r)
}

// GetCertificate is for tls.Config: the certificate to serve.
func (r *Reconciler) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := r.serving.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("the webhook has no certificate yet")
}

// Ready is a health check: nil once the API server trusts the certificate that is served.
func (r *Reconciler) Ready(*http.Request) error {
	if ready := r.ready.Load(); ready != nil {
		return *ready
	}
	return fmt.Errorf("MutatingWebhookConfiguration %s: not seen yet; is it installed?", r.options.Webhook)
}

// Reconcile makes the one step that is due, and returns when the next is.
func (r *Reconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	result, err := r.reconcile(ctx)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		// Another replica was faster, or the cache is behind our own last write.
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	// What once was trusted is served on when a later step fails: that is tried again, and no
	// reason to take the replica out of the Service.
	if r.Ready(nil) != nil {
		r.ready.Store(&err)
	}
	return result, err
}

func (r *Reconciler) reconcile(ctx context.Context) (reconcile.Result, error) {
	configuration := &admissionv1.MutatingWebhookConfiguration{}
	err := r.client.Get(ctx, types.NamespacedName{Name: r.options.Webhook}, configuration)
	if apierrors.IsNotFound(err) { // its creation wakes us
		return reconcile.Result{}, reconcile.TerminalError(fmt.Errorf("MutatingWebhookConfiguration %s: does not exist; install the operator's manifests again", r.options.Webhook))
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("reading the webhook configuration: %w", err)
	}
	hosts, err := hostsOf(configuration)
	if err != nil {
		return reconcile.Result{}, reconcile.TerminalError(err)
	}
	secret := &corev1.Secret{}
	if err := r.client.Get(ctx, r.options.Secret, secret); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("reading the webhook's Secret: %w", err)
	}

	now := r.options.Now()
	state, due, err := Advance(ParseState(secret.Data), now, hosts, publishedBy(configuration))
	if err != nil {
		return reconcile.Result{}, err
	}
	// Kept before it is served, served before it is published: so a replica that stops in
	// between leaves nothing behind that another does not know.
	if err := r.keep(ctx, secret, state); err != nil {
		return reconcile.Result{}, err
	}
	r.serving.Store(&state.Serving.TLS)
	r.expiry.Set(float64(state.Serving.leaf().NotAfter.Unix()))
	if err := r.publish(ctx, configuration, state.Bundle()); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: min(due.Sub(now), 24*time.Hour)}, nil
}

// keep writes the state to the Secret, if it is not there already.
func (r *Reconciler) keep(ctx context.Context, secret *corev1.Secret, state State) error {
	data := state.Data()
	if maps.EqualFunc(secret.Data, data, bytes.Equal) {
		return nil
	}
	secret = secret.DeepCopy()
	secret.Data = data
	owner := client.FieldOwner(v1alpha1.FieldOwner)
	if secret.ResourceVersion != "" {
		if err := r.client.Update(ctx, secret, owner); err != nil {
			return fmt.Errorf("updating the webhook's Secret: %w", err)
		}
		return nil
	}
	secret.Namespace, secret.Name = r.options.Secret.Namespace, r.options.Secret.Name
	secret.Labels = map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}
	secret.Type = corev1.SecretTypeTLS
	if err := r.client.Create(ctx, secret, owner); err != nil {
		return fmt.Errorf("creating the webhook's Secret: %w", err)
	}
	return nil
}

// publish has the API server trust the bundle, if it does not already.
func (r *Reconciler) publish(ctx context.Context, configuration *admissionv1.MutatingWebhookConfiguration, bundle []byte) error {
	changed := configuration.DeepCopy()
	current := true
	for i := range changed.Webhooks {
		if c := &changed.Webhooks[i].ClientConfig; !bytes.Equal(c.CABundle, bundle) {
			c.CABundle, current = bundle, false
		}
	}
	if current {
		return nil
	}
	if err := r.client.Update(ctx, changed, client.FieldOwner(v1alpha1.FieldOwner)); err != nil {
		return fmt.Errorf("updating the webhook configuration's caBundle: %w", err)
	}
	return nil
}

// hostsOf are the hosts by which the API server reaches the webhooks.
func hostsOf(configuration *admissionv1.MutatingWebhookConfiguration) ([]string, error) {
	var hosts []string
	for i, w := range configuration.Webhooks {
		path := fmt.Sprintf("MutatingWebhookConfiguration %s: webhooks[%d].clientConfig", configuration.Name, i)
		var host string
		switch c := w.ClientConfig; {
		case c.Service != nil:
			host = c.Service.Name + "." + c.Service.Namespace + ".svc"
		case c.URL != nil:
			u, err := url.Parse(*c.URL)
			if err != nil {
				return nil, fmt.Errorf("%s.url: %w", path, err)
			}
			host = u.Hostname()
		}
		if host == "" {
			return nil, fmt.Errorf("%s: names no host; set service or url", path)
		}
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("MutatingWebhookConfiguration %s: has no webhooks; install the operator's manifests again", configuration.Name)
	}
	return hosts, nil
}

// publishedBy is what the API server trusts for every one of the webhooks: nothing while they differ.
func publishedBy(configuration *admissionv1.MutatingWebhookConfiguration) []byte {
	bundle := configuration.Webhooks[0].ClientConfig.CABundle
	for _, w := range configuration.Webhooks[1:] {
		if !bytes.Equal(w.ClientConfig.CABundle, bundle) {
			return nil
		}
	}
	return bundle
}
