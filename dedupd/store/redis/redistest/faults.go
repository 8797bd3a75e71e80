package redistest

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/dedupd/dedup-operator/dedupd/store/faulttest"
)

// A Redis that restarts, fails over, fills up or moves its slots says one of these. The
// address of a redirection is filled in.
var refusals = []string{
	"-LOADING Redis is loading the dataset in memory\r\n",
	"-READONLY You can't write against a read only replica.\r\n",
	"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
	"-MOVED 0 ",
	"-ASK 0 ",
}

const noScript = "-NOSCRIPT No matching script.\r\n"

// Faulty is a proxy at which requests and replies go wrong as the dice fall.
type Faulty struct {
	*Proxy

	obeyed atomic.Int64
}

// StartFaulty starts a faulty proxy before target.
func StartFaulty(tb testing.TB, target string, dice *faulttest.Dice) *Faulty {
	tb.Helper()
	f := &Faulty{Proxy: StartProxy(tb, target)}
	before, after := f.fates()
	f.SetBefore(func(request []string) Fate { return throw(dice, before, request) })
	f.Set(func(request []string) Fate {
		fate := throw(dice, after, request)
		if fate != (Fate{}) && fate.Delay == 0 && slices.Contains([]string{"set", "eval", "evalsha"}, request[0]) {
			f.obeyed.Add(1)
		}
		return fate
	})
	return f
}

// Obeyed is how many commands the server has carried out whose replies did not arrive as it
// gave them. A client that sends them again has them carried out once more; a DEL it never does.
func (f *Faulty) Obeyed() int { return int(f.obeyed.Load()) }

// fates are what may become of a request, and of the reply to it: the faults of a connection,
// and every refusal both in the request's place and in that of the reply, after the server has
// obeyed.
func (p *Proxy) fates() (before, after []Fate) {
	before = []Fate{{Drop: true}, {Delay: faulttest.MaxDelay}, {Say: noScript}}
	after = []Fate{{Drop: true}, {Delay: faulttest.MaxDelay}, {Truncate: true}, {HalfClose: true}, {Say: noScript}}
	for _, say := range refusals {
		if say[len(say)-1] == ' ' {
			say += p.Addr + "\r\n"
		}
		before = append(before, Fate{Say: say})
		after = append(after, Fate{Say: say})
	}
	return before, after
}

// throw chooses one of fates. Only to a script is it said that there is none.
func throw(dice *faulttest.Dice, fates []Fate, request []string) Fate {
	kind, wrong := dice.Throw(len(fates))
	if !wrong || fates[kind].Say == noScript && request[0] != "evalsha" {
		return Fate{}
	}
	return fates[kind]
}
