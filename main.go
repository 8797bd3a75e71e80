// Command manager is the dedup operator: it runs dedupd for every DedupPolicy, and connects the
// pods that name one.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/controllers"
	"github.com/dedupd/dedup-operator/dedupd/cgroup"
	"github.com/dedupd/dedup-operator/webhook"
	"github.com/dedupd/dedup-operator/webhook/certs"
)

// version is set by the linker.
var version = "dev"

// Names of objects in config; a test holds them to it.
const (
	leaseName         = "dedup-operator.dedupd.io"
	webhookName       = "dedup-operator-webhook"
	certificateSecret = "dedup-operator-webhook-certificate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "manager:", err)
		os.Exit(1)
	}
}

// run is the manager, from its arguments until the context ends. It logs to the writer.
func run(ctx context.Context, args []string, getenv func(string) string, logTo io.Writer) error {
	s, err := parseSettings(args, getenv, logTo)
	if err != nil {
		return err
	}
	handler := slog.NewJSONHandler(logTo, &slog.HandlerOptions{Level: s.logLevel})
	log := logr.FromSlogHandler(handler)
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	slog.SetDefault(slog.New(handler)) // for net/http, which logs to the standard logger
	if limit, ok := cgroup.Memory(); ok && getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit / 10 * 9) // what the caches hold would else double before it is collected
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("finding the API server (in a pod, or by KUBECONFIG): %w", err)
	}
	// The API server's priority and fairness limits requests; a limit of ours would only add to it.
	config.QPS, config.Burst = -1, -1
	config.UserAgent = "dedup-operator/" + version

	m, err := newManager(config, s)
	if err != nil {
		return err
	}
	log.Info("starting", "version", version, "dedupdImage", s.dedupdImage)
	if err := m.Start(ctx); err != nil {
		return fmt.Errorf("running the manager: %w", err)
	}
	log.Info("stopped")
	return nil
}

// settings are what the command line and the environment say.
type settings struct {
	namespace      string // the operator's own
	dedupdImage    string
	metricsAddress string
	probeAddress   string
	leaderElect    bool
	webhookPort    int    // 0: no webhook
	webhookCertDir string // empty: the operator keeps the certificate itself
	namespaces     list   // none: all of them
	logLevel       slog.Level
}

// namespaceFile tells a pod its namespace, where POD_NAMESPACE does not.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

func parseSettings(args []string, getenv func(string) string, usageTo io.Writer) (settings, error) {
	s := settings{namespace: getenv("POD_NAMESPACE")}
	flags := flag.NewFlagSet("manager", flag.ContinueOnError)
	flags.SetOutput(usageTo)
	flags.StringVar(&s.dedupdImage, "dedupd-image", getenv("DEDUPD_IMAGE"), "image of dedupd, for its Deployments and sidecars (default $DEDUPD_IMAGE)")
	flags.StringVar(&s.metricsAddress, "metrics-bind-address", ":8080", "host:port of the Prometheus metrics, 0 for none")
	flags.StringVar(&s.probeAddress, "health-probe-bind-address", ":8081", "host:port of /healthz and /readyz, 0 for none")
	flags.BoolVar(&s.leaderElect, "leader-elect", false, "let one of several replicas reconcile; all of them serve the webhook")
	flags.IntVar(&s.webhookPort, "webhook-port", 9443, "port of the webhook, 0 for none: pods are then connected by config/admission-policy, or by hand")
	flags.Var(&s.namespaces, "namespaces", "the namespaces, separated by commas, whose policies are served (default all); Roles in these are then enough")
	flags.StringVar(&s.webhookCertDir, "webhook-cert-dir", "", "folder with tls.crt and tls.key for the webhook, reread when they change, from cert-manager for example, which then also sets the caBundle; without it the operator makes and renews the certificate itself")
	flags.TextVar(&s.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if s.namespace == "" {
		content, err := os.ReadFile(namespaceFile)
		if err != nil {
			return s, errors.New("POD_NAMESPACE is not set: set it to the operator's own namespace, from metadata.namespace in a pod")
		}
		s.namespace = strings.TrimSpace(string(content))
	}
	switch {
	case flags.NArg() > 0:
		return s, fmt.Errorf("%q: there are no arguments but flags; see --help", flags.Arg(0))
	case s.dedupdImage == "":
		return s, errors.New("--dedupd-image is empty: set it, or DEDUPD_IMAGE, to the image that holds /dedupd, usually the operator's own")
	case strings.ContainsFunc(s.dedupdImage, unicode.IsSpace):
		return s, fmt.Errorf("--dedupd-image %q: an image has no white space", s.dedupdImage)
	case s.webhookPort < 0 || s.webhookPort > 65535:
		return s, fmt.Errorf("--webhook-port %d: a port is from 1 to 65535, or 0 for none", s.webhookPort)
	case s.webhookPort == 0 && s.webhookCertDir != "":
		return s, fmt.Errorf("--webhook-cert-dir %q: there is no webhook with --webhook-port 0; leave one of them out", s.webhookCertDir)
	}
	for flag, address := range map[string]string{"--metrics-bind-address": s.metricsAddress, "--health-probe-bind-address": s.probeAddress} {
		if _, _, err := net.SplitHostPort(address); err != nil && address != "0" {
			return s, fmt.Errorf("%s %q: want host:port, such as :8080, or 0 for none", flag, address)
		}
	}
	if s.webhookCertDir != "" {
		if _, err := tls.LoadX509KeyPair(filepath.Join(s.webhookCertDir, "tls.crt"), filepath.Join(s.webhookCertDir, "tls.key")); err != nil {
			return s, fmt.Errorf("--webhook-cert-dir %q: %w; leave it out to let the operator keep the certificate", s.webhookCertDir, err)
		}
	}
	return s, nil
}

// list is a flag's value of names separated by commas.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *list) Set(value string) error {
	*l = nil
	for name := range strings.SplitSeq(value, ",") {
		if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
			return fmt.Errorf("%q: %s", name, problems[0])
		}
		*l = append(*l, name)
	}
	return nil
}

// newManager wires controllers, webhook and certificate into a manager.
func newManager(config *rest.Config, s settings) (ctrl.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme: %w", err)
	}
	caches := controllers.CacheOptions()
	for _, namespace := range s.namespaces {
		if caches.DefaultNamespaces == nil {
			caches.DefaultNamespaces = map[string]cache.Config{}
		}
		caches.DefaultNamespaces[namespace] = cache.Config{}
	}
	server := ctrlwebhook.Options{Port: s.webhookPort, CertDir: s.webhookCertDir}
	var certificate *certs.Reconciler
	if s.webhookCertDir == "" && s.webhookPort != 0 {
		keeper := certs.Options{
			Secret:  types.NamespacedName{Namespace: s.namespace, Name: certificateSecret},
			Webhook: webhookName,
			Metrics: metrics.Registry,
			Now:     time.Now,
		}
		var err error
		if certificate, err = certs.New(keeper); err != nil {
			return nil, err
		}
		caches.ByObject = merged(caches.ByObject, keeper.ByObject())
		server.TLSOpts = []func(*tls.Config){func(c *tls.Config) { c.GetCertificate = certificate.GetCertificate }}
	}
	m, err := ctrl.NewManager(config, options(s, scheme, caches, server))
	if err != nil {
		return nil, fmt.Errorf("building the manager: %w", err)
	}
	return m, setUp(m, s, certificate)
}

func options(s settings, scheme *runtime.Scheme, caches cache.Options, server ctrlwebhook.Options) ctrl.Options {
	shutdown := 30 * time.Second
	return ctrl.Options{
		Scheme:                        scheme,
		Cache:                         caches,
		Metrics:                       metricsserver.Options{BindAddress: s.metricsAddress},
		HealthProbeBindAddress:        s.probeAddress,
		WebhookServer:                 webhook.NewServer(server),
		LeaderElection:                s.leaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       s.namespace,
		LeaderElectionReleaseOnCancel: true, // the process ends right after
		GracefulShutdownTimeout:       &shutdown,
	}
}

// setUp adds everything that runs to the manager. The certificate is nil if someone else keeps it.
func setUp(m ctrl.Manager, s settings, certificate *certs.Reconciler) error {
	if certificate != nil {
		if err := errors.Join(certificate.SetupWithManager(m), m.AddReadyzCheck("certificate", certificate.Ready)); err != nil {
			return fmt.Errorf("setting up the webhook's certificate: %w", err)
		}
	}
	if s.webhookPort != 0 {
		webhook.SetupWithManager(m, webhook.Options{Image: s.dedupdImage})
		if err := m.AddReadyzCheck("webhook", m.GetWebhookServer().StartedChecker()); err != nil {
			return fmt.Errorf("setting up the webhook's health check: %w", err)
		}
	}
	if err := controllers.SetupWithManager(m, controllers.Options{Image: s.dedupdImage, OperatorNamespace: s.namespace, Metrics: metrics.Registry}); err != nil {
		return fmt.Errorf("setting up the controllers: %w", err)
	}
	if err := errors.Join(m.AddHealthzCheck("ping", healthz.Ping), m.AddReadyzCheck("ping", healthz.Ping)); err != nil {
		return fmt.Errorf("setting up the health checks: %w", err)
	}
	return nil
}

func merged(a, b map[client.Object]cache.ByObject) map[client.Object]cache.ByObject {
	all := maps.Clone(b)
	maps.Copy(all, a)
	return all
}
