package mounted_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store/mounted"
)

var creds = &v1alpha1.SecretRef{Name: "creds"}

// version writes a version of a Secret as the kubelet does, and makes it the one that counts.
func version(t *testing.T, dir, name string, files map[string]string) {
	t.Helper()
	folder := filepath.Join(dir, "creds")
	if err := os.MkdirAll(filepath.Join(folder, name), 0o700); err != nil {
		t.Fatal(err)
	}
	for key, value := range files {
		if err := os.WriteFile(filepath.Join(folder, name, key), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = os.Symlink(filepath.Join("..data", key), filepath.Join(folder, key))
	}
	next := filepath.Join(folder, "..data_tmp")
	if err := os.Symlink(name, next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(folder, "..data")); err != nil {
		t.Fatal(err)
	}
}

func TestKeysAreOfOneVersion(t *testing.T) {
	dir := t.TempDir()
	secrets := mounted.Secrets{Dir: dir, Field: "store.postgres"}
	version(t, dir, "..0", map[string]string{"username": "0\n", "password": "0\r\n"})
	var group sync.WaitGroup
	stop := make(chan struct{})
	group.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
				text := string(rune('0' + n%10))
				version(t, dir, ".."+text, map[string]string{"username": text, "password": text})
			}
		}
	})
	for range 2000 {
		user, password, err := secrets.Credentials(creds)
		if err != nil {
			t.Error(err)
			break
		}
		if user != password {
			t.Errorf("username of version %s, password of version %s", user, password)
			break
		}
	}
	close(stop)
	group.Wait()
}

func TestWhatIsWrongWithASecretIsSaid(t *testing.T) {
	dir := t.TempDir()
	secrets := mounted.Secrets{Dir: dir, Field: "store.postgres"}
	says := func(want string, optional ...string) {
		t.Helper()
		_, _, err := secrets.Credentials(creds, optional...)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
	says("store.postgres.credentialsSecretRef creds: key username is not there: want the file " + dir)
	version(t, dir, "..1", map[string]string{"username": "joe"})
	says("key password is not there")
	says("", "password")
	says("", "username", "password")
	version(t, dir, "..2", map[string]string{"username": "joe", "password": ""})
	says("key password is empty")
	version(t, dir, "..3", map[string]string{"username": "joe", "password": "pw"})
	says("")
}
