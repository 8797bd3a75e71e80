package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// server is how the server is reached: addresses, TLS and credentials. Every file is read
// when a connection is made, so that what was rotated is in use from the next connection on.
type server struct {
	spec       v1alpha1.RedisStore
	secretsDir string
	timeout    time.Duration
	log        *slog.Logger

	// lastDial is why no connection could be made, until one is made. A call that waits for a
	// connection ends at its deadline, and this says what it waited for.
	lastDial  atomic.Pointer[dialError]
	connected atomic.Bool // once there has been a connection
}

func newServer(o Options) *server {
	return &server{spec: o.Spec, secretsDir: o.SecretsDir, timeout: o.Timeout, log: o.Log}
}

// dialError is why there is no connection to an address.
type dialError struct {
	addr string
	err  error
}

func (e *dialError) Error() string { return fmt.Sprintf("dial %s: %v", e.addr, e.err) }
func (e *dialError) Unwrap() error { return e.err }

// dial makes a connection, with TLS if the policy says so.
func (s *server) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := s.connect(ctx, network, addr)
	if err != nil {
		failed := &dialError{addr: addr, err: err}
		s.lastDial.Store(failed)
		return nil, failed
	}
	s.connected.Store(true)
	s.lastDial.Store(nil)
	return conn, nil
}

func (s *server) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: s.timeout}
	if s.spec.TLS == nil {
		return dialer.DialContext(ctx, network, addr)
	}
	config, err := s.tlsConfig(addr)
	if err != nil {
		return nil, err
	}
	plain, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if !s.connected.Load() {
		// A server that speaks no TLS does not answer, and the call's deadline may come first.
		s.lastDial.Store(&dialError{addr: addr, err: fmt.Errorf("%w: %w", errHandshake, context.DeadlineExceeded)})
	}
	conn := tls.Client(plain, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = plain.Close() // the handshake's error says more
		return nil, fmt.Errorf("%w: %w", errHandshake, err)
	}
	return conn, nil
}

var errHandshake = errors.New("TLS handshake")

func (s *server) tlsConfig(addr string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.spec.TLS.ServerName}
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		config.ServerName = host
	}
	if ref := s.spec.TLS.CASecretRef; ref != nil {
		const field = "store.redis.tls.caSecretRef"
		pem, err := s.secret(field, ref, "ca.crt")
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &secretError{field: field, name: ref.Name, reason: "key ca.crt holds no certificate in PEM form"}
		}
	}
	if ref := s.spec.TLS.ClientSecretRef; ref != nil {
		const field = "store.redis.tls.clientSecretRef"
		cert, err := s.secret(field, ref, "tls.crt")
		if err != nil {
			return nil, err
		}
		key, err := s.secret(field, ref, "tls.key")
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, &secretError{field: field, name: ref.Name, reason: "keys tls.crt and tls.key are no pair in PEM form: " + err.Error()}
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// credentials reads the user and password of a new connection. An empty user is Redis's default one.
func (s *server) credentials(context.Context) (username, password string, err error) {
	ref := s.spec.CredentialsSecretRef
	user, err := fs.ReadFile(os.DirFS(s.secretsDir), ref.Name+"/username")
	if err != nil && !os.IsNotExist(err) {
		return "", "", &secretError{field: credentialsField, name: ref.Name, reason: "key username: " + err.Error()}
	}
	pass, err := s.secret(credentialsField, ref, "password")
	if err != nil {
		return "", "", err
	}
	// A Secret made from a file mostly ends in a line feed that is not meant.
	return strings.TrimRight(string(user), "\r\n"), strings.TrimRight(string(pass), "\r\n"), nil
}

const credentialsField = "store.redis.credentialsSecretRef" // #nosec G101 -- a field's name

func (s *server) authenticate(ctx context.Context, conn *redis.Conn) error {
	username, password, err := s.credentials(ctx)
	if err != nil {
		return err
	}
	if username == "" {
		return conn.Auth(ctx, password).Err()
	}
	return conn.AuthACL(ctx, username, password).Err()
}

// secretError is what is wrong with a Secret that the policy names.
type secretError struct {
	field  string
	name   string
	reason string
}

func (e *secretError) Error() string { return fmt.Sprintf("%s %s: %s", e.field, e.name, e.reason) }

// secret reads a key of a Secret.
func (s *server) secret(field string, ref *v1alpha1.SecretRef, key string) ([]byte, error) {
	data, err := fs.ReadFile(os.DirFS(s.secretsDir), ref.Name+"/"+key)
	switch {
	case os.IsNotExist(err):
		return nil, &secretError{field: field, name: ref.Name, reason: fmt.Sprintf("key %s is not there: want the file %s",
			key, filepath.Join(s.secretsDir, ref.Name, key))}
	case err != nil:
		return nil, &secretError{field: field, name: ref.Name, reason: fmt.Sprintf("key %s: %v", key, err)}
	case len(data) == 0:
		return nil, &secretError{field: field, name: ref.Name, reason: fmt.Sprintf("key %s is empty", key)}
	}
	return data, nil
}
