package key

import (
	"strings"
	"testing"
	"time"
)

// What a caller sends in many large bodies at once is read in the memory of a few.
func TestLargeDocumentsWaitTheirTurn(t *testing.T) {
	text := []byte("[" + strings.Repeat("0,", largeText) + "0]")
	read := func(text []byte) *document {
		t.Helper()
		d, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var held []*document
	for range cap(turns) {
		held = append(held, read(text))
	}
	next := make(chan error, 1)
	go func() {
		d, err := parse(text)
		if err == nil {
			d.release()
		}
		next <- err
	}()
	read([]byte("[0]")).release() // a small one does not wait
	select {
	case err := <-next:
		t.Fatalf("one more is read at once: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	for _, d := range held {
		d.release()
	}
	if err := <-next; err != nil {
		t.Error(err)
	}
	if _, err := parse(text[1:]); err == nil || len(turns) > 0 {
		t.Errorf("%v; %d turns are not given back", err, len(turns))
	}
}
