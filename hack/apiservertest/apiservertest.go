// Package apiservertest runs an API server for tests: etcd and kube-apiserver, with nothing that
// collects garbage, makes pods or routes Services.
package apiservertest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/hack/freeport"
)

// Server is an API server at work.
type Server struct {
	Config     *rest.Config     // the administrator's; it throttles nothing
	KubeConfig []byte           // the same, as kubectl reads it
	Client     client.WithWatch // the administrator's, without a cache

	environment *envtest.Environment
}

// Launch starts an API server that the caller stops, such as one for all tests of a package.
func Launch(environment *envtest.Environment) (*Server, error) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return nil, errors.New("KUBEBUILDER_ASSETS is not set: run make test, or export KUBEBUILDER_ASSETS=$(hack/setup.sh)")
	}
	s := &Server{environment: environment}
	if err := s.start(); err != nil {
		// A start that fails halfway has processes to stop, too.
		return nil, errors.Join(fmt.Errorf("starting the API server: %w", err), s.Stop())
	}
	return s, nil
}

// Start starts an API server for one test, and stops it when that ends.
func Start(tb testing.TB, environment *envtest.Environment) *Server {
	tb.Helper()
	s, err := Launch(environment)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func (s *Server) start() error {
	s.environment.CRDInstallOptions.MaxTime = time.Minute // a busy machine is slow to establish a CRD
	var err error
	if s.Config, err = s.environment.Start(); err != nil {
		return err
	}
	s.Config.QPS = -1
	s.KubeConfig = s.environment.KubeConfig
	s.Client, err = client.NewWithWatch(s.Config, client.Options{Scheme: Scheme()})
	return err
}

// Stop ends the API server.
func (s *Server) Stop() error {
	if err := s.environment.Stop(); err != nil {
		return fmt.Errorf("stopping the API server: %w", err)
	}
	return nil
}

// Scheme knows the types of Kubernetes and of this module.
func Scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	return scheme
}

// FreePort is a port of this machine for the API server to call, or for a process that calls it.
func FreePort(tb testing.TB) int {
	tb.Helper()
	port, err := freeport.On("") // the webhook listens everywhere
	if err != nil {
		tb.Fatal(err)
	}
	n, _ := strconv.Atoi(port)
	return n
}

// Poll waits until the function returns nil, for a minute at most: the API server takes up what is
// written, such as a webhook's configuration, a while after it has answered.
func Poll(tb testing.TB, f func() error) {
	tb.Helper()
	deadline, tick := time.After(time.Minute), time.NewTicker(100*time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			tb.Fatal(err)
		case <-tick.C:
		}
	}
}
