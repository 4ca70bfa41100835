package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// asCoterie, if set in the environment, makes the test binary behave as coterie: the tests need no build of their own.
const asCoterie = "COTERIE_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asCoterie) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// coterieCommand is a command line of coterie, or of a program that goes by another name.
func coterieCommand(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Args = args
	cmd.Env = append(os.Environ(), asCoterie+"=1")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// server is a process that serves on a Unix socket.
type server struct {
	cmd      *exec.Cmd
	endpoint string
	ready    chan struct{} // closed when it says so
	exited   chan struct{} // closed when its output has ended
	stdout   bytes.Buffer

	mu    sync.Mutex
	lines []string // Guarded by mu. The log.
}

func startServer(ctx context.Context, t *testing.T, name, dir string, more ...string) *server {
	t.Helper()
	sockets, err := os.MkdirTemp("", "coterie") // t.TempDir may be too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	s := &server{
		endpoint: "unix://" + filepath.Join(sockets, "client"),
		ready:    make(chan struct{}),
		exited:   make(chan struct{}),
	}
	peer := "unix://" + filepath.Join(sockets, "peer")
	s.cmd = coterieCommand(ctx, t, append([]string{name, "--data-dir", dir,
		"--listen-client-urls", s.endpoint, "--advertise-client-urls", s.endpoint,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer}, more...)...)
	s.cmd.Stdout = &s.stdout
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process, which the test waits for
		defer close(s.exited)
		for in := bufio.NewScanner(stderr); in.Scan(); {
			s.mu.Lock()
			s.lines = append(s.lines, in.Text())
			s.mu.Unlock()
			if strings.Contains(in.Text(), `"msg":"ready to serve client requests"`) {
				close(s.ready)
			}
		}
	}()
	return s
}

func (s *server) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

func (s *server) waitReady(t *testing.T) {
	t.Helper()
	select {
	case <-s.ready:
	case <-s.exited:
		t.Fatalf("it ended early: %v\n%s", s.cmd.Wait(), s.log())
	}
}

// stop sends the signal as often as given and returns the exit status.
func (s *server) stop(t *testing.T, signal os.Signal, times int) int {
	t.Helper()
	for range times {
		if err := s.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
	return s.wait(t)
}

func (s *server) wait(t *testing.T) int {
	t.Helper()
	<-s.exited
	err := s.cmd.Wait()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestServerProcess starts a real server under etcd's name, uses it through etcdctl's, refuses a second one on the same
// directory, stops it by signal, and finds the data again.
func TestServerProcess(t *testing.T) {
	ctx := testContext(t)
	dir := filepath.Join(t.TempDir(), "data")
	etcdctl := func(endpoint string, args ...string) string {
		t.Helper()
		out, err := coterieCommand(ctx, t, append([]string{"etcdctl", "--endpoints", endpoint}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("etcdctl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}

	first := startServer(ctx, t, "etcd", dir)
	first.waitReady(t)
	if got := etcdctl(first.endpoint, "put", "greeting", "hello"); got != "OK\n" {
		t.Errorf("put says %q", got)
	}

	second := startServer(ctx, t, "etcd", dir)
	if status := second.wait(t); status != exitFailure {
		t.Errorf("a second server on the directory exits with %d\n%s", status, second.log())
	}
	if !strings.Contains(second.log(), dir) || !strings.Contains(second.log(), "coterie: start: ") {
		t.Errorf("the refusal does not name the directory:\n%s", second.log())
	}

	if status := first.stop(t, syscall.SIGTERM, 3); status != 0 {
		t.Errorf("exits with %d after SIGTERM\n%s", status, first.log())
	}
	if !strings.Contains(first.log(), `"msg":"stopped"`) {
		t.Errorf("it did not stop in order:\n%s", first.log())
	}
	if want := fmt.Sprintf("coterie ctl --endpoints %s put", first.endpoint); !strings.Contains(first.stdout.String(), want) {
		t.Errorf("no %q in\n%s", want, &first.stdout)
	}

	third := startServer(ctx, t, "etcd", dir)
	third.waitReady(t)
	if got := etcdctl(third.endpoint, "get", "greeting"); got != "greeting\nhello\n" {
		t.Errorf("get says %q", got)
	}
	if status := third.stop(t, syscall.SIGINT, 1); status != 0 {
		t.Errorf("exits with %d after SIGINT\n%s", status, third.log())
	}
}

func TestExitStatusOfBadUsage(t *testing.T) {
	out, err := coterieCommand(testContext(t), t, "etcd", "--memory-mlock", "--enable-distributed-tracing").CombinedOutput()
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) || exit.ExitCode() != exitUsage {
		t.Errorf("exits with %v", err)
	}
	if n := bytes.Count(out, []byte("coterie: --")); n != 2 {
		t.Errorf("%d of 2 lines begin with the program's name:\n%s", n, out)
	}
}

// TestCompletionOfCtl asks as a shell does.
func TestCompletionOfCtl(t *testing.T) {
	out, err := coterieCommand(testContext(t), t, "coterie", "__complete", "ctl", "endpoint", "st").Output()
	if err != nil || !bytes.HasPrefix(out, []byte("status\t")) {
		t.Errorf("completes to %q, %v", out, err)
	}
}
