// Command demo shows deduplication at work on this machine, with real parts: a kube-apiserver
// and etcd, the operator and its webhook as a process of its own under the permissions of its
// ServiceAccount, a redis-server, and dedupd. What is missing without a node it plays itself:
// the kubelet for dedupd's pods, and the garbage collector.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	keep := flag.Bool("keep", false, "stay up after the demo, until interrupted, so that you can apply policies of your own")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, *keep)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run plays the whole demo and tears everything down again.
func run(ctx context.Context, out io.Writer, keep bool) (err error) {
	s := &stage{out: out}
	defer func() { err = errors.Join(err, s.strike()) }()

	for _, step := range []struct {
		title string
		play  func(context.Context) error
	}{
		{"Building the operator and dedupd", s.build},
		{"Starting redis-server", s.startRedis},
		{"Starting etcd and kube-apiserver", s.startControlPlane},
		{"Installing config/default, as kubectl apply would", s.install},
		{"Starting the operator", s.startOperator},
		{"Applying the sample policies", s.applySamples},
		{"Waiting for every policy to be Ready", s.waitReady},
		{"Sending the sample messages, duplicates and all", s.sendMessages},
		{"Creating a pod with the label dedupd.io/policy", s.createConsumer},
		{"The policies, as kubectl get ddp shows them", s.showPolicies},
	} {
		s.say("\n=== %s", step.title)
		if err := step.play(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
	}
	if keep {
		s.sayHowToGoOn()
		<-ctx.Done()
	}
	return nil
}
