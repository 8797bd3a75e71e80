package manifests_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
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
