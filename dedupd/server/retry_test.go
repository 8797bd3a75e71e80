package server

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/policy"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// untimed is a store's timeout where nothing has to time out.
const untimed = 10 * time.Second

// overRedis has a fixture's policies remember in the Redis at addr.
func overRedis(addr string, timeout time.Duration) func(*options) {
	return func(o *options) {
		o.manifests = strings.ReplaceAll(o.manifests, "memory: {}", fmt.Sprintf("redis: {addresses: [%q]}", addr))
		o.open = func(p *policy.Policy) (store.Store, error) {
			return redis.New(redis.Options{Spec: *p.StoreSpec.Redis, Timeout: timeout, Now: time.Now})
		}
	}
}

// everyStore runs a test over memory and over a real Redis.
func everyStore(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { test(t, start(t)) })
	t.Run("redis", func(t *testing.T) { test(t, start(t, overRedis(redistest.Start(t).Addr, untimed))) })
}

// deaf stands before a server. It passes requests on, and breaks the connection when the
// answer comes, as often as it is told to.
type deaf struct {
	url  string
	deaf atomic.Int64
}

func deafProxy(t *testing.T, target string) *deaf {
	t.Helper()
	l := listen(t)
	d := &deaf{url: "http://" + l.Addr().String()}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go d.serve(client, target)
		}
	}()
	return d
}

func (d *deaf) serve(client net.Conn, target string) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() { _, _ = io.Copy(server, client) }()
	b := make([]byte, 1<<16)
	for {
		n, err := server.Read(b) // so the server has answered
		if err != nil || d.deaf.Add(-1) >= 0 {
			return
		}
		if _, err := client.Write(b[:n]); err != nil {
			return
		}
	}
}

// A caller whose connection breaks before the answer asks again. With its attempt it is told
// what it would have been told; the control without one loses the message.
func TestARetryOfTheCallerIsRecognised(t *testing.T) {
	everyStore(t, func(t *testing.T, f *fixture) {
		t.Helper()
		proxy := deafProxy(t, strings.TrimPrefix(f.url, "http://"))
		check := func(policy, body string, headers ...string) (string, error) {
			request, err := http.NewRequest(http.MethodPost, proxy.url+"/v1/policies/"+policy, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			request.GetBody = nil // no retry that we do not see
			for _, h := range append(headers, "Dedup-Consumer: billing") {
				name, value, _ := strings.Cut(h, ": ")
				request.Header.Set(name, value)
			}
			response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
			if err != nil {
				return "", err
			}
			return read(t, response).text, nil
		}
		ask := func(policy, body string, headers ...string) string {
			t.Helper()
			proxy.deaf.Store(1)
			if text, err := check(policy, body, headers...); err == nil {
				t.Fatalf("the proxy lost nothing: %s", text)
			}
			text, err := check(policy, body, headers...)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		for name, test := range map[string]struct {
			policy, body string
			headers      []string
			want         string
		}{
			"marked, with an attempt": {"ids/check", "", []string{"Message-Id: 1", "Dedup-Attempt: a"}, "FRESH"},
			"the control":             {"ids/check", "", []string{"Message-Id: 2"}, "DUPLICATE"},
			"claimed, with an attempt": {
				"orders/check", `{"user_id":1,"event_type":"x"}`, []string{"Dedup-Attempt: a"}, "FRESH",
			},
			"in a batch, with an attempt": {
				"ids/check:batch", `{"consumer":"c","messages":[{"headers":{"message-id":"1"},"attempt":"a"}]}`, nil, "FRESH",
			},
		} {
			t.Run(name, func(t *testing.T) {
				if got := ask(test.policy, test.body, test.headers...); !strings.Contains(got, test.want) {
					t.Errorf("got %s, want %s", got, test.want)
				}
			})
		}
		if got, err := check("ids/check", "", "Message-Id: 1", "Dedup-Attempt: b"); err != nil || !strings.Contains(got, "DUPLICATE") {
			t.Errorf("another attempt: %s %v", got, err)
		}
	})
}

// Redis' reply gets lost on its way to dedupd: nobody outside learns of it.
func TestALostReplyOfRedisIsNoDuplicate(t *testing.T) {
	proxy := redistest.StartProxy(t, redistest.Start(t).Addr)
	f := start(t, overRedis(proxy.Addr, untimed))
	stream, err := f.rpc.CheckStream(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	one := func(name string) *pb.CheckRequest {
		return &pb.CheckRequest{Policy: "ids", Consumer: "a", Message: id(name)}
	}
	for name, check := range map[string]func() (*pb.Answer, error){
		"alone": func() (*pb.Answer, error) {
			out, err := f.rpc.Check(ctx(t), one("alone"))
			return out.GetAnswer(), err
		},
		"in a batch": func() (*pb.Answer, error) {
			out, err := f.rpc.CheckBatch(ctx(t), &pb.CheckBatchRequest{Policy: "ids", Consumer: "a", Messages: []*pb.BatchMessage{
				{Message: id("b1")}, {Message: id("b2")}, {Message: id("b3")},
			}})
			if err != nil {
				return nil, err
			}
			for _, a := range out.GetAnswers() {
				if a.GetAnswer().GetDecision() != pb.Decision_DECISION_FRESH {
					return a.GetAnswer(), nil
				}
			}
			return out.GetAnswers()[0].GetAnswer(), nil
		},
		"on a stream": func() (*pb.Answer, error) {
			if err := stream.Send(&pb.CheckStreamRequest{Id: 1, Request: &pb.CheckStreamRequest_Check{Check: one("stream")}}); err != nil {
				return nil, err
			}
			out, err := stream.Recv()
			if out.GetError() != nil {
				return nil, errors.New(out.GetError().GetMessage())
			}
			return out.GetAnswer(), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			rule, dropped := redistest.DropOnce("set", 1)
			proxy.Set(rule)
			answer, err := check()
			if err != nil || answer.GetDecision() != pb.Decision_DECISION_FRESH {
				t.Errorf("got %v %v", answer, err)
			}
			if !dropped() {
				t.Error("nothing was dropped: this test shows nothing")
			}
		})
	}
}

// Whatever a Redis does to us, there is an answer in time, which names the field, and which
// is no decision unless the policy says so.
func TestBadRedis(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.StartProxy(t, server.Addr)
	broken := func(say string) func(t *testing.T) string {
		return func(*testing.T) string {
			proxy.Set(func(request []string) redistest.Fate {
				if request[0] == "set" {
					return redistest.Fate{Say: say}
				}
				return redistest.Fate{}
			})
			return proxy.Addr
		}
	}
	for name, test := range map[string]struct {
		addr    func(t *testing.T) string
		says    string
		timeout time.Duration // zero: untimed
	}{
		"a name that does not resolve": {func(*testing.T) string { return "redis.invalid:6379" }, "redis.invalid:6379", 0},
		"nothing listens":              {func(*testing.T) string { return "127.0.0.1:1" }, "connection refused", 0},
		"an answer that takes long": {func(t *testing.T) string {
			t.Helper()
			slow := redistest.Start(t)
			slow.Pause()
			t.Cleanup(slow.Resume)
			return slow.Addr
		}, "500ms", 500 * time.Millisecond},
		"out of memory":  {broken("-OOM command not allowed when used memory > 'maxmemory'.\r\n"), "maxmemory", 0},
		"a replica":      {broken("-READONLY You can't write against a read only replica.\r\n"), "replica", 0},
		"not loaded yet": {broken("-LOADING Redis is loading the dataset in memory\r\n"), "loading", 0},
		"wants a password": {func(t *testing.T) string {
			t.Helper()
			return redistest.Start(t, "--requirepass", "secret").Addr
		}, "credentialsSecretRef", 0},
	} {
		t.Run(name, func(t *testing.T) {
			addr := test.addr(t)
			for policy, want := range map[string]string{"FailClosed": "UNAVAILABLE", "FailOpen": "UNCHECKED"} {
				f := start(t, func(o *options) {
					o.manifests = strings.Replace(ids("1h", 1), "memory: {maxEntries: 1}", "memory: {}", 1) + "  onStoreFailure: " + policy + "\n"
				}, overRedis(addr, cmp.Or(test.timeout, untimed)))
				begin := time.Now()
				r := f.do("POST", "/v1/policies/ids/check", "", "Message-Id: 1")
				if took := time.Since(begin); took > untimed+5*time.Second {
					t.Errorf("%s: answered after %s", policy, took)
				}
				if got := r.field("code") + r.field("decision"); got != want || !strings.Contains(r.text, test.says) || !strings.Contains(r.text, "store.redis.") {
					t.Errorf("%s: got %d %s\nwant %s with %q", policy, r.status, r.text, want, test.says)
				}
				if want == "UNAVAILABLE" && (r.status != 503 || r.header.Get("Retry-After") != "1") {
					t.Errorf("%d, Retry-After %q", r.status, r.header.Get("Retry-After"))
				}
			}
		})
	}
}
