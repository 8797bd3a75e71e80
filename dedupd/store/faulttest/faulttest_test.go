package faulttest_test

import (
	"bytes"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
)

func throws(seed uint64) []int {
	dice := faulttest.NewDice(seed, 3)
	var kinds []int
	for range 100 {
		kind, wrong := dice.Throw(5)
		if !wrong {
			kind = -1
		}
		kinds = append(kinds, kind)
	}
	return kinds
}

func TestASeedChoosesTheSameFaultsAgain(t *testing.T) {
	if !slices.Equal(throws(7), throws(7)) {
		t.Error("one seed, two histories")
	}
	if slices.Equal(throws(7), throws(8)) {
		t.Error("two seeds, one history")
	}
	t.Setenv(faulttest.SeedEnv, "7")
	if seed := faulttest.NewSeed(); seed != 7 {
		t.Errorf("seed %d, want the environment's", seed)
	}
}

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// ask sends a message and returns what of it comes back before the connection ends.
func ask(t *testing.T, addr string, message []byte) []byte {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(message); err != nil {
		return nil
	}
	got := make([]byte, len(message))
	n, _ := io.ReadFull(c, got)
	return got[:n]
}

func TestALinkBreaksConnectionsAndNothingElse(t *testing.T) {
	message := bytes.Repeat([]byte("dedup"), 100)
	target := echo(t)
	whole := faulttest.StartLink(t, target, faulttest.NewDice(1, 0))
	if got := ask(t, whole.Addr, message); !bytes.Equal(got, message) {
		t.Errorf("without faults %d of %d bytes came back", len(got), len(message))
	}
	dice := faulttest.NewDice(1, 4)
	link := faulttest.StartLink(t, target, dice)
	lengths := map[int]int{}
	for range 60 {
		got := ask(t, link.Addr, message)
		if !bytes.HasPrefix(message, got) {
			t.Fatalf("came back altered: %q", got)
		}
		lengths[len(got)]++
	}
	if lengths[0] == 0 || lengths[len(message)/2] == 0 || lengths[len(message)] == 0 {
		t.Errorf("by length: %v; want some nothing, some half and some whole", lengths)
	}
	if link.Broken() == 0 || link.Broken() >= dice.Thrown() {
		t.Errorf("%d broken of %d thrown: want delays to be the rest", link.Broken(), dice.Thrown())
	}
	dice.OneIn(0)
	if got := ask(t, link.Addr, message); !bytes.Equal(got, message) {
		t.Errorf("at rest %d of %d bytes came back", len(got), len(message))
	}
}
