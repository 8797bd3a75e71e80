package redistest

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Proxy stands between a client and a server and lets replies get lost.
type Proxy struct {
	// Addr is where the proxy listens.
	Addr string

	target string
	mu     sync.Mutex
	rule   Rule           // guarded by mu
	conns  []io.Closer    // guarded by mu
	group  sync.WaitGroup // the connections at work
}

// Rule says what becomes of a reply: the request that it answers goes in, its arguments as
// they were sent; what comes out is done with the reply, which the server has given already.
type Rule func(request []string) Fate

// Fate is what becomes of a reply.
type Fate struct {
	// Drop closes the connection in the reply's place.
	Drop bool

	// Say is sent in the reply's place, such as "-LOADING ...\r\n".
	Say string

	// Delay is how long the reply is kept.
	Delay time.Duration
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
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.group.Wait()
	})
	return p
}

// Set sets the rule for the replies to come; nil passes everything.
func (p *Proxy) Set(rule Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule = rule
}

// DropOnce is a rule that drops the reply to the nth request of a command, counted from one,
// once. Dropped reports whether it has.
func DropOnce(command string, nth int) (rule Rule, dropped func() bool) {
	var mu sync.Mutex
	return func(request []string) Fate {
			mu.Lock()
			defer mu.Unlock()
			if request[0] == command {
				nth--
			}
			return Fate{Drop: request[0] == command && nth == 0}
		}, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return nth <= 0
		}
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
		requests := make(chan []string, 1<<16)
		p.group.Go(func() {
			defer func() { _ = server.Close() }()
			defer close(requests)
			forward(server, bufio.NewReader(client), requests)
		})
		p.group.Go(func() {
			defer func() { _ = client.Close() }()
			p.answer(client, bufio.NewReader(server), requests)
		})
	}
}

// forward passes requests on, and notes each.
func forward(server io.Writer, client *bufio.Reader, requests chan<- []string) {
	for {
		raw, args, err := readValue(client, nil, nil)
		if err != nil {
			return
		}
		requests <- args
		if _, err := server.Write(raw); err != nil {
			return
		}
	}
}

// answer passes replies on as the rule says. A reply exists, and so the server has carried
// out its request, before the rule is asked.
func (p *Proxy) answer(client io.Writer, server *bufio.Reader, requests <-chan []string) {
	for {
		raw, _, err := readValue(server, nil, nil)
		if err != nil {
			return
		}
		p.mu.Lock()
		rule := p.rule
		p.mu.Unlock()
		request := <-requests
		if rule != nil {
			fate := rule(request)
			if fate.Drop {
				return
			}
			if fate.Say != "" {
				raw = []byte(fate.Say)
			}
			time.Sleep(fate.Delay)
		}
		if _, err := client.Write(raw); err != nil {
			return
		}
	}
}

var errProtocol = errors.New("not the Redis protocol")

// readValue reads one value of the Redis protocol. It appends its bytes to raw and the bulk
// strings in it to args.
func readValue(r *bufio.Reader, raw []byte, args []string) ([]byte, []string, error) {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, nil, err
	}
	if len(line) < 3 {
		return nil, nil, errProtocol
	}
	raw = append(raw, line...)
	switch line[0] {
	case '$', '*', '%':
	default:
		return raw, args, nil
	}
	n, err := strconv.Atoi(string(line[1 : len(line)-2]))
	if err != nil {
		return nil, nil, err
	}
	if line[0] == '$' {
		if n < 0 {
			return raw, args, nil
		}
		bulk := make([]byte, n+2)
		if _, err := io.ReadFull(r, bulk); err != nil {
			return nil, nil, err
		}
		return append(raw, bulk...), append(args, string(bulk[:n])), nil
	}
	if line[0] == '%' {
		n *= 2
	}
	for range n {
		if raw, args, err = readValue(r, raw, args); err != nil {
			return nil, nil, err
		}
	}
	return raw, args, nil
}
