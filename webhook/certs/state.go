// Package certs keeps the webhook's serving certificate: it makes it, renews it and has the API
// server trust it, without a moment in which the certificate served is one that is not trusted.
//
// There is no authority: each certificate is self-signed and trusted by itself, so that what is
// trusted can sign nothing. A renewal takes two steps, an Overlap apart: the next certificate is
// made and published as trusted, beside the present one; then it is served. What was served stays
// trusted until it expires, for the replicas of the operator that notice later.
package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

const (
	// Lifetime is how long a certificate is valid.
	Lifetime = 90 * 24 * time.Hour
	// RenewAfter is the age at which a certificate's successor is made.
	RenewAfter = 60 * 24 * time.Hour
	// Overlap is how long a successor is published before it is served: far longer than an API
	// server needs to see a changed webhook configuration.
	Overlap = time.Hour

	// maxTrusted bounds the bundle, should something make one certificate after the other.
	maxTrusted = 8

	// skew is by how much a certificate is valid early, for clocks that are behind.
	skew = time.Hour
)

// The Secret's keys. The first three are those of cert-manager and of kubernetes.io/tls.
const (
	keyServing     = "tls.key"
	certServing    = "tls.crt"
	certTrusted    = "ca.crt"
	keyNext        = "next.key"
	certNext       = "next.crt"
	pemCertificate = "CERTIFICATE"
)

// State is what the Secret holds.
type State struct {
	Serving *Pair               // nil if there is none, or none that can be read
	Next    *Pair               // nil outside a renewal
	Trusted []*x509.Certificate // what the API server is to trust, Serving and Next included
}

// Pair is a certificate with its key.
type Pair struct {
	TLS             tls.Certificate
	certPEM, keyPEM []byte
}

func (p *Pair) leaf() *x509.Certificate { return p.TLS.Leaf }
func (p *Pair) made() time.Time         { return p.leaf().NotBefore.Add(skew) }
func (p *Pair) renewAt() time.Time      { return p.made().Add(RenewAfter) }

// serves reports whether clients that connect to the hosts accept the certificate at that time.
func (p *Pair) serves(hosts []string, at time.Time) bool {
	if p == nil || at.Before(p.leaf().NotBefore) || !at.Before(p.leaf().NotAfter) {
		return false
	}
	for _, host := range hosts {
		if p.leaf().VerifyHostname(host) != nil {
			return false
		}
	}
	return true
}

// Advance returns the state that is due, and when to ask again. Published is what the API server
// trusts at this time, PEM-encoded. Hosts are those under which it reaches the webhook.
func Advance(s State, at time.Time, hosts []string, published []byte) (State, time.Time, error) {
	var err error
	switch {
	case !s.Serving.serves(hosts, at):
		// Nothing can be served, so there is nothing to overlap with.
		s.Next = nil
		s.Serving, err = newPair(hosts, at)
	case at.Before(s.Serving.renewAt()):
		s.Next = nil
	case !s.Next.serves(hosts, at):
		s.Next, err = newPair(hosts, at)
	case !at.Before(s.Next.made().Add(Overlap)) && slices.ContainsFunc(parseCertificates(published), s.Next.leaf().Equal):
		s.Serving, s.Next = s.Next, nil
	}
	if err != nil {
		return s, time.Time{}, err
	}
	s.Trusted = trusted(s, at)
	if s.Next == nil {
		return s, s.Serving.renewAt(), nil
	}
	due := s.Next.made().Add(Overlap)
	if !due.After(at) { // not published in time: its publication wakes us, this is the fallback
		due = at.Add(Overlap)
	}
	return s, due, nil
}

// trusted are Serving, Next, and of what was trusted the rest that has not expired.
func trusted(s State, at time.Time) []*x509.Certificate {
	list := []*x509.Certificate{s.Serving.leaf()}
	if s.Next != nil {
		list = append(list, s.Next.leaf())
	}
	for _, c := range s.Trusted {
		if at.Before(c.NotAfter) && !slices.ContainsFunc(list, c.Equal) {
			list = append(list, c)
		}
	}
	return list[:min(len(list), maxTrusted)]
}

// Bundle is what the API server is to trust, PEM-encoded.
func (s State) Bundle() []byte {
	var b bytes.Buffer
	for _, c := range s.Trusted {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw}))
	}
	return b.Bytes()
}

// ParseState reads a Secret's data. What cannot be read counts as absent, and so is made anew.
func ParseState(data map[string][]byte) State {
	return State{
		Serving: parsePair(data[certServing], data[keyServing]),
		Next:    parsePair(data[certNext], data[keyNext]),
		Trusted: parseCertificates(data[certTrusted]),
	}
}

// Data is the Secret's data.
func (s State) Data() map[string][]byte {
	data := map[string][]byte{
		certServing: s.Serving.certPEM,
		keyServing:  s.Serving.keyPEM,
		certTrusted: s.Bundle(),
	}
	if s.Next != nil {
		data[certNext], data[keyNext] = s.Next.certPEM, s.Next.keyPEM
	}
	return data
}

func parsePair(certPEM, keyPEM []byte) *Pair {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil
	}
	return &Pair{TLS: pair, certPEM: certPEM, keyPEM: keyPEM}
}

// parseCertificates are the certificates of a PEM bundle that can be read.
func parseCertificates(bundle []byte) []*x509.Certificate {
	var list []*x509.Certificate
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			list = append(list, c)
		}
	}
	return list
}

// newPair makes a self-signed certificate for the hosts, names or IP addresses.
func newPair(hosts []string, at time.Time) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the webhook's key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making the webhook's certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "dedup-operator webhook"},
		NotBefore:             at.Add(-skew),
		NotAfter:              at.Add(Lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the webhook's certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the webhook's key: %w", err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	pair := parsePair(certPEM, keyPEM)
	if pair == nil {
		return nil, fmt.Errorf("the webhook's certificate for %v does not match its key", hosts)
	}
	return pair, nil
}
