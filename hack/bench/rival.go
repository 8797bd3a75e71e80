package main

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// The rivals: what a consumer does that asks Redis itself, with go-redis.

const (
	prefix    = "dedup:orders:"
	ttl       = time.Hour
	batchSize = 256
)

var errSeen = errors.New("a message that has not been sent before is called a duplicate")

// setNX is a caller's own SETNX for each message.
func setNX(addr string, callers int) load {
	return load{callers: callers, caller: shared(addr, func(ctx context.Context, client *redis.Client) (int, error) {
		fresh, err := client.SetNX(ctx, prefix+newID(), 1, ttl).Result()
		if err == nil && !fresh {
			err = errSeen
		}
		return 1, err
	})}
}

// pipeline is SETNX in pipelines.
func pipeline(addr string, callers int) load {
	return load{callers: callers, caller: shared(addr, func(ctx context.Context, client *redis.Client) (int, error) {
		pipe := client.Pipeline()
		marks := make([]*redis.BoolCmd, batchSize)
		for i := range marks {
			marks[i] = pipe.SetNX(ctx, prefix+newID(), 1, ttl)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return 0, err
		}
		return batchSize, allFresh(marks)
	})}
}

// pairs are pipelines of SETNX and, for each, the SET that completes it.
func pairs(addr string, callers int) load {
	return load{callers: callers, caller: shared(addr, func(ctx context.Context, client *redis.Client) (int, error) {
		pipe := client.Pipeline()
		marks := make([]*redis.BoolCmd, batchSize)
		for i := range marks {
			key := prefix + newID()
			marks[i] = pipe.SetNX(ctx, key, "claimed", 30*time.Second)
			pipe.SetXX(ctx, key, "done", ttl)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return 0, err
		}
		return batchSize, allFresh(marks)
	})}
}

func allFresh(marks []*redis.BoolCmd) error {
	for _, m := range marks {
		if !m.Val() {
			return errSeen
		}
	}
	return nil
}

// shared gives all callers one client, as go-redis wants it; its pool has a connection for each.
func shared(addr string, turn func(context.Context, *redis.Client) (int, error)) func(int) (func(context.Context) (int, error), func(), error) {
	client := newRedis(addr)
	return func(int) (func(context.Context) (int, error), func(), error) {
		return func(ctx context.Context) (int, error) { return turn(ctx, client) }, nil, nil
	}
}
