package redistest

import (
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
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// The users of a server with Config.ACL. The password of each is its name and "-pw".
const (
	// User is the one that a policy's Secret names. It may do what the documentation asks for.
	User = "dedupd"

	admin   = "admin"   // runs the test's own commands
	replica = "replica" // of replicas and sentinels
)

func passwordOf(user string) string { return user + "-pw" }

// Permissions are what dedupd's user needs on the keys of its prefix, as the documentation has them.
const Permissions = "+set +get +pttl +del +eval +evalsha +time +ping +info " +
	"+hget +hset +hdel +hlen +hscan +pexpire" // of keyFormat Compact and Dense

// ClusterPermissions are what it needs besides in a cluster, SentinelPermissions what it needs of
// sentinels instead, on all channels.
const (
	ClusterPermissions  = "+cluster|slots +cluster|shards +asking"
	SentinelPermissions = "+sentinel|get-master-addr-by-name +sentinel|sentinels +subscribe +ping +info"
)

// Authority signs certificates.
type Authority struct {
	// PEM is its own certificate.
	PEM string

	tb     testing.TB
	others []*Authority // that the test's own connections trust as well
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial atomic.Int64
}

// NewAuthority returns a new authority.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	a := &Authority{tb: tb, key: newKey(tb)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test authority " + rand.Text()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	a.PEM = encode("CERTIFICATE", der)
	return a
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// Issue returns a certificate for names or addresses, of which the first is its subject, and its
// key. It is good for servers and for clients.
func (a *Authority) Issue(names ...string) (cert, key string) {
	a.tb.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.serial.Add(1)), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	private := newKey(a.tb)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		a.tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.tb.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
}

// Trust lets the test's own connections go to servers with another authority's certificates.
func (a *Authority) Trust(other *Authority) { a.others = append(a.others, other) }

// client is the configuration of a client that the authority's servers accept.
func (a *Authority) client(tb testing.TB) *tls.Config {
	tb.Helper()
	cert, key := a.Issue("test")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		tb.Fatal(err)
	}
	roots := x509.NewCertPool()
	for _, authority := range append(a.others, a) {
		roots.AddCert(authority.cert)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: []tls.Certificate{pair}}
}

// security are a server's arguments about its port, TLS and users.
func (c Config) security(tb testing.TB, dir, port string) []string {
	tb.Helper()
	args := []string{"--port", port}
	if c.TLS != nil {
		cert, key := c.TLS.Issue("redis.test", "127.0.0.1")
		for name, content := range map[string]string{"ca.crt": c.TLS.PEM, "tls.crt": cert, "tls.key": key} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				tb.Fatal(err)
			}
		}
		args = []string{
			"--port", "0", "--tls-port", port, "--tls-auth-clients", "yes", "--tls-replication", "yes",
			"--tls-ca-cert-file", filepath.Join(dir, "ca.crt"),
			"--tls-cert-file", filepath.Join(dir, "tls.crt"), "--tls-key-file", filepath.Join(dir, "tls.key"),
		}
	}
	if c.ACL {
		everything := " ~* &* +@all"
		for _, user := range []string{
			admin + " on >" + passwordOf(admin) + everything,
			replica + " on >" + passwordOf(replica) + everything,
			User + " on >" + passwordOf(User) + " resetchannels ~* " + c.permissions(),
			"default off",
		} {
			args = append(append(args, "--user"), strings.Fields(user)...)
		}
	}
	return args
}

// permissions are what dedupd's user has on a server.
func (c Config) permissions() string {
	switch {
	case slices.Contains(c.Args, "--sentinel"):
		return "&* " + SentinelPermissions
	case slices.Contains(c.Args, "--cluster-enabled"):
		return Permissions + " " + ClusterPermissions
	}
	return Permissions
}

// access fills in how a policy's store reaches servers of this Config, and the Secrets for it.
func (c Config) access(tb testing.TB, spec *v1alpha1.RedisStore) (secretsDir string) {
	tb.Helper()
	dir := tb.TempDir()
	if c.ACL {
		spec.CredentialsSecretRef = &v1alpha1.SecretRef{Name: "credentials"}
		WriteSecret(tb, dir, "credentials", map[string]string{"username": User, "password": passwordOf(User) + "\n"})
	}
	if c.TLS != nil {
		spec.TLS = &v1alpha1.StoreTLS{CASecretRef: &v1alpha1.SecretRef{Name: "ca"}, ClientSecretRef: &v1alpha1.SecretRef{Name: "client"}}
		cert, key := c.TLS.Issue("dedupd")
		WriteSecret(tb, dir, "ca", map[string]string{"ca.crt": c.TLS.PEM})
		WriteSecret(tb, dir, "client", map[string]string{"tls.crt": cert, "tls.key": key})
	}
	return dir
}

var generation atomic.Int64

// WriteSecret puts a Secret into the folder dir/name as the kubelet does, at first and when its
// content changes: each key is a link through the link ..data, which is replaced in one step.
func WriteSecret(tb testing.TB, dir, name string, content map[string]string) {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	folder := filepath.Join(dir, name)
	version := fmt.Sprintf("..%d", generation.Add(1))
	data := filepath.Join(folder, "..data")
	before, _ := os.Readlink(data)
	must(os.MkdirAll(filepath.Join(folder, version), 0o700))
	for key, value := range content {
		must(os.WriteFile(filepath.Join(folder, version, key), []byte(value), 0o600))
	}
	must(os.Symlink(version, data+"_tmp"))
	must(os.Rename(data+"_tmp", data))
	for key := range content {
		if link := filepath.Join(folder, key); before == "" {
			must(os.Symlink(filepath.Join("..data", key), link))
		}
	}
	if before != "" {
		must(os.RemoveAll(filepath.Join(folder, before)))
	}
}
