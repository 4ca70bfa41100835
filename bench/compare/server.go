package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/bench"
	"github.com/coteriedb/coterie/internal/loopback"
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
func buildSides(ctx context.Context, s settings, work string, progress *progress) ([sideCount]side, error) {
	etcd, coterie := side{name: "etcd", binary: s.etcd}, side{name: "Coterie", binary: s.coterie}
	root, err := moduleRoot(ctx)
	if err != nil {
		return [sideCount]side{}, err
	}
	build := func(to *side, dir, pkg string) error {
		if to.binary != "" {
			return nil
		}
		to.binary = filepath.Join(work, strings.ToLower(to.name))
		progress.step("building %s", to.name)
		return goTool(ctx, "build", "-C", dir, "-o", to.binary, pkg)
	}
	if err := build(&etcd, filepath.Join(root, "tests"), "go.etcd.io/etcd/server/v3"); err != nil {
		return [sideCount]side{}, err
	}
	if err := build(&coterie, root, "./cmd/coterie"); err != nil {
		return [sideCount]side{}, err
	}
	sides := [sideCount]side{etcd, coterie}
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

// server is a running side: one member, or several that form a cluster.
type server struct {
	side    side
	dir     string
	members []*member
}

// member is one process of a server, which may be started again after it has ended.
type member struct {
	side    side
	log     string
	address string       // of clients, host:port
	cert    *certificate // nil: no TLS
	args    []string

	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process has ended
	exitErr error         // readable then
}

// serverOptions say how a side is started.
type serverOptions struct {
	members int
	flags   []string // besides names, addresses and directories
	tls     bool     // between clients and the server
}

// start starts a side on empty data directories and waits until all of its members answer.
func start(ctx context.Context, s side, work string, o serverOptions) (*server, error) {
	size := o.members
	dir, err := os.MkdirTemp(work, strings.ToLower(s.name)+"-")
	if err != nil {
		return nil, err
	}
	addresses, err := loopback.Addresses(2 * size)
	if err != nil {
		return nil, err
	}
	v := &server{side: s, dir: dir}
	var cert *certificate
	if o.tls {
		if cert, err = newCertificate(dir); err != nil {
			return nil, err
		}
	}
	var initial []string
	for i := range size {
		initial = append(initial, fmt.Sprintf("compare%d=http://%s", i, addresses[size+i]))
	}
	for i := range size {
		v.members = append(v.members, newMember(s, dir, i, addresses[i], addresses[size+i], cert, append(slices.Clone(o.flags), "--initial-cluster="+strings.Join(initial, ","))))
	}
	for _, m := range v.members {
		if err := m.launch(); err != nil {
			return nil, errors.Join(err, v.stop())
		}
	}
	if err := v.ready(ctx); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

func newMember(s side, dir string, number int, client, peer string, cert *certificate, flags []string) *member {
	name := "compare" + strconv.Itoa(number)
	m := &member{side: s, log: filepath.Join(dir, name+".log"), address: client, cert: cert}
	peerURL := "http://" + peer
	m.args = slices.Concat(s.command, []string{
		"--name=" + name, "--data-dir=" + filepath.Join(dir, name),
		"--listen-client-urls=" + m.endpoint(), "--advertise-client-urls=" + m.endpoint(),
		"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL,
	}, flags)
	if cert != nil {
		m.args = append(m.args, "--cert-file="+cert.file, "--key-file="+cert.keyFile)
	}
	return m
}

// endpoint is where clients reach the member.
func (m *member) endpoint() string {
	if m.cert != nil {
		return "https://" + m.address
	}
	return "http://" + m.address
}

// target is the member alone.
func (m *member) target() bench.Target {
	t := bench.Target{Endpoints: []string{m.endpoint()}, Conns: 1}
	if m.cert != nil {
		t.TLS = m.cert.client
	}
	return t
}

// client is a connection of clientv3's to the member.
func (m *member) client() (*clientv3.Client, error) {
	t := m.target()
	return clientv3.New(clientv3.Config{
		Endpoints: t.Endpoints, TLS: t.TLS, Logger: zap.NewNop(), MaxCallRecvMsgSize: math.MaxInt32,
	})
}

// launch starts the process and does not wait for it to answer.
func (m *member) launch() error {
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own descriptor
	cmd, exited := exec.Command(m.side.binary, m.args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", m.side.name, err)
	}
	m.cmd, m.exited = cmd, exited
	go func() { // ends with the process, which end ends
		m.exitErr = cmd.Wait()
		close(exited)
	}()
	return nil
}

// ready waits until every member answers, and a cluster under the leadership of its first member.
func (v *server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, m := range v.members {
		if err := m.ready(ctx); err != nil {
			return err
		}
	}
	if len(v.members) == 1 {
		return nil
	}
	if err := v.lead(ctx); err != nil {
		return fmt.Errorf("making the first member of %s the leader: %w\n%s", v.side.name, err, v.logTail())
	}
	return nil
}

func (m *member) ready(ctx context.Context) error {
	for {
		target := m.target()
		target.DialTimeout = time.Second
		pool, err := bench.Dial(ctx, target)
		if err == nil {
			pool.Close()
			return nil
		}
		select {
		case <-m.exited:
			return fmt.Errorf("%s ended while starting: %w\n%s", m.side.name, m.exitErr, m.logTail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer (%w): %w\n%s", m.side.name, ctx.Err(), err, m.logTail())
		default:
		}
	}
}

// target is all members.
func (v *server) target() bench.Target {
	t := v.members[0].target()
	for _, m := range v.members[1:] {
		t.Endpoints = append(t.Endpoints, m.endpoint())
	}
	return t
}

func (v *server) pids() (out []int) {
	for _, m := range v.members {
		out = append(out, m.cmd.Process.Pid)
	}
	return out
}

// logTail is the end of the members' logs, for messages about a server that does not work.
func (v *server) logTail() string {
	var tails []string
	for _, m := range v.members {
		tails = append(tails, m.logTail())
	}
	return strings.Join(tails, "\n")
}

func (m *member) logTail() string {
	log, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-logTailBytes):])
}

// stop ends the processes and removes their data.
func (v *server) stop() error {
	var errs []error
	for _, m := range v.members {
		m.signal()
	}
	for _, m := range v.members {
		errs = append(errs, m.end())
	}
	errs = append(errs, os.RemoveAll(v.dir))
	syscall.Sync() // the next server must not pay for what this one has left to write
	return errors.Join(errs...)
}

func (m *member) signal() {
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(syscall.SIGTERM) // an error means that the process has ended already
	}
}

// end ends the process, if it runs, and waits for that.
func (m *member) end() error {
	if m.cmd == nil {
		return nil
	}
	m.signal()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-m.exited:
		return nil
	case <-timer.C:
		_ = m.cmd.Process.Kill()
		<-m.exited
		return fmt.Errorf("%s did not stop within %v and was killed", m.side.name, stopTimeout)
	}
}
