package ctl

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/coteriedb/coterie/tests/target"
)

var _ = (*pb.RangeResponse)(nil) // its package registers the messages that decode names

// scriptTimeout bounds one directive of a transcript.
const scriptTimeout = 60 * time.Second

// bin holds the programs that the tests run, all built from source.
var bin struct {
	dir     string
	coterie string
	etcd    func() (string, error) // builds the server at the first call
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ctl-bin-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = buildAll(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0)))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// atOnce is how many clusters have their transcripts run at a time, at the least: for most of the time something is waited for.
const atOnce = 5

func buildAll(dir string) error {
	ctx := context.Background()
	coterie, err := target.BuildCoterie(ctx, dir)
	if err != nil {
		return err
	}
	bin.dir, bin.coterie = dir, coterie
	bin.etcd = sync.OnceValues(func() (string, error) { return target.BuildBinary(ctx, target.KindEtcd, dir) })
	_, err1 := target.BuildTool(ctx, dir, target.Etcdctl)
	_, err2 := target.BuildTool(ctx, dir, target.Etcdutl)
	return errors.Join(err1, err2)
}

// servers are the two that a transcript runs against, etcd first: with -rewrite its output becomes the expected
// one.
var servers = []struct {
	name  string
	start func(ctx context.Context, dir string) (target.Server, error)
}{
	{"etcd", func(ctx context.Context, dir string) (target.Server, error) {
		return target.StartEtcd(ctx, target.Config{Dir: dir, UnsafeNoFsync: true})
	}},
	{"coterie", func(ctx context.Context, dir string) (target.Server, error) {
		return target.StartCoterie(ctx, bin.coterie, target.Config{Dir: dir, UnsafeNoFsync: true})
	}},
}

// TestTranscripts runs each transcript on a fresh server of either kind.
func TestTranscripts(t *testing.T) {
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			datadriven.Walk(t, "testdata/alone", func(t *testing.T, path string) {
				dir := t.TempDir()
				server, err := s.start(t.Context(), filepath.Join(dir, "data"))
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := server.Close(); err != nil {
						t.Error(err)
					}
				}()
				sh := newShell(dir, server.Endpoint())
				defer sh.close()
				datadriven.RunTest(t, path, sh.directive)
			})
		})
	}
}

// shell runs the scripts of one transcript, in one directory.
type shell struct {
	dir        string
	env        []string
	prelude    string // put before every script
	names      *names
	background map[string]*process
}

func newShell(dir, endpoint string) *shell {
	return &shell{
		dir: dir,
		env: append(environment(), "PATH="+bin.dir+":"+os.Getenv("PATH"), "ETCDCTL_ENDPOINTS="+endpoint, "ENDPOINT="+endpoint,
			"LC_ALL=C"),
		names:      newNames(endpoint),
		background: map[string]*process{},
	}
}

// environment is the one of the test without what would configure etcdctl.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "ETCD") })
}

func (s *shell) close() {
	for _, p := range s.background {
		p.end(syscall.SIGKILL)
	}
}

// directive runs one directive of a transcript:
//
//	sh [sort]                  a script; prints its output, by request sorted, and how it ended
//	decode type=M              a script whose output is one protobuf message M of etcd's; prints its text
//	start name=N               a script that goes on in the background
//	await name=N lines=K       waits for K lines of its output
//	stop name=N                interrupts it; prints its output and how it ended
//	finish name=N              waits for its end; prints like stop
func (s *shell) directive(t *testing.T, d *datadriven.TestData) string {
	var name, message string
	var lines int
	d.MaybeScanArgs(t, "name", &name)
	d.MaybeScanArgs(t, "type", &message)
	d.MaybeScanArgs(t, "lines", &lines)
	switch d.Cmd {
	case "sh":
		p := s.start(t, d.Input)
		text := s.names.replace(p.finish(t))
		if d.HasArg("sort") {
			lines := strings.SplitAfter(text, "\n")
			slices.Sort(lines)
			text = strings.Join(lines, "")
		}
		return text
	case "decode":
		p := s.start(t, d.Input)
		p.finish(t)
		return s.names.replace(decode(t, message, p.output.Bytes()))
	case "start":
		s.background[name] = s.start(t, d.Input)
		return ""
	}
	p := s.background[name]
	if p == nil {
		d.Fatalf(t, "nothing named %q has been started", name)
	}
	switch d.Cmd {
	case "await":
		p.awaitLines(t, lines)
		return ""
	case "stop":
		delete(s.background, name)
		p.interrupt()
		text := interruptedCall.ReplaceAllString(s.names.replace(p.finish(t)), "")
		return interruptedSession.ReplaceAllString(text, "[signal: interrupt]\n")
	case "finish":
		delete(s.background, name)
		return s.names.replace(p.finish(t))
	}
	d.Fatalf(t, "unknown directive %q", d.Cmd)
	return ""
}

// interruptedCall is what etcdctl logs if the interrupt meets it in the middle of a request, which is chance.
var interruptedCall = regexp.MustCompile(`(?m)^.*retrying of unary invoker failed\n`)

// interruptedSession is how a lock or an election of etcdctl's ends if it hears of the end of its own session, which the
// interrupt brings about, before it ends by the interrupt.
var interruptedSession = regexp.MustCompile(`Error: (?:elect: )?session expired\n\[exit status 1\]\n`)

// decode prints a message in an order and spacing that do not change.
func decode(t *testing.T, name string, data []byte) string {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("etcdserverpb." + name))
	if err != nil {
		t.Fatal(err)
	}
	m := kind.New().Interface()
	if err := proto.Unmarshal(data, m); err != nil {
		t.Fatalf("%v in %q", err, data)
	}
	return strings.ReplaceAll(prototext.MarshalOptions{Multiline: true}.Format(m), ":  ", ": ") + "\n"
}

// process is a running script. Its output goes to a file, so that no goroutine has to read it.
type process struct {
	cmd    *exec.Cmd
	file   *os.File
	output bytes.Buffer // what file holds; set by finish
	done   chan struct{}
	err    error // of Wait; set when done is closed
}

func (s *shell) start(t *testing.T, script string) *process {
	t.Helper()
	file, err := os.CreateTemp(s.dir, "output-")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", s.prelude+script)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, s.env, file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal reaches all that the script runs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, file: file, done: make(chan struct{})}
	go func() { // ends with the script, which finish and end wait for
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p
}

// end signals the whole process group and waits.
func (p *process) end(sig syscall.Signal) {
	_ = syscall.Kill(-p.cmd.Process.Pid, sig) // it may have ended already
	<-p.done
	p.file.Close()
}

func (p *process) interrupt() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT) }

// finish waits for the end and returns the output, followed by the way in which it ended where that is not
// success.
func (p *process) finish(t *testing.T) string {
	t.Helper()
	late := time.NewTimer(scriptTimeout)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C:
		p.end(syscall.SIGKILL)
		t.Errorf("not finished after %v: %s", scriptTimeout, strings.Join(p.cmd.Args, " "))
	}
	p.output.Write(p.soFar(t))
	p.file.Close()
	text := p.output.String()
	if p.err != nil {
		text += "[" + p.err.Error() + "]\n"
	}
	return text
}

func (p *process) soFar(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(p.file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (p *process) awaitLines(t *testing.T, n int) {
	t.Helper()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	late := time.NewTimer(scriptTimeout)
	defer late.Stop()
	for bytes.Count(p.soFar(t), []byte("\n")) < n {
		select {
		case <-poll.C:
		case <-late.C:
			t.Fatalf("not %d lines after %v but:\n%s", n, scriptTimeout, p.soFar(t))
		}
	}
}
