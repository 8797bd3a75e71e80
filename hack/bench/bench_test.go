package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Every row is measured, for a moment, over real processes.
func TestEveryRowIsMeasured(t *testing.T) {
	dir := t.TempDir()
	dedupd := filepath.Join(dir, "dedupd")
	if out, err := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", dedupd, "../../dedupd").CombinedOutput(); err != nil {
		t.Fatalf("%s\n%s", err, out)
	}
	document := filepath.Join(dir, "benchmarks.md")
	const text = "before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nbetween\n<!-- soak: begin --><!-- soak: end -->\nafter\n"
	if err := os.WriteFile(document, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options{dedupd: dedupd, docs: dir, run: 50 * time.Millisecond, rounds: 1, ids: 2000}
	if err := run(t.Context(), o, t.Output()); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n", "\nbetween\n", "\nafter\n", "one stream", "near cache", "Claim + Complete", "keyFormat Compact", "binary"} {
		if !strings.Contains(string(written), want) {
			t.Errorf("benchmarks.md has no %q:\n%s", want, written)
		}
	}
	if strings.Contains(string(written), "old") {
		t.Error("benchmarks.md still has what was measured before")
	}
	wantSVG(t, filepath.Join(dir, "benchmarks.svg"))

	o.soak = 300 * time.Millisecond
	// Memory does grow in its first moments; it is the drawing and the text that are looked at.
	if err := run(t.Context(), o, t.Output()); err != nil && !errors.Is(err, errGrown) {
		t.Fatal(err)
	}
	wantSVG(t, filepath.Join(dir, "soak.svg"))
}

func wantSVG(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	elements := 0
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if _, is := token.(xml.StartElement); is {
			elements++
		}
	}
	if elements < 5 {
		t.Errorf("%s has %d elements", file, elements)
	}
}

func TestMedian(t *testing.T) {
	for want, of := range map[float64][]float64{1: {1}, 2: {3, 2, 1}, 2.5: {4, 1, 3, 2}} {
		if got := median(of); got != want {
			t.Errorf("%v: %v, want %v", of, got, want)
		}
	}
}

func TestVerdictOfASoak(t *testing.T) {
	soak := func(resident func(minute int) float64) []soaked {
		var looks []soaked
		for i := range 40 {
			looks = append(looks, soaked{at: time.Duration(i+1) * time.Minute, resident: resident(i), rate: 1000})
		}
		return looks
	}
	for name, test := range map[string]struct {
		resident func(int) float64
		grown    bool
	}{
		"as it began":                      {func(int) float64 { return 40 }, false},
		"what pools take at first":         {func(i int) float64 { return 40 + 20*min(float64(i), 9)/9 }, false},
		"a leak":                           {func(i int) float64 { return 40 + float64(i) }, true},
		"a moment of much work at the end": {func(i int) float64 { return 40 + 100*float64(max(i-38, 0)) }, false},
	} {
		if text, grown := verdict(soak(test.resident)); grown != test.grown {
			t.Errorf("%s: %s", name, text)
		}
	}
}

func TestNoTwoIDsAreTheSame(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newID()
		if len(id) != idLen || seen[id] {
			t.Fatalf("id %q, of %d", id, len(seen))
		}
		seen[id] = true
	}
}
