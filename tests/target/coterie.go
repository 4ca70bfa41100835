package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/coteriedb/coterie/internal/loopback"
)

// readyLine is what etcd logs, and therefore Coterie too, when clients are served.
const readyLine = "ready to serve client requests"

// transportVariable, in the environment, chooses the transport of every Coterie that is started here, whichever suite
// it is for: a value of --transport.
const transportVariable = "COTERIE_TEST_TRANSPORT"

// TransportFlags are what transportVariable adds to the command line of a Coterie.
func TransportFlags() []string {
	if transport := os.Getenv(transportVariable); transport != "" {
		return []string{"--transport", transport}
	}
	return nil
}

// Coterie is a Coterie server in a child process.
type Coterie struct {
	binary string
	cfg    Config
	client string // URL
	peer   string // URL
	child  *child
}

// StartCoterie starts the given binary on a directory that is empty or holds the data of an earlier run.
func StartCoterie(ctx context.Context, binary string, cfg Config) (*Coterie, error) {
	c := &Coterie{binary: binary, cfg: cfg}
	free, err := loopback.Addresses(2)
	if err != nil {
		return nil, err
	}
	c.client, c.peer = "http://"+free[0], "http://"+free[1]
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Coterie) args() []string {
	args := []string{
		"server",
		"--data-dir", c.cfg.Dir,
		"--listen-client-urls", c.client, "--advertise-client-urls", c.client,
		"--listen-peer-urls", c.peer, "--initial-advertise-peer-urls", c.peer,
		"--initial-cluster", "default=" + c.peer,
		"--log-outputs", "stderr",
	}
	args = append(args, TransportFlags()...)
	if c.cfg.UnsafeNoFsync {
		args = append(args, "--unsafe-no-fsync")
	}
	if c.cfg.MaxTxnOps != 0 {
		args = append(args, "--max-txn-ops", strconv.FormatUint(uint64(c.cfg.MaxTxnOps), 10))
	}
	if c.cfg.MaxRequestBytes != 0 {
		args = append(args, "--max-request-bytes", strconv.FormatUint(uint64(c.cfg.MaxRequestBytes), 10))
	}
	if c.cfg.WatchProgress != 0 {
		args = append(args, "--watch-progress-notify-interval", c.cfg.WatchProgress.String())
	}
	return args
}

func (c *Coterie) start(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(c.cfg.Dir), 0o700); err != nil {
		return err
	}
	ch, err := startChild(c.LogPath(), c.binary, c.args()...)
	if err != nil {
		return fmt.Errorf("start coterie: %w", err)
	}
	if err := ch.awaitLog(ctx, readyLine); err != nil {
		ch.stop(syscall.SIGKILL)
		return fmt.Errorf("start coterie: %w", err)
	}
	c.child = ch
	return nil
}

// LogPath is the file beside the data directory that gathers the log of all of the server's runs.
func (c *Coterie) LogPath() string { return c.cfg.Dir + ".log" }

// Name implements Server.
func (c *Coterie) Name() string { return "coterie" }

// Endpoint implements Server.
func (c *Coterie) Endpoint() string { return c.client }

// PID is the process id of the current run.
func (c *Coterie) PID() int { return c.child.pid }

// Restart implements Server.
func (c *Coterie) Restart(ctx context.Context, how Stop) error {
	if how == Graceful {
		if err := c.Close(); err != nil {
			return err
		}
	} else {
		c.child.stop(syscall.SIGKILL)
		c.child = nil
	}
	return c.start(ctx)
}

// Close implements Server: it asks the server to end and reports it when that ends badly or not in time.
func (c *Coterie) Close() error {
	if c.child == nil {
		return nil
	}
	ch := c.child
	c.child = nil
	return ch.terminate(20 * time.Second)
}

// child is one run of a program whose output goes to a file.
type child struct {
	pid    int
	log    string
	offset int64         // size of the log when this run began
	exited chan struct{} // closed when the program has ended and err is set
	err    error         // Guarded by exited.
}

// forking is held while a program is started. Until the new process runs the program, it has this process's open files,
// and with them the locks of those that this process has closed meanwhile.
var forking sync.RWMutex

func startChild(log, program string, args ...string) (*child, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := out.Stat()
	if err != nil {
		out.Close()
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = dieWithParent()
	ch := &child{log: log, offset: info.Size(), exited: make(chan struct{})}
	started := make(chan error, 1)
	// Owner: this child; it ends when the program does, which stop and terminate bring about and wait for.
	// The kernel ties the parent-death signal to the thread that started the program, so that thread is
	// kept for as long as the program runs.
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer out.Close()
		defer close(ch.exited)
		forking.RLock()
		err := cmd.Start()
		forking.RUnlock()
		if err != nil {
			ch.err = err
			started <- err
			return
		}
		ch.pid = cmd.Process.Pid
		started <- nil
		ch.err = cmd.Wait()
	}()
	if err := <-started; err != nil {
		<-ch.exited
		return nil, err
	}
	return ch, nil
}

// awaitLog returns when this run has logged the line.
func (c *child) awaitLog(ctx context.Context, line string) error {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		text, err := c.output()
		if err != nil {
			return err
		}
		if bytes.Contains(text, []byte(line)) {
			return nil
		}
		select {
		case <-c.exited:
			text, _ := c.output()
			return fmt.Errorf("exited before it was ready (%v):\n%s", c.err, tail(text))
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w; its log:\n%s", ctx.Err(), tail(text))
		case <-poll.C:
		}
	}
}

func (c *child) output() ([]byte, error) {
	all, err := os.ReadFile(c.log)
	if err != nil {
		return nil, err
	}
	return all[min(c.offset, int64(len(all))):], nil
}

// stop sends a signal and waits for the end.
func (c *child) stop(sig syscall.Signal) {
	_ = syscall.Kill(c.pid, sig) // it may have ended already
	<-c.exited
}

// terminate asks the program to end and kills it when it has not after a while.
func (c *child) terminate(patience time.Duration) error {
	_ = syscall.Kill(c.pid, syscall.SIGTERM)
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-c.exited:
	case <-late.C:
		c.stop(syscall.SIGKILL)
		text, _ := c.output()
		return fmt.Errorf("did not end within %v of SIGTERM; its log:\n%s", patience, tail(text))
	}
	// Ending by the signal itself is how etcd ends too: it restores the default action and raises it again.
	var exit *exec.ExitError
	if errors.As(c.err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	if c.err != nil {
		text, _ := c.output()
		return fmt.Errorf("ended badly after SIGTERM: %w; its log:\n%s", c.err, tail(text))
	}
	return nil
}

// tail keeps the last lines of a log for an error message.
func tail(text []byte) []byte {
	const keep = 4 << 10
	if len(text) > keep {
		return text[len(text)-keep:]
	}
	return text
}
