package server

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"

	"github.com/dedupd/dedup-operator/dedupd/caller"
	"github.com/dedupd/dedup-operator/dedupd/caller/callertest"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
)

// guarded is a policy that ServiceAccount checkout of namespace shop may ask, and open one that
// everybody may.
const guarded = `
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: guarded, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  mode: Claim
  callers: {serviceAccounts: [billing, checkout]}
  store: {memory: {}}
---
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: open, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  store: {memory: {}}
`

// document holds some of the issuer's keys.
func document(tb testing.TB, keys ...string) []byte {
	tb.Helper()
	d, err := caller.NewDocument(callertest.Discovery(), callertest.Set(tb, keys...))
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func startGuarded(tb testing.TB, modify ...func(*options)) *fixture {
	tb.Helper()
	return start(tb, append([]func(*options){func(o *options) {
		o.manifests, o.issuer = guarded, document(tb, "rsa")
	}}, modify...)...)
}

// goodToken is one of checkout's, with changes.
func goodToken(tb testing.TB, changes map[string]any) string {
	tb.Helper()
	return callertest.Token(tb, "rsa", callertest.Claims(time.Now(), changes))
}

func stranger(tb testing.TB) string {
	tb.Helper()
	return goodToken(tb, map[string]any{"sub": "system:serviceaccount:shop:mallory"})
}

func messageID(id string) *pb.Message {
	return &pb.Message{Headers: map[string]string{"message-id": id}}
}

func bearing(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// in is the fixture of a subtest.
func (f *fixture) in(t *testing.T) *fixture {
	t.Helper()
	return &fixture{Service: f.Service, t: t, url: f.url, rpc: f.rpc}
}

// mark has a message 1 of the policy guarded checked by who may.
func (f *fixture) mark(consumer string) {
	f.t.Helper()
	r := f.do("POST", "/v1/policies/guarded/check", "", "Dedup-Consumer: "+consumer, "Message-Id: 1", "Authorization: Bearer "+goodToken(f.t, nil))
	if r.status != 200 {
		f.t.Fatalf("%d %s", r.status, r.text)
	}
}

// known says whether something is remembered in the policy guarded.
func (f *fixture) known(key string) bool {
	f.t.Helper()
	return f.do("GET", "/v1/policies/guarded/keys/"+key, "", "Authorization: Bearer "+goodToken(f.t, nil)).status == 200
}
