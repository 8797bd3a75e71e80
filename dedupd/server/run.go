package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// Timing is when things happen of themselves. All are positive but DrainDelay, which may be zero.
type Timing struct {
	ReadHeader time.Duration // how long a request's headers may take
	Read       time.Duration // how long a whole request may take
	Idle       time.Duration // how long a connection is kept without a request

	Poll   time.Duration // between looks at the configuration
	Health time.Duration // between questions to the stores

	// DrainDelay is how long requests are welcome after the process was told to stop and said
	// so at /readyz: those who send them need a while to learn it. Drain is how long the
	// requests on their way then have.
	DrainDelay time.Duration
	Drain      time.Duration
}

// Run serves on the two listeners until ctx ends, and then stops without losing an answer:
// not ready; after the delay no new connection; what was accepted is answered; the stores are
// closed. It returns an error if a listener failed, or if requests were still on their way
// when their time was over.
func (s *Service) Run(ctx context.Context, t Timing, httpOn, grpcOn net.Listener) error {
	web := s.newHTTP(t)
	rpc := s.NewGRPC()
	healthy := health.NewServer()
	healthy.SetServingStatus(pb.DedupService_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(rpc, healthy)
	reflection.Register(rpc)

	watching, stopWatching := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	watchers.Go(func() { s.watchConfig(watching, t.Poll) })
	watchers.Go(func() { s.watchStores(watching, t.Health) })
	defer func() {
		stopWatching()
		watchers.Wait()
		s.Registry.Close()
	}()

	failed := make(chan error, 2)
	go func() { failed <- serving("HTTP", web.Serve(httpOn)) }()
	go func() { failed <- serving("gRPC", rpc.Serve(grpcOn)) }()

	var err error
	delay := t.DrainDelay
	select {
	case err = <-failed:
		delay = 0 // a server without one of its doors has no reason to wait
	case <-ctx.Done():
	}
	s.Log.Info("stopping", "delay", delay.String(), "drain", t.Drain.String())
	s.draining.Store(true)
	healthy.Shutdown()
	pause(delay)
	return errors.Join(err, s.drain(context.WithoutCancel(ctx), web, rpc, t.Drain))
}

// newHTTP returns the HTTP server. Its limits hold against callers that send slowly or much.
func (s *Service) newHTTP(t Timing) *http.Server {
	return &http.Server{
		Handler:           s.Handler(),
		MaxHeaderBytes:    s.Limits.MaxHeader,
		ReadHeaderTimeout: t.ReadHeader,
		ReadTimeout:       t.Read,
		// Counted from the end of the headers, so it has to cover the reading as well.
		WriteTimeout: 2 * t.Read,
		IdleTimeout:  t.Idle,
		ErrorLog:     slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}

func serving(what string, err error) error {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("serving %s: %w", what, err)
}

// pause waits for d.
func pause(d time.Duration) {
	if d > 0 {
		timer := time.NewTimer(d)
		<-timer.C
	}
}

// drain lets both servers answer what they have accepted, for at most limit.
func (s *Service) drain(ctx context.Context, web *http.Server, rpc *grpc.Server, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	close(s.stopping)
	rpcDone := make(chan struct{})
	go func() {
		defer close(rpcDone)
		rpc.GracefulStop()
	}()
	var errs []error
	if err := web.Shutdown(ctx); err != nil {
		errs = append(errs, fmt.Errorf("stopping HTTP: requests were still on their way after %s: %w", limit, err))
		_ = web.Close() // nobody is left to tell
	}
	select {
	case <-rpcDone:
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("stopping gRPC: calls were still on their way after %s", limit))
		rpc.Stop()
		<-rpcDone
	}
	return errors.Join(errs...)
}
