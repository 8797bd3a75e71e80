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

// Text is the value of a key of the credentials' Secret. A Secret made from a file mostly ends
// in a line feed that is not meant.
func (s Secrets) Text(ref *v1alpha1.SecretRef, key string) (string, error) {
	data, err := s.read(s.CredentialsField(), ref, key)
	return strings.TrimRight(string(data), "\r\n"), err
}

// Has says whether the credentials' Secret has a key.
func (s Secrets) Has(ref *v1alpha1.SecretRef, key string) bool {
	_, err := fs.Stat(os.DirFS(s.Dir), ref.Name+"/"+key)
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
		pem, err := s.read(field, ref, "ca.crt")
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &Error{Field: field, Name: ref.Name, Reason: "key ca.crt holds no certificate in PEM form"}
		}
	}
	if ref := spec.ClientSecretRef; ref != nil {
		field := s.Field + ".tls.clientSecretRef"
		cert, err := s.read(field, ref, "tls.crt")
		if err != nil {
			return nil, err
		}
		key, err := s.read(field, ref, "tls.key")
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, &Error{Field: field, Name: ref.Name, Reason: "keys tls.crt and tls.key are no pair in PEM form: " + err.Error()}
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// read reads a key of a Secret.
func (s Secrets) read(field string, ref *v1alpha1.SecretRef, key string) ([]byte, error) {
	data, err := fs.ReadFile(os.DirFS(s.Dir), ref.Name+"/"+key)
	switch {
	case os.IsNotExist(err):
		return nil, &Error{Field: field, Name: ref.Name, Reason: fmt.Sprintf("key %s is not there: want the file %s",
			key, filepath.Join(s.Dir, ref.Name, key))}
	case err != nil:
		return nil, &Error{Field: field, Name: ref.Name, Reason: fmt.Sprintf("key %s: %v", key, err)}
	case len(data) == 0:
		return nil, &Error{Field: field, Name: ref.Name, Reason: fmt.Sprintf("key %s is empty", key)}
	}
	return data, nil
}
