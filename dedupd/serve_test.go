package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/dedupd/store/redis/redistest"
)

func TestServeRefusesArguments(t *testing.T) {
	good := policyFile(t, headerPolicy)
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"no policy":                     {nil, "-f: missing"},
		"a file that is not there":      {[]string{"-f", "/nowhere.yaml"}, "/nowhere.yaml"},
		"an argument":                   {[]string{"-f", good, "orders"}, `"orders"`},
		"a flag that is unknown":        {[]string{"-f", good, "--colour", "blue"}, "-colour"},
		"a size without a number":       {[]string{"-f", good, "--max-body", "MiB"}, "such as 65536, 64KiB or 16MiB"},
		"a size that is zero":           {[]string{"-f", good, "--max-body", "0"}, "-max-body"},
		"a size over all bounds":        {[]string{"-f", good, "--max-batch-bytes", "9000000000GiB"}, "-max-batch-bytes"},
		"a batch of nothing":            {[]string{"-f", good, "--max-batch", "0"}, "--max-batch: 0"},
		"fewer pending than in a batch": {[]string{"-f", good, "--max-pending", "999"}, "--max-pending: 999; want at least --max-batch, 1000"},
		"less in flight than a batch":   {[]string{"-f", good, "--max-in-flight", "16MiB"}, "--max-in-flight: 16777216; want at least"},
		"a timeout of nothing":          {[]string{"-f", good, "--store-timeout", "0s"}, "--store-timeout: 0s"},
		"a level that is unknown":       {[]string{"-f", good, "--log-level", "loud"}, "-log-level"},
		"a policy that is none":         {[]string{"-f", policyFile(t, "a: b")}, "apiVersion"},
		"a policy of an unknown field":  {[]string{"-f", policyFile(t, headerPolicy+"  colour: blue\n")}, "colour"},
		"callers and no keys of theirs": {[]string{"-f", policyFile(t, headerPolicy+"  callers: {serviceAccounts: [billing]}\n")}, "policy orders: spec.callers: the keys of the cluster's issuer"},
		"keys that are not there":       {[]string{"-f", policyFile(t, headerPolicy+"  callers: {serviceAccounts: [billing]}\n"), "--caller-keys", "/nowhere.jwks"}, "/nowhere.jwks"},
		"a file without any policy":     {[]string{"-f", policyFile(t, "")}, "polic"},
		"a delay that is negative":      {[]string{"-f", good, "--drain-delay", "-1s"}, "--drain-delay"},
		"headers that may be unlimited": {[]string{"-f", good, "--max-header", "0"}, "-max-header"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			code := serve(t.Context(), test.args, environment{err: &out, now: time.Now})
			if code != exitUsage || !strings.Contains(out.String(), test.says) {
				t.Errorf("exit code %d: %s\nwant %d with %q", code, out.String(), exitUsage, test.says)
			}
		})
	}
}

func TestServeDefaults(t *testing.T) {
	o, err := parseServe([]string{"-f", "x"}, environment{err: io.Discard})
	if err != nil || o.timing.DrainDelay != 0 || !o.config.Strict || o.limits.MaxBody != 1<<20 {
		t.Errorf("%+v %v", o, err)
	}
	if o, err = parseServe([]string{"-f", "x", "--mounted"}, environment{err: io.Discard}); err != nil || o.timing.DrainDelay != 5*time.Second || o.config.Strict {
		t.Errorf("mounted: %+v %v", o, err)
	}
	if o, err = parseServe([]string{"-f", "x", "--mounted", "--drain-delay", "0s", "--max-body", "3KiB"}, environment{err: io.Discard}); err != nil || o.timing.DrainDelay != 0 || o.limits.MaxBody != 3<<10 {
		t.Errorf("said: %+v %v", o, err)
	}
}

func TestServeSaysThatItsAddressIsTaken(t *testing.T) {
	first := startServe(t, "-f", policyFile(t, headerPolicy))
	var out strings.Builder
	taken := strings.TrimPrefix(first.url, "http://")
	code := serve(t.Context(), []string{"-f", policyFile(t, headerPolicy), "--http-addr", taken}, environment{err: &out, now: time.Now})
	if code != exitSome || !strings.Contains(out.String(), "--http-addr") {
		t.Errorf("%d %s", code, out.String())
	}
}

// served is a `dedupd serve` in a process of its own.
type served struct {
	url, grpc, pprof string
	cmd              *exec.Cmd
	exited           chan struct{}
}

// startServe starts a process on free ports, and waits until it listens.
func startServe(t *testing.T, args ...string) *served {
	t.Helper()
	args = append([]string{"serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"}, args...)
	s := &served{cmd: exec.Command("dedupd", args...), exited: make(chan struct{})}
	logs, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.exited
	})
	listening := make(chan struct{})
	go func() {
		defer close(s.exited)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			var line struct{ Msg, HTTP, GRPC, Pprof string }
			if json.Unmarshal(lines.Bytes(), &line) != nil {
				continue
			}
			switch line.Msg {
			case "serving profiles":
				s.pprof = "http://" + line.Pprof
			case "listening":
				s.url, s.grpc = "http://"+line.HTTP, line.GRPC
				close(listening)
			}
		}
		_ = s.cmd.Wait() // its code is in ProcessState
	}()
	select {
	case <-listening:
	case <-s.exited:
		t.Fatalf("dedupd %q ended: %s", args, s.cmd.ProcessState)
	case <-time.After(20 * time.Second):
		t.Fatalf("dedupd %q does not listen", args)
	}
	return s
}

// Whoever may check messages may not thereby see the process's inside.
func TestServeShowsProfilesOnlyWhereItIsTold(t *testing.T) {
	get := func(url string) int {
		response, err := http.Get(url + "/debug/pprof/heap")
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode
	}
	silent := startServe(t, "-f", policyFile(t, headerPolicy))
	if silent.pprof != "" {
		t.Errorf("profiles at %s, which nobody asked for", silent.pprof)
	}
	s := startServe(t, "-f", policyFile(t, headerPolicy), "--pprof-addr", "127.0.0.1:0")
	if code := get(s.pprof); code != http.StatusOK {
		t.Errorf("%d at --pprof-addr, want 200", code)
	}
	if code := get(s.url); code != http.StatusNotFound {
		t.Errorf("%d at --http-addr, want 404", code)
	}
}

func (s *served) wait(t *testing.T) *os.ProcessState {
	t.Helper()
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		t.Fatal("the process does not end")
	}
	return s.cmd.ProcessState
}

// SIGTERM in the middle of a load over a real Redis: the process ends in order, and what got
// no answer was not marked.
func TestServeLosesNoAnswerAtSIGTERM(t *testing.T) {
	redis := redistest.Start(t)
	manifest := strings.Replace(headerPolicy, "memory: {}", fmt.Sprintf("redis: {addresses: [%q]}", redis.Addr), 1)
	s := startServe(t, "-f", policyFile(t, manifest), "--drain-delay", "100ms", "--store-timeout", "10s")
	var answered atomic.Int64
	var mu sync.Mutex
	var unanswered []string
	var load sync.WaitGroup
	for caller := range 8 {
		load.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", caller, i)
				if err := s.check(t.Context(), client, id); err != nil {
					mu.Lock()
					unanswered = append(unanswered, id)
					mu.Unlock()
					return
				}
				if answered.Add(1) == 1000 {
					if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	load.Wait()
	if state := s.wait(t); state.ExitCode() != exitOK {
		t.Errorf("ended with %s", state)
	}
	for _, id := range unanswered {
		if redis.Must("EXISTS", "dedup:default:orders:billing:"+id) != int64(0) {
			t.Errorf("%s was marked and not answered", id)
		}
	}
	// Besides them, the store's birth marker.
	if keys := redis.Must("DBSIZE"); keys != answered.Load()+1 {
		t.Errorf("%d marked, %d answered", keys.(int64)-1, answered.Load())
	}
}

func (s *served) check(ctx context.Context, client *http.Client, id string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/policies/orders/check", http.NoBody)
	if err != nil {
		return err
	}
	request.Header.Set("Id", id)
	request.Header.Set("Dedup-Consumer", "billing")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("Dedup-Decision") != "FRESH" {
		return errors.New(response.Status)
	}
	return nil
}

func TestServeEndsAtOnceAtASecondSignal(t *testing.T) {
	s := startServe(t, "-f", policyFile(t, headerPolicy), "--drain-delay", "1h")
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		response, err := http.Get(s.url + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode == http.StatusServiceUnavailable {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("still ready after a signal")
		}
	}
	// Not ready and ready for the second signal are a moment apart.
	for running := true; running; {
		_ = s.cmd.Process.Signal(os.Interrupt) // it may have ended
		select {
		case <-s.exited:
			running = false
		case <-time.After(50 * time.Millisecond):
			running = time.Now().Before(deadline)
		}
	}
	if state := s.wait(t); state.ExitCode() == exitOK {
		t.Errorf("ended with %s, as if in order", state)
	}
}
