// Package server is how dedupd is asked: over HTTP and over gRPC, with the same verbs, limits
// and errors. It also keeps what runs in step with the configuration file, asks the stores
// how they are, and counts.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/status"
)

// Limits bound what one request may cost. All are positive.
type Limits struct {
	MaxBody       int64 // bytes of one message's body
	MaxBatch      int   // messages or settlements of one batch
	MaxBatchBytes int64 // bytes of one batch as it travels
	MaxHeader     int   // bytes of a request's headers
	MaxInFlight   int64 // bytes of all requests being answered; at least those of the Largest
}

// Options are what a Service is made of. All are required.
type Options struct {
	Registry *Registry
	Metrics  *Metrics
	Limits   Limits
	Version  string
	Log      *slog.Logger
	Now      func() time.Time
}

// Service answers requests, whatever protocol they came by.
type Service struct {
	Options

	// draining is set when the process is about to stop: not ready any more, and every
	// connection that gets an answer is told to go elsewhere.
	draining atomic.Bool

	inFlight inFlight

	// stopping is closed when streams are to end.
	stopping chan struct{}

	configError atomic.Pointer[string]
	config      config

	// callers is never nil: what policies with callers verify tokens by.
	callers atomic.Pointer[callers]

	// gone are the policies that have left.
	gone gone

	// reloaded has the stores asked without waiting for the next tick.
	reloaded chan struct{}
}

// NewService returns a service.
func NewService(o Options) *Service {
	s := &Service{
		Options:  o,
		inFlight: inFlight{limit: o.Limits.MaxInFlight, shown: o.Metrics.inFlight},
		stopping: make(chan struct{}), reloaded: make(chan struct{}, 1),
		gone: gone{since: map[string]time.Time{}},
	}
	s.callers.Store(&callers{missing: errors.New("no configuration was read yet")})
	return s
}

func (s *Service) check(ctx context.Context, policy string, requests []engine.Request) ([]engine.Answer, error) {
	run, err := s.acquire(ctx, policy)
	if err != nil {
		return nil, err
	}
	defer run.store.release()
	answers := run.engine.Check(ctx, requests)
	s.Metrics.claims.granted(policy, answers)
	return answers, nil
}

// checkBatch answers each message, those at fault with their error.
func (s *Service) checkBatch(ctx context.Context, policy string, messages []batchMessage) ([]engine.Answer, error) {
	requests := make([]engine.Request, 0, len(messages))
	for i := range messages {
		if messages[i].err == nil {
			requests = append(requests, messages[i].request)
		}
	}
	answers, err := s.check(ctx, policy, requests)
	if err != nil || len(answers) == len(messages) {
		return answers, err
	}
	all := make([]engine.Answer, len(messages))
	for i := range messages {
		if all[i].Err = messages[i].err; all[i].Err == nil {
			all[i], answers = answers[0], answers[1:]
		}
	}
	return all, nil
}

func (s *Service) settle(ctx context.Context, policy string, ops []engine.Settle) ([]engine.Settled, error) {
	run, err := s.acquire(ctx, policy)
	if err != nil {
		return nil, err
	}
	defer run.store.release()
	settled := run.engine.Settle(ctx, ops)
	s.Metrics.claims.settled(policy, ops, settled)
	return settled, nil
}

func (s *Service) lookup(ctx context.Context, policy, key string) (engine.Found, error) {
	run, err := s.acquire(ctx, policy)
	if err != nil {
		return engine.Found{}, err
	}
	defer run.store.release()
	return run.engine.Lookup(ctx, key)
}

func (s *Service) forget(ctx context.Context, policy, key string) (bool, error) {
	run, err := s.acquire(ctx, policy)
	if err != nil {
		return false, err
	}
	defer run.store.release()
	return run.engine.Forget(ctx, key)
}

// Status is what this process says of itself.
func (s *Service) Status() status.Status {
	st := status.Status{Version: s.Version, Policies: s.Registry.Status()}
	if e := s.configError.Load(); e != nil {
		st.ConfigError = *e
	}
	return st
}

// ready says whether requests are welcome: there is a configuration, and the process is not
// about to stop. An unreachable store does not count: what is answered then (503, or
// UNCHECKED) is the policy's decision, and a process out of the endpoints could not answer it.
func (s *Service) ready() (bool, string) {
	switch {
	case s.draining.Load():
		return false, "stopping"
	case len(s.Registry.Names()) == 0:
		return false, "no configuration"
	default:
		return true, "ok"
	}
}

func bodyTooLarge(field string, limit int64) error {
	return &engine.Error{
		Code: engine.TooLarge, Field: field,
		Message: fmt.Sprintf("%s: more than %d bytes (--max-body)", field, limit),
	}
}
