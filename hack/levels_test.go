// Package hack_test holds the repository to its own architecture document.
package hack_test

import (
	"bufio"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/dedupd/dedup-operator"

// The packages by level, from docs/architecture.md. A package may import from lower levels, and
// from its own only where siblings says so.
var levels = [][]string{
	{"api/v1alpha1", "dedupd/key", "dedupd/record", "dedupd/status", "dedupd/caller", "dedupd/caller/callertest", "dedupd/proto/v1", "dedupd/cgroup"},
	{"dedupd/policy", "dedupd/message", "dedupd/client"},
	{"dedupd/store", "dedupd/store/faulttest", "dedupd/store/mounted", "dedupd/store/unreached", "dedupd/podspec"},
	{"dedupd/store/memory", "dedupd/store/redis", "dedupd/store/postgres", "dedupd/store/gather", "dedupd/store/nearcache", "dedupd/store/storetest", "dedupd/engine", "controllers/render", "webhook", "webhook/certs"},
	{"dedupd/server", "dedupd/server/servertest", "controllers"},
	{".", "dedupd"},
}

var siblings = map[string][]string{
	"dedupd/server/servertest": {"dedupd/server"},
	"webhook":                  {"webhook/certs"},
}

func TestImportsGoDownOnly(t *testing.T) {
	level := map[string]int{}
	for n, packages := range levels {
		for _, p := range packages {
			level[p] = n
		}
	}
	for p, imports := range list(t, `{{.ImportPath}} {{join .Imports " "}}`, "./...") {
		if strings.HasPrefix(p, "hack") || strings.HasSuffix(p, "/redistest") || strings.HasSuffix(p, "/postgrestest") {
			continue
		}
		mine, known := level[p]
		if !known {
			t.Errorf("package %s has no level: give it one here and a sentence in docs/architecture.md", p)
			continue
		}
		for _, imported := range imports {
			theirs, ours := level[imported]
			if ours && theirs >= mine && !slices.Contains(siblings[p], imported) {
				t.Errorf("%s (level %d) imports %s (level %d)", p, mine, imported, theirs)
			}
		}
	}
}

func TestTheDaemonKnowsNothingOfKubernetesClients(t *testing.T) {
	for _, deps := range list(t, `{{.ImportPath}} {{join .Deps " "}}`, "./dedupd") {
		for _, dep := range deps {
			if strings.HasPrefix(dep, "k8s.io/client-go") || strings.HasPrefix(dep, "sigs.k8s.io/controller-runtime") {
				t.Errorf("dedupd depends on %s", dep)
			}
		}
	}
}

// With a template engine the linker keeps every exported method of every type: 10 MB of dedupd.
func TestTheDaemonIsBuiltWithoutTemplates(t *testing.T) {
	for _, deps := range list(t, `{{.ImportPath}} {{join .Deps " "}}`, "-tags=grpcnotrace", "./dedupd") {
		for _, dep := range deps {
			if dep == "text/template" {
				t.Error("dedupd depends on text/template")
			}
		}
	}
}

func TestTheOperatorDoesNotDecideAboutMessages(t *testing.T) {
	for p, deps := range list(t, `{{.ImportPath}} {{join .Deps " "}}`, "./controllers/...", "./webhook/...", ".") {
		for _, dep := range deps {
			for _, forbidden := range []string{"dedupd/store", "dedupd/engine", "dedupd/server"} {
				if dep == forbidden || strings.HasPrefix(dep, forbidden+"/") {
					t.Errorf("%s depends on %s", p, dep)
				}
			}
		}
	}
}

func TestEveryPackageHasOneSentenceWithoutAnd(t *testing.T) {
	file, err := os.Open("../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	row := regexp.MustCompile("^\\| `([^`]+)` \\| (.+) \\|$")
	sentences := map[string]string{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if m := row.FindStringSubmatch(lines.Text()); m != nil {
			sentences[m[1]] = m[2]
		}
	}
	for _, packages := range levels {
		for _, p := range packages {
			switch sentence := sentences[p]; {
			case sentence == "":
				t.Errorf("docs/architecture.md has no sentence for %s", p)
			case regexp.MustCompile(`\band\b`).MatchString(sentence):
				t.Errorf("docs/architecture.md: the sentence for %s contains \"and\": does it do two things?", p)
			}
		}
	}
}

// list runs go list and returns, by package, the fields that follow it, both relative to the module.
func list(t *testing.T, format string, patterns ...string) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-f", format}, patterns...)...)
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		for i, f := range fields {
			if f == module {
				fields[i] = "."
			} else {
				fields[i] = strings.TrimPrefix(f, module+"/")
			}
		}
		packages[fields[0]] = fields[1:]
	}
	return packages
}
