package client_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dedupd/dedup-operator/dedupd/caller"
	"github.com/dedupd/dedup-operator/dedupd/caller/callertest"
	"github.com/dedupd/dedup-operator/dedupd/client"
)

// tokenFile is a file that the test renews, and the clock by which a client takes it to be old.
type tokenFile struct {
	t    *testing.T
	path string
	at   atomic.Int64 // seconds
}

func newTokenFile(t *testing.T) *tokenFile {
	t.Helper()
	return &tokenFile{t: t, path: filepath.Join(t.TempDir(), "token")}
}

// renew writes another token, as the kubelet does, and lets a client look at the file again.
func (f *tokenFile) renew(token string) {
	f.t.Helper()
	if err := os.WriteFile(f.path+".new", []byte(token+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
	f.at.Add(10)
}

func (f *tokenFile) client(target, policy string, change ...func(*client.Config)) *client.Client {
	f.t.Helper()
	config := client.Config{
		Target: target, Policy: policy, Consumer: "billing", TokenFile: f.path,
		Now: func() time.Time { return time.Unix(f.at.Load(), 0) },
	}
	for _, c := range change {
		c(&config)
	}
	c, err := client.New(config)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

func once(c *client.Config) { c.Retry = -1 }

func good(t *testing.T) string {
	t.Helper()
	return callertest.Token(t, "rsa", callertest.Claims(time.Now(), nil))
}

// expiring is a token that is accepted for so long, by the server's leeway.
func expiring(t *testing.T, in time.Duration) string {
	t.Helper()
	return callertest.Token(t, "rsa", callertest.Claims(time.Now(), map[string]any{"exp": time.Now().Add(in - caller.Leeway).Unix()}))
}

func TestTheTokenOfTheFileSaysWhoAsks(t *testing.T) {
	target, file := serve(t), newTokenFile(t)
	file.renew(good(t))
	c := file.client(target, "guarded", once)
	if a, err := c.Check(t.Context(), message("1")); err != nil || a.Decision != client.Fresh {
		t.Errorf("%+v %v", a, err)
	}
	s := c.Stream()
	t.Cleanup(s.Close)
	if a, err := s.Check(t.Context(), message("1")); err != nil || a.Decision != client.Duplicate {
		t.Errorf("over the stream: %+v %v", a, err)
	}
	file.renew(callertest.Token(t, "rsa", callertest.Claims(time.Now(), map[string]any{"sub": "system:serviceaccount:shop:mallory"})))
	if _, err := c.Check(t.Context(), message("2")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another's: %v", err)
	}
}

func TestARenewedTokenIsShown(t *testing.T) {
	file := newTokenFile(t)
	file.renew(expiring(t, -time.Minute))
	c := file.client(serve(t), "guarded", once)
	if _, err := c.Check(t.Context(), message("1")); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("with an expired one: %v", err)
	}
	file.renew(good(t))
	if _, err := c.Check(t.Context(), message("1")); err != nil {
		t.Error(err)
	}
	// The kubelet may be in the midst of something: what was there is good a while yet.
	if err := os.Remove(file.path); err != nil {
		t.Fatal(err)
	}
	file.at.Add(10)
	if _, err := c.Check(t.Context(), message("2")); err != nil {
		t.Errorf("with the file gone: %v", err)
	}
}

// A call is tried again while a token is refused: the file may have another by then.
func TestACallOutlastsAnExpiredToken(t *testing.T) {
	file := newTokenFile(t)
	file.renew(expiring(t, -time.Minute))
	var tries atomic.Int64
	c := file.client(serve(t), "guarded", func(c *client.Config) {
		c.DialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(
			func(ctx context.Context, method string, in, out any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
				if tries.Add(1) == 2 {
					file.renew(good(t))
				}
				return invoke(ctx, method, in, out, cc, o...)
			})}
	})
	if a, err := c.Check(t.Context(), message("1")); err != nil || a.Decision != client.Fresh || tries.Load() != 2 {
		t.Errorf("%+v %v after %d tries", a, err, tries.Load())
	}
}

// The server ends a stream when the token that it was opened with expires. No check fails for that.
func TestAStreamOutlastsItsToken(t *testing.T) {
	file := newTokenFile(t)
	var streams atomic.Int64
	c := file.client(serve(t), "guarded", func(c *client.Config) {
		c.DialOptions = []grpc.DialOption{grpc.WithChainStreamInterceptor(
			func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
				streams.Add(1)
				return open(ctx, d, cc, method, o...)
			})}
	})
	s := c.Stream()
	t.Cleanup(s.Close)
	file.renew(expiring(t, 2*time.Second))
	early, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	_, _ = s.Check(early, message("0")) // opens the stream; on a slow machine after the token's end
	cancel()
	file.renew(good(t))
	for deadline := time.Now().Add(30 * time.Second); streams.Load() < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the stream goes on without a token that is good")
		}
		if _, err := s.Check(t.Context(), message("1")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Check(t.Context(), message("2")); err != nil {
		t.Error(err)
	}
}

func TestWithoutATokenThePolicyDecides(t *testing.T) {
	target, file := serve(t), newTokenFile(t)
	if _, err := file.client(target, "marks", once).Check(t.Context(), message("1")); err != nil {
		t.Errorf("a policy without callers: %v", err)
	}
	_, err := file.client(target, "guarded", once).Check(t.Context(), message("1"))
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), file.path) || !strings.Contains(err.Error(), "DEDUPD_TOKEN_FILE") {
		t.Errorf("%v does not say why there was no token", err)
	}
	// Nothing will come of another try.
	started := time.Now()
	if _, err := connect(t, target, "guarded").Check(t.Context(), message("1")); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
	if took := time.Since(started); took > 8*time.Second {
		t.Errorf("tried for %s", took)
	}
}
