package redis_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/dedupd/dedup-operator/api/v1alpha1"
	"github.com/dedupd/dedup-operator/dedupd/store"
	"github.com/dedupd/dedup-operator/dedupd/store/redis"
	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// underLoad checks fresh messages from several goroutines, while rotate runs and a while longer.
// Each check has to succeed.
func underLoad(t *testing.T, s store.Store, rotate func()) {
	t.Helper()
	const callers = 8
	stop := make(chan struct{})
	var mu sync.Mutex
	var failed []error
	var wg sync.WaitGroup
	checked := make([]int, callers)
	for c := range callers {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprintf("%s:%d:%d", t.Name(), c, checked[c])
				for _, r := range apply(s, op(store.Claim, key, "a"), op(store.Mark, key+"m", "a")) {
					if r.Err != nil || r.Outcome != store.Granted {
						mu.Lock()
						failed = append(failed, fmt.Errorf("%s: outcome %d, error %w", key, r.Outcome, r.Err))
						mu.Unlock()
					}
				}
				checked[c]++
			}
		})
	}
	rotate()
	close(stop)
	wg.Wait()
	if len(failed) > 0 {
		t.Errorf("%d checks failed, the first: %v", len(failed), failed[0])
	}
	if slices.Min(checked) < 3 {
		t.Errorf("checks per caller: %v: too few to show anything", checked)
	}
}

func pause(d time.Duration) { <-time.After(d) }

// everywhere runs a command on all servers.
func everywhere(servers []*redistest.Server, args ...any) {
	for _, s := range servers {
		s.Must(args...)
	}
}

func TestAPasswordIsRotatedWithoutAFailedCheck(t *testing.T) {
	plain := redistest.Config{ACL: true}
	topologies := map[string]func(*testing.T) *redistest.Topology{
		"Standalone": func(t *testing.T) *redistest.Topology { t.Helper(); return plain.StartStandalone(t, 0) },
		"Sentinel":   func(t *testing.T) *redistest.Topology { t.Helper(); return plain.StartSentinel(t, 1, 1, time.Hour) },
		"Cluster":    func(t *testing.T) *redistest.Topology { t.Helper(); return plain.StartCluster(t, 3, 0) },
	}
	const lag = 300 * time.Millisecond
	for name, start := range topologies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := start(t)
			all := slices.Concat(top.Servers, top.Sentinels)
			s := newStore(t, "", on(top))
			server := func(password string) {
				everywhere(all, "acl", "setuser", redistest.User, "resetpass", ">"+password)
			}
			file := func(user, password string) {
				redistest.WriteSecret(t, top.SecretsDir, "credentials", map[string]string{"username": user, "password": password})
			}
			// Old connections would go on for minutes: without them gone, nothing would be shown.
			kill := func() { everywhere(all, "client", "kill", "user", redistest.User) }

			t.Run("the file after the server", func(t *testing.T) {
				underLoad(t, s, func() {
					server("second")
					kill()
					pause(lag)
					file(redistest.User, "second")
					pause(lag)
				})
			})
			t.Run("the file before the server", func(t *testing.T) {
				underLoad(t, s, func() {
					file(redistest.User, "third")
					pause(lag)
					kill()
					pause(lag)
					server("third")
					pause(lag)
				})
			})
			t.Run("both passwords for a while", func(t *testing.T) {
				underLoad(t, s, func() {
					everywhere(all, "acl", "setuser", redistest.User, ">fourth")
					file(redistest.User, "fourth")
					kill()
					pause(lag)
					everywhere(all, "acl", "setuser", redistest.User, "<third")
					kill()
					pause(lag)
				})
			})
			t.Run("another user, and the old one loses its rights with its connections open", func(t *testing.T) {
				underLoad(t, s, func() {
					for _, server := range all {
						rules := []any{"acl", "setuser", "next", "on", ">fifth", "~*", "&*", "+@all"}
						server.Must(rules...)
						server.Must("acl", "setuser", redistest.User, "-@all")
					}
					pause(lag)
					file("next", "fifth")
					pause(lag)
				})
			})
		})
	}
}

func TestThePasswordOfTheDefaultUserIsRotated(t *testing.T) {
	server := redistest.Start(t)
	server.Must("acl", "setuser", "admin", "on", ">admin-pw", "+@all", "~*")
	admin := goredis.NewClient(&goredis.Options{Addr: server.Addr, Username: "admin", Password: "admin-pw"})
	defer func() { _ = admin.Close() }()
	must := func(args ...any) {
		t.Helper()
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	file := func(password string) {
		redistest.WriteSecret(t, dir, "creds", map[string]string{"password": password})
	}
	s := newStore(t, server.Addr, credentials(dir, "creds"))
	const lag = 200 * time.Millisecond
	// The Secret comes first where a server that had no password gets one.
	file("first")
	want(t, s, []store.Op{op(store.Mark, "without a password", "a")}, store.Granted)
	underLoad(t, s, func() {
		for _, password := range []string{"first", "second"} {
			must("config", "set", "requirepass", password)
			must("client", "kill", "type", "normal", "skipme", "yes")
			pause(lag)
			file(password)
			pause(lag)
		}
	})
}

func TestCertificatesAreRotatedWithoutAFailedCheck(t *testing.T) {
	before, after := redistest.NewAuthority(t), redistest.NewAuthority(t)
	before.Trust(after)
	top := redistest.Config{TLS: before}.StartStandalone(t, 0)
	server := top.Servers[0]
	s := newStore(t, "", on(top))
	both := before.PEM + after.PEM
	serverFiles := func(files map[string]string) {
		var config []any
		for name, content := range files {
			rewrite(t, server.Dir, name, content)
			for option, file := range map[string]string{"tls-ca-cert-file": "ca.crt", "tls-cert-file": "tls.crt", "tls-key-file": "tls.key"} {
				if file == name {
					config = append(config, option, server.Dir+"/"+file)
				}
			}
		}
		server.Must(append([]any{"config", "set"}, config...)...)
	}
	ca := func(pem string) { redistest.WriteSecret(t, top.SecretsDir, "ca", map[string]string{"ca.crt": pem}) }
	kill := func() { server.Must("client", "kill", "type", "normal") }
	underLoad(t, s, func() {
		ca(both)
		serverFiles(map[string]string{"ca.crt": both})
		kill()
		pause(100 * time.Millisecond)
		cert, key := after.Issue("dedupd")
		redistest.WriteSecret(t, top.SecretsDir, "client", map[string]string{"tls.crt": cert, "tls.key": key})
		kill()
		pause(100 * time.Millisecond)
		cert, key = after.Issue("redis.test", "127.0.0.1")
		serverFiles(map[string]string{"tls.crt": cert, "tls.key": key})
		kill()
		pause(100 * time.Millisecond)
	})
	// The old authority is trusted by nobody any more: the new certificates are what is in use.
	ca(after.PEM)
	server.Must("config", "set", "tls-auth-clients", "yes")
	fresh := newStore(t, "", on(top))
	want(t, fresh, []store.Op{op(store.Mark, "new certificates", "a")}, store.Granted)
}

func TestASecretIsReadInOneVersion(t *testing.T) {
	// Each user has the password of its own name: another's is refused, and would be seen as failed checks.
	server := redistest.Start(t)
	for _, user := range []string{"a", "b"} {
		server.Must("acl", "setuser", user, "on", ">"+user+"-pw", "+@all", "~*")
	}
	dir := t.TempDir()
	write := func(user string) {
		redistest.WriteSecret(t, dir, "creds", map[string]string{"username": user, "password": user + "-pw"})
	}
	write("a")
	server.Must("acl", "log", "reset")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				write([]string{"a", "b"}[i%2])
			}
		}
	})
	for range 300 {
		s, err := redis.New(redis.Options{
			Spec: v1alpha1.RedisStore{
				Mode: v1alpha1.RedisStandalone, Addresses: []string{server.Addr},
				CredentialsSecretRef: &v1alpha1.SecretRef{Name: "creds"},
			},
			SecretsDir: dir, Timeout: 10 * time.Second, Now: time.Now,
		})
		if err != nil {
			t.Fatal(err)
		}
		if r := apply(s, op(store.Lookup, "k", ""))[0]; r.Err != nil {
			t.Error(r.Err)
		}
		_ = s.Close()
	}
	close(stop)
	wg.Wait()
	if log := fmt.Sprint(server.Must("acl", "log")); strings.Contains(log, "auth") {
		t.Errorf("a user was shown with another's password: %s", log)
	}
}
