package main

import "github.com/dedupd/dedup-operator/hack/cluster/images"

// writePause writes the image whose program holds a pod's namespaces open.
func writePause(file, program string) error {
	return images.Write(file, images.Image{
		Name: pauseImage, Programs: map[string]string{"/pause": program}, Entrypoint: []string{"/pause"},
	})
}
