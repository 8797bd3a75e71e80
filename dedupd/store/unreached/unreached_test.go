package unreached_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store/unreached"
)

// TestWhyNamesTheAddressAndWhatWouldBeRight: what is of a dial is about the address dialled.
func TestWhyNamesTheAddressAndWhatWouldBeRight(t *testing.T) {
	server := &unreached.Server{Field: "store.some", Addresses: []string{"a:1", "b:2"}, Timeout: time.Second}
	dial := func(err error) error { return fmt.Errorf("call: %w", &unreached.Dial{Addr: "b:2", Err: err}) }
	unknown := &net.DNSError{Name: "c", Err: "no such host", IsNotFound: true}
	certificate := &x509.Certificate{DNSNames: []string{"a"}}
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}
	const wantsCert = "the server ends the TLS connection (remote error: tls: bad certificate): " +
		"if it wants a client certificate of its authority, name the Secret with tls.crt and tls.key in store.some.tls.clientSecretRef"
	tests := map[string]struct {
		err  error
		want string
	}{
		"a name that is not there, dialled":     {dial(unknown), "b:2: no such host"},
		"a name that is not there":              {unknown, "c: no such host"},
		"a name that is not there, and another": {errors.Join(dial(syscall.ECONNREFUSED), unknown), "c: no such host"},
		"a resolver that fails":                 {dial(&net.DNSError{Err: "server misbehaving", IsTimeout: true}), "b:2: the name is not resolved: server misbehaving"},
		"nothing listens":                       {dial(syscall.ECONNREFUSED), "b:2: connection refused: nothing listens there"},
		"an unknown authority": {dial(x509.UnknownAuthorityError{}),
			"b:2: the server's certificate is of an unknown authority: name the Secret with its ca.crt in store.some.tls.caSecretRef"},
		"another's name": {dial(x509.HostnameError{Certificate: certificate, Host: "b"}),
			"b:2: x509: certificate is valid for a, not b: set store.some.tls.serverName to a name that the certificate bears"},
		"a certificate that is over": {dial(x509.CertificateInvalidError{Reason: x509.Expired}),
			"b:2: the server's certificate is not valid: x509: certificate has expired or is not yet valid: "},
		"an alert in the handshake":    {dial(alert), "b:2: " + wantsCert},
		"an alert after the handshake": {alert, "a:1, b:2: " + wantsCert},
		"a dial that takes long":       {dial(os.ErrDeadlineExceeded), "b:2: no connection within 1s: the server is down or behind a firewall"},
		"a call that takes long": {context.DeadlineExceeded,
			"a:1, b:2: no answer in time, which is 1s at most: the server is down, overloaded or behind a firewall"},
		"a caller that left": {context.Canceled, "a:1, b:2: the caller gave up before the server answered"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got, want := server.Why(test.err), "store.some.addresses "+test.want; got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
	for _, err := range []error{io.EOF, dial(io.EOF), errors.New("WRONGTYPE")} {
		if got := server.Why(err); got != "" {
			t.Errorf("%v: %q, want nothing: the store knows its server", err, got)
		}
	}
}
