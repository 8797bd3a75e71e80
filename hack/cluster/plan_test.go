package main

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestTheNetworkIsNoneThatTheMachineHasAnAddressIn(t *testing.T) {
	network, err := freeNetwork()
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil && network.Contains(p.Addr()) {
			t.Errorf("%s, where this machine has %s", network, p)
		}
	}
}

func TestAPlanOutlivesTheProgram(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", "/assets")
	t.Setenv("CLUSTER_NODE", "/node")
	folder := t.TempDir()
	p, err := newPlan(folder)
	if err != nil {
		t.Fatal(err)
	}
	p.PID, p.Controllers = 7, []string{"cpu"}
	if err := p.write(); err != nil {
		t.Fatal(err)
	}
	again, err := readPlan(folder)
	if err != nil {
		t.Fatal(err)
	}
	if again.Network != p.Network || again.HostIP != p.HostIP || again.PID != 7 || again.Controllers[0] != "cpu" {
		t.Errorf("wrote %+v, read %+v", p, again)
	}
	if len(p.Name) > 15 {
		t.Errorf("%q is too long for an interface", p.Name)
	}
}

func TestOnlyTheNodesOwnProcessCountsAsRunning(t *testing.T) {
	started, err := startOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	ended := exec.Command("cat")
	input, err := ended.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	began, err := startOf(ended.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := input.Close(); err != nil {
		t.Fatal(err)
	}
	// Not waited for, it stays as a zombie.
	for state := ""; state != "Z"; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(ended.Process.Pid) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		state = strings.Fields(string(stat))[2]
	}
	for name, c := range map[string]struct {
		plan plan
		want bool
	}{
		"the process":                     {plan{PID: os.Getpid(), Started: started}, true},
		"another that has its PID by now": {plan{PID: os.Getpid(), Started: started - 1}, false},
		"a zombie":                        {plan{PID: ended.Process.Pid, Started: began}, false},
		"none":                            {plan{}, false},
	} {
		if c.plan.runs() != c.want {
			t.Errorf("%s: runs is %t", name, !c.want)
		}
	}
	if err := ended.Wait(); err != nil {
		t.Error(err)
	}
}

func TestDownWithoutAClusterDoesNothing(t *testing.T) {
	if err := down(t.TempDir() + "/none"); err != nil {
		t.Error(err)
	}
}
