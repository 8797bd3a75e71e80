package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary is a demo that has come as far as redis-server when this is set to the folder for it.
const beStage = "DEDUP_TEST_BE_STAGE"

// The main thread never ends before the program: the tests' goroutines are to run on others.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if dir := os.Getenv(beStage); dir != "" {
		s := &stage{out: io.Discard, dir: dir}
		if err := s.startRedis(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(s.redis)
		select {}
	}
	os.Exit(m.Run())
}

func TestAKilledDemoTakesItsProcessesAlong(t *testing.T) {
	demo := exec.Command(os.Args[0])
	demo.Env = append(os.Environ(), beStage+"="+t.TempDir())
	demo.Stderr = os.Stderr
	out, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = demo.Wait() })
	t.Cleanup(func() { _ = demo.Process.Kill() })
	redis, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", strings.TrimSpace(redis))
		if err != nil {
			return
		}
		_ = conn.Close()
		if time.Now().After(deadline) {
			t.Fatalf("redis-server still listens on %s", redis)
		}
	}
}

func TestAProcessOutlivesTheThreadThatWantedIt(t *testing.T) {
	s := &stage{out: io.Discard, dir: t.TempDir()}
	t.Cleanup(func() { _ = s.strike() })
	type result struct {
		thread  int
		process *process
		err     error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread() // and it never gets unlocked: the thread ends with the function
		p, err := s.start("sleep", "sleep", "600")
		results <- result{syscall.Gettid(), p, err}
	}()
	r := <-results
	if r.err != nil {
		t.Fatal(r.err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", r.thread)); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the thread has not ended")
		}
	}
	select {
	case <-r.process.done:
		t.Error(r.process.exited())
	case <-time.After(200 * time.Millisecond): // what is signalled ends at once
	}
}
