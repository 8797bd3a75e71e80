package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dedupd/dedup-operator/dedupd/client"
)

// Effect is what a consumer did: the message in the queue of effects is the record of it.
type effect struct {
	ID    string
	Fence uint64
	Pod   string
}

// consume takes messages from a queue. The work on each is to put its effect into another one.
func consume(ctx context.Context) error {
	c, err := client.New(client.FromEnv(os.Getenv))
	if err != nil {
		return err
	}
	conn, err := amqp.Dial(os.Getenv("AMQP_URL"))
	if err != nil {
		return err
	}
	channel, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := errors.Join(channel.Qos(4, 0, false), channel.Confirm(false)); err != nil {
		return err
	}
	deliveries, err := channel.Consume(os.Getenv("AMQP_QUEUE"), "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for delivery := range deliveries {
		if err := process(ctx, c, channel, delivery); err != nil {
			return err
		}
	}
	return errors.New("the broker closed the connection")
}

func process(ctx context.Context, c *client.Client, channel *amqp.Channel, d amqp.Delivery) error {
	_, err := c.Process(ctx, message(d.MessageId), func(ctx context.Context, fence uint64) error {
		return record(ctx, channel, effect{ID: d.MessageId, Fence: fence, Pod: os.Getenv("HOSTNAME")})
	})
	var held *client.InProgressError
	switch {
	case err == nil:
		return d.Ack(false)
	case errors.As(err, &held):
		// Another may work on it, or has crashed: it comes again, and not at once.
		time.Sleep(min(held.RetryAfter, 200*time.Millisecond))
		return d.Nack(false, true)
	}
	fmt.Println("not processed, back into the queue:", err)
	return d.Nack(false, true)
}

// record returns when the broker has the effect.
func record(ctx context.Context, channel *amqp.Channel, e effect) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	confirmation, err := channel.PublishWithDeferredConfirmWithContext(ctx, "", os.Getenv("AMQP_EFFECTS"), false, false, amqp.Publishing{Body: body})
	if err != nil {
		return err
	}
	if acked, err := confirmation.WaitContext(ctx); err != nil || !acked {
		return errors.Join(errors.New("the broker did not take the effect"), err)
	}
	time.Sleep(5 * time.Millisecond) // work takes a while, so that crashes fall into it
	return nil
}
