package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/coteriedb/coterie"
)

// fakeNode records what serve does with it.
type fakeNode struct {
	config   coterie.Config
	done     chan struct{}
	err      error // why it stopped by itself
	closeErr error
	closed   func()
}

func (n *fakeNode) Done() <-chan struct{} { return n.done }
func (n *fakeNode) Err() error            { return n.err }
func (n *fakeNode) Close() error {
	n.closed()
	return n.closeErr
}

// logged reads the messages of a log in JSON, each with its level in front.
func logged(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var messages []string
	for line := range bytes.Lines(data) {
		var l struct{ Level, Msg, TS, Caller string }
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if l.TS == "" || l.Caller == "" {
			t.Errorf("fields are missing in %s", line)
		}
		messages = append(messages, l.Level+": "+l.Msg)
	}
	return messages
}

// systemd listens where systemd would. The returned function gives the states that it was told of since.
func systemd(t *testing.T) func() []string {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify") // t.TempDir may be too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	addr := &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "s")}
	conn, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); os.RemoveAll(dir) })
	t.Setenv("NOTIFY_SOCKET", addr.Name)
	return func() []string {
		// A datagram of our own marks the end: those before it have arrived, since the socket keeps their order.
		end, err := net.DialUnix("unixgram", nil, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer end.Close()
		if _, err := end.Write([]byte("end")); err != nil {
			t.Fatal(err)
		}
		var states []string
		for buf := make([]byte, 64); ; {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if state := string(buf[:n]); state != "end" {
				states = append(states, state)
				continue
			}
			return states
		}
	}
}

func TestServe(t *testing.T) {
	broken := errors.New("disk is gone")
	for _, tt := range []struct {
		name string
		node fakeNode
		open error
		stop bool // a signal, rather than a failure
		want []string
		told []string // systemd
		err  string
	}{
		{name: "a signal", stop: true,
			want: []string{"info: starting", "info: ready to serve client requests", "info: stopping", "info: stopped"},
			told: []string{"READY=1", "STOPPING=1"}},
		{name: "a failure", node: fakeNode{err: broken},
			want: []string{"info: starting", "info: ready to serve client requests", "error: stopping after a failure", "info: stopped"},
			told: []string{"READY=1", "STOPPING=1"}, err: "disk is gone"},
		{name: "an end without reason",
			want: []string{"info: starting", "info: ready to serve client requests", "error: stopping after a failure", "info: stopped"},
			told: []string{"READY=1", "STOPPING=1"}, err: "the server stopped by itself"},
		{name: "a failure to stop", stop: true, node: fakeNode{closeErr: broken},
			want: []string{"info: starting", "info: ready to serve client requests", "info: stopping", "error: failed to stop in order", "info: stopped"},
			told: []string{"READY=1", "STOPPING=1"}, err: "stop: disk is gone"},
		{name: "a failure to start", open: broken,
			want: []string{"info: starting", "error: failed to start"}, err: "start: disk is gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			told := systemd(t)
			s := newSettings()
			path := filepath.Join(t.TempDir(), "log")
			s.log.outputs = []string{path}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			closed := 0
			tt.node.done, tt.node.closed = make(chan struct{}), func() { closed++ }
			open := func(_ context.Context, c coterie.Config) (node, error) {
				if tt.open != nil {
					return nil, tt.open
				}
				tt.node.config = c
				if tt.stop {
					cancel()
				} else {
					close(tt.node.done)
				}
				return &tt.node, nil
			}
			var stdout bytes.Buffer
			err := serve(ctx, s, nil, open, &stdout)
			if got := errorText(err); got != tt.err {
				t.Errorf("error %q, want %q", got, tt.err)
			}
			if got := logged(t, path); !slices.Equal(got, tt.want) {
				t.Errorf("log %q, want %q", got, tt.want)
			}
			if got := told(); !slices.Equal(got, tt.told) {
				t.Errorf("systemd was told %q, want %q", got, tt.told)
			}
			if opened := tt.open == nil; opened != (closed == 1) || opened != strings.Contains(stdout.String(), "coterie ctl put") {
				t.Errorf("opened %v, closed %d times, banner %q", opened, closed, &stdout)
			}
			if tt.open == nil && tt.node.config.Logger == nil {
				t.Error("the node has no log")
			}
		})
	}
}

func TestStopWhileStarting(t *testing.T) {
	s := newSettings()
	path := filepath.Join(t.TempDir(), "log")
	s.log.outputs = []string{path}
	ctx, cancel := context.WithCancel(t.Context())
	err := serve(ctx, s, nil, func(ctx context.Context, _ coterie.Config) (node, error) {
		cancel()
		return nil, ctx.Err()
	}, new(bytes.Buffer))
	if err != nil {
		t.Errorf("a signal is no failure: %v", err)
	}
	if got := logged(t, path); got[len(got)-1] != "info: stopped while starting" {
		t.Errorf("log %q", got)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestBanner(t *testing.T) {
	c := coterie.DefaultConfig()
	c.DataDir = "/d"
	var b strings.Builder
	printBanner(&b, c)
	for _, want := range []string{`member "default"`, "/d\n", "http://localhost:2379\n", "coterie ctl put greeting hello"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	for url, want := range map[string]string{
		"http://127.0.0.1:7":  "coterie ctl --endpoints http://127.0.0.1:7 get greeting",
		"https://127.0.0.1:7": "coterie ctl --endpoints https://127.0.0.1:7 --cacert FILE get greeting",
	} {
		c.ListenClientURLs = []string{url, "unix://a"}
		b.Reset()
		printBanner(&b, c)
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}

func TestLogOutputs(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for round := range 2 { // files are appended to
		l := logSettings{outputs: []string{a, b}, level: "warn", format: "json"}
		log, done, err := l.build()
		if err != nil {
			t.Fatal(err)
		}
		log.Info("too quiet")
		log.Warn("heard")
		done()
		want := slices.Repeat([]string{"warn: heard"}, round+1)
		for _, path := range []string{a, b} {
			if got := logged(t, path); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
		}
	}
	l := logSettings{outputs: []string{a}, level: "info", format: "console"}
	log, done, err := l.build()
	if err != nil {
		t.Fatal(err)
	}
	log.Info("for people")
	done()
	data, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(data), "for people\n") {
		t.Errorf("console format: %s", data)
	}
	if _, _, err := (&logSettings{outputs: []string{filepath.Join(dir, "no", "such")}, level: "info"}).build(); err == nil {
		t.Error("an output that cannot be opened is no error")
	}
}

func TestLogRotation(t *testing.T) {
	dir := t.TempDir()
	l := logSettings{outputs: []string{filepath.Join(dir, "log")}, level: "info", format: "json", rotate: true,
		rotation: `{"maxsize": 1, "maxbackups": 1}`}
	if err := l.validate(); err != nil {
		t.Fatal(err)
	}
	log, done, err := l.build()
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 600<<10)
	log.Info(big + "1")
	log.Info(big + "2") // together more than maxsize, in MB
	done()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 {
		t.Errorf("%d files after rotation, want 2: %v", len(files), files)
	}
}

func TestJournal(t *testing.T) {
	var sent []string
	fail := false
	core := newJournalCore(zapcore.InfoLevel, (&logSettings{format: "json"}).encoder())
	core.send = func(message string, p journal.Priority, vars map[string]string) error {
		if fail {
			return errors.New("journal is full")
		}
		sent = append(sent, fmt.Sprintf("%d %s %s", p, vars["PACKAGE"], message))
		return nil
	}
	var fallback bytes.Buffer
	core.fallback = zapcore.AddSync(&fallback)
	log := newLogger(core, core.fallback)
	log.Debug("too quiet")
	log.With(zap.Int("n", 1)).Info("a")
	log.Error("b")
	fail = true
	log.Warn("c")
	if len(sent) != 2 || !strings.HasPrefix(sent[0], "6 coterie {") || !strings.Contains(sent[0], `"msg":"a","n":1}`) ||
		!strings.HasPrefix(sent[1], "3 coterie {") {
		t.Errorf("sent %q", sent)
	}
	if !strings.Contains(fallback.String(), `"msg":"c"`) || strings.Contains(fallback.String(), `"msg":"a"`) {
		t.Errorf("fell back with %q", &fallback)
	}
}
