package redis_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

func rewrite(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestARotatedPasswordIsUsedByTheNextConnection(t *testing.T) {
	server := redistest.Start(t)
	server.Must("acl", "setuser", "joe", "on", ">first", "+@all", "~*")
	dir := secrets(t, map[string]string{"creds/username": "joe\n", "creds/password": "first\n"})
	s := newStore(t, server.Addr, credentials(dir, "creds"), within(2*time.Second))
	want(t, s, []store.Op{op(store.Mark, "k", "a")}, store.Granted)

	server.Must("acl", "setuser", "joe", "resetpass", ">second")
	server.Must("client", "kill", "user", "joe")
	r := apply(s, op(store.Mark, "k", "b"))[0]
	if !errors.Is(r.Err, store.ErrUnavailable) || !strings.Contains(r.Err.Error(), "credentialsSecretRef creds") {
		t.Fatalf("with the old password: %+v, want an error that names the Secret", r)
	}
	rewrite(t, dir, "creds/password", "second\n")
	want(t, s, []store.Op{op(store.Mark, "k", "b")}, store.Seen)
}

func TestTheDocumentedPermissionsAreEnough(t *testing.T) {
	server := redistest.Start(t)
	rules := []any{"acl", "setuser", "joe", "on", ">pw", "resetchannels", "-@all", "~dedup:*"}
	for _, rule := range strings.Fields(redistest.Permissions) {
		rules = append(rules, rule)
	}
	server.Must(rules...)
	dir := secrets(t, map[string]string{"creds/username": "joe", "creds/password": "pw"})
	s := newStore(t, server.Addr, credentials(dir, "creds"))
	want(t, s, []store.Op{op(store.Mark, "dedup:m", "a"), op(store.Claim, "dedup:c", "a")}, store.Granted, store.Granted)
	want(t, s, []store.Op{op(store.Mark, "dedup:m", "b"), op(store.Claim, "dedup:c", "b"), op(store.Lookup, "dedup:c", "")},
		store.Seen, store.Held, store.Granted)
	want(t, s, []store.Op{held(op(store.Complete, "dedup:c", "a"), 1), op(store.Forget, "dedup:m", "")}, store.Granted, store.Granted)
	if h := s.Health(t.Context()); h.Err != nil {
		t.Errorf("health: %+v", h)
	}
}

func TestTLS(t *testing.T) {
	ours, theirs := redistest.NewAuthority(t), redistest.NewAuthority(t)
	serverCert, serverKey := ours.Issue("redis.test")
	clientCert, clientKey := ours.Issue("dedupd")
	strangerCert, strangerKey := theirs.Issue("stranger")
	dir := secrets(t, map[string]string{
		"server/tls.crt": serverCert, "server/tls.key": serverKey,
		"ca/ca.crt": ours.PEM, "other-ca/ca.crt": theirs.PEM, "no-ca/ca.crt": "hello",
		"client/tls.crt": clientCert, "client/tls.key": clientKey,
		"stranger/tls.crt": strangerCert, "stranger/tls.key": strangerKey,
		"mixed/tls.crt": clientCert, "mixed/tls.key": strangerKey,
	})
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	server := redistest.Start(t, "--tls-port", port, "--tls-auth-clients", "yes", "--tls-ca-cert-file", dir+"/ca/ca.crt",
		"--tls-cert-file", dir+"/server/tls.crt", "--tls-key-file", dir+"/server/tls.key")

	ref := func(name string) *v1alpha1.SecretRef {
		if name == "" {
			return nil
		}
		return &v1alpha1.SecretRef{Name: name}
	}
	tests := map[string]struct {
		addr             string
		ca, client, name string
		want             string // in the error; empty: it works
	}{
		"all is right":                        {ca: "ca", client: "client", name: "redis.test"},
		"an unknown authority":                {ca: "other-ca", client: "client", name: "redis.test", want: "store.redis.tls.caSecretRef"},
		"the system's authorities":            {client: "client", name: "redis.test", want: "store.redis.tls.caSecretRef"},
		"a name that the certificate has not": {ca: "ca", client: "client", want: "store.redis.tls.serverName"},
		"no client certificate":               {ca: "ca", name: "redis.test", want: "store.redis.tls.clientSecretRef"},
		"another's client certificate":        {ca: "ca", client: "stranger", name: "redis.test", want: "store.redis.tls.clientSecretRef"},
		"a key of another certificate":        {ca: "ca", client: "mixed", name: "redis.test", want: "store.redis.tls.clientSecretRef mixed: keys tls.crt and tls.key"},
		"a CA that is none":                   {ca: "no-ca", client: "client", name: "redis.test", want: "store.redis.tls.caSecretRef no-ca: key ca.crt holds no certificate"},
		"a Secret that is not there":          {ca: "nowhere", client: "client", name: "redis.test", want: "store.redis.tls.caSecretRef nowhere: key ca.crt is not there"},
		"a port without TLS":                  {addr: server.Addr, ca: "ca", client: "client", name: "redis.test", want: "name the server's TLS port"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.addr == "" {
				test.addr = addr
			}
			s := newStore(t, test.addr, within(2*time.Second), func(o *redis.Options) {
				o.SecretsDir = dir
				o.Spec.TLS = &v1alpha1.StoreTLS{CASecretRef: ref(test.ca), ClientSecretRef: ref(test.client), ServerName: test.name}
			})
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
	t.Run("a certificate that comes later is used by the next connection", func(t *testing.T) {
		late := secrets(t, map[string]string{"ca/ca.crt": theirs.PEM})
		s := newStore(t, addr, func(o *redis.Options) {
			o.SecretsDir = late
			o.Spec.TLS = &v1alpha1.StoreTLS{CASecretRef: ref("ca"), ClientSecretRef: ref("client"), ServerName: "redis.test"}
		})
		if r := apply(s, op(store.Mark, "late", "a"))[0]; r.Err == nil {
			t.Fatalf("%+v, want an error", r)
		}
		if err := os.Mkdir(late+"/client", 0o700); err != nil {
			t.Fatal(err)
		}
		rewrite(t, late, "ca/ca.crt", ours.PEM)
		rewrite(t, late, "client/tls.crt", clientCert)
		rewrite(t, late, "client/tls.key", clientKey)
		want(t, s, []store.Op{op(store.Mark, "late", "a")}, store.Granted)
	})
}
