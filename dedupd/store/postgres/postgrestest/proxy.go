package postgrestest

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
)

// Proxy stands between a client and a server and lets answers get lost.
type Proxy struct {
	// Addr is where the proxy listens.
	Addr string

	target string
	mu     sync.Mutex
	drops  int         // guarded by mu; how many answers are still to be dropped
	after  int         // guarded by mu; how many are passed before
	conns  []io.Closer // guarded by mu
	group  sync.WaitGroup
}

// StartProxy starts a proxy before target that passes everything.
func StartProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), target: target}
	p.group.Go(func() { p.accept(l) })
	tb.Cleanup(func() {
		_ = l.Close()
		p.Cut()
		p.group.Wait()
	})
	return p
}

// Drop closes the connection in the place of the next n answers that say that a transaction is
// over: the server has carried it out. The first after answers are passed.
func (p *Proxy) Drop(n, after int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drops, p.after = n, after
}

// Left is how many answers are still to be dropped.
func (p *Proxy) Left() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.drops
}

// Cut closes every connection.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}

func (p *Proxy) accept(l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		p.group.Go(func() {
			defer func() { _ = server.Close() }()
			_, _ = io.Copy(server, client)
		})
		p.group.Go(func() {
			defer func() { _ = client.Close() }()
			p.answer(client, server)
		})
	}
}

// answer passes the server's messages on, unless an answer is to be dropped. It exists, and so the server has
// carried out what it answers, once the message ReadyForQuery has come.
func (p *Proxy) answer(client io.Writer, server io.Reader) {
	var answer []byte
	ready, done := 0, false
	for {
		header := make([]byte, 5)
		if _, err := io.ReadFull(server, header); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(header[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return
		}
		answer = append(append(answer, header...), body...)
		switch header[0] {
		case 'C':
			done = true // a command, and not only its preparation
		case 'Z':
			// The first two are of the beginning of the session.
			if ready++; ready > 2 && done && p.drop() {
				return
			}
			done = false
		}
		if header[0] != 'Z' && ready > 0 {
			continue // held back until the answer is complete
		}
		if _, err := client.Write(answer); err != nil {
			return
		}
		answer = answer[:0]
	}
}

func (p *Proxy) drop() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.drops == 0 {
		return false
	}
	if p.after > 0 {
		p.after--
		return false
	}
	p.drops--
	return true
}
