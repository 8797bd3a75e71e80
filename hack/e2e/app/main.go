// Command app is what the end-to-end tests run in pods, in the place of a user's consumer.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/dedupd/dedup-operator/dedupd/client"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("app:", err) // to the log that the test quotes
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("want consume, load, once ID, ask ID or wait")
	}
	switch args[0] {
	case "wait":
		return wait()
	case "consume":
		// A signal ends it at once, wherever it is: these consumers crash.
		return consume(context.Background())
	case "load":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		return load(ctx)
	case "once":
		return once(context.Background(), args[1:])
	case "ask":
		return ask(context.Background(), args[1])
	}
	return fmt.Errorf("%q: want consume, load, once ID, ask ID or wait", args[0])
}

func wait() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
	return nil
}

// once checks one message, prints the decision and ends, as a Job does. It tries once: a dedupd
// that starts after the application would be an error.
func once(ctx context.Context, args []string) error {
	config := client.FromEnv(os.Getenv)
	config.Retry = -1
	c, err := client.New(config)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, id := range args {
		answer, err := c.Check(ctx, message(id))
		if err != nil {
			return err
		}
		fmt.Println(id, answer.Decision)
	}
	return nil
}

// message has its identifier in a header; the tests' policies look there.
func message(id string) client.Message {
	return client.Message{Headers: map[string]string{"message-id": id}, Body: []byte("{}")}
}
