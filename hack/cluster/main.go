// Command cluster runs a real single-node Kubernetes on this machine: etcd, the control plane, the
// kubelet, kube-proxy, DNS and containerd, without Docker and without a registry.
//
// The node has Linux namespaces of its own for processes, mounts and the network. So it can be
// taken down by ending one process: with it go its processes, mounts, interfaces, nftables tables
// and network sysctls. What the host sees of it, one interface, one cgroup and one folder, has a
// name that no other cluster has.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `cluster is a real single-node Kubernetes on this machine.

  cluster up              start it; prints where its kubeconfig is
  cluster check           say whether it is worth while to prepare for that
  cluster down            stop it and remove every trace of it
  cluster load FILE...    import images, as written by image, beside this program
  cluster value NAME      print kubeconfig, host (an address of this machine that pods reach) or folder

KUBEBUILDER_ASSETS names the folder of kube-apiserver, etcd and kubectl, CLUSTER_NODE that of the
rest of Kubernetes; dns and pause lie beside this program. make cluster-up sees to all of it.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == nodeCommand {
		return runNode(ctx, os.Stdin)
	}
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	if err := flags.Parse(args); err != nil {
		return err
	}
	repository, err := os.Getwd()
	if err != nil {
		return err
	}
	folder := folderOf(repository)
	switch command := flags.Arg(0); {
	case command == "up" && flags.NArg() == 1:
		return up(ctx, folder)
	case command == "check" && flags.NArg() == 1:
		return check()
	case command == "down" && flags.NArg() == 1:
		return down(folder)
	case command == "load" && flags.NArg() > 1:
		return load(ctx, folder, flags.Args()[1:])
	case command == "value" && flags.NArg() == 2:
		return printValue(folder, flags.Arg(1))
	}
	flags.Usage()
	return errors.New("want up, check, down, load FILE or value NAME")
}

func printValue(folder, name string) error {
	p, err := readPlan(folder)
	if err != nil {
		return err
	}
	value, ok := map[string]string{
		"kubeconfig": p.path("admin.kubeconfig"),
		"host":       p.HostIP.String(),
		"folder":     p.Folder,
	}[name]
	if !ok {
		return fmt.Errorf("%q: want kubeconfig, host or folder", name)
	}
	fmt.Println(value)
	return nil
}
