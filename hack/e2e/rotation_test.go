package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// As docs/operating.md says: the server accepts the new password as well, then the Secret gets it, and
// when the kubelet has brought it into the pods, the server accepts the old one no longer. All the
// while connections break, so that new ones show what the Secret holds.
func TestAPasswordIsRotatedUnderLoad(t *testing.T) {
	namespace := newNamespace(t, "e2e-rotation")
	redis := newRedis(t)
	redis.do(t, "acl", "setuser", "dedupd", "on", ">first", "~dedup:*",
		"+set", "+get", "+pttl", "+del", "+eval", "+evalsha", "+time", "+ping", "+info", "+config|get")
	wire := newWitness(t, redis.address)
	secret := func(password string) {
		apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: orders-redis, namespace: %s}
stringData: {username: dedupd, password: %s}
`, namespace, password))
	}
	secret("first")
	apply(t, fmt.Sprintf(`
apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: orders, namespace: %s}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  store: {redis: {addresses: ["%s"], credentialsSecretRef: {name: orders-redis}}}
`, namespace, wire.address))
	awaitPolicy(t, namespace, "orders")
	calm := underLoad(t, namespace, "orders", "")

	pods := dedupdPods(t, namespace, "orders")
	awaitShown := func(password string) {
		t.Helper()
		wire.forget()
		eventually(t, 4*time.Minute, func() error {
			redis.do(t, "client", "kill", "user", "dedupd")
			time.Sleep(200 * time.Millisecond) // a connection that breaks sooner has had no use
			return wire.shows(password, pods)
		})
	}
	awaitShown("first")
	redis.do(t, "acl", "setuser", "dedupd", ">second")
	secret("second")
	changed := time.Now()
	awaitShown("second")
	t.Logf("the new password was in use everywhere %s after the Secret had it", time.Since(changed).Round(time.Second))
	redis.do(t, "acl", "setuser", "dedupd", "<first")
	awaitShown("second")
	calm()

	if refused, ok := redis.do(t, "acl", "log").([]any); !ok || len(refused) > 0 {
		t.Errorf("the server refused something: %v", refused)
	}
	if err := redis.client.Do(t.Context(), "auth", "dedupd", "first").Err(); err == nil {
		t.Error("the server accepts the old password still")
	}
	expectSame(t, identities(pods), identities(dedupdPods(t, namespace, "orders")))
}

// witness passes connections on to a server, and notes the passwords that they show. Nothing else
// says from outside which one a pod has.
type witness struct {
	address string
	mu      sync.Mutex
	shown   map[string][]string // by the other side's address; guarded by mu
}

func newWitness(t *testing.T, server string) *witness {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	w := &witness{address: l.Addr().String(), shown: map[string][]string{}}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go w.pass(conn, server)
		}
	}()
	return w
}

func (w *witness) pass(from net.Conn, server string) {
	defer from.Close()
	to, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		_, _ = io.Copy(from, to)
		_ = from.Close()
	}()
	side, _, _ := net.SplitHostPort(from.RemoteAddr().String())
	_, _ = io.Copy(to, io.TeeReader(from, listener{w, side}))
}

// listener looks at what one side sends. An AUTH is the first of it, small, and comes in one piece.
type listener struct {
	*witness
	side string
}

var authentication = regexp.MustCompile(`(?i)auth\r\n\$\d+\r\ndedupd\r\n\$\d+\r\n(\w+)\r\n`)

func (l listener) Write(sent []byte) (int, error) {
	if found := authentication.FindSubmatch(sent); found != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.shown[l.side] = append(l.shown[l.side], string(found[1]))
	}
	return len(sent), nil
}

func (w *witness) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.shown)
}

// shows is nil if the latest three connections of each pod have shown that password. Where pods can't
// be told apart, since the cluster translates their addresses, the latest two hundred of all have.
func (w *witness) shows(password string, pods []corev1.Pod) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	sides, least := []string{}, 3
	for _, pod := range pods {
		sides = append(sides, pod.Status.PodIP)
	}
	if !slices.ContainsFunc(sides, func(pod string) bool { return len(w.shown[pod]) > 0 }) {
		sides, least = slices.Collect(maps.Keys(w.shown)), 200
	}
	for _, side := range sides {
		all := w.shown[side]
		latest := all[max(0, len(all)-least):]
		if len(latest) < least || slices.ContainsFunc(latest, func(s string) bool { return s != password }) {
			return fmt.Errorf("the latest %d connections of %s have shown %v, not %s", len(latest), side, latest, password)
		}
	}
	if len(sides) == 0 {
		return errors.New("nobody has shown a password")
	}
	return nil
}
