package hack_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each line of the guarantees names a test that shows it. It has to be there: as a function, or
// as the sentence that names a check of the suite.
func TestEveryGuaranteeHasItsTest(t *testing.T) {
	text, err := os.ReadFile("../docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([^`]+\\.go)::([^`]+)`").FindAllStringSubmatch(string(text), -1)
	if len(named) < 40 {
		t.Errorf("%d tests are named: does this test still read the text?", len(named))
	}
	for _, n := range named {
		source, err := os.ReadFile(filepath.Join("..", n[1]))
		if err != nil {
			t.Errorf("%s::%s: %v", n[1], n[2], err)
			continue
		}
		if !strings.Contains(string(source), "func "+n[2]+"(") && !strings.Contains(string(source), `"`+n[2]+`"`) {
			t.Errorf("%s has no %q", n[1], n[2])
		}
	}
	for line := range strings.Lines(string(text)) {
		row := strings.HasPrefix(line, "| ") && !strings.Contains(line, " by |")
		if row && !strings.Contains(line, "::") {
			t.Errorf("no test is named for: %s", line)
		}
	}
}

// The guarantees are stated in the same words wherever they are.
func TestTheReadmeStatesTheGuaranteesInTheirWords(t *testing.T) {
	var texts []string
	for _, path := range []string{"../README.md", "../docs/guarantees.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		plain := strings.NewReplacer("*", "", "\n", " ").Replace(string(text))
		texts = append(texts, regexp.MustCompile(` +`).ReplaceAllString(plain, " "))
	}
	for _, words := range []string{
		"G1 no false duplicate: in Claim mode DUPLICATE is answered only if some claim of that key was completed; in Mark mode only if a different attempt marked it. Under any crash, retry, timeout or failover.",
		"G2 one live holder: between grant and lease end at most one attempt holds a key, if the store loses no acknowledged write.",
		"G3 no second grant within ttl after an acknowledged Complete, if the store loses no acknowledged write.",
		"G4 exactly-once effects are not offered; the fence is what a sink needs to get them.",
	} {
		for i, text := range texts {
			if !strings.Contains(text, words) {
				t.Errorf("%s does not say: %s", []string{"README.md", "docs/guarantees.md"}[i], words)
			}
		}
	}
}
