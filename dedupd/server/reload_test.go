package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/policy"
	"github.com/dedupd/dedup-operator/dedupd/status"
	"github.com/dedupd/dedup-operator/dedupd/store"
)

// ids is one policy, with a ttl and a size of its store.
func ids(ttl string, maxEntries int) string {
	return fmt.Sprintf(`
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: ids}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: %s
  scope: Policy
  store: {memory: {maxEntries: %d}}
`, ttl, maxEntries)
}

func (f *fixture) decision(id string) string {
	f.t.Helper()
	r := f.do("POST", "/v1/policies/ids/check", "", "Message-Id: "+id)
	if r.status != 200 {
		return r.field("code")
	}
	return r.field("decision")
}

func (f *fixture) hash() string {
	st := f.Status()
	if len(st.Policies) == 0 {
		return ""
	}
	return st.Policies[0].ConfigHash
}

func TestReload(t *testing.T) {
	s := &stores{}
	f := start(t, func(o *options) { o.manifests, o.open = ids("1h", 1000), s.open })
	if got := f.decision("a"); got != "FRESH" {
		t.Fatal(got)
	}
	before := f.hash()

	t.Run("another ttl keeps the store and what it remembers", func(t *testing.T) {
		f.writeConfig(ids("2h", 1000))
		eventually(t, "another hash", func() bool { return f.hash() != before })
		if got := f.decision("a"); got != "DUPLICATE" {
			t.Error(got)
		}
		r := f.do("POST", "/v1/policies/ids/check", "", "Message-Id: ttl")
		found := f.do("GET", "/v1/policies/ids/keys/"+r.field("key"), "")
		if left, _ := found.fields["remainingSeconds"].(float64); left < 7000 {
			t.Errorf("the new ttl does not count: %s", found.text)
		}
		if opened, closed := s.count(); opened != 1 || closed != 0 {
			t.Errorf("%d opened, %d closed", opened, closed)
		}
	})
	t.Run("a bad file keeps what runs, and is said", func(t *testing.T) {
		good := f.hash()
		f.writeConfig(strings.Replace(ids("3h", 1000), "ttl: 3h", "ttl: soon", 1))
		eventually(t, "an error in the status", func() bool { return f.Status().ConfigError != "" })
		if e := f.Status().ConfigError; !strings.Contains(e, "spec.ttl") || !strings.Contains(e, "soon") {
			t.Errorf("configError %q names no field and value", e)
		}
		if f.hash() != good || f.decision("a") != "DUPLICATE" {
			t.Error("what ran does not run on")
		}
		if r := f.do("GET", "/readyz", ""); r.status != 200 {
			t.Errorf("readyz %d", r.status)
		}
		logged := func() int { return strings.Count(f.logs.String(), "the configuration file cannot be used") }
		eventually(t, "it is logged", func() bool { return logged() > 0 })
		time.Sleep(50 * time.Millisecond) // five looks at the file; that nothing happens has no other sign
		if n := logged(); n != 1 {
			t.Errorf("logged %d times, want once", n)
		}
		metrics := f.do("GET", "/metrics", "").text
		if !strings.Contains(metrics, "dedupd_config_reload_success 0") || !strings.Contains(metrics, `dedupd_config_reloads_total{result="error"} 1`) {
			t.Error("no metric says it")
		}
	})
	t.Run("an unknown field in a file that the user named is a bad file", func(t *testing.T) {
		f.writeConfig(ids("1h", 1000) + "  colour: blue\n")
		eventually(t, "an error in the status", func() bool { return strings.Contains(f.Status().ConfigError, "colour") })
	})
	t.Run("a file that is gone keeps what runs", func(t *testing.T) {
		if err := os.Remove(f.config); err != nil {
			t.Fatal(err)
		}
		eventually(t, "an error in the status", func() bool { return strings.Contains(f.Status().ConfigError, "no such file") })
		if f.decision("a") != "DUPLICATE" {
			t.Error("what ran does not run on")
		}
	})
	t.Run("a good file ends the error", func(t *testing.T) {
		f.writeConfig(ids("4h", 1000))
		eventually(t, "no error", func() bool { return f.Status().ConfigError == "" })
		if !strings.Contains(f.do("GET", "/metrics", "").text, "dedupd_config_reload_success 1") {
			t.Error("no metric says it")
		}
	})
	t.Run("another store is opened and the old one closed", func(t *testing.T) {
		f.writeConfig(ids("4h", 2000))
		eventually(t, "two opened, one closed", func() bool { o, c := s.count(); return o == 2 && c == 1 })
		if got := f.decision("a"); got != "FRESH" {
			t.Error(got)
		}
	})
	t.Run("a policy that is gone is gone, and its series with it", func(t *testing.T) {
		f.writeConfig(strings.Replace(ids("4h", 2000), "name: ids", "name: other", 1))
		eventually(t, "the other policy", func() bool { return f.do("POST", "/v1/policies/other/check", "", "Message-Id: 1").status == 200 })
		if r := f.do("POST", "/v1/policies/ids/check", "", "Message-Id: a"); r.status != 404 {
			t.Errorf("%d %s", r.status, r.text)
		}
		eventually(t, "no series of a policy that is gone", func() bool { return !f.seriesOf("ids") })
	})
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if opened, closed := s.count(); opened != closed || s.late.Load() != 0 {
		t.Errorf("%d stores opened, %d closed; %d uses after the end", opened, closed, s.late.Load())
	}
}

// seriesOf says whether a policy has metrics.
func (f *fixture) seriesOf(policy string) bool {
	f.t.Helper()
	return strings.Contains(f.do("GET", "/metrics", "").text, fmt.Sprintf("policy=%q", policy))
}

// A store that is being asked how it is when its policy leaves says so afterwards, and nobody is to hear it.
func TestAPolicyThatIsGoneLeavesNoSeriesOfItsStore(t *testing.T) {
	asked := map[string]*askedStore{}
	f := start(t, func(o *options) {
		o.manifests = ids("1h", 1000) + "---" + strings.Replace(ids("1h", 1000), "name: ids", "name: other", 1)
		o.open = func(p *policy.Policy) (store.Store, error) {
			s, err := openMemory(p)
			asked[p.Name] = &askedStore{s, make(chan struct{}), make(chan struct{})}
			return asked[p.Name], err
		}
	})
	gone, other := asked["ids"], asked["other"]
	<-gone.entered
	f.writeConfig(strings.Replace(ids("1h", 1000), "name: ids", "name: other", 1))
	eventually(t, "one policy", func() bool { return len(f.Status().Policies) == 1 })
	close(gone.pass)
	<-other.entered
	close(other.pass)
	<-other.entered // asked again, so that what was said before is noted
	if f.seriesOf("ids") {
		t.Error("series of a policy that is gone")
	}
	if !f.seriesOf("other") {
		t.Error("no series of the policy that runs")
	}
}

// So it is with a request that is being answered.
func TestAPolicyThatIsGoneLeavesNoSeriesOfItsLastRequests(t *testing.T) {
	gate := &gatedStore{entered: make(chan int, 10), pass: make(chan struct{})}
	f := start(t, func(o *options) { o.manifests, o.open = ids("1h", 1000), gate.open })
	answered := make(chan string)
	go func() { answered <- f.decision("1") }()
	<-gate.entered
	f.writeConfig(strings.Replace(ids("1h", 1000), "name: ids", "name: other", 1))
	eventually(t, "no series", func() bool { return !f.seriesOf("ids") })
	close(gate.pass)
	if got := <-answered; got != "FRESH" {
		t.Error(got)
	}
	eventually(t, "no series again", func() bool { return !f.seriesOf("ids") })
}

// The store changes again and again under load: no request fails, and none meets a closed store.
func TestReloadUnderLoad(t *testing.T) {
	s := &stores{}
	f := start(t, func(o *options) { o.manifests, o.open = ids("1h", 1000), s.open })
	stop := make(chan struct{})
	var load sync.WaitGroup
	for caller := range 4 {
		load.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if got := f.decision(fmt.Sprintf("%d-%d", caller, i)); got != "FRESH" && got != "UNAVAILABLE" {
					t.Errorf("got %s", got)
					return
				}
			}
		})
	}
	for size := range 10 {
		f.writeConfig(ids("1h", 100_000+size))
		eventually(t, "another store", func() bool { o, _ := s.count(); return o == size+2 })
	}
	close(stop)
	load.Wait()
	eventually(t, "all but one closed", func() bool { o, c := s.count(); return o == 11 && c == 10 })
	if n := s.late.Load(); n != 0 {
		t.Errorf("%d requests met a closed store", n)
	}
}

// A pod has the Secrets that its policies named when it was made. One of before serves until its successor does.
func TestAPolicyRunsAsBeforeUntilTheSecretIsThereThatItNames(t *testing.T) {
	secrets := t.TempDir()
	mount := func(name string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(secrets, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	both := func(secret, ttl string) string {
		return strings.Replace(ids("1h", 1000), "{memory: {maxEntries: 1000}}",
			fmt.Sprintf("{redis: {addresses: [redis:6379], credentialsSecretRef: {name: %s}}}", secret), 1) +
			"---" + strings.Replace(ids(ttl, 1000), "name: ids", "name: other", 1)
	}
	mount("old")
	s := &stores{}
	f := start(t, func(o *options) { o.manifests, o.open, o.secrets = both("old", "1h"), s.open, secrets })
	if got := f.decision("a"); got != "FRESH" {
		t.Fatal(got)
	}
	before := f.Status().Policies
	f.writeConfig(both("new", "2h"))
	eventually(t, "the other policy has its new ttl", func() bool { return f.Status().Policies[1].ConfigHash != before[1].ConfigHash })
	if st := f.Status(); st.Policies[0].ConfigHash != before[0].ConfigHash || st.ConfigError != "" {
		t.Errorf("%+v, want the policy as before", st)
	}
	if got := f.decision("a"); got != "DUPLICATE" {
		t.Errorf("%s, want what is remembered in the store of before", got)
	}
	says := func(line string) func() bool {
		return func() bool { return strings.Contains(f.do("GET", "/metrics", "").text, line) }
	}
	eventually(t, "a metric says that another configuration runs", says("dedupd_config_reload_success 0"))
	time.Sleep(50 * time.Millisecond) // five looks at the file; that nothing happens has no other sign
	if n := strings.Count(f.logs.String(), "a Secret that this pod has not"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
	mount("new")
	eventually(t, "the policy runs as it is now", func() bool { return f.Status().Policies[0].ConfigHash != before[0].ConfigHash })
	if got := f.decision("a"); got != "FRESH" {
		t.Errorf("%s, want an answer of the new store", got)
	}
	eventually(t, "a metric says that it runs", says("dedupd_config_reload_success 1"))
}

// A ConfigMap is mounted as links into a folder that a link exchanges.
func TestReloadOfAMountedConfigMap(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, text string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, ".."+version), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ".."+version, "policy.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(".."+version, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("1", ids("1h", 1000))
	if err := os.Symlink("..data/policy.yaml", filepath.Join(dir, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	f := start(t)
	s := NewService(f.Options)
	s.Registry = NewRegistry(f.Registry.open, f.Registry.newEngine)
	defer s.Registry.Close()
	if err := s.LoadConfig(Config{Path: dir}); err != nil {
		t.Fatal(err)
	}
	first := s.Status().Policies[0]
	publish("2", ids("1h", 1000)+"  colour: blue\n")
	s.reload()
	second := s.Status().Policies[0]
	if second.ConfigHash == first.ConfigHash || s.Status().ConfigError != "" {
		t.Errorf("not loaded: %+v", s.Status())
	}
	if fmt.Sprint(second.UnknownFields) != "[spec.colour]" {
		t.Errorf("unknown fields %q", second.UnknownFields)
	}
	s.reload()
	if third := s.Status().Policies[0]; third.ConfigHash != second.ConfigHash {
		t.Error("loaded again without a change")
	}
}

func TestBadConfigurationAtStart(t *testing.T) {
	f := start(t)
	for name, test := range map[string]struct{ text, says string }{
		"no policy at all":         {"", "no"},
		"a policy without a store": {strings.Replace(ids("1h", 1), "store: {memory: {maxEntries: 1}}", "store: {}", 1), "spec.store"},
		"two policies of one name": {ids("1h", 1) + "---" + ids("1h", 1), `"ids"`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "p.yaml")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			s := NewService(f.Options)
			s.Registry = NewRegistry(f.Registry.open, f.Registry.newEngine)
			err := s.LoadConfig(Config{Path: path, Strict: true})
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q in it", err, test.says)
			}
			if ok, _ := s.ready(); ok {
				t.Error("ready")
			}
		})
	}
}

func TestStoreHealthIsAskedInTheBackground(t *testing.T) {
	s := &stores{}
	f := start(t, func(o *options) { o.manifests, o.open = ids("1h", 1000), s.open })
	health := func() status.Store { return f.Status().Policies[0].Store }
	eventually(t, "reachable", func() bool { return health().Reachable })
	if h := health(); h.Kind != "Memory" || h.Error != "" || h.Safety == "" {
		t.Errorf("got %+v", h)
	}
	s.fail.Store(true)
	eventually(t, "unreachable", func() bool { return !health().Reachable })
	if h := health(); !strings.Contains(h.Error, "connection refused") {
		t.Errorf("got %+v", h)
	}
	if r := f.do("GET", "/readyz", ""); r.status != 200 {
		t.Errorf("readyz %d: FailClosed must still be answered", r.status)
	}
	for range 100 {
		if got := f.decision("a"); got != "UNAVAILABLE" {
			t.Fatal(got)
		}
	}
	if n := strings.Count(f.logs.String(), "the store does not answer as it should"); n != 1 {
		t.Errorf("%d log lines for 100 failed checks, want 1", n)
	}
	if n := strings.Count(f.logs.String(), `"the store does not answer"`); n != 1 {
		t.Errorf("%d log lines for one outage, want 1", n)
	}
	s.fail.Store(false)
	eventually(t, "reachable", func() bool { return health().Reachable })
	if got := f.decision("a"); got != "FRESH" {
		t.Error(got)
	}
}
