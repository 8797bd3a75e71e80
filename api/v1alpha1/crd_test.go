package v1alpha1_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

func TestAPIServerAndSetDefaultsFillInTheSame(t *testing.T) {
	cases := map[string][]change{
		"the smallest policy":      nil,
		"mode Claim without claim": {claim},
		"an empty claim":           {claim, set("spec.claim", "{}")},
		"an empty content hash":    {hash("{}")},
		"a memory store":           {memory},
		"a PostgreSQL store":       {postgres},
		"an empty dense":           {dense, set("spec.store.redis.dense", "{}")},
		"a durability":             {redis("{addresses: ['a:1'], durability: {replicas: 1}}")},
		"an empty deployment":      {set("spec.deployment", "{}")},
		"autoscaling":              {set("spec.deployment", "{autoscaling: {maxReplicas: 5}}")},
		"everything said": {
			claim, set("spec.claim", "{lease: 5s}"), set("spec.epoch", "7"), set("spec.scope", "Policy"),
			set("spec.enforcement", "Shadow"), set("spec.onStoreFailure", "FailOpen"), set("spec.key.onMissing", "Process"),
			redis("{mode: Cluster, addresses: ['a:1'], keyPrefix: 'x:', keyFormat: Compact}"),
			set("spec.deployment", "{autoscaling: {minReplicas: 3, maxReplicas: 5, targetCPUUtilization: 50}}"),
		},
	}
	for name, changes := range cases {
		t.Run(name, func(t *testing.T) {
			sent := policy(t, changes...)
			var want v1alpha1.DedupPolicy
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(sent.Object, &want); err != nil {
				t.Fatal(err)
			}
			v1alpha1.SetDefaults(&want)

			if err := k8s.Create(context.Background(), sent, client.DryRunAll); err != nil {
				t.Fatal(err)
			}
			var got v1alpha1.DedupPolicy
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(sent.Object, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want.Spec, got.Spec); diff != "" {
				t.Errorf("SetDefaults (-) and the API server (+) differ:\n%s", diff)
			}
		})
	}
}

// A CRD of more than 262144 bytes cannot be applied by `kubectl apply` without --server-side.
func TestCRDIsSmall(t *testing.T) {
	if _, data := crd(t); len(data) >= 100_000 {
		t.Errorf("the CRD has %d bytes; it must stay under 100000", len(data))
	}
}

func TestExplainSaysWhatEveryFieldIs(t *testing.T) {
	def, _ := crd(t)
	walkSchema("", def.Spec.Versions[0].Schema.OpenAPIV3Schema, func(place string, s *apiextensionsv1.JSONSchemaProps) {
		switch {
		case place == ".metadata", strings.HasSuffix(place, "[]"), strings.HasSuffix(place, "{}"):
			// What an element is, its list says.
		case s.Description == "":
			t.Errorf("%s has no description", place)
		case strings.Contains(s.Description, "kubebuilder:") || strings.Contains(s.Description, "+optional"):
			t.Errorf("%s: a marker is in the description: %s", place, s.Description)
		}
	})
}

// Without limits on lengths the API server assumes the worst for the cost of every rule.
func TestEveryStringOfOurOwnHasALimit(t *testing.T) {
	def, _ := crd(t)
	spec := def.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	walkSchema("spec", &spec, func(place string, s *apiextensionsv1.JSONSchemaProps) {
		for _, foreign := range []string{".resources", ".tolerations", ".nodeSelector", ".podLabels", ".podAnnotations"} {
			if strings.Contains(place, foreign) {
				return
			}
		}
		if s.Type == "string" && s.Enum == nil && s.MaxLength == nil {
			t.Errorf("%s is a string without enum and maxLength", place)
		}
		if s.Type == "array" && s.MaxItems == nil {
			t.Errorf("%s is a list without maxItems", place)
		}
	})
}

func TestPrinterColumns(t *testing.T) {
	ctx := context.Background()
	object := policy(t, setRaw("metadata.namespace", newNamespace(t)), claim)
	if err := k8s.Create(ctx, object); err != nil {
		t.Fatal(err)
	}
	var p v1alpha1.DedupPolicy
	if err := k8s.Get(ctx, client.ObjectKeyFromObject(object), &p); err != nil {
		t.Fatal(err)
	}
	p.Status = v1alpha1.DedupPolicyStatus{
		Store: "Redis", Endpoint: "orders-dedupd.shop.svc:8080",
		Conditions: []metav1.Condition{{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, LastTransitionTime: metav1.Now(),
		}},
	}
	if err := k8s.Status().Update(ctx, &p); err != nil {
		t.Fatal(err)
	}

	table := tableOf(t, p.Namespace)
	var columns []string
	for _, c := range table.ColumnDefinitions {
		columns = append(columns, c.Name)
	}
	want := []string{"Name", "Strategy", "Mode", "TTL", "Store", "Endpoint", "Ready", "Age"}
	if diff := cmp.Diff(want, columns); diff != "" {
		t.Errorf("columns (-want +got):\n%s", diff)
	}
	if len(table.Rows) != 1 {
		t.Fatalf("%d rows, want 1", len(table.Rows))
	}
	cells := table.Rows[0].Cells
	wantCells := []any{"orders", "MessageID", "Claim", "1h", "Redis", "orders-dedupd.shop.svc:8080", "True"}
	if diff := cmp.Diff(wantCells, cells[:len(cells)-1]); diff != "" {
		t.Errorf("cells (-want +got):\n%s", diff)
	}
}

// tableOf asks for policies as kubectl get does.
func tableOf(t *testing.T, namespace string) metav1.Table {
	t.Helper()
	config := rest.CopyConfig(restConfig)
	config.APIPath = "/apis"
	config.GroupVersion = &v1alpha1.GroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	rc, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	body, err := rc.Get().Namespace(namespace).Resource("deduppolicies").
		SetHeader("Accept", "application/json;as=Table;g=meta.k8s.io;v=v1").DoRaw(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var table metav1.Table
	if err := json.Unmarshal(body, &table); err != nil {
		t.Fatal(err)
	}
	return table
}

func crd(t *testing.T) (*apiextensionsv1.CustomResourceDefinition, []byte) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "config", "crd", "bases", "dedupd.io_deduppolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	def := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(data, def); err != nil {
		t.Fatal(err)
	}
	return def, data
}

// walkSchema visits a schema and everything below it, with its place.
func walkSchema(place string, s *apiextensionsv1.JSONSchemaProps, visit func(string, *apiextensionsv1.JSONSchemaProps)) {
	visit(place, s)
	for name, p := range s.Properties {
		walkSchema(place+"."+name, &p, visit)
	}
	if s.Items != nil {
		walkSchema(place+"[]", s.Items.Schema, visit)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		walkSchema(place+"{}", s.AdditionalProperties.Schema, visit)
	}
}
