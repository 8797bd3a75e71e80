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

// Proxy stands between a client and a server and lets requests and replies go wrong.
type Proxy struct {
	// Addr is where the proxy listens.
	Addr string

	target string
	mu     sync.Mutex
	rule   Rule           // guarded by mu
	before Rule           // guarded by mu
	conns  []io.Closer    // guarded by mu
	group  sync.WaitGroup // the connections at work
}

// Rule says what becomes of a request, whose arguments go in as they were sent, or of the
// reply to it.
type Rule func(request []string) Fate

// Fate is what becomes of a request or a reply. The zero Fate passes it on.
type Fate struct {
	// Drop closes the connection in the reply's place, or without passing the request on.
	Drop bool

	// Say is sent in the reply's place, such as "-LOADING ...\r\n". To a request it is the
	// reply, and the server does not learn of it.
	Say string

	// Delay is how long the request or the reply is kept.
	Delay time.Duration

	// Truncate closes the connection after half of the reply.
	Truncate bool

	// HalfClose ends what the client gets, and goes on passing its requests to the server.
	HalfClose bool
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

// Set sets the rule for the replies to come; nil passes everything. A reply exists, and so the
// server has carried out its request, before the rule is asked.
func (p *Proxy) Set(rule Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule = rule
}

// SetBefore sets the rule for the requests to come; nil passes everything. It is asked before
// the server learns of the request.
func (p *Proxy) SetBefore(rule Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before = rule
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
		c := &conn{
			proxy: p, client: client.(*net.TCPConn), server: server,
			asked: make(chan asked, 1<<16), replies: make(chan []byte), gone: make(chan struct{}), ended: make(chan struct{}),
		}
		p.group.Go(c.forward)
		p.group.Go(c.listen)
		p.group.Go(c.answer)
	}
}

// conn is one connection through the proxy.
type conn struct {
	proxy   *Proxy
	client  *net.TCPConn
	server  net.Conn
	asked   chan asked    // the requests in their order; closed when there will be no more
	replies chan []byte   // the server's; closed when there will be no more
	gone    chan struct{} // closed when the last reply has been taken
	ended   chan struct{} // closed when nobody answers any more
}

// asked is a request, and what is said to it if the server does not learn of it.
type asked struct {
	request []string
	say     string
}

// forward passes requests on, and notes each.
func (c *conn) forward() {
	defer close(c.asked)
	requests := bufio.NewReader(c.client)
	for {
		raw, args, err := readValue(requests, nil, nil)
		if err != nil || len(args) == 0 {
			return // or a stranger's, who takes this port for that of a server which has ended
		}
		fate := c.proxy.fate(func(p *Proxy) Rule { return p.before }, args)
		time.Sleep(fate.Delay)
		if fate.Drop {
			return
		}
		c.asked <- asked{args, fate.Say}
		if fate.Say != "" {
			continue
		}
		if _, err := c.server.Write(raw); err != nil {
			return
		}
	}
}

// listen reads the server's replies until it closes the connection.
func (c *conn) listen() {
	defer close(c.gone)
	defer close(c.replies)
	replies := bufio.NewReader(c.server)
	for {
		raw, _, err := readValue(replies, nil, nil)
		if err != nil {
			return
		}
		select {
		case c.replies <- raw:
		case <-c.ended:
			return
		}
	}
}

// answer gives the client the replies, in the order of its requests.
func (c *conn) answer() {
	defer func() {
		close(c.ended)
		_ = c.server.Close()
		_ = c.client.Close()
	}()
	deaf := false
	for {
		raw, fate, ok := c.next()
		if !ok {
			return
		}
		time.Sleep(fate.Delay)
		switch {
		case fate.Drop:
			return
		case fate.Say != "":
			raw = []byte(fate.Say)
		case fate.Truncate:
			raw = raw[:len(raw)/2]
		case fate.HalfClose && !deaf:
			deaf = true
			_ = c.client.CloseWrite()
		}
		if deaf {
			continue
		}
		if _, err := c.client.Write(raw); err != nil || fate.Truncate {
			return
		}
	}
}

// next waits for the reply to the next request, and asks the rule for its fate. The server's
// end of the connection ends the client's, also while nothing is asked.
func (c *conn) next() ([]byte, Fate, bool) {
	select {
	case a, ok := <-c.asked:
		if !ok || a.say != "" {
			return []byte(a.say), Fate{}, ok
		}
		raw, ok := <-c.replies
		if !ok {
			return nil, Fate{}, false
		}
		return raw, c.proxy.fate(func(p *Proxy) Rule { return p.rule }, a.request), true
	case <-c.gone:
		return nil, Fate{}, false
	}
}

func (p *Proxy) fate(which func(*Proxy) Rule, request []string) Fate {
	p.mu.Lock()
	rule := which(p)
	p.mu.Unlock()
	if rule == nil {
		return Fate{}
	}
	return rule(request)
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
