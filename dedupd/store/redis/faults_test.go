package redis_test

import (
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// overFaults gives each client of the suite a store over a proxy of its own, at which one
// request or reply in twenty goes wrong, a connection's first ones included.
func overFaults(tb testing.TB, addr string, edit ...func(*redis.Options)) func(seed uint64) (store.Store, func() int) {
	tb.Helper()
	return func(seed uint64) (store.Store, func() int) {
		dice := faulttest.NewDice(seed, 20)
		proxy := redistest.StartFaulty(tb, addr, dice)
		return newStore(tb, proxy.Addr, append(edit, within(500*time.Millisecond))...), proxy.Obeyed
	}
}
