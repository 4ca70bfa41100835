package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie"
)

// demoReady is the last line of the introduction.
const demoReady = "Ctrl-C ends the demo.\n"

// transcript is what a demo says, and can be waited on.
type transcript struct {
	mu   sync.Mutex
	said bytes.Buffer  // Guarded by mu.
	more chan struct{} // capacity 1
}

func newTranscript() *transcript { return &transcript{more: make(chan struct{}, 1)} }

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case t.more <- struct{}{}:
	default:
	}
	return t.said.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.said.String()
}

// await waits until something is said, and forgets what was said up to there.
func (t *transcript) await(tb testing.TB, ctx context.Context, text string) {
	tb.Helper()
	for {
		t.mu.Lock()
		i := bytes.Index(t.said.Bytes(), []byte(text))
		if i >= 0 {
			t.said.Next(i + len(text))
		}
		t.mu.Unlock()
		if i >= 0 {
			return
		}
		select {
		case <-t.more:
		case <-ctx.Done():
			tb.Fatalf("it has not said %q but\n%s", text, t)
		}
	}
}

// runDemo starts a demo as a process.
func runDemo(ctx context.Context, t *testing.T, args ...string) (*exec.Cmd, *transcript) {
	t.Helper()
	cmd, said := coterieCommand(ctx, t, append([]string{"coterie", "demo"}, args...)...), newTranscript()
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, said
}

func interrupt(t *testing.T, cmd *exec.Cmd, said *transcript) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the demo ends with %v and\n%s", err, said)
	}
}

// TestDemoProcess writes through one member and reads through another, after a new start too.
func TestDemoProcess(t *testing.T) {
	ctx := testContext(t)
	dir := filepath.Join(t.TempDir(), "data")
	ctl := func(endpoint string, args ...string) string {
		t.Helper()
		out, err := coterieCommand(ctx, t, append([]string{"etcdctl", "--endpoints", endpoint}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("etcdctl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}

	cmd, said := runDemo(ctx, t, "--data-dir", dir)
	said.await(t, ctx, demoReady)
	content, err := os.ReadFile(demoPlanFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := decodeDemoPlan(content)
	if err != nil || len(plan.Members) != defaultDemoMembers {
		t.Fatalf("the plan is %s: %v", content, err)
	}
	if got := ctl(plan.Members[0].Client, "put", "greeting", "hello"); got != "OK\n" {
		t.Errorf("put says %q", got)
	}
	interrupt(t, cmd, said)

	cmd, said = runDemo(ctx, t, "--data-dir", dir)
	said.await(t, ctx, demoReady)
	if got := ctl(plan.Members[2].Client, "get", "greeting"); got != "greeting\nhello\n" {
		t.Errorf("get says %q", got)
	}
	twice, complaint := runDemo(ctx, t, "--data-dir", dir)
	if err := twice.Wait(); twice.ProcessState.ExitCode() != exitFailure || !strings.Contains(complaint.String(), plan.Members[2].Peer+", which cannot be had") {
		t.Errorf("a second demo with the data ends with %v and\n%s", err, complaint)
	}
	interrupt(t, cmd, said)

	if log, err := os.ReadFile(demoLog(dir)); err != nil || !bytes.Contains(log, []byte(`"logger":"m3"`)) {
		t.Errorf("the log does not tell members apart: %v\n%s", err, log)
	}
	if strings.Contains(said.String(), `"level"`) {
		t.Errorf("the log is on the terminal:\n%s", said)
	}
}

func TestDemoLeavesNothingBehind(t *testing.T) {
	ctx := testContext(t)
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	for _, moment := range []string{"Starting 2 members", demoReady} {
		cmd, said := runDemo(ctx, t, "--members", "2")
		said.await(t, ctx, moment)
		interrupt(t, cmd, said)
		left, err := os.ReadDir(temporary)
		if err != nil || len(left) > 0 {
			t.Errorf("interrupted after %q, it leaves %v, %v\n%s", moment, left, err, said)
		}
	}
}

// TestDemoGoesOnWithoutMembers types what somebody would.
func TestDemoGoesOnWithoutMembers(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithCancel(testContext(t))
	said, keys, ended := newTranscript(), make(chan string), make(chan error, 1)
	s := &demoSettings{dataDir: filepath.Join(t.TempDir(), "data")}
	plan, err := planDemo(s.dataDir, 3)
	if err != nil {
		t.Fatal(err)
	}
	d := newDemo(plan, s.dataDir, zap.NewNop(), said)
	if err := d.start(ctx); err != nil {
		t.Fatal(err)
	}
	leader := d.leader.number
	other, third := leader%3+1, (leader+1)%3+1
	go func() { d.run(ctx, keys); ended <- d.close() }() // until cancel
	number := func(n int) string { return string(rune('0' + n)) }

	keys <- "what?"
	said.await(t, ctx, "from 1 to 3")
	keys <- number(leader)
	said.await(t, ctx, "There was no leader for at most")
	keys <- ""
	said.await(t, ctx, "stopped")
	keys <- number(other)
	said.await(t, ctx, "1 of 3 run, and a majority is 2")
	keys <- number(leader)
	said.await(t, ctx, "Member "+number(leader)+" serves again")
	said.await(t, ctx, "2 of 3 run: the cluster works")
	keys <- " " + number(third) + " "
	said.await(t, ctx, "Member "+number(third)+" has stopped")
	keys <- number(third) // it may be starting when all ends
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, m := range d.members {
		if m.node != nil || m.busy {
			t.Errorf("member %d has not stopped", m.number)
		}
	}
}

func TestDemoWithARemovedMember(t *testing.T) {
	said, dir := newTranscript(), filepath.Join(t.TempDir(), "data")
	plan, err := planDemo(dir, 3)
	if err != nil {
		t.Fatal(err)
	}
	d := newDemo(plan, dir, zap.NewNop(), said)
	d.settle(demoChange{d.members[2], nil, fmt.Errorf("start: %w", coterie.ErrRemoved)})
	d.obey(t.Context(), "3")
	if !strings.Contains(said.String(), "has been removed") || d.busy() {
		t.Errorf("asked to start a member that was removed, it says %q", said)
	}
	if got, want := d.strength(), "0 of 2 run, and a majority is 2"; !strings.HasPrefix(got, want) {
		t.Errorf("it says %q, want %q", got, want)
	}
}

func TestPlanDemo(t *testing.T) {
	l, err := net.Listen("tcp", loopback(firstDemoPort)) // perhaps somebody has it
	if err == nil {
		defer l.Close()
	}
	dir := filepath.Join(t.TempDir(), "data")
	made, err := planDemo(dir, 5)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range made.Members {
		if m.Client == loopback(firstDemoPort) {
			t.Errorf("a member is to listen on %s, which is taken", m.Client)
		}
	}
	for _, members := range []int{0, 5} {
		if kept, err := planDemo(dir, members); err != nil || !reflect.DeepEqual(kept, made) {
			t.Errorf("asked for %d members, the plan is %v and then %v, %v", members, made, kept, err)
		}
	}
	if _, err := planDemo(dir, 3); !errors.As(err, new(usageError)) {
		t.Errorf("with other members: %v", err)
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "thesis"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := planDemo(full, 3); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("with a directory that holds something else: %v", err)
	}
}

func TestDemoRefusesBadFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--members 0":       "1 to 9 members",
		"--members 10":      "1 to 9 members",
		"--log-level laser": "log-level",
	} {
		cmd := demoCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(args))
		cmd.SetOut(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want a usage error with %q, have %v", args, want, err)
		}
	}
}

func TestProgram(t *testing.T) {
	for called, want := range map[string]string{
		"bin/coterie":                              "bin/coterie",
		"/tmp/go-build1234/b001/exe/coterie":       "go run ./cmd/coterie",
		"certainly-not-a-program-that-is-anywhere": "coterie",
		"go": "go", // which is where it can be found
	} {
		if got := program(called); got != want {
			t.Errorf("%s is to be called as %q, want %q", called, got, want)
		}
	}
}

func TestRound(t *testing.T) {
	for in, want := range map[time.Duration]string{
		1234 * time.Microsecond:  "1.2ms",
		12345 * time.Microsecond: "12ms",
		1234 * time.Millisecond:  "1.2s",
	} {
		if got := round(in).String(); got != want {
			t.Errorf("%v is shown as %s, want %s", in, got, want)
		}
	}
}

func FuzzDecodeDemoPlan(f *testing.F) {
	f.Add([]byte(`{"members":[{"client":"127.0.0.1:2379","peer":"127.0.0.1:2380"}]}`))
	f.Add([]byte(`{"members":[{"client":"127.0.0.1:2379","peer":"127.0.0.1:2379"}]}`))
	f.Add([]byte(`{"members":[{"client":"10.0.0.1:2379","peer":"[::1]:0"}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		p, err := decodeDemoPlan(content)
		if err != nil {
			return
		}
		for _, c := range p.configs("dir", zap.NewNop()) {
			if err := c.Validate(); err != nil {
				t.Errorf("%s is accepted, and member %s refuses it: %v", content, c.Name, err)
			}
		}
	})
}
