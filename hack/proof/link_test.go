package proof

import (
	"strings"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// The links between two dedupd and Redis fail under load: connections break, replies are lost
// or cut, and the server refuses before it obeys, and after.
func TestTheLinksToRedisFail(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		mode        mode
		redis, more string // more of the policy's redis, and of the policy
	}{
		"Claim":                  {mode: modeClaim},
		"Mark":                   {mode: modeMark},
		"Mark, Dense":            {mode: modeMark, redis: ", keyFormat: Dense"},
		"Claim, with near cache": {mode: modeClaim, more: "  nearCache: {}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := faulttest.Seed(t)
			server := redistest.Start(t)
			dice := faulttest.NewDice(seed, 0)
			var replicas []*replica
			for range 2 {
				addr := redistest.StartFaulty(t, server.Addr, dice).Addr
				store := strings.TrimSuffix(standalone(addr), "}") + test.redis + "}"
				replicas = append(replicas, startReplica(t, manifest(test.mode, store)+test.more))
			}
			q := newQueue(test.mode, seed)
			stop := q.flow()
			// A consumer that gave up an attempt in mode Mark would give up its message.
			q.consumers(t, 8, untiring(replicas...))
			q.reach(t, 50)
			dice.OneIn(15)
			q.reach(t, 400)
			dice.OneIn(0)
			stop()
			q.wait(t)
			if dice.Thrown() < 20 {
				t.Errorf("%d faults: the test shows nothing", dice.Thrown())
			}
			q.remembered(t, untiring(replicas...))
			q.mustHold(t, nil)
		})
	}
}
