package controllers_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// The API server of this package's tests. It has no controllers: no garbage is collected, and
// no Deployment makes pods.
var (
	restConfig *rest.Config
	scheme     = runtime.NewScheme()
	k8s        client.WithWatch // reads and writes without a cache
)

func TestMain(m *testing.M) {
	code, err := runWithAPIServer(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runWithAPIServer(m *testing.M) (code int, err error) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return 1, fmt.Errorf("KUBEBUILDER_ASSETS is not set: run make test, or set it to a directory with kube-apiserver and etcd")
	}
	crd, err := lenientCRD()
	if err != nil {
		return 1, err
	}
	folder, err := os.MkdirTemp("", "dedup-controllers-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	env := &envtest.Environment{CRDs: []*apiextensionsv1.CustomResourceDefinition{crd}}
	env.CRDInstallOptions.MaxTime = time.Minute
	// No test's Services go before the end, and envtest's 254 addresses are too few for -count.
	env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", "10.0.0.0/16")
	if err := audit(env, folder); err != nil {
		return 1, err
	}
	// Before it is started: a start that fails halfway has processes to stop, too.
	defer func() {
		if stopErr := env.Stop(); stopErr != nil && err == nil {
			err = fmt.Errorf("stopping the API server: %w", stopErr)
		}
	}()
	restConfig, err = env.Start()
	if err != nil {
		return 1, fmt.Errorf("starting the API server: %w", err)
	}
	restConfig.QPS = -1
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return 1, err
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return 1, err
	}
	if k8s, err = client.NewWithWatch(restConfig, client.Options{Scheme: scheme}); err != nil {
		return 1, fmt.Errorf("building a client: %w", err)
	}
	return m.Run(), nil
}

// lenientCRD is the CRD without its rules. The operator meets policies that break them where a
// CRD of another version is installed, and where a policy is older than a rule.
func lenientCRD() (*apiextensionsv1.CustomResourceDefinition, error) {
	data, err := os.ReadFile(filepath.Join("..", "config", "crd", "bases", "dedupd.io_deduppolicies.yaml"))
	if err != nil {
		return nil, err
	}
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(data, crd); err != nil {
		return nil, fmt.Errorf("reading the CRD: %w", err)
	}
	dropRules(crd.Spec.Versions[0].Schema.OpenAPIV3Schema)
	return crd, nil
}

func dropRules(s *apiextensionsv1.JSONSchemaProps) {
	s.XValidations = nil
	for name, p := range s.Properties {
		dropRules(&p)
		s.Properties[name] = p
	}
	if s.Items != nil {
		dropRules(s.Items.Schema)
	}
}
