// Command image writes an image of static programs as a file that containerd, docker and kind load,
// or pushes it to a registry:
//
//	image -name dedup-operator:dev -o image.tar /manager=bin/manager /dedupd=bin/dedupd
//	image -name registry.example.com/dedup-operator:dev -push /manager=bin/manager /dedupd=bin/dedupd
//
// The first program is the entrypoint.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/dedupd/dedup-operator/hack/cluster/images"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run() error {
	tag := flag.String("name", "", "name of the image, with a tag")
	file := flag.String("o", "", "file to write")
	push := flag.Bool("push", false, "push it")
	flag.Parse()
	image := images.Image{Name: *tag, Programs: map[string]string{}}
	for _, arg := range flag.Args() {
		in, here, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q: want /path/in/the/image=file", arg)
		}
		image.Programs[in] = here
		if image.Entrypoint == nil {
			image.Entrypoint = []string{in}
		}
	}
	if (*file == "") != *push || image.Entrypoint == nil {
		return fmt.Errorf("want -name NAME:TAG, one of -o FILE and -push, and /path=file")
	}
	if *push {
		return images.Push(image)
	}
	return images.Write(*file, image)
}
