package postgres_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres"
	"github.com/dedupd/dedup-operator/dedupd/store/postgres/postgrestest"
)

func rewrite(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAPasswordIsRotatedWithoutAFailedCall: the role gets the new one, later the Secret does, and
// later still the connections end.
func TestAPasswordIsRotatedWithoutAFailedCall(t *testing.T) {
	server := postgrestest.Shared(t)
	database := server.Database()
	server.Must("CREATE ROLE rotated LOGIN PASSWORD 'first'")
	server.Must("ALTER DATABASE " + database + " OWNER TO rotated")
	dir := postgrestest.Secrets(t, map[string]string{"creds/username": "rotated\n", "creds/password": "first\n"})
	s := newStore(t, server.Addr, database, func(o *postgres.Options) { o.SecretsDir = dir })
	attempt := 0
	works := func(when string) {
		t.Helper()
		attempt++
		r := apply(s, op(store.Mark, "k", fmt.Sprint(attempt)))[0]
		if r.Err != nil || (r.Outcome == store.Granted) != (attempt == 1) {
			t.Fatalf("%s: %+v", when, r)
		}
	}
	works("at the beginning")
	server.Must("ALTER ROLE rotated PASSWORD 'second'")
	works("with the connections that are open")
	rewrite(t, dir, "creds/password", "second\n")
	works("after the Secret has changed")
	server.Must("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'")
	works("on a new connection")

	server.Must("ALTER ROLE rotated PASSWORD 'third'")
	server.Must("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'")
	r := apply(s, op(store.Mark, "k", "x"))[0]
	if !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "credentialsSecretRef creds") {
		t.Fatalf("with an old password: %+v, want an error that names the Secret", r)
	}
	rewrite(t, dir, "creds/password", "third\n")
	works("once the Secret is right")
}

// authority signs certificates for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = encode("CERTIFICATE", der)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// issue returns a certificate for a name, and its key.
func (a *authority) issue(name string) (cert, key string) {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	private := a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
}

func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	serverCert, serverKey := ours.issue("postgres.test")
	clientCert, clientKey := ours.issue("dedupd")
	strangerCert, strangerKey := theirs.issue("stranger")
	dir := postgrestest.Secrets(t, map[string]string{
		"server/tls.crt": serverCert, "server/tls.key": serverKey,
		"ca/ca.crt": ours.pem, "other-ca/ca.crt": theirs.pem, "no-ca/ca.crt": "hello",
		"client/tls.crt": clientCert, "client/tls.key": clientKey,
		"stranger/tls.crt": strangerCert, "stranger/tls.key": strangerKey,
		"mixed/tls.crt": clientCert, "mixed/tls.key": strangerKey,
		"creds/username": "dedupd", // and no password: the certificate is enough
	})
	server := postgrestest.Start(t, "ssl=on", "ssl_ca_file="+dir+"/ca/ca.crt", "ssl_cert_file="+dir+"/server/tls.crt", "ssl_key_file="+dir+"/server/tls.key")
	server.HBA("hostssl all dedupd 127.0.0.1/32 cert\nhostnossl all dedupd 127.0.0.1/32 reject\n")
	server.Must("CREATE ROLE dedupd LOGIN")
	server.Must("GRANT CREATE ON DATABASE postgres TO dedupd")

	ref := func(name string) *v1alpha1.SecretRef {
		if name == "" {
			return nil
		}
		return &v1alpha1.SecretRef{Name: name}
	}
	with := func(dir, ca, client, name string) func(*postgres.Options) {
		return func(o *postgres.Options) {
			o.SecretsDir = dir
			o.Spec.TLS = &v1alpha1.StoreTLS{CASecretRef: ref(ca), ClientSecretRef: ref(client), ServerName: name}
		}
	}
	tests := map[string]struct {
		ca, client, name string
		want             string // in the error; empty: it works
	}{
		"all is right":                        {ca: "ca", client: "client", name: "postgres.test"},
		"an unknown authority":                {ca: "other-ca", client: "client", name: "postgres.test", want: "store.postgres.tls.caSecretRef"},
		"the system's authorities":            {client: "client", name: "postgres.test", want: "store.postgres.tls.caSecretRef"},
		"a name that the certificate has not": {ca: "ca", client: "client", want: "store.postgres.tls.serverName"},
		"another's client certificate":        {ca: "ca", client: "stranger", name: "postgres.test", want: "store.postgres.tls.clientSecretRef"},
		"a key of another certificate":        {ca: "ca", client: "mixed", name: "postgres.test", want: "store.postgres.tls.clientSecretRef mixed: keys tls.crt and tls.key"},
		"a CA that is none":                   {ca: "no-ca", client: "client", name: "postgres.test", want: "store.postgres.tls.caSecretRef no-ca: key ca.crt holds no certificate"},
		"a Secret that is not there":          {ca: "nowhere", client: "client", name: "postgres.test", want: "store.postgres.tls.caSecretRef nowhere: key ca.crt is not there"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, server.Addr, "postgres", with(dir, test.ca, test.client, test.name))
			if test.want == "" {
				want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)
				return
			}
			r := apply(s, op(store.Mark, "k", "b"))[0]
			if !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), test.want) {
				t.Errorf("%+v, want an error that says %q", r, test.want)
			}
		})
	}
	t.Run("a password where the server wants a certificate", func(t *testing.T) {
		t.Parallel()
		s := newStore(t, server.Addr, "postgres", credentials(t, "dedupd", password), func(o *postgres.Options) {
			rewrite(t, o.SecretsDir, "ca/ca.crt", ours.pem)
			o.Spec.TLS = &v1alpha1.StoreTLS{CASecretRef: ref("ca"), ServerName: "postgres.test"}
		})
		if r := apply(s, op(store.Mark, "k", "b"))[0]; r.Err == nil || !strings.Contains(r.Err.Error(), "store.postgres.tls.clientSecretRef") {
			t.Errorf("%+v, want an error that names the client certificate", r)
		}
	})
	t.Run("no TLS where the server wants it", func(t *testing.T) {
		t.Parallel()
		s := newStore(t, server.Addr, "postgres", credentials(t, "dedupd", password))
		if r := apply(s, op(store.Mark, "k", "b"))[0]; r.Err == nil || !strings.Contains(r.Err.Error(), "store.postgres.tls") {
			t.Errorf("%+v, want an error that names TLS", r)
		}
	})
	t.Run("a certificate that comes later is used by the next connection", func(t *testing.T) {
		t.Parallel()
		late := postgrestest.Secrets(t, map[string]string{"ca/ca.crt": theirs.pem, "creds/username": "dedupd"})
		s := newStore(t, server.Addr, "postgres", with(late, "ca", "client", "postgres.test"))
		if r := apply(s, op(store.Mark, "late", "a"))[0]; r.Err == nil {
			t.Fatalf("%+v, want an error", r)
		}
		rewrite(t, late, "ca/ca.crt", ours.pem)
		rewrite(t, late, "client/tls.crt", clientCert)
		rewrite(t, late, "client/tls.key", clientKey)
		want(t, s, []store.Op{op(store.Mark, "late", "a")}, store.Granted)
	})
}
