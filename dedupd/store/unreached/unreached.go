// Package unreached says in the policy's words why a store's server is not reached.
package unreached

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Dial is why there is no connection to an address.
type Dial struct {
	Addr string
	Err  error
}

func (d *Dial) Error() string { return fmt.Sprintf("dial %s: %v", d.Addr, d.Err) }
func (d *Dial) Unwrap() error { return d.Err }

// Server is what a policy says of a store's server.
type Server struct {
	// Field is the store's place in the policy, such as store.redis.
	Field string

	Addresses []string

	// Timeout is how long a call, or a dial, may take.
	Timeout time.Duration
}

// At names the field that is at fault, with the address if one is known and all of them if not.
func (s *Server) At(addr, what string) string {
	if addr == "" {
		addr = strings.Join(s.Addresses, ", ")
	}
	return fmt.Sprintf("%s.addresses %s: %s", s.Field, addr, what)
}

// Why says why nothing was answered, if that has nothing to do with what kind of server it is;
// otherwise it says nothing. An error that comes of a Dial is about its address.
func (s *Server) Why(err error) string {
	var (
		dial *Dial
		dns  *net.DNSError
		addr string
	)
	dialled := errors.As(err, &dial)
	if dialled {
		addr = dial.Addr
	}
	if what := s.untrusted(err); what != "" {
		return s.At(addr, what)
	}
	if errors.As(err, &dns) && (!dialled || !errors.As(dial, &dns)) {
		addr = dns.Name // looked up before any dial; what was dialled is another address
	}
	switch {
	case dns != nil && dns.IsNotFound:
		return s.At(addr, "no such host")
	case dns != nil:
		return s.At(addr, "the name is not resolved: "+dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return s.At(addr, "connection refused: nothing listens there")
	case IsTimeout(err) && dialled:
		return s.At(addr, fmt.Sprintf("no connection within %s: the server is down or behind a firewall", s.Timeout))
	case IsTimeout(err):
		return s.At("", fmt.Sprintf("no answer in time, which is %s at most: the server is down, overloaded or behind a firewall", s.Timeout))
	case errors.Is(err, context.Canceled):
		return s.At("", "the caller gave up before the server answered")
	}
	return ""
}

// untrusted says what one side holds against the other's certificate, if anything.
func (s *Server) untrusted(err error) string {
	var (
		authority x509.UnknownAuthorityError
		misnamed  x509.HostnameError
		invalid   x509.CertificateInvalidError
		alert     *net.OpError
	)
	switch {
	case errors.As(err, &authority):
		return fmt.Sprintf("the server's certificate is of an unknown authority: name the Secret with its ca.crt in %s.tls.caSecretRef", s.Field)
	case errors.As(err, &misnamed):
		return fmt.Sprintf("%v: set %s.tls.serverName to a name that the certificate bears", misnamed, s.Field)
	case errors.As(err, &invalid):
		return fmt.Sprintf("the server's certificate is not valid: %v", invalid)
	case errors.As(err, &alert) && alert.Op == "remote error":
		// The type of a TLS alert is not exported. With TLS 1.3 the server speaks of the
		// client's certificate after the handshake.
		return fmt.Sprintf("the server ends the TLS connection (%v): if it wants a client certificate of its authority, name the Secret with tls.crt and tls.key in %s.tls.clientSecretRef",
			alert, s.Field)
	}
	return ""
}

// IsTimeout says whether the time was over, whoever's it was.
func IsTimeout(err error) bool {
	var netErr net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &netErr) && netErr.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}
