package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func fixedClock() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) }

func TestTheSamplesShowTheirStrategyAtWork(t *testing.T) {
	policies, err := filepath.Glob("../config/samples/*.ndjson")
	if err != nil || len(policies) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, messages := range policies {
		name := strings.TrimSuffix(filepath.Base(messages), ".ndjson")
		t.Run(name, func(t *testing.T) {
			in, err := os.Open(messages)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = in.Close() }()
			var out, summary bytes.Buffer
			manifest := strings.TrimSuffix(messages, ".ndjson") + ".yaml"
			if code := run([]string{"check", "-f", manifest}, environment{in: in, out: &out, err: &summary, now: fixedClock}); code != exitOK {
				t.Errorf("exit code %d, want %d\n%s", code, exitOK, summary.String())
			}
			golden := filepath.Join("testdata", "samples", name+".golden")
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Errorf("decisions (-want +got); go test ./dedupd -update writes them anew:\n%s", diff)
			}
		})
	}
}

const headerPolicy = `
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: orders}
spec:
  key: {strategy: MessageID, messageID: {header: id}}
  ttl: 1h
  store: {memory: {}}
`

func policyFile(t *testing.T, manifest string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAnAnswerComesWhileTheInputIsStillOpen(t *testing.T) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan int)
	go func() {
		code := run([]string{"check", "-f", policyFile(t, headerPolicy)}, environment{in: inR, out: outW, err: io.Discard, now: time.Now})
		_ = outW.Close()
		done <- code
	}()
	answers := bufio.NewScanner(outR)
	// An answer that is held back ends the test and does not hang it.
	deadline := time.AfterFunc(10*time.Second, func() { outR.CloseWithError(os.ErrDeadlineExceeded) })
	defer deadline.Stop()
	for i := range 3 {
		if _, err := fmt.Fprintf(inW, `{"headers":{"id":"%d"}}`+"\n", i); err != nil {
			t.Fatal(err)
		}
		if !answers.Scan() || !strings.Contains(answers.Text(), "FRESH") {
			t.Fatalf("answer %d: %q, %v", i, answers.Text(), answers.Err())
		}
	}
	_ = inW.Close()
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// endless is a line that never fits, without its memory.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), e.left)
	for i := range n {
		p[i] = 'x'
	}
	e.left -= n
	return n, nil
}

func TestAHugeLineIsAnErrorAndTheRestGoesOn(t *testing.T) {
	const huge = 100 << 20
	in := io.MultiReader(
		strings.NewReader(`{"headers":{"id":"a"}}`+"\n"+`{"headers":{"id":"b"},"bodyText":"`),
		&endless{left: huge},
		strings.NewReader("\"}\n"+`{"headers":{"id":"a"}}`),
	)
	var out, summary bytes.Buffer
	code := run([]string{"check", "-f", policyFile(t, headerPolicy)}, environment{in: in, out: &out, err: &summary, now: fixedClock})
	if code != exitSome {
		t.Errorf("exit code %d, want %d", code, exitSome)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "FRESH") || !strings.Contains(lines[2], "DUPLICATE") {
		t.Fatalf("decisions %q", lines)
	}
	if !strings.Contains(lines[1], "line 2: ") || !strings.Contains(lines[1], "--max-body") {
		t.Errorf("line 2: %q, want an error that names --max-body", lines[1])
	}
}

func TestALineThatIsNotUTF8IsAnError(t *testing.T) {
	in := strings.NewReader("{\"headers\":{\"id\":\"\xff\"}}\n\ufeff\n")
	var out bytes.Buffer
	run([]string{"check", "-f", policyFile(t, headerPolicy)}, environment{in: in, out: &out, err: io.Discard, now: fixedClock})
	if want := "at offset 18: not UTF-8"; !strings.Contains(out.String(), want) {
		t.Errorf("%q, want %q in it", out.String(), want)
	}
}

func TestAByteOrderMarkBeforeTheFirstLineIsLeftOut(t *testing.T) {
	in := strings.NewReader("\ufeff{\"headers\":{\"id\":\"a\"}}\r\n")
	var out bytes.Buffer
	code := run([]string{"check", "-f", policyFile(t, headerPolicy)}, environment{in: in, out: &out, err: io.Discard, now: fixedClock})
	if want := `{"decision":"FRESH","key":"check:a"}` + "\n"; code != exitOK || out.String() != want {
		t.Errorf("exit code %d, %q, want %q", code, out.String(), want)
	}
}

func TestTheMemberBodyIsHashedAsItIsWritten(t *testing.T) {
	manifest := strings.Replace(headerPolicy, "{strategy: MessageID, messageID: {header: id}}", "{strategy: ContentHash}", 1)
	in := strings.NewReader(`{"body":{"a": 1.0}}
{"body":   {"a": 1.0}   }
{"bodyText":"{\"a\": 1.0}"}
{"bodyBase64":"eyJhIjogMS4wfQ=="}
{"body":{"a":1.0}}
{"body":null}
{"bodyText":"null"}
{}
{"bodyText":""}
`)
	var out bytes.Buffer
	run([]string{"check", "-f", policyFile(t, manifest)}, environment{in: in, out: &out, err: io.Discard, now: fixedClock})
	var got []string
	for line := range strings.Lines(out.String()) {
		decision, _, _ := strings.Cut(strings.TrimPrefix(line, `{"decision":"`), `"`)
		got = append(got, decision)
	}
	want := []string{"FRESH", "DUPLICATE", "DUPLICATE", "DUPLICATE", "FRESH", "FRESH", "DUPLICATE", "FRESH", "DUPLICATE"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("decisions (-want +got):\n%s", diff)
	}
}

// FuzzParse: no line makes the parser panic, and what it accepts respects the limits.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"headers":{"id":"a"},"body":{"a":[1,2]},"consumer":"c","attempt":"t"}`,
		`{"bodyText":"\ud83d\ude00"}`, `{"bodyBase64":"AAEC"}`, `{"body":null}`, `{}`, ``, `[`, `{"headers":{"a":{}}}`, "\xff", `{"a":1,"a":2}`,
	} {
		f.Add([]byte(seed))
	}
	p := checker{consumer: "check", maxBody: 64}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := p.request(text)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a message")
			}
			return
		}
		if len(r.Message.Body) > p.maxBody {
			t.Errorf("a body of %d bytes, at most %d", len(r.Message.Body), p.maxBody)
		}
		if r.Message.Headers == nil {
			t.Error("no headers")
		}
	})
}
