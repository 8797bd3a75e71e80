package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/dedupd/dedup-operator/dedupd/client"
)

// stream is one gRPC stream that many callers share, each with one message at a time, by way of
// the client library: what a Go consumer has.
func stream(addr, policy string, callers int) load {
	var (
		mu     sync.Mutex
		users  int // of the stream
		shared *client.Stream
		stop   func()
	)
	join := func() (*client.Stream, error) {
		mu.Lock()
		defer mu.Unlock()
		if users == 0 {
			c, err := client.New(client.Config{Target: addr, Policy: policy, Consumer: consumer})
			if err != nil {
				return nil, err
			}
			s := c.Stream()
			shared, stop = s, func() {
				s.Close()
				_ = c.Close()
			}
		}
		users++
		return shared, nil
	}
	leave := func() {
		mu.Lock()
		defer mu.Unlock()
		if users--; users == 0 {
			stop()
		}
	}
	return load{callers: callers, caller: func(int) (func(context.Context) (int, error), func(), error) {
		s, err := join()
		if err != nil {
			return nil, nil, err
		}
		turn := func(ctx context.Context) (int, error) {
			// The library may still send what it was given when a try of it has ended, so each
			// message is another.
			answer, err := s.Check(ctx, client.Message{Headers: map[string]string{"message-id": newID()}, Body: []byte(payload)})
			if err == nil && answer.Decision != client.Fresh {
				err = errors.New("a message that has not been sent before is " + fmt.Sprint(answer.Decision))
			}
			return 1, err
		}
		return turn, leave, nil
	}}
}
