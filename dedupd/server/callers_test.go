package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/dedupd/dedup-operator/dedupd/caller"
	"github.com/dedupd/dedup-operator/dedupd/caller/callertest"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// Each way to ask about a policy, over HTTP.
var askingHTTP = map[string]struct{ method, path, body string }{
	"check":       {"POST", "/check", ""},
	"check:batch": {"POST", "/check:batch", `{"consumer": "c", "messages": [{"headers": {"message-id": "1"}, "body": 1}]}`},
	"complete":    {"POST", "/complete", `{"key": "c:1", "token": "none"}`},
	"release":     {"POST", "/release", `{"key": "c:1", "token": "none"}`},
	"renew":       {"POST", "/renew", `{"key": "c:1", "token": "none"}`},
	"look up":     {"GET", "/keys/c:1", ""},
	"forget":      {"DELETE", "/keys/c:1", ""},
}

// The same over gRPC.
var askingGRPC = map[string]func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error{
	"Check": func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error {
		_, err := rpc.Check(ctx, &pb.CheckRequest{Policy: policy, Consumer: "c", Message: messageID("1")})
		return err
	},
	"CheckBatch": func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error {
		_, err := rpc.CheckBatch(ctx, &pb.CheckBatchRequest{Policy: policy, Consumer: "c", Messages: []*pb.BatchMessage{{Message: messageID("1")}}})
		return err
	},
	"Complete": func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error {
		_, err := rpc.Complete(ctx, &pb.CompleteRequest{Policy: policy, Key: "c:1", Token: "none"})
		return err
	},
	"Release": func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error {
		_, err := rpc.Release(ctx, &pb.ReleaseRequest{Policy: policy, Key: "c:1", Token: "none"})
		return err
	},
	"Renew": func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error {
		_, err := rpc.Renew(ctx, &pb.RenewRequest{Policy: policy, Key: "c:1", Token: "none"})
		return err
	},
	"SettleBatch": func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error {
		_, err := rpc.SettleBatch(ctx, &pb.SettleBatchRequest{Policy: policy, Settles: []*pb.Settle{{Verb: pb.Verb_VERB_RENEW, Key: "c:1", Token: "none"}}})
		return err
	},
	"Lookup": func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error {
		_, err := rpc.Lookup(ctx, &pb.LookupRequest{Policy: policy, Key: "c:1"})
		return err
	},
	"Forget": func(ctx context.Context, rpc pb.DedupServiceClient, policy string) error {
		_, err := rpc.Forget(ctx, &pb.ForgetRequest{Policy: policy, Key: "c:1"})
		return err
	},
}

func TestOnlyItsCallersMayAskAPolicy(t *testing.T) {
	f := startGuarded(t)
	callers := map[string]struct {
		token string
		http  int
		grpc  codes.Code
	}{
		"nobody":       {"", 401, codes.Unauthenticated},
		"an impostor":  {"x.y.z", 401, codes.Unauthenticated},
		"another":      {stranger(t), 403, codes.PermissionDenied},
		"its caller":   {goodToken(t, nil), 200, codes.OK},
		"and the next": {goodToken(t, map[string]any{"sub": "system:serviceaccount:shop:billing"}), 200, codes.OK},
	}
	for who, want := range callers {
		for verb, ask := range askingHTTP {
			t.Run(who+" over HTTP: "+verb, func(t *testing.T) {
				f := f.in(t)
				f.mark("c")
				headers := []string{"Dedup-Consumer: c", "Message-Id: 1"}
				if want.token != "" {
					headers = append(headers, "Authorization: Bearer "+want.token)
				}
				r := f.do(ask.method, "/v1/policies/guarded"+ask.path, ask.body, headers...)
				if r.status != want.http {
					t.Errorf("%d %s, want %d", r.status, r.text, want.http)
				}
				if r.status != 200 && !f.known("c:1") {
					t.Error("the refused request had an effect")
				}
				if challenge := r.header.Get("WWW-Authenticate"); (challenge == "Bearer") != (want.http == 401) {
					t.Errorf("WWW-Authenticate: %q with %d", challenge, r.status)
				}
			})
		}
		for verb, ask := range askingGRPC {
			t.Run(who+" over gRPC: "+verb, func(t *testing.T) {
				f := f.in(t)
				f.mark("c")
				if err := ask(bearing(t.Context(), want.token), f.rpc, "guarded"); status.Code(err) != want.grpc {
					t.Errorf("%v, want %s", err, want.grpc)
				} else if err != nil && !f.known("c:1") {
					t.Error("the refused call had an effect")
				}
			})
		}
	}
}

func TestARefusalSaysWhatWouldBeRight(t *testing.T) {
	f := startGuarded(t)
	good := goodToken(t, nil)
	for name, test := range map[string]struct {
		headers []string
		status  int
		says    string
	}{
		"no token":                        {nil, 401, "authorization: missing, and the policy has callers; want Bearer and the token in the file that $DEDUPD_TOKEN_FILE names"},
		"another scheme":                  {[]string{"Basic YTpi"}, 401, "another scheme than Bearer"},
		"no scheme":                       {[]string{good}, 401, "another scheme than Bearer"},
		"Bearer alone":                    {[]string{"Bearer "}, 401, "Bearer with no token"},
		"two tokens in one":               {[]string{"Bearer " + good + " " + good}, 401, "or with more than one"},
		"two headers":                     {[]string{"Bearer " + good, "Bearer " + good}, 401, "there 2 times"},
		"in small letters and two spaces": {[]string{"bearer  " + good}, 200, ""},
		"another audience":                {[]string{"Bearer " + goodToken(t, map[string]any{"aud": "vault"})}, 401, `it is for the audience "vault"; want "dedupd"`},
		"another issuer":                  {[]string{"Bearer " + goodToken(t, map[string]any{"iss": "https://evil"})}, 401, `it is of the issuer "https://evil"; want "` + callertest.Issuer},
		"expired":                         {[]string{"Bearer " + goodToken(t, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})}, 401, "it expired at"},
		"not valid yet":                   {[]string{"Bearer " + goodToken(t, map[string]any{"nbf": time.Now().Add(time.Hour).Unix()})}, 401, "it is valid from"},
		"a key that is not known":         {[]string{"Bearer " + callertest.Token(t, "another", callertest.Claims(time.Now(), nil))}, 401, `the key "another"`},
		"another account":                 {[]string{"Bearer " + stranger(t)}, 403, "ServiceAccount mallory of namespace shop may not ask policy guarded of namespace shop; spec.callers.serviceAccounts there names those that may"},
		"the account of the name, of another namespace": {[]string{"Bearer " + goodToken(t, map[string]any{"sub": "system:serviceaccount:evil:checkout"})}, 403, "ServiceAccount checkout of namespace evil may not"},
	} {
		t.Run(name, func(t *testing.T) {
			headers := []string{"Dedup-Consumer: c", "Message-Id: " + name}
			for _, h := range test.headers {
				headers = append(headers, "Authorization: "+h)
			}
			f := f.in(t)
			r := f.do("POST", "/v1/policies/guarded/check", "", headers...)
			if r.status != test.status || !strings.Contains(r.field("detail"), test.says) {
				t.Errorf("%d %s\nwant %d that says %q", r.status, r.text, test.status, test.says)
			}
			for _, h := range test.headers {
				if _, secret, _ := strings.Cut(h, "."); len(secret) > 20 && strings.Contains(r.text, secret) {
					t.Errorf("the token is in the answer: %s", r.text)
				}
			}
		})
	}
	if logs := f.logs.String(); strings.Contains(logs, good) {
		t.Error("the token is in the log")
	}
}

func TestWhatHasNoCallersIsOpen(t *testing.T) {
	f := startGuarded(t)
	for name, headers := range map[string][]string{
		"without a token": nil, "with a bad token": {"Authorization: Bearer x.y.z"}, "with a stranger's": {"Authorization: Bearer " + stranger(t)},
	} {
		t.Run(name, func(t *testing.T) {
			f := f.in(t)
			for _, ask := range []struct{ method, path string }{
				{"POST", "/v1/policies/open/check"}, {"GET", "/v1/status"}, {"GET", "/healthz"}, {"GET", "/readyz"}, {"GET", "/metrics"},
			} {
				if r := f.do(ask.method, ask.path, "", append(headers, "Dedup-Consumer: c", "Message-Id: "+name)...); r.status != 200 {
					t.Errorf("%s: %d %s", ask.path, r.status, r.text)
				}
			}
		})
	}
	if _, err := f.rpc.Status(t.Context(), &pb.StatusRequest{}); err != nil {
		t.Error(err)
	}
}

func TestTheIssuersKeysAreRotatedInPlace(t *testing.T) {
	f := startGuarded(t)
	old, fresh := goodToken(t, nil), callertest.Token(t, "another", callertest.Claims(time.Now(), nil))
	answer := func(token string) int {
		return f.do("POST", "/v1/policies/guarded/check", "", "Dedup-Consumer: c", "Message-Id: 7", "Dedup-Attempt: a", "Authorization: Bearer "+token).status
	}
	if o, n := answer(old), answer(fresh); o != 200 || n != 401 {
		t.Fatalf("at first: %d and %d", o, n)
	}
	hash := f.hash()
	f.writeKeys(document(t, "rsa", "another"))
	eventually(t, "the new key's token is accepted", func() bool { return answer(fresh) == 200 })
	if got := answer(old); got != 200 {
		t.Errorf("the old key's token, while both are published: %d", got)
	}
	if f.hash() == hash {
		t.Error("the configuration's hash is that of before: the operator would not see that the keys have arrived")
	}
	f.writeKeys(document(t, "another"))
	eventually(t, "the old key's token is refused", func() bool { return answer(old) == 401 })
	if got := answer(fresh); got != 200 {
		t.Errorf("the new key's token: %d", got)
	}
	r := f.do("POST", "/v1/policies/guarded/check", "", "Dedup-Consumer: c", "Message-Id: 7", "Authorization: Bearer "+fresh)
	if r.field("decision") != "IN_PROGRESS" {
		t.Errorf("what was remembered is not: %s", r.text)
	}
}

// Strict: a laptop's user is told. Mounted: the policy answers nobody, the others run.
func TestWithoutTheIssuersKeysNobodyMayAsk(t *testing.T) {
	for name, broken := range map[string][]byte{"no file": nil, "no keys": []byte(`{"issuer": "x"}`), "no JSON": []byte("-----BEGIN")} {
		t.Run(name, func(t *testing.T) {
			f := startGuarded(t, func(o *options) { o.issuer, o.mounted = broken, true })
			check := func(policy string) reply {
				return f.do("POST", "/v1/policies/"+policy+"/check", "", "Dedup-Consumer: c", "Message-Id: 1", "Authorization: Bearer "+goodToken(t, nil))
			}
			r := check("guarded")
			if r.status != 503 || r.header.Get("Retry-After") == "" || !strings.Contains(r.field("detail"), "issuer.jwks") {
				t.Errorf("%d %s", r.status, r.text)
			}
			if r := check("open"); r.status != 200 {
				t.Errorf("the policy without callers: %d %s", r.status, r.text)
			}
			f.writeKeys(document(t, "rsa"))
			eventually(t, "the keys are there", func() bool { return check("guarded").status == 200 })

			strict := &Service{Options: f.Options}
			err := strict.LoadConfig(Config{Path: f.config, Strict: true, CallerKeys: f.config + ".nowhere"})
			for _, want := range []string{"policy guarded: spec.callers", ".nowhere", "--caller-keys"} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		})
	}
}

// Policies that run on because others cannot run keep their callers, although the new ones would have none.
func TestACallerMayAskOnWhenNewPoliciesCannotRun(t *testing.T) {
	f := startGuarded(t, func(o *options) {
		o.open = func(p *policy.Policy) (store.Store, error) {
			if p.Name == "broken" {
				return nil, errors.New("no such store")
			}
			return openMemory(p)
		}
	})
	f.writeConfig(strings.Replace(ids("1h", 1000), "name: ids", "name: broken", 1))
	eventually(t, "an error in the status", func() bool { return strings.Contains(f.Status().ConfigError, "no such store") })
	f.mark("c")
	if !f.known("c:1") {
		t.Error("what was marked is not known")
	}
}

func TestAStreamAsksAsItsTokenSays(t *testing.T) {
	f := startGuarded(t)
	ask := func(policy string) *pb.CheckStreamRequest {
		return &pb.CheckStreamRequest{Id: 1, Request: &pb.CheckStreamRequest_Check{Check: &pb.CheckRequest{Policy: policy, Consumer: "c", Message: messageID("1")}}}
	}
	refused := 0
	for name, test := range map[string]struct {
		token, policy string
		answer        string     // "", or the error's code
		then          codes.Code // how the stream ends; OK: it goes on
	}{
		"its caller's":                    {goodToken(t, nil), "guarded", "", codes.OK},
		"another's":                       {stranger(t), "guarded", "PERMISSION_DENIED", codes.OK},
		"nobody's":                        {"", "guarded", "UNAUTHENTICATED", codes.OK},
		"one that is not accepted":        {"x.y.z", "guarded", "UNAUTHENTICATED", codes.Unauthenticated},
		"nobody's, of a policy for all":   {"", "open", "", codes.OK},
		"a bad one's, of a policy of all": {"x.y.z", "open", "", codes.OK},
	} {
		if test.answer == "UNAUTHENTICATED" {
			refused++
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			t.Cleanup(cancel)
			stream, err := f.rpc.CheckStream(bearing(ctx, test.token))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(ask(test.policy)); err != nil {
				t.Fatal(err)
			}
			response, err := stream.Recv()
			if err != nil || response.GetError().GetCode() != test.answer {
				t.Fatalf("%v, %v", response, err)
			}
			if test.then == codes.OK {
				if err := stream.Send(ask("open")); err != nil {
					t.Fatal(err)
				}
			}
			if response, err := stream.Recv(); status.Code(err) != test.then || response.GetError() != nil {
				t.Errorf("then %v, %v", response, err)
			}
		})
	}
	want := fmt.Sprintf(`dedupd_caller_refusals_total{code="UNAUTHENTICATED",policy="guarded"} %d`, refused)
	if text := f.do("GET", "/metrics", "").text; !strings.Contains(text, want) {
		t.Errorf("no line %s", want)
	}
}

// The service's clock stands still, so that the token is good and its stream all the same at its end.
func TestAStreamEndsWithItsToken(t *testing.T) {
	at := time.Now().Truncate(time.Second)
	f := startGuarded(t, func(o *options) { o.now = func() time.Time { return at } })
	expiring := callertest.Token(t, "rsa", callertest.Claims(at, map[string]any{"exp": at.Add(time.Second - caller.Leeway).Unix()}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	stream, err := f.rpc.CheckStream(bearing(ctx, expiring))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "has expired: open another") {
		t.Errorf("got %v", err)
	}
}

// A policy without callers pays nothing for those that have some.
func TestAPolicyWithoutCallersCostsNothing(t *testing.T) {
	f := startGuarded(t)
	if err := f.stop(); err != nil { // what it does of itself would count
		t.Fatal(err)
	}
	s := NewService(f.Options)
	s.Registry = NewRegistry(f.Registry.open, f.Registry.newEngine)
	defer s.Registry.Close()
	if err := s.LoadConfig(Config{Path: f.config, Strict: true}); err != nil {
		t.Fatal(err)
	}
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+goodToken(t, nil)))
	n := testing.AllocsPerRun(10_000, func() {
		run, err := s.acquire(ctx, "open")
		if err != nil {
			t.Fatal(err)
		}
		run.store.release()
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzBearer(f *testing.F) {
	for _, seed := range []string{"Bearer a.b.c", "bearer  x", "Bearer", "", " Bearer \t", "Basic YTpi", "Bearer a b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		token, err := bearer([]string{value})
		switch {
		case err == nil && (token == "" || strings.ContainsAny(token, " \t") || !strings.Contains(value, token)):
			t.Errorf("%q has the token %q", value, token)
		case err != nil && token != "":
			t.Errorf("%q is refused, and has the token %q", value, token)
		case err != nil && len(value) > 20 && strings.Contains(err.Error(), value):
			t.Errorf("%v quotes the header", err)
		}
		if again, err2 := bearer([]string{fmt.Sprintf("Bearer %s", token)}); err == nil && (err2 != nil || again != token) {
			t.Errorf("%q, read again: %q, %v", token, again, err2)
		}
	})
}
