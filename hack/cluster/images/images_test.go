package images_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/dedupd/dedup-operator/hack/cluster/images"
)

func TestAnImageHoldsItsProgramsAndRunsTheFirst(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(name string) []byte {
		t.Helper()
		file := filepath.Join(dir, name)
		err := images.Write(file, images.Image{
			Name: "example/app:1", Programs: map[string]string{"/app": program, "/tool": program}, Entrypoint: []string{"/app"},
		})
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	if !bytes.Equal(write("first.tar"), write("second.tar")) {
		t.Error("the same programs gave two images")
	}

	image, err := tarball.ImageFromPath(filepath.Join(dir, "first.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c := config.Config; c.User != "65532:65532" || len(c.Entrypoint) != 1 || c.Entrypoint[0] != "/app" {
		t.Errorf("user %q, entrypoint %q", c.User, c.Entrypoint)
	}
	files := mutate.Extract(image)
	defer files.Close()
	found := map[string]int64{}
	for archive := tar.NewReader(files); ; {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[header.Name] = header.Mode
	}
	if len(found) != 2 || found["app"] != 0o755 || found["tool"] != 0o755 {
		t.Errorf("the image holds %v", found)
	}
}
