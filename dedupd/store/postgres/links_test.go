package postgres_test

import (
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
)

// overFaults gives each client of the suite a store over a link of its own, at which one piece
// of a connection in twenty-five goes wrong, a connection's first ones included.
func overFaults(tb testing.TB, addr, database string) func(seed uint64) (store.Store, func() int) {
	tb.Helper()
	return func(seed uint64) (store.Store, func() int) {
		link := faulttest.StartLink(tb, addr, faulttest.NewDice(seed, 25))
		return newStore(tb, link.Addr, database, within(time.Second)), link.Broken
	}
}
