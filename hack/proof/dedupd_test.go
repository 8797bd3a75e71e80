package proof

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

// lease is how long a claim is held in every run: short, so that runs are, and long enough for
// a consumer on a busy machine to complete within it more often than not.
const lease = time.Second

// manifest is the policy of a run. store is the member of spec.store, such as
// `redis: {addresses: ["127.0.0.1:6379"]}`.
func manifest(m mode, store string) string {
	claim := ""
	if m == modeClaim {
		claim = fmt.Sprintf("  claim: {lease: %s}\n", lease)
	}
	return fmt.Sprintf(`apiVersion: dedupd.io/v1alpha1
kind: DedupPolicy
metadata: {name: %s, namespace: shop}
spec:
  key: {strategy: MessageID, messageID: {header: message-id}}
  ttl: 1h
  mode: %s
%s  store:
    %s
`, policyName, m, claim, store)
}

// storeKey is what a message's record is stored under.
func storeKey(id string) string { return "dedup:shop:" + policyName + ":billing:" + id }

func standalone(addr string) string { return fmt.Sprintf("redis: {addresses: [%q]}", addr) }

// replica is a dedupd in a process of its own.
type replica struct {
	grpc string // its address, the same after each start

	t    *testing.T
	args []string
	http string
	cmd  *exec.Cmd
	gone chan struct{}
}

// startReplica starts dedupd with a policy, and further flags, and waits until it serves.
func startReplica(t *testing.T, policy string, flags ...string) *replica {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &replica{t: t, args: append([]string{"serve", "-f", path}, flags...)}
	r.start("127.0.0.1:0", "127.0.0.1:0")
	t.Cleanup(r.kill)
	return r
}

// start starts the process and learns its addresses.
func (r *replica) start(web, rpc string) {
	r.t.Helper()
	path, err := program()
	if err != nil {
		r.t.Fatal(err)
	}
	args := append(append([]string{}, r.args...), "--http-addr", web, "--grpc-addr", rpc)
	r.cmd, r.gone = exec.Command(path, args...), make(chan struct{})
	logs, err := r.cmd.StderrPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	listening := make(chan struct{})
	go func(cmd *exec.Cmd, gone chan struct{}) {
		defer close(gone)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			var line struct{ Msg, HTTP, GRPC string }
			switch err := json.Unmarshal(lines.Bytes(), &line); {
			case err == nil && line.Msg == "listening":
				r.http, r.grpc = line.HTTP, line.GRPC
				close(listening)
			case strings.Contains(lines.Text(), "DATA RACE"), strings.HasPrefix(lines.Text(), "panic:"), strings.HasPrefix(lines.Text(), "fatal error:"):
				r.t.Errorf("dedupd: %s", lines.Text())
			}
		}
		_ = cmd.Wait() // it ends by being killed
	}(r.cmd, r.gone)
	select {
	case <-listening:
	case <-r.gone:
		r.t.Fatalf("dedupd ended: %s", r.cmd.ProcessState)
	case <-time.After(patience):
		r.t.Fatal("dedupd does not listen")
	}
	r.ready()
}

// ready waits until the replica would get traffic.
func (r *replica) ready() {
	r.t.Helper()
	redistest.Eventually(r.t, "dedupd is ready", func() bool {
		response, err := http.Get("http://" + r.http + "/readyz")
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// kill ends the process as kill -9 does.
func (r *replica) kill() {
	_ = r.cmd.Process.Kill()
	<-r.gone
}

// restart starts it again on its addresses.
func (r *replica) restart() {
	r.t.Helper()
	r.kill()
	r.start(r.http, r.grpc)
}
