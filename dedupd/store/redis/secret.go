package redis

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

// secretError is what is wrong with a Secret that the policy names.
type secretError struct {
	field  string
	name   string
	reason string
}

func (e *secretError) Error() string { return fmt.Sprintf("%s %s: %s", e.field, e.name, e.reason) }

// versionLink is the link to the version of a mounted Secret that holds. The kubelet replaces it
// in one step, and then removes what it led to.
const versionLink = "..data"

// secret reads keys of a Secret, all of the same version of it, so that a user never goes with
// another's password nor a certificate with another's key. Each has to be there.
func (s *server) secret(field string, ref *v1alpha1.SecretRef, keys ...string) (map[string][]byte, error) {
	folder := filepath.Join(s.secretsDir, ref.Name)
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
			return nil, &secretError{field: field, name: ref.Name, reason: failed.Error()}
		}
		return read, nil
	}
}

// has says whether a Secret has a key at all.
func (s *server) has(ref *v1alpha1.SecretRef, key string) bool {
	_, err := os.Stat(filepath.Join(s.secretsDir, ref.Name, key))
	return err == nil || !os.IsNotExist(err)
}
