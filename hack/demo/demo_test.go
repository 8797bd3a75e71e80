package main

import (
	"context"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

func TestTheDemoShowsEverySampleAtWork(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 14*time.Minute) // with two builds from an empty cache
	defer cancel()
	var out strings.Builder
	if err := run(ctx, &out, false); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log(out.String())

	// A section starts with the policy's name and ends with what was decided in all. These are
	// the decisions that `dedupd check` gives for the same files.
	decided := map[string]string{}
	for _, m := range regexp.MustCompile(`(?s)\n(\w+), \w+ mode, [^\n]+\n.*?\n  = ([^\n]+)`).FindAllStringSubmatch(out.String(), -1) {
		decided[m[1]] = m[2]
	}
	for policy, want := range map[string]string{
		"orders":    "1 CONFLICT, 2 DUPLICATE, 5 FRESH",
		"webhooks":  "3 DUPLICATE, 5 FRESH",
		"signups":   "3 DUPLICATE, 7 FRESH",
		"shipments": "1 UNCHECKED, 3 DUPLICATE, 3 FRESH",
		"payments":  "2 DUPLICATE, 5 FRESH",
	} {
		if decided[policy] != want {
			t.Errorf("policy %s decided %q, want %q", policy, decided[policy], want)
		}
		row := regexp.MustCompile(`(?m)^` + policy + ` +\w+ +\w+ +\w+ +Redis +` + policy + `-dedupd\.shop\.svc:8080 +True `)
		if !row.MatchString(out.String()) {
			t.Errorf("kubectl get ddp does not show policy %s as Ready", policy)
		}
	}
	for _, env := range []string{"DEDUPD_URL=http://", "DEDUPD_GRPC=", "DEDUPD_POLICY=", "DEDUPD_CONSUMER=billing"} {
		if !strings.Contains(out.String(), "  "+env) {
			t.Errorf("the consumer's pod has no %s", env)
		}
	}
}

func TestPodsHaveAddressesOfTheirOwn(t *testing.T) {
	k := &kubelet{pods: map[types.NamespacedName]*runningPod{}}
	pod := func(n int) types.NamespacedName { return types.NamespacedName{Name: strconv.Itoa(n)} }
	seen := map[string]bool{}
	for n := range 254 {
		ip, err := k.freeIP()
		if err != nil {
			t.Fatal(err)
		}
		if seen[ip] || !net.ParseIP(ip).IsLoopback() {
			t.Fatalf("pod %d has the address %s, and those before it have %v", n, ip, seen)
		}
		seen[ip] = true
		k.pods[pod(n)] = &runningPod{ip: ip}
	}
	if ip, err := k.freeIP(); err == nil {
		t.Errorf("after all that there are comes %s", ip)
	}
	gone := k.pods[pod(100)].ip
	delete(k.pods, pod(100))
	if ip, err := k.freeIP(); err != nil || ip != gone {
		t.Errorf("%s is free, and %q is given: %v", gone, ip, err)
	}
	if one, next, far := podIP(4711, 1), podIP(4712, 1), podIP(4711+256, 1); one == next || one == far || next == far {
		t.Errorf("other demos have the addresses %s, %s and %s", one, next, far)
	}
}

func TestTheDemoLeavesNothingBehind(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &stage{out: new(strings.Builder)}
	t.Cleanup(func() {
		if t.Failed() {
			_ = s.strike()
		}
	})
	for _, step := range []func(context.Context) error{s.build, s.startRedis, s.startControlPlane} {
		if err := step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	dir, redis := s.dir, s.redis
	cancel()
	if err := s.strike(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	if conn, err := net.Dial("tcp", redis); err == nil {
		defer conn.Close()
		t.Errorf("redis-server still listens on %s", redis)
	}
}
