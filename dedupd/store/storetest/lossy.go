package storetest

import (
	"context"
	"fmt"

	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
)

// lossy is a store of which one operation in eight is lost on its way, has its answer lost, or
// is carried out twice.
type lossy struct {
	store.Store
	dice    *faulttest.Dice
	repeats int
}

func (s *session) lossy(seed uint64) (store.Store, func() int) {
	l := &lossy{Store: s.Store, dice: faulttest.NewDice(seed, 8)}
	return l, func() int { return l.repeats }
}

// Apply implements store.Store.
func (l *lossy) Apply(ctx context.Context, ops []store.Op, results []store.Result) {
	const lost, unanswered, repeated = 0, 1, 2
	kind, wrong := l.dice.Throw(3)
	if !wrong || kind != lost {
		l.Store.Apply(ctx, ops, results)
	}
	switch {
	case !wrong:
	case kind == repeated:
		l.repeats++
		l.Store.Apply(ctx, ops, results)
	case kind == lost, kind == unanswered:
		for i := range results {
			results[i] = store.Result{Err: fmt.Errorf("%w: the link was cut", store.ErrUnavailable)}
		}
	}
}
