package redis

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// clock is the server's clock as far as it is known: this process's, and by how much the
// server's was ahead of it when it was last asked, which is at each new connection and each
// Health. Nothing is decided by it.
type clock struct {
	now   func() time.Time
	ahead atomic.Int64 // nanoseconds
}

// Now is the server's time, about.
func (c *clock) Now() time.Time {
	return c.now().Add(time.Duration(c.ahead.Load()))
}

// sample asks the server for its time.
func (c *clock) sample(ctx context.Context, conn redis.Cmdable) error {
	asked := c.now()
	theirs, err := conn.Time(ctx).Result()
	if err != nil {
		return err
	}
	c.set(asked, theirs)
	return nil
}

// set notes that the server answered theirs to a question asked then and answered now.
func (c *clock) set(asked, theirs time.Time) {
	middle := asked.Add(c.now().Sub(asked) / 2)
	c.ahead.Store(int64(theirs.Sub(middle)))
}
