package redis

import (
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
)

//go:embed birth.lua
var birthLua string

var birthScript = "#!lua flags=allow-oom\n" + birthLua

// markerLife is how long a birth marker outlives its last heartbeat. An outage of every dedupd of
// a policy that lasts longer ends like a loss of history, though none of it was lost that would not have
// expired; and nothing of a policy that is gone stays for longer.
const markerLife = 90 * 24 * time.Hour

// clusterTags are hash tags, one for each sixteenth of a cluster's slots: each primary that has
// a sixteenth of the slots, or more, in one range holds a marker. Markers are bound to slots, and not
// to primaries, since a slot that moves takes its marker along with its records.
var clusterTags = [...]string{
	"{10}", "{3}", "{61}", "{43}", "{11}", "{2}", "{60}", "{42}", "{12}", "{1}", "{63}", "{41}", "{13}", "{0}", "{62}", "{40}",
}

// history is what this process has seen of the store's birth markers.
type history struct {
	markers []string

	mu   sync.Mutex
	seen map[string]beat // guarded by mu: the last own beat of each marker
}

// beat is a heartbeat of a marker.
type beat struct {
	birth, number int64
	sign          string
}

// signLen is the length of a beat's sign; birth.lua knows it as well.
const signLen = 8

var noBeat = beat{sign: "00000000"}

// newHistory returns the history of a store whose birth markers begin with marker; empty: it has none.
func newHistory(marker string, mode v1alpha1.RedisMode) *history {
	h := &history{seen: map[string]beat{}}
	switch {
	case marker == "":
	case mode == v1alpha1.RedisCluster:
		for _, tag := range clusterTags {
			h.markers = append(h.markers, marker+tag)
		}
	default:
		h.markers = []string{marker}
	}
	return h
}

// since raises the heartbeat of every marker, and returns the latest birth: what was acknowledged
// after it is there. now is the server's time.
func (h *history) since(ctx context.Context, client redis.UniversalClient, now time.Time) (time.Time, error) {
	if len(h.markers) == 0 {
		return time.Time{}, nil
	}
	sign := rand.Text()[:signLen]
	pipe := client.Pipeline()
	cmds := make([]*redis.Cmd, len(h.markers))
	for i, marker := range h.markers {
		last := h.last(marker)
		cmds[i] = pipe.Eval(ctx, birthScript, []string{marker},
			last.birth, last.number, last.sign, now.UnixMilli(), sign, markerLife.Milliseconds())
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return time.Time{}, err
	}
	var latest int64
	for i, marker := range h.markers {
		answer, err := cmds[i].Int64Slice()
		if err != nil || len(answer) != 2 {
			return time.Time{}, fmt.Errorf("%w: the birth marker's is %v", errReply, cmds[i].Val())
		}
		h.note(marker, beat{answer[0], answer[1], sign})
		latest = max(latest, answer[0])
	}
	return time.UnixMilli(latest).UTC(), nil
}

func (h *history) last(marker string) beat {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b, ok := h.seen[marker]; ok {
		return b
	}
	return noBeat
}

// note keeps a beat, unless one that was sent after it has been answered before it.
func (h *history) note(marker string, b beat) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if was := h.seen[marker]; b.birth > was.birth || b.birth == was.birth && b.number > was.number {
		h.seen[marker] = b
	}
}
