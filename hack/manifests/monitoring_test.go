package manifests_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

var promQL = parser.NewParser(parser.Options{})

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{root}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestPrometheusAcceptsTheAlertsAndEachHasItsRunbook(t *testing.T) {
	var rule struct{ Spec json.RawMessage }
	if err := yaml.Unmarshal(read(t, "config", "monitoring", "alerts.yaml"), &rule); err != nil {
		t.Fatal(err)
	}
	spec, err := yaml.JSONToYAML(rule.Spec)
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(spec, false, model.UTF8Validation, promQL, slog.Default())
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	runbooks := string(read(t, "docs", "runbooks.md"))
	alerts := 0
	for _, group := range groups.Groups {
		for _, r := range group.Rules {
			alerts++
			if !strings.Contains(runbooks, "\n## "+r.Alert+"\n\n") {
				t.Errorf("docs/runbooks.md has no section %s", r.Alert)
			}
			if url := r.Annotations["runbook_url"]; !strings.HasSuffix(url, "/docs/runbooks.md#"+strings.ToLower(r.Alert)) {
				t.Errorf("%s: runbook %s", r.Alert, url)
			}
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
				t.Errorf("%s has no severity or no summary", r.Alert)
			}
		}
	}
	if sections := strings.Count(runbooks, "\n## "); alerts != sections {
		t.Errorf("%d alerts and %d runbooks", alerts, sections)
	}
}

func TestTheDashboardsQueriesArePromQL(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(read(t, "config", "monitoring", "dashboard.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "1m", "$namespace", "shop", "$policy", "orders")
	n := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			n++
			if _, err := promQL.ParseExpr(variables.Replace(target.Expr)); err != nil {
				t.Errorf("%s: %v", panel.Title, err)
			}
		}
	}
	if n < 10 {
		t.Errorf("%d queries", n)
	}
}

// Of what the operator makes, each Service of pods of their own is scraped, and each pod of a pool; and not
// the Services of a pool's members, which all lead to the same pods.
func TestEachPodOfDedupdIsScrapedOnce(t *testing.T) {
	member := v1alpha1.ChildLabels("orders")
	member[v1alpha1.LabelPool] = "small"
	var scraped []string
	for name, monitor := range parse(t, read(t, "config", "monitoring", "service_monitors.yaml")) {
		var m struct {
			Spec struct{ Selector metav1.LabelSelector }
		}
		data, err := json.Marshal(monitor)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		selector, err := metav1.LabelSelectorAsSelector(&m.Spec.Selector)
		if err != nil {
			t.Fatal(err)
		}
		of := map[string]map[string]string{
			"the Service of a policy": v1alpha1.ChildLabels("orders"), "the Service of a pool's member": member,
		}
		if strings.HasPrefix(name, "PodMonitor ") {
			of = map[string]map[string]string{
				"a pod of a policy": v1alpha1.ChildLabels("orders"), "a pod of a pool": v1alpha1.PoolLabels("small"),
			}
		}
		for what, set := range of {
			if selector.Matches(labels.Set(set)) {
				scraped = append(scraped, what)
			}
		}
	}
	slices.Sort(scraped)
	if diff := cmp.Diff([]string{"a pod of a pool", "the Service of a policy"}, scraped); diff != "" {
		t.Errorf("scraped (-want +got):\n%s", diff)
	}
}
