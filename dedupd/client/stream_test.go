package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dedupd/dedup-operator/dedupd/client"
	"github.com/dedupd/dedup-operator/dedupd/server"
)

func TestStreamDecidesAsSingleChecksDo(t *testing.T) {
	target := serve(t)
	c := connect(t, target, "claims")
	s := c.Stream()
	t.Cleanup(s.Close)
	first, err := s.Check(t.Context(), message("1"))
	if err != nil || first.Decision != client.Fresh || first.Claim.Token == "" || first.Claim.Fence != 1 {
		t.Fatalf("%+v %v", first, err)
	}
	if held, err := s.Check(t.Context(), message("1")); err != nil || held.Decision != client.InProgress || held.RetryAfter <= 0 {
		t.Errorf("%+v %v", held, err)
	}
	if err := c.Complete(t.Context(), first.Claim); err != nil {
		t.Error(err)
	}
	if again, err := s.Check(t.Context(), message("1")); err != nil || again.Decision != client.Duplicate || again.FirstSeen.IsZero() {
		t.Errorf("%+v %v", again, err)
	}
	other := message("1")
	other.Body = []byte("other")
	if conflict, err := s.Check(t.Context(), other); err != nil || conflict.Decision != client.Conflict {
		t.Errorf("%+v %v", conflict, err)
	}
	if _, err := s.Check(t.Context(), client.Message{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a message without its key: %v", err)
	}
}

// Of concurrent repeats of each message one is fresh, whoever's batch they travel in. The
// server takes 100 messages in a batch: more callers than that, and the stream sends smaller ones.
func TestStreamIsSharedByManyCallers(t *testing.T) {
	var streams atomic.Int64
	c := connect(t, serve(t), "marks", grpc.WithChainStreamInterceptor(
		func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			streams.Add(1)
			return open(ctx, d, cc, method, o...)
		}))
	s := c.Stream()
	t.Cleanup(s.Close)
	var fresh, duplicate atomic.Int64
	var callers sync.WaitGroup
	for range 300 {
		callers.Go(func() {
			for i := range 3 {
				a, err := s.Check(t.Context(), message(fmt.Sprint(i)))
				switch {
				case err == nil && a.Decision == client.Fresh:
					fresh.Add(1)
				case err == nil && a.Decision == client.Duplicate:
					duplicate.Add(1)
				default:
					t.Errorf("%+v %v", a, err)
				}
			}
		})
	}
	callers.Wait()
	if fresh.Load() != 3 || duplicate.Load() != 897 {
		t.Errorf("%d fresh, %d duplicate; want 3 and 897", fresh.Load(), duplicate.Load())
	}
	if streams.Load() != 1 {
		t.Errorf("%d streams", streams.Load())
	}
}

// What is wrong with one message is the business of its caller. The others have their answers at the first
// try, also where what travels together is more than the server receives at once.
func TestStreamFailsNobodyForAnother(t *testing.T) {
	for name, test := range map[string]struct {
		receives int64 // what the server takes of a batch, in bytes
		others   int   // bytes of each message
		one      int   // bytes of one, with a header
		header   string
		code     codes.Code // its caller's
	}{
		"all small":                            {1 << 20, 100, 100, "", codes.OK},
		"a server that takes smaller batches":  {100 << 10, 50 << 10, 100, "", codes.OK},
		"one too large to travel with another": {1 << 20, 100, 3 << 20, "", codes.ResourceExhausted},
		"one too large for the server alone":   {100 << 10, 100, 500 << 10, "", codes.ResourceExhausted},
		"a large one among large ones":         {1 << 20, 900 << 10, 2 << 20, "", codes.ResourceExhausted},
		"one that cannot be encoded":           {1 << 20, 100, 100, "\xff", codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			target := serve(t, func(l *server.Limits) { l.MaxBody, l.MaxBatchBytes = test.receives, test.receives })
			c, err := client.New(client.Config{Target: target, Policy: "marks", Consumer: "billing", Timeout: time.Minute, Retry: -1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			s := c.Stream()
			t.Cleanup(s.Close)
			var callers sync.WaitGroup
			for i := range 40 {
				m, want := message(fmt.Sprint(i)), codes.OK
				m.Body = make([]byte, test.others)
				if i == 20 {
					m.Body, m.Headers["x"], want = make([]byte, test.one), test.header, test.code
				}
				callers.Go(func() {
					a, err := s.Check(t.Context(), m)
					if status.Code(err) != want || err == nil && a.Decision != client.Fresh {
						t.Errorf("%d: %s %v, want %s", i, a.Decision, err, want)
					}
				})
			}
			callers.Wait()
		})
	}
}

// silent is a stream whose first answers get lost: the server has decided, and the caller is
// told nothing, or that the stream is over.
type silent struct {
	grpc.ClientStream
	ctx  context.Context
	lost *atomic.Int64
	fail error
}

func (s *silent) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil || s.lost.Add(-1) < 0 {
		return err
	}
	if s.fail != nil {
		return s.fail
	}
	<-s.ctx.Done()
	return status.FromContextError(s.ctx.Err()).Err()
}

// An answer that is lost with its stream is asked for again, on another, with the same
// attempt: the message is fresh, and no duplicate of itself.
func TestStreamAsksAgainOnANewOne(t *testing.T) {
	target := serve(t)
	for name, fail := range map[string]error{
		"the stream breaks":    status.Error(codes.Unavailable, "broken"),
		"the stream is silent": nil,
	} {
		t.Run(name, func(t *testing.T) {
			var lost atomic.Int64
			lost.Store(2)
			c, err := client.New(client.Config{
				Target: target, Policy: "marks", Consumer: "billing", Timeout: 300 * time.Millisecond, Retry: 20 * time.Second,
				DialOptions: []grpc.DialOption{grpc.WithChainStreamInterceptor(
					func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
						inner, err := open(ctx, d, cc, method, o...)
						return &silent{inner, ctx, &lost, fail}, err
					})},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			s := c.Stream()
			t.Cleanup(s.Close)
			if a, err := s.Check(t.Context(), message("lost "+name)); err != nil || a.Decision != client.Fresh {
				t.Errorf("%+v %v", a, err)
			}
			if lost.Load() >= 0 {
				t.Errorf("%d answers are still to be lost", lost.Load())
			}
		})
	}
}

func TestStreamLetsACallerLeave(t *testing.T) {
	c := connect(t, serve(t), "marks")
	s := c.Stream()
	t.Cleanup(s.Close)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Check(gone, message("1")); status.Code(errors.Unwrap(err)) != codes.Canceled {
		t.Errorf("%v", err)
	}
	if a, err := s.Check(t.Context(), message("2")); err != nil || a.Decision != client.Fresh {
		t.Errorf("%+v %v", a, err)
	}
}

func TestAClosedStreamFails(t *testing.T) {
	c := connect(t, serve(t), "marks")
	s := c.Stream()
	if _, err := s.Check(t.Context(), message("1")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := s.Check(t.Context(), message("2")); err == nil || !strings.Contains(err.Error(), "Canceled") {
		t.Errorf("%v", err)
	}
}
