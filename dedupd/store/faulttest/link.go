package faulttest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Link is a TCP proxy that knows nothing of what it carries, and breaks it.
type Link struct {
	// Addr is where the link listens.
	Addr string

	target string
	dice   *Dice
	mu     sync.Mutex
	conns  []net.Conn     // guarded by mu
	broken int            // guarded by mu
	group  sync.WaitGroup // the connections at work
}

// What happens to a piece of a stream, of whatever size the network makes it.
const (
	drop     = iota // both directions end, and the piece with them
	delay           // the piece waits
	truncate        // a part of it arrives, then both directions end
	halve           // this direction ends, the other goes on
	faults
)

// MaxDelay is the longest that anything is kept.
const MaxDelay = 50 * time.Millisecond

// StartLink starts a link before target. It ends with the test.
func StartLink(tb testing.TB, target string, dice *Dice) *Link {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	link := &Link{Addr: l.Addr().String(), target: target, dice: dice}
	link.group.Go(func() { link.accept(l) })
	tb.Cleanup(func() {
		_ = l.Close()
		link.Cut()
		link.group.Wait()
	})
	return link
}

// Broken is how many connections the dice have broken. What they carried may have arrived.
func (l *Link) Broken() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

// Cut ends every connection. New ones may be made.
func (l *Link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
	l.conns = nil
}

func (l *Link) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", l.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		l.mu.Lock()
		l.conns = append(l.conns, client, server)
		l.mu.Unlock()
		l.group.Go(func() { l.carry(client, server) })
		l.group.Go(func() { l.carry(server, client) })
	}
}

// carry carries one direction of a connection.
func (l *Link) carry(from, to net.Conn) {
	piece := make([]byte, 32<<10)
	for {
		n, err := from.Read(piece)
		if n > 0 && !l.pass(piece[:n], from, to) {
			return
		}
		if err != nil {
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

// pass hands a piece on, or breaks the connection, and says whether the direction goes on.
func (l *Link) pass(piece []byte, from, to net.Conn) bool {
	kind, wrong := l.dice.Throw(faults)
	if wrong && kind != delay {
		l.mu.Lock()
		l.broken++
		l.mu.Unlock()
	}
	switch {
	case wrong && kind == drop:
		end(from, to)
		return false
	case wrong && kind == truncate:
		_, _ = to.Write(piece[:len(piece)/2])
		end(from, to)
		return false
	case wrong && kind == halve:
		_ = to.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, from)
		return false
	case wrong && kind == delay:
		time.Sleep(MaxDelay)
	}
	if _, err := to.Write(piece); err != nil {
		end(from, to)
		return false
	}
	return true
}

func end(conns ...net.Conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}
