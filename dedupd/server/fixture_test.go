package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/engine"
	"github.com/dedupd/dedup-operator/dedupd/policy"
	pb "github.com/dedupd/dedup-operator/dedupd/proto/v1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/memory"
)

// manifests are the policies that most tests run.
const manifests = `
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: ids}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  store: {memory: {}}
---
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: orders, namespace: shop}
spec:
  key: {strategy: Composite, composite: {parts: [{jsonPath: $.user_id}, {jsonPath: $.event_type}]}}
  ttl: 1h
  mode: Claim
  claim: {lease: 30s}
  store: {memory: {}}
---
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: content}
spec:
  key: {strategy: ContentHash}
  ttl: 1h
  scope: Policy
  store: {memory: {}}
---
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: watched}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  enforcement: Shadow
  store: {memory: {}}
`

// options of a fixture.
type options struct {
	manifests string
	limits    Limits
	timing    Timing
	open      func(*policy.Policy) (store.Store, error)
	issuer    []byte // the keys of the callers' issuer; nil: there is no such file
	mounted   bool
	secrets   string // the folder of the Secrets
	now       func() time.Time
}

// fixture is a service at work on loopback.
type fixture struct {
	*Service
	t        testing.TB
	url      string
	grpcAddr string
	rpc      pb.DedupServiceClient
	conn     *grpc.ClientConn
	config   string // path of the file
	logs     *logs
	stopOnce sync.Once
	cancel   context.CancelFunc
	done     chan error
	stopErr  error
}

// logs are what was logged; safe for concurrent use.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func start(tb testing.TB, modify ...func(*options)) *fixture {
	tb.Helper()
	o := options{
		manifests: manifests,
		limits:    Limits{MaxBody: 1 << 20, MaxBatch: 1000, MaxBatchBytes: 4 << 20, MaxHeader: 64 << 10, MaxInFlight: 64 << 20},
		timing: Timing{
			ReadHeader: 5 * time.Second, Read: 30 * time.Second, Idle: time.Minute,
			Poll: 10 * time.Millisecond, Health: 50 * time.Millisecond, Drain: 10 * time.Second,
		},
		open: openMemory,
		now:  time.Now,
	}
	for _, m := range modify {
		m(&o)
	}
	f := &fixture{t: tb, logs: &logs{}, done: make(chan error, 1)}
	log := slog.New(slog.NewJSONHandler(f.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	metrics := NewMetrics("test", time.Now)
	registry := NewRegistry(
		func(p *policy.Policy) (store.Store, error) {
			s, err := o.open(p)
			if err != nil {
				return nil, err
			}
			return metrics.Measure(s, p.Name, log), nil
		},
		func(p *policy.Policy, s store.Store) *engine.Engine {
			return engine.New(p, s, engine.Options{Timeout: untimed, Now: time.Now, Observe: metrics.Observer(p.Name)})
		},
	)
	f.Service = NewService(Options{
		Registry: registry, Metrics: metrics, Limits: o.limits, Version: "test", Log: log, Now: o.now,
	})
	f.config = filepath.Join(tb.TempDir(), "policies.yaml")
	f.writeConfig(o.manifests)
	if o.issuer != nil {
		f.writeKeys(o.issuer)
	}
	if err := f.LoadConfig(Config{Path: f.config, Strict: !o.mounted, SecretsDir: o.secrets}); err != nil {
		tb.Fatal(err)
	}
	httpOn, grpcOn := listen(tb), listen(tb)
	f.url, f.grpcAddr = "http://"+httpOn.Addr().String(), grpcOn.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	go func() { f.done <- f.Run(ctx, o.timing, httpOn, grpcOn) }()
	conn, err := grpc.NewClient(f.grpcAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatal(err)
	}
	f.conn, f.rpc = conn, pb.NewDedupServiceClient(conn)
	tb.Cleanup(func() {
		_ = conn.Close()
		if err := f.stop(); err != nil {
			tb.Errorf("stopping: %v", err)
		}
	})
	return f
}

// stop is what SIGTERM does. It returns what Run returned.
func (f *fixture) stop() error {
	f.stopOnce.Do(func() {
		http.DefaultClient.CloseIdleConnections()
		f.cancel()
		f.stopErr = <-f.done
	})
	return f.stopErr
}

func (f *fixture) writeConfig(text string) { f.write(f.config, []byte(text)) }

// writeKeys writes the keys of the callers' issuer beside the policies.
func (f *fixture) writeKeys(document []byte) {
	f.write(filepath.Join(filepath.Dir(f.config), v1alpha1.IssuerFile), document)
}

func (f *fixture) write(file string, content []byte) {
	f.t.Helper()
	// As an editor or the kubelet does it: another file under the same name.
	if err := os.WriteFile(file+".new", content, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		f.t.Fatal(err)
	}
}

func openMemory(p *policy.Policy) (store.Store, error) {
	return memory.New(memory.Options{MaxEntries: int(p.StoreSpec.Memory.MaxEntries), Now: time.Now}), nil
}

func listen(tb testing.TB) net.Listener {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// reply is an answer over HTTP.
type reply struct {
	status int
	header http.Header
	text   string
	fields map[string]any // of a JSON object
}

func (r reply) field(name string) string {
	s, _ := r.fields[name].(string)
	return s
}

// do sends a request; headers are "Name: value".
func (f *fixture) do(method, path, body string, headers ...string) reply {
	f.t.Helper()
	request, err := http.NewRequest(method, f.url+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		request.Header.Add(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		f.t.Fatal(err)
	}
	return read(f.t, response)
}

func read(tb testing.TB, response *http.Response) reply {
	tb.Helper()
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		tb.Fatal(err)
	}
	r := reply{status: response.StatusCode, header: response.Header, text: string(text)}
	if strings.Contains(response.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(text, &r.fields); err != nil {
			tb.Fatalf("%s: %v", text, err)
		}
	}
	return r
}

// eventually polls until ok, for at most ten seconds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
