package certs

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"
)

var (
	epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	hosts = []string{"dedup-operator-webhook.dedup-system.svc", "127.0.0.1"}
)

func TestAdvance(t *testing.T) {
	type step struct {
		after     time.Duration // since epoch
		hosts     []string      // default hosts
		published bool          // whether the previous step's bundle reached the API server
		tamper    func(data map[string][]byte)

		serving, next string // which certificate, named in the order of their making: a, b, c
		trusted       int
	}
	for name, steps := range map[string][]step{
		"a first certificate is served at once": {
			{serving: "a", trusted: 1},
			{after: time.Minute, published: true, serving: "a", trusted: 1},
		},
		"a successor is made after 60 days, and served an overlap after it was published": {
			{serving: "a", trusted: 1},
			{after: RenewAfter - time.Second, published: true, serving: "a", trusted: 1},
			{after: RenewAfter, published: true, serving: "a", next: "b", trusted: 2},
			{after: RenewAfter + Overlap - time.Second, published: true, serving: "a", next: "b", trusted: 2},
			{after: RenewAfter + Overlap, published: true, serving: "b", trusted: 2},
			{after: Lifetime - time.Second, published: true, serving: "b", trusted: 2},
			{after: Lifetime, published: true, serving: "b", trusted: 1},
		},
		"a successor that is not published is not served": {
			{serving: "a", trusted: 1},
			{after: RenewAfter, published: true, serving: "a", next: "b", trusted: 2},
			{after: RenewAfter + 2*Overlap, published: false, serving: "a", next: "b", trusted: 2},
			{after: RenewAfter + 3*Overlap, published: true, serving: "b", trusted: 2},
		},
		"an expired certificate is replaced at once": {
			{serving: "a", trusted: 1},
			{after: Lifetime, published: true, serving: "b", trusted: 1},
		},
		"a certificate for other hosts is replaced at once, and stays trusted": {
			{serving: "a", trusted: 1},
			{after: time.Hour, hosts: []string{"webhook.elsewhere.svc"}, published: true, serving: "b", trusted: 2},
		},
		"a key that does not belong to its certificate is replaced": {
			{serving: "a", trusted: 1},
			{after: time.Hour, published: true, serving: "b", trusted: 2, tamper: func(d map[string][]byte) { d["tls.key"] = []byte("no key") }},
		},
		"a Secret that somebody emptied is filled again": {
			{serving: "a", trusted: 1},
			{after: time.Hour, published: true, serving: "b", trusted: 1, tamper: func(d map[string][]byte) { clear(d) }},
		},
	} {
		t.Run(name, func(t *testing.T) {
			names := map[string]string{} // fingerprint to name
			nameOf := func(p *Pair) string {
				if p == nil {
					return ""
				}
				raw := string(p.leaf().Raw)
				if names[raw] == "" {
					names[raw] = string(rune('a' + len(names)))
				}
				return names[raw]
			}
			data, published := map[string][]byte{}, []byte(nil)
			for i, s := range steps {
				if s.published {
					published = data[certTrusted]
				}
				if s.tamper != nil {
					s.tamper(data)
				}
				if s.hosts == nil {
					s.hosts = hosts
				}
				at := epoch.Add(s.after)
				state, due, err := Advance(ParseState(data), at, s.hosts, published)
				if err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				serving, next := nameOf(state.Serving), nameOf(state.Next)
				if serving != s.serving || next != s.next || len(state.Trusted) != s.trusted {
					t.Fatalf("step %d: serving %q, next %q, %d trusted; want %q, %q, %d", i, serving, next, len(state.Trusted), s.serving, s.next, s.trusted)
				}
				if !due.After(at) {
					t.Fatalf("step %d: due %v is not after %v", i, due, at)
				}
				data = state.Data()
			}
		})
	}
}

// Over two renewals, hour by hour: an API server that sees each bundle an hour late accepts what
// a replica serves that sees each Secret an hour late.
func TestWhatIsServedIsTrustedOverTwoRenewals(t *testing.T) {
	var served []*Pair
	var published [][]byte
	data, distinct := map[string][]byte{}, 0
	for at := epoch; at.Before(epoch.Add(2*RenewAfter + 2*Lifetime)); at = at.Add(time.Hour) {
		var seen []byte
		if n := len(published); n > 0 {
			seen = published[n-1]
		}
		state, _, err := Advance(ParseState(data), at, hosts, seen)
		if err != nil {
			t.Fatal(err)
		}
		data = state.Data()
		if n := len(served); n == 0 || !served[n-1].leaf().Equal(state.Serving.leaf()) {
			distinct++
		}
		served, published = append(served, state.Serving), append(published, state.Bundle())
		n := len(served) - 1
		for _, server := range []int{n, max(n-1, 0)} {
			for _, client := range []int{n, max(n-1, 0)} {
				if err := handshake(served[server], published[client], at); err != nil {
					t.Fatalf("%v: served at step %d, trusted at step %d: %v", at, server, client, err)
				}
			}
		}
	}
	if distinct < 3 {
		t.Errorf("%d certificates were served, want at least 3", distinct)
	}
}

// handshake verifies a certificate as the API server does.
func handshake(p *Pair, bundle []byte, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	_, err := p.leaf().Verify(x509.VerifyOptions{Roots: roots, DNSName: hosts[0], CurrentTime: at})
	return err
}

func TestTLSHandshake(t *testing.T) {
	state, _, err := Advance(State{}, time.Now(), hosts, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, serverName := range map[string]string{"by the Service's name": hosts[0], "by address": "127.0.0.1"} {
		t.Run(name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(state.Bundle())
			client, server := net.Pipe()
			served := make(chan error, 1)
			go func() {
				served <- tls.Server(server, &tls.Config{Certificates: []tls.Certificate{state.Serving.TLS}}).Handshake()
			}()
			if err := tls.Client(client, &tls.Config{RootCAs: roots, ServerName: serverName}).Handshake(); err != nil {
				t.Fatal(err)
			}
			if err := client.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheBundleIsBounded(t *testing.T) {
	state := State{}
	for range 2 * maxTrusted {
		state.Serving = nil
		var err error
		if state, _, err = Advance(state, epoch, hosts, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(state.Trusted) != maxTrusted {
		t.Errorf("%d certificates trusted, want %d", len(state.Trusted), maxTrusted)
	}
}
