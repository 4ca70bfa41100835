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
	"strings"
	"syscall"
	"time"

	"github.com/coteriedb/coterie/bench"
)

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 10 * time.Second // between asking a server to stop and killing it
	logTailBytes = 2 << 10
)

// side is one of the two servers that are compared.
type side struct {
	name    string
	binary  string
	command []string // arguments before the flags
	version string
}

// buildSides returns etcd and Coterie, in this order, building what the settings do not name. etcd
// comes from the module of the tests, so that it is no dependency of Coterie.
func buildSides(ctx context.Context, s settings, work string, progress io.Writer) ([2]side, error) {
	etcd, coterie := side{name: "etcd", binary: s.etcd}, side{name: "Coterie", binary: s.coterie}
	root, err := moduleRoot(ctx)
	if err != nil {
		return [2]side{}, err
	}
	build := func(to *side, dir, pkg string) error {
		if to.binary != "" {
			return nil
		}
		to.binary = filepath.Join(work, strings.ToLower(to.name))
		fmt.Fprintln(progress, "building", to.name)
		return goTool(ctx, "build", "-C", dir, "-o", to.binary, pkg)
	}
	if err := build(&etcd, filepath.Join(root, "tests"), "go.etcd.io/etcd/server/v3"); err != nil {
		return [2]side{}, err
	}
	if err := build(&coterie, root, "./cmd/coterie"); err != nil {
		return [2]side{}, err
	}
	sides := [2]side{etcd, coterie}
	for i := range sides {
		if !strings.HasPrefix(filepath.Base(sides[i].binary), "etcd") {
			sides[i].command = []string{"server"}
		}
		if sides[i].version, err = version(ctx, sides[i].binary); err != nil {
			return sides, err
		}
	}
	return sides, nil
}

func moduleRoot(ctx context.Context) (string, error) {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(mod))), nil
}

func goTool(ctx context.Context, args ...string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return nil
}

// version is what a server says of itself first, without the "etcd Version: " that etcd puts before it.
func version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", binary, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	if _, number, ok := strings.Cut(first, "Version: "); ok {
		first = number
	}
	return strings.TrimSpace(first), nil
}

// server is a running side.
type server struct {
	side     side
	dir      string
	endpoint string
	cmd      *exec.Cmd
	exited   chan struct{} // closed when the process has ended
	exitErr  error         // readable then
}

// start starts a side on an empty data directory and waits until it answers.
func start(ctx context.Context, s side, work string) (*server, error) {
	dir, err := os.MkdirTemp(work, strings.ToLower(s.name)+"-")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	client, peer := "http://"+ports[0], "http://"+ports[1]
	args := append(append([]string(nil), s.command...),
		"--name=compare", "--data-dir="+filepath.Join(dir, "data"),
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer,
		"--initial-cluster=compare="+peer)
	v := &server{side: s, dir: dir, endpoint: ports[0], cmd: exec.Command(s.binary, args...), exited: make(chan struct{})}
	log, err := os.Create(v.logPath())
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	v.cmd.Stdout, v.cmd.Stderr = log, log
	if err := v.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.name, err)
	}
	go func() { // ends with the process, which stop ends
		v.exitErr = v.cmd.Wait()
		close(v.exited)
	}()
	if err := v.ready(ctx); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

func (v *server) logPath() string { return filepath.Join(v.dir, "log") }

func (v *server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		pool, err := bench.Dial(ctx, bench.Target{Endpoints: []string{v.endpoint}, Conns: 1, DialTimeout: time.Second})
		if err == nil {
			pool.Close()
			return nil
		}
		select {
		case <-v.exited:
			return fmt.Errorf("%s ended while starting: %w\n%s", v.side.name, v.exitErr, v.logTail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer (%w): %w\n%s", v.side.name, ctx.Err(), err, v.logTail())
		default:
		}
	}
}

// logTail is the end of the server's log, for messages about a server that does not work.
func (v *server) logTail() string {
	log, err := os.ReadFile(v.logPath())
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-logTailBytes):])
}

// stop ends the process and removes its data.
func (v *server) stop() error {
	// An error means that the process has ended already.
	_ = v.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	var err error
	select {
	case <-v.exited:
	case <-timer.C:
		_ = v.cmd.Process.Kill()
		<-v.exited
		err = fmt.Errorf("%s did not stop within %v and was killed", v.side.name, stopTimeout)
	}
	err = errors.Join(err, os.RemoveAll(v.dir))
	syscall.Sync() // the next server must not pay for what this one has left to write
	return err
}

// freePorts finds addresses on the loopback interface that nobody listens on.
func freePorts(n int) (addrs []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // together at the end, so that the addresses differ
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
