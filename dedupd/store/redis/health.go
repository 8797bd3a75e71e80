package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Health implements store.Store. It asks the server, or each primary of a cluster, answers with
// the worst, and raises the heartbeat of the birth marker.
func (s *Store) Health(ctx context.Context) store.Health {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	ctx = context.WithValue(ctx, mayRefuse{}, true) // managed servers hide CONFIG
	h, compares := s.askAll(ctx)
	if h.Err != nil {
		return h
	}
	s.grants.on.Store(compares)
	since, err := s.history.since(ctx, s.client, s.clock.Now())
	switch {
	case err == nil:
		h.HistorySince = since
	case isRefusal(err):
		s.server.log.DebugContext(ctx, "the birth marker cannot be written, a loss of history would not be noticed", "error", err)
	default:
		// A server that answers and takes no writes, such as one whose disk is full.
		return s.unwell(err)
	}
	return h
}

// askAll asks the server, or each primary of a cluster. compares: each has SET with IFEQ.
func (s *Store) askAll(ctx context.Context) (worst store.Health, compares bool) {
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return s.ask(ctx, s.client)
	}
	var mu sync.Mutex
	asked := 0
	compares = true
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		h, can := s.ask(ctx, node)
		mu.Lock()
		defer mu.Unlock()
		compares = compares && can
		if asked++; asked == 1 || worse(h, worst) {
			worst = h
		}
		return nil
	})
	switch {
	case err != nil:
		return s.unwell(err), false
	case asked == 0:
		return s.unwell(errors.New("the cluster names no primary: is it set up?")), false
	}
	return worst, compares
}

func (s *Store) unwell(err error) store.Health {
	return store.Health{Err: s.server.explain(err, ""), Safety: store.SafetyUnknown}
}

func worse(a, b store.Health) bool {
	rank := map[store.Safety]int{store.Safe: 0, store.SafetyUnknown: 1, store.Unsafe: 2}
	if (a.Err == nil) != (b.Err == nil) {
		return a.Err != nil
	}
	return rank[a.Safety] > rank[b.Safety]
}

// ask asks one server.
func (s *Store) ask(ctx context.Context, client redis.Cmdable) (h store.Health, compares bool) {
	asked := s.clock.now()
	pipe := client.Pipeline()
	ping := pipe.Ping(ctx)
	serverTime := pipe.Time(ctx)
	info := pipe.Info(ctx)
	config := redis.NewMapStringStringCmd(ctx, "config", "get", "maxmemory-policy", "save", "appendonly")
	_ = pipe.Process(ctx, config)
	_, err := pipe.Exec(ctx)
	if pong := ping.Err(); pong != nil || ping.Val() == "" {
		if pong != nil {
			err = pong
		}
		return s.unwell(err), false
	}
	if theirs, err := serverTime.Result(); err == nil {
		s.clock.set(asked, theirs)
	}
	facts := parseInfo(info.Val())
	if config.Err() == nil {
		for k, v := range config.Val() {
			facts["config:"+k] = v
		}
	}
	if err := s.server.usable(facts); err != nil {
		return store.Health{Err: err, Safety: store.SafetyUnknown}, false
	}
	h.Safety, h.Reason = s.server.judge(facts)
	return h, comparesValues(facts)
}

// parseInfo reads the lines "name:value" of an INFO.
func parseInfo(text string) map[string]string {
	facts := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok {
			facts[name] = value
		}
	}
	return facts
}

// usable says what keeps a server that answers from being used. Every server that is
// compatible names the version of Redis that it is compatible with.
func (s *server) usable(facts map[string]string) error {
	version := facts["redis_version"]
	if major, err := strconv.Atoi(strings.SplitN(version, ".", 2)[0]); err == nil && major < 7 {
		return &store.Problem{
			Text:  s.At("", fmt.Sprintf("the server is Redis %s: dedupd needs Redis 7.0 or newer, or Valkey 7.2 or newer", version)),
			Kinds: []error{store.ErrUnavailable},
		}
	}
	if facts["redis_mode"] == "sentinel" {
		return s.explain(errors.New("the server is "+aSentinel), "")
	}
	if facts["role"] == "slave" && facts["slave_read_only"] != "0" {
		return s.explain(errReplica, "")
	}
	return nil
}

var errReplica = errors.New("the server is a read-only replica: name the primary, or with mode: Sentinel the sentinels that know it")

// judge says whether marks may vanish before their time: by eviction, by a restart or, where
// replicas are to be waited for, by a failover.
func (s *server) judge(facts map[string]string) (store.Safety, string) {
	verdicts := []store.Health{judgeEviction(facts), judgePersistence(facts)}
	if d := s.spec.Durability; d != nil {
		verdicts = append(verdicts, judgeReplication(facts, int(d.Replicas)))
	}
	safety := store.Safe
	reasons := make([]string, len(verdicts))
	for i, v := range verdicts {
		if worse(v, store.Health{Safety: safety}) {
			safety = v.Safety
		}
		reasons[i] = v.Reason
	}
	return safety, strings.Join(reasons, "; ")
}

func judgeEviction(facts map[string]string) store.Health {
	policy := facts["config:maxmemory-policy"]
	if policy == "" {
		policy = facts["maxmemory_policy"]
	}
	switch policy {
	case "":
		return store.Health{Safety: store.SafetyUnknown, Reason: "the server does not tell its maxmemory-policy; it has to be noeviction"}
	case "noeviction":
		return store.Health{Safety: store.Safe, Reason: "maxmemory-policy is noeviction"}
	}
	return store.Health{Safety: store.Unsafe, Reason: fmt.Sprintf("maxmemory-policy is %s: when memory is short the server removes marks, and their messages pass again; set noeviction", policy)}
}

func judgePersistence(facts map[string]string) store.Health {
	save, saveKnown := facts["config:save"]
	appendonly := facts["config:appendonly"]
	if appendonly == "" && facts["aof_enabled"] == "1" {
		appendonly = "yes"
	}
	switch {
	case appendonly == "yes" && facts["aof_last_write_status"] == "err":
		return store.Health{Safety: store.Unsafe, Reason: "appendonly is on, but the last write to its file failed: see the server's log, and its disk"}
	case appendonly != "yes" && save != "" && facts["rdb_last_bgsave_status"] == "err":
		return store.Health{Safety: store.Unsafe, Reason: "the last snapshot failed: see the server's log, and its disk"}
	case appendonly == "yes":
		return store.Health{Safety: store.Safe, Reason: "appendonly is on"}
	case save != "":
		return store.Health{Safety: store.Safe, Reason: fmt.Sprintf("snapshots are on (save %s): a crash forgets what was marked since the last one; appendonly yes narrows that to a second", save)}
	case saveKnown:
		return store.Health{Safety: store.Unsafe, Reason: "neither appendonly nor save is on: a restart of the server forgets every mark; set appendonly yes"}
	case facts["aof_enabled"] == "0":
		return store.Health{Safety: store.SafetyUnknown, Reason: "appendonly is off, and the server does not tell whether it saves snapshots; set appendonly yes"}
	}
	return store.Health{Safety: store.SafetyUnknown, Reason: "the server does not tell whether it persists; set appendonly yes"}
}

// judgeReplication compares the replicas that are in step with those that are waited for.
func judgeReplication(facts map[string]string, wanted int) store.Health {
	if facts["connected_slaves"] == "" {
		return store.Health{Safety: store.SafetyUnknown, Reason: "the server does not tell how many replicas it has"}
	}
	inStep := 0
	for name, value := range facts {
		if strings.HasPrefix(name, "slave") && strings.Contains(value, ",state=online,") {
			inStep++
		}
	}
	reason := fmt.Sprintf("%d of the server's %s replicas are in step", inStep, facts["connected_slaves"])
	if inStep < wanted {
		return store.Health{Safety: store.Unsafe, Reason: fmt.Sprintf(
			"%s, and store.redis.durability waits for %d: marks are not acknowledged, and onStoreFailure decides about their messages", reason, wanted)}
	}
	return store.Health{Safety: store.Safe, Reason: reason}
}
