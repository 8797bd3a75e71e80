package client_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/caller"
	"github.com/dedupd/dedup-operator/dedupd/caller/callertest"
	"github.com/dedupd/dedup-operator/dedupd/client"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/server"
	"github.com/dedupd/dedup-operator/dedupd/server/servertest"
)

const manifests = `
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: claims}
spec:
  key: {strategy: MessageID, messageID: {header: message-id, verifyContent: true}}
  ttl: 1h
  mode: Claim
  claim: {lease: 3s}
  store: {memory: {}}
---
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: short-claims}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  mode: Claim
  claim: {lease: 300ms}
  store: {memory: {}}
---
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: marks}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  store: {memory: {}}
---
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: guarded, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  callers: {serviceAccounts: [checkout]}
  store: {memory: {}}
`

// lease is that of policy claims: a busy machine does not sleep through it.
const lease = 3 * time.Second

// serve runs a server and returns its gRPC address.
func serve(t *testing.T, modify ...func(*server.Limits)) string {
	t.Helper()
	keys, err := caller.NewDocument(callertest.Discovery(), callertest.Set(t, "rsa"))
	if err != nil {
		t.Fatal(err)
	}
	service := servertest.New(servertest.InMemory, modify...)
	servertest.Load(t, service, manifests, map[string][]byte{v1alpha1.IssuerFile: keys})
	return servertest.Run(t, service)
}

func connect(t *testing.T, target, policy string, options ...grpc.DialOption) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Target: target, Policy: policy, Consumer: "billing", Retry: 10 * time.Second, DialOptions: options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func message(id string) client.Message {
	return client.Message{Headers: map[string]string{"Message-Id": id}, Body: []byte("x")}
}

func TestProcessOnce(t *testing.T) {
	target := serve(t)
	for _, policy := range []string{"claims", "marks"} {
		t.Run(policy, func(t *testing.T) {
			c := connect(t, target, policy)
			calls := 0
			handle := func(context.Context, uint64) error { calls++; return nil }
			if d, err := c.Process(t.Context(), message("1"), handle); d != client.Fresh || err != nil {
				t.Errorf("%s %v", d, err)
			}
			if d, err := c.Process(t.Context(), message("1"), handle); d != client.Duplicate || err != nil {
				t.Errorf("%s %v", d, err)
			}
			if calls != 1 {
				t.Errorf("%d calls", calls)
			}
		})
	}
}

func TestProcessReleasesWhatFailed(t *testing.T) {
	c := connect(t, serve(t), "claims")
	broken := errors.New("broken")
	if d, err := c.Process(t.Context(), message("1"), func(context.Context, uint64) error { return broken }); d != client.Fresh || !errors.Is(err, broken) {
		t.Errorf("%s %v", d, err)
	}
	var fence uint64
	if d, err := c.Process(t.Context(), message("1"), func(_ context.Context, f uint64) error { fence = f; return nil }); d != client.Fresh || err != nil || fence != 2 {
		t.Errorf("%s %v fence %d", d, err, fence)
	}
}

// In mode Mark there is nothing to give back: the price of one command per message.
func TestProcessInModeMarkDropsWhatFailed(t *testing.T) {
	c := connect(t, serve(t), "marks")
	broken := errors.New("broken")
	if d, err := c.Process(t.Context(), message("1"), func(context.Context, uint64) error { return broken }); d != client.Fresh || !errors.Is(err, broken) {
		t.Errorf("%s %v", d, err)
	}
	if d, err := c.Process(t.Context(), message("1"), nil); d != client.Duplicate || err != nil {
		t.Errorf("%s %v", d, err)
	}
}

// A handler that is told to stop gives its message back, although its own context has ended.
func TestProcessReleasesAtShutdown(t *testing.T) {
	c := connect(t, serve(t), "claims")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Process(ctx, message("1"), func(ctx context.Context, _ uint64) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if a, err := c.Check(t.Context(), message("1")); err != nil || a.Decision != client.Fresh {
		t.Errorf("%+v %v", a, err)
	}
}

func TestProcessRenewsWhileTheHandlerRuns(t *testing.T) {
	var renewed atomic.Int64
	c := connect(t, serve(t), "claims", grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, cc, o...)
			if err == nil && strings.HasSuffix(method, "/Renew") {
				renewed.Add(1)
			}
			return err
		}))
	never := func(context.Context, uint64) error { return errors.New("called for a message that another holds") }
	d, err := c.Process(t.Context(), message("1"), func(ctx context.Context, _ uint64) error {
		// A lease is renewed when a third of it has passed: with the fourth, the handler has
		// outlived the lease that it was granted. Another consumer always finds it held.
		for renewed.Load() < 4 && ctx.Err() == nil {
			_, err := c.Process(ctx, message("1"), never)
			var held *client.InProgressError
			if ctx.Err() == nil && (!errors.As(err, &held) || held.RetryAfter <= 0 || held.RetryAfter > lease) {
				t.Errorf("got %v", err)
			}
		}
		return context.Cause(ctx)
	})
	if d != client.Fresh || err != nil {
		t.Errorf("%s %v", d, err)
	}
	if d, err := c.Process(t.Context(), message("1"), never); d != client.Duplicate || err != nil {
		t.Errorf("%s %v", d, err)
	}
}

func TestProcessStopsTheHandlerOfALostClaim(t *testing.T) {
	target := serve(t)
	tests := map[string]grpc.UnaryClientInterceptor{
		"the server says so": func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, cc, o...)
			if strings.HasSuffix(method, "/Renew") {
				// As if another had taken over: a token of nobody is asked about in this one's place.
				return invoke(ctx, method, changed(req), reply, cc, o...)
			}
			return err
		},
		"the lease runs out unrenewed": func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			if strings.HasSuffix(method, "/Renew") {
				return status.Error(codes.Unavailable, "no network")
			}
			return invoke(ctx, method, req, reply, cc, o...)
		},
	}
	for name, interceptor := range tests {
		t.Run(name, func(t *testing.T) {
			c := connect(t, target, "short-claims", grpc.WithUnaryInterceptor(interceptor))
			d, err := c.Process(t.Context(), message(name), func(ctx context.Context, _ uint64) error {
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case <-time.After(5 * time.Second):
					return errors.New("nobody stopped the handler")
				}
			})
			if d != client.Fresh || !errors.Is(err, client.ErrStale) {
				t.Errorf("%s %v", d, err)
			}
		})
	}
}

func TestProcessSaysConflict(t *testing.T) {
	c := connect(t, serve(t), "claims")
	if _, err := c.Process(t.Context(), message("1"), func(context.Context, uint64) error { return nil }); err != nil {
		t.Fatal(err)
	}
	other := message("1")
	other.Body = []byte("other")
	if d, err := c.Process(t.Context(), other, nil); d != client.Conflict || !errors.Is(err, client.ErrConflict) {
		t.Errorf("%s %v", d, err)
	}
}

// Replies get lost on their way back, of checks as of settlements: the message is processed
// once, and never taken for a duplicate of itself.
func TestLostRepliesAreHarmless(t *testing.T) {
	target := serve(t)
	for _, policy := range []string{"claims", "marks"} {
		t.Run(policy, func(t *testing.T) {
			var lost atomic.Int64
			c := connect(t, target, policy, grpc.WithUnaryInterceptor(
				func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
					err := invoke(ctx, method, req, reply, cc, o...)
					if err == nil && lost.Add(1)%2 == 1 {
						return status.Error(codes.Unavailable, "connection reset by peer")
					}
					return err
				}))
			calls := 0
			if d, err := c.Process(t.Context(), message("lost"), func(context.Context, uint64) error { calls++; return nil }); d != client.Fresh || err != nil || calls != 1 {
				t.Errorf("%s %v after %d calls", d, err, calls)
			}
			if d, err := c.Process(t.Context(), message("lost"), nil); d != client.Duplicate || err != nil {
				t.Errorf("%s %v", d, err)
			}
			if lost.Load() < 4 {
				t.Errorf("%d calls: nothing was tried again", lost.Load())
			}
		})
	}
}

func TestErrorsThatNoRetryHelpsReturnAtOnce(t *testing.T) {
	target := serve(t)
	if _, err := connect(t, target, "nope").Check(t.Context(), message("1")); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown policy: %v", err)
	}
	if _, err := connect(t, target, "marks").Check(t.Context(), client.Message{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no message id: %v", err)
	}
	if err := connect(t, target, "claims").Complete(t.Context(), client.Claim{Key: "billing:1", Token: strings.Repeat("A", 32)}); !errors.Is(err, client.ErrStale) {
		t.Errorf("a claim of nobody: %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	c, err := client.New(client.Config{Target: "127.0.0.1:1", Policy: "marks", Retry: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Check(t.Context(), message("1")); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestFromEnv(t *testing.T) {
	env := map[string]string{"DEDUPD_GRPC": "orders-dedupd.shop.svc:9090", "DEDUPD_POLICY": "orders", "DEDUPD_CONSUMER": "billing", "DEDUPD_TOKEN_FILE": "/token"}
	get := func(name string) string { return env[name] }
	got := client.FromEnv(get)
	if got.Target != env["DEDUPD_GRPC"] || got.Policy != "orders" || got.Consumer != "billing" || got.TokenFile != "/token" {
		t.Errorf("got %+v", got)
	}
	for _, name := range []string{"DEDUPD_GRPC", "DEDUPD_POLICY"} {
		delete(env, name)
		if _, err := client.New(client.FromEnv(get)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
		env[name] = "x"
	}
}

// changed is a renewal with the token of nobody.
func changed(req any) any {
	in := req.(*pb.RenewRequest)
	return &pb.RenewRequest{Policy: in.GetPolicy(), Key: in.GetKey(), Token: strings.Repeat("A", 32)}
}
