package controllers_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/hack/apiservertest"
)

// The API server of this package's tests. It has no controllers: no garbage is collected, and
// no Deployment makes pods.
var (
	restConfig *rest.Config
	scheme     = apiservertest.Scheme()
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
	// No test's Services go before the end, and envtest's 254 addresses are too few for -count.
	env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", "10.0.0.0/16")
	if auditLog, err = apiservertest.Audit(env, folder); err != nil {
		return 1, err
	}
	server, err := apiservertest.Launch(env)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	restConfig, k8s = server.Config, server.Client
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
