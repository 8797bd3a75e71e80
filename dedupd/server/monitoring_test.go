package server

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestEveryMetricThatAlertsAndDashboardLookAtIsExported(t *testing.T) {
	descs := make(chan *prometheus.Desc)
	go func() {
		NewMetrics("test", time.Now).registry.Describe(descs)
		close(descs)
	}()
	exported := map[string]bool{}
	name := regexp.MustCompile(`fqName: "(\w+)"`)
	for desc := range descs {
		exported[name.FindStringSubmatch(desc.String())[1]] = true
	}
	for _, file := range []string{"alerts.yaml", "dashboard.json"} {
		data, err := os.ReadFile(filepath.Join("..", "..", "config", "monitoring", file))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`\bdedupd_\w+`).FindAllString(string(data), -1)
		if len(found) < 8 {
			t.Errorf("%s: looks at %v alone", file, found)
		}
		for _, metric := range found {
			if !exported[strings.TrimSuffix(metric, "_bucket")] {
				t.Errorf("%s: %s is not exported", file, metric)
			}
		}
	}
}
