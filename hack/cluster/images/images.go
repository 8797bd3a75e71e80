// Package images writes container images without Docker: one layer with static programs.
package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// User runs the programs, as in the Dockerfile.
const User = "65532:65532"

// Image is what an image holds.
type Image struct {
	Name       string            // with a tag
	Programs   map[string]string // path in the image: file here
	Entrypoint []string
}

// Write writes the image as `docker save` would. The same programs give the same file.
func Write(file string, image Image) error {
	tag, err := name.NewTag(image.Name)
	if err != nil {
		return err
	}
	built, err := build(image)
	if err != nil {
		return fmt.Errorf("building the image %s: %w", image.Name, err)
	}
	return tarball.WriteToFile(file, tag, built)
}

// Push pushes the image to the registry that its name begins with, with the credentials that docker has.
func Push(image Image) error {
	tag, err := name.NewTag(image.Name)
	if err != nil {
		return err
	}
	built, err := build(image)
	if err != nil {
		return fmt.Errorf("building the image %s: %w", image.Name, err)
	}
	if err := remote.Write(tag, built, remote.WithAuthFromKeychain(authn.DefaultKeychain)); err != nil {
		return fmt.Errorf("pushing the image %s: %w", image.Name, err)
	}
	return nil
}

func build(image Image) (v1.Image, error) {
	content, err := layer(image.Programs)
	if err != nil {
		return nil, err
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
	programs, err := tarball.LayerFromOpener(opener)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, programs)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.User, config.Config.Entrypoint = User, image.Entrypoint
	config.Config.Env = []string{"PATH=/"}
	return mutate.ConfigFile(img, config)
}

// layer is a tar archive, its entries sorted and without times.
func layer(programs map[string]string) ([]byte, error) {
	var paths []string
	for p := range programs {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, p := range paths {
		content, err := os.ReadFile(programs[p])
		if err != nil {
			return nil, err
		}
		header := &tar.Header{Name: path.Clean("/" + p)[1:], Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	return archive.Bytes(), w.Close()
}
