package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

// The console examples of the HTTP reference, run in their order against one server with the
// policy that stands there.
func TestTheHTTPReferenceIsTrue(t *testing.T) {
	text, err := os.ReadFile("../docs/http-api.md")
	if err != nil {
		t.Fatal(err)
	}
	manifest := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(text)
	if manifest == nil {
		t.Fatal("no policy in the text")
	}
	s := startServe(t, "-f", policyFile(t, string(manifest[1])))
	shell := &shell{env: map[string]string{"DEDUPD_URL": s.url}}
	examples := 0
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllSubmatch(text, -1) {
		for _, example := range strings.Split("\n"+string(block[1]), "\n$ ")[1:] {
			examples++
			command, want, _ := strings.Cut(example, "\n")
			got := shell.run(t, command)
			pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSuffix(want, "\n")), "…", "(?s:.*?)")
			if !regexp.MustCompile("^" + pattern + "\n$").MatchString(got) {
				t.Errorf("$ %s\n%s\nthe text says\n%s", command, got, want)
			}
		}
	}
	if examples < 10 {
		t.Errorf("%d examples found: does this test still read the text?", examples)
	}
}

// shell understands as much of sh and curl as the examples use, so that the tests need no curl.
type shell struct{ env map[string]string }

var words = regexp.MustCompile(`'[^']*'|"(?:[^"\\]|\\.)*"|[^\s'"]+`)

func (s *shell) words(command string) []string {
	var out []string
	for _, word := range words.FindAllString(command, -1) {
		switch word[0] {
		case '\'':
			word = strings.Trim(word, "'")
		case '"':
			word = strings.ReplaceAll(word[1:len(word)-1], `\"`, `"`)
			word = os.Expand(word, func(name string) string { return s.env[name] })
		}
		out = append(out, word)
	}
	return out
}

var token = regexp.MustCompile(`"token":"([^"]+)"`)

func (s *shell) run(t *testing.T, command string) string {
	t.Helper()
	args := s.words(command)
	if args[0] != "curl" {
		t.Fatalf("%s: no curl", command)
	}
	method, url, body, head := http.MethodGet, "", "", false
	header := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	for i := 1; i < len(args); i++ {
		switch args[i] {
		case "-s":
		case "-i":
			head = true
		case "-X":
			i++
			method = args[i]
		case "-d":
			i++
			body, method = args[i], http.MethodPost
		case "-H":
			i++
			name, value, _ := strings.Cut(args[i], ": ")
			header.Set(name, value)
		default:
			if strings.HasPrefix(args[i], "-") || url != "" {
				t.Fatalf("%s: this test knows no %s", command, args[i])
			}
			url = args[i]
		}
	}
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if found := token.FindSubmatch(answer); found != nil && s.env["TOKEN"] == "" {
		s.env["TOKEN"] = string(found[1])
	}
	if !head {
		return string(answer)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "HTTP/1.1 %s\n", response.Status)
	// As they are sent: those of the handler first.
	for _, names := range []func(string) bool{ofServer, func(name string) bool { return !ofServer(name) }} {
		if err := response.Header.WriteSubset(&out, excluded(response.Header, names)); err != nil {
			t.Fatal(err)
		}
	}
	return strings.ReplaceAll(out.String(), "\r\n", "\n") + "\n" + string(answer)
}

// ofServer says whether net/http adds a header by itself.
func ofServer(name string) bool { return name == "Date" || name == "Content-Length" }

func excluded(h http.Header, exclude func(string) bool) map[string]bool {
	out := map[string]bool{}
	for name := range h {
		out[name] = exclude(name)
	}
	return out
}
