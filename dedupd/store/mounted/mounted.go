// Package mounted reads the credentials of a store's connections from mounted Secrets. Files
// are read at each call, so that what was rotated is in use from the next connection on.
package mounted

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// Secrets are the Secrets that a store's part of a policy refers to.
type Secrets struct {
	// Dir holds a folder for each Secret, with a file for each key.
	Dir string

	// Field is the store's place in the policy, such as store.redis.
	Field string
}

// Error is what is wrong with a Secret that a policy names.
type Error struct {
	Field  string
	Name   string
	Reason string
}

// Error names the field, the Secret and what would be right. It tells nothing of its content.
func (e *Error) Error() string { return fmt.Sprintf("%s %s: %s", e.Field, e.Name, e.Reason) }

// CredentialsField is the field that names the Secret with the username and password.
func (s Secrets) CredentialsField() string { return s.Field + ".credentialsSecretRef" }

// Credentials are the username and password of the credentials' Secret. A key that is optional
// may be missing, and is empty then. A Secret made from a file mostly ends in a line feed that is
// not meant.
func (s Secrets) Credentials(ref *v1alpha1.SecretRef, optional ...string) (username, password string, err error) {
	keys := slices.DeleteFunc([]string{"username", "password"}, func(key string) bool {
		return slices.Contains(optional, key) && !s.has(ref, key)
	})
	read, err := s.read(s.CredentialsField(), ref, keys...)
	if err != nil {
		return "", "", err
	}
	trim := func(key string) string { return strings.TrimRight(string(read[key]), "\r\n") }
	return trim("username"), trim("password"), nil
}

// has says whether a Secret has a key at all.
func (s Secrets) has(ref *v1alpha1.SecretRef, key string) bool {
	_, err := os.Stat(filepath.Join(s.Dir, ref.Name, key))
	return !os.IsNotExist(err)
}

// TLS is the configuration of a connection to host, which the server's certificate has to
// bear unless the policy names another.
func (s Secrets) TLS(spec *v1alpha1.StoreTLS, host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: spec.ServerName}
	if config.ServerName == "" {
		config.ServerName = host
	}
	if ref := spec.CASecretRef; ref != nil {
		field := s.Field + ".tls.caSecretRef"
		read, err := s.read(field, ref, "ca.crt")
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(read["ca.crt"]) {
			return nil, &Error{Field: field, Name: ref.Name, Reason: "key ca.crt holds no certificate in PEM form"}
		}
	}
	if ref := spec.ClientSecretRef; ref != nil {
		field := s.Field + ".tls.clientSecretRef"
		read, err := s.read(field, ref, "tls.crt", "tls.key")
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(read["tls.crt"], read["tls.key"])
		if err != nil {
			return nil, &Error{Field: field, Name: ref.Name, Reason: "keys tls.crt and tls.key are no pair in PEM form: " + err.Error()}
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// versionLink is what a mounted Secret's files are links into. The kubelet replaces it, and so all
// keys at once.
const versionLink = "..data"

// read reads keys of a Secret, all of one version of it: a new certificate with the old key
// would be no pair.
func (s Secrets) read(field string, ref *v1alpha1.SecretRef, keys ...string) (map[string][]byte, error) {
	folder := filepath.Join(s.Dir, ref.Name)
	for {
		version, _ := os.Readlink(filepath.Join(folder, versionLink)) // none: plain files
		read := make(map[string][]byte, len(keys))
		var failed error
		for _, key := range keys {
			data, err := fs.ReadFile(os.DirFS(filepath.Join(folder, version)), key)
			switch {
			case os.IsNotExist(err):
				err = fmt.Errorf("key %s is not there: want the file %s", key, filepath.Join(folder, key))
			case err != nil:
				err = fmt.Errorf("key %s: %w", key, err)
			case len(data) == 0:
				err = fmt.Errorf("key %s is empty", key)
			}
			if err != nil && failed == nil {
				failed = err
			}
			read[key] = data
		}
		if now, _ := os.Readlink(filepath.Join(folder, versionLink)); now != version {
			continue // replaced meanwhile
		}
		if failed != nil {
			return nil, &Error{Field: field, Name: ref.Name, Reason: failed.Error()}
		}
		return read, nil
	}
}
