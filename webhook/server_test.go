package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/webhook"
)

// The client is like the API server: HTTP/1.1, with connections that it keeps.
func TestAServerThatStopsClosesConnectionsByItsAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	// httptest has a certificate at hand.
	borrowed := httptest.NewTLSServer(http.NotFoundHandler())
	defer borrowed.Close()
	server := NewServer(webhook.Options{Host: "127.0.0.1", Port: port, TLSOpts: []func(*tls.Config){func(c *tls.Config) {
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &borrowed.TLS.Certificates[0], nil }
	}}})
	lingering, enough := make(chan struct{}), make(chan time.Time)
	server.after = func(time.Duration) <-chan time.Time { close(lingering); return enough }
	server.Register(Path, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Start(ctx) }()

	roots := x509.NewCertPool()
	roots.AddCert(borrowed.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}} // with a configuration of its own it speaks HTTP/1.1
	defer transport.CloseIdleConnections()
	ask := func() (reused, closes bool, err error) {
		trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }}
		url := fmt.Sprintf("https://127.0.0.1:%d%s", port, Path)
		r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, url, http.NoBody)
		if err != nil {
			return false, false, err
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			return false, false, err
		}
		return reused, answer.Close, answer.Body.Close()
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, _, err = ask(); err != nil; _, _, err = ask() {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	expect := func(when string, wantReused, wantCloses bool) {
		t.Helper()
		reused, closes, err := ask()
		if err != nil || reused != wantReused || closes != wantCloses {
			t.Errorf("%s: on a kept connection %v, closed by the answer %v, %v; want %v, %v", when, reused, closes, err, wantReused, wantCloses)
		}
	}
	expect("while it serves", true, false)
	stop()
	<-lingering
	expect("when it is to stop", true, true)
	expect("on a new connection", false, true)
	enough <- time.Now()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it does not end")
	}
}
