package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dedupd/dedup-operator/hack/apiservertest"
)

type managerProcess struct {
	cmd             *exec.Cmd
	log             *bytes.Buffer // read it only after the process has ended
	probes, metrics string
	ended           bool
}

func startManager(t *testing.T, kubeconfig string, webhookPort int, args ...string) *managerProcess {
	t.Helper()
	return startProcess(t, kubeconfig, append(args, "--webhook-port="+strconv.Itoa(webhookPort))...)
}

func startProcess(t *testing.T, kubeconfig string, args ...string) *managerProcess {
	t.Helper()
	address := func() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(apiservertest.FreePort(t))) }
	p := &managerProcess{log: &bytes.Buffer{}, probes: address(), metrics: address()}
	p.cmd = exec.Command(os.Args[0], append(args, "--leader-elect", "--dedupd-image=dedup-operator:test",
		"--health-probe-bind-address="+p.probes, "--metrics-bind-address="+p.metrics)...)
	p.cmd.Env = append(os.Environ(), beManager+"=1", "KUBECONFIG="+kubeconfig, "POD_NAMESPACE=dedup-system")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !p.ended {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("log of the manager with probes on %s:\n%s", p.probes, p.log)
		}
	})
	return p
}

func (p *managerProcess) awaitReady(t *testing.T) {
	t.Helper()
	apiservertest.Poll(t, func() error {
		_, err := get("http://" + p.probes + "/readyz?verbose")
		return err
	})
}

// reconciles reports whether a replica says that it is the elected one.
func reconciles(t *testing.T, p *managerProcess) bool {
	t.Helper()
	body, err := get("http://" + p.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(body, `leader_election_master_status{name="`+leaseName+`"} 1`)
}

// kill ends the process at once, so that it can release nothing.
func (p *managerProcess) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	p.ended = true
}

// terminate sends SIGTERM and fails the test unless the process ends by itself with exit code 0.
func (p *managerProcess) terminate(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		p.ended = true
		if err != nil {
			t.Error(err)
		}
	case <-time.After(40 * time.Second):
		t.Error("still runs 40 s after SIGTERM")
		_ = p.cmd.Process.Kill()
		t.Logf("killed: %v", <-done)
		p.ended = true
	}
}

// get is what the URL answers; an answer other than 200 is an error.
func get(url string) (string, error) {
	response, err := http.Get(url)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return string(body), nil
}
