package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/internal/loopback"
)

// Kind says whose binary a cluster runs. The two take the same flags.
type Kind string

const (
	KindCoterie Kind = "coterie"
	KindEtcd    Kind = "etcd"
)

// EtcdServer is the package of etcd's server, for BuildBinary.
const EtcdServer = "go.etcd.io/etcd/server/v3"

// BuildBinary compiles the server of a kind into dir and returns the path of the binary.
func BuildBinary(ctx context.Context, kind Kind, dir string) (string, error) {
	if kind == KindCoterie {
		return BuildCoterie(ctx, dir)
	}
	tests, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	return build(ctx, tests, EtcdServer, filepath.Join(dir, "etcd"))
}

// Host is where one member runs.
type Host struct {
	Addr    string   // an address that the other hosts and the clients reach
	Command []string // put before the program: what enters the host, such as "ip netns exec NAME"
}

// ClusterConfig is what a suite may choose about a cluster.
type ClusterConfig struct {
	Binary string
	Kind   Kind
	Dir    string   // holds each member's data directory, and its log beside it; exclusive to one cluster
	Size   int      // how many members found the cluster
	Flags  []string // further flags of every member; the last of two settles
	Hosts  []Host   // member i runs on Hosts[i], those beyond on loopback ports of their own
}

// Cluster is a cluster of child processes. Its members are counted from 0 in the order in which they came, and keep their
// numbers, ports and data directories over restarts. Operations on different members may run at the same time, those on
// one member may not.
type Cluster struct {
	cfg   ClusterConfig
	token string

	mu      sync.Mutex
	members []*member // Guarded by mu; the elements are not.
}

// member is one member of a cluster, running or not.
type member struct {
	name         string
	host         Host
	client, peer string   // URLs
	bootstrap    []string // flags that say how the cluster was founded, or is joined
	flags        []string

	mu    sync.Mutex
	child *child // nil when it does not run. Guarded by mu.
}

// StartCluster founds a cluster and returns when every member serves clients.
func StartCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	c := &Cluster{cfg: cfg, token: "test-" + strconv.FormatUint(rand.Uint64(), 36)}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	for range cfg.Size {
		if _, err := c.place(); err != nil {
			return nil, err
		}
	}
	var urls []string
	for _, m := range c.members {
		urls = append(urls, m.name+"="+m.peer)
	}
	for i, m := range c.members {
		m.bootstrap = c.bootstrap(urls, "new")
		if err := c.Start(i); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	if err := c.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Cluster) bootstrap(urls []string, state string) []string {
	return []string{
		"--initial-cluster", strings.Join(urls, ","),
		"--initial-cluster-state", state,
		"--initial-cluster-token", c.token,
	}
}

// place gives the next member its name and addresses.
func (c *Cluster) place() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := len(c.members)
	m := &member{name: "m" + strconv.Itoa(i), host: Host{Addr: "127.0.0.1"}}
	if i < len(c.cfg.Hosts) {
		m.host = c.cfg.Hosts[i]
		m.client = "http://" + net.JoinHostPort(m.host.Addr, "2379")
		m.peer = "http://" + net.JoinHostPort(m.host.Addr, "2380")
	} else {
		free, err := loopback.Addresses(2)
		if err != nil {
			return 0, err
		}
		m.client, m.peer = "http://"+free[0], "http://"+free[1]
	}
	c.members = append(c.members, m)
	return i, nil
}

// displace takes the last member's place back: the cluster did not take it.
func (c *Cluster) displace() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members = c.members[:len(c.members)-1]
}

func (c *Cluster) member(i int) *member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[i]
}

// Size is how many members there have ever been, which is the number that the next one gets.
func (c *Cluster) Size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.members)
}

// Name is the name that member i was given.
func (c *Cluster) Name(i int) string { return c.member(i).name }

// Endpoint is the address of member i for clients.
func (c *Cluster) Endpoint(i int) string { return c.member(i).client }

// PeerURL is the address of member i for the others.
func (c *Cluster) PeerURL(i int) string { return c.member(i).peer }

// DataDir is the data directory of member i.
func (c *Cluster) DataDir(i int) string { return filepath.Join(c.cfg.Dir, c.member(i).name) }

// LogPath is the file that gathers the log of all runs of member i.
func (c *Cluster) LogPath(i int) string { return c.DataDir(i) + ".log" }

// PID is the process id of member i, and 0 when it does not run.
func (c *Cluster) PID(i int) int {
	if ch := c.member(i).running(); ch != nil {
		return ch.pid
	}
	return 0
}

// Endpoints are the addresses of the members that run.
func (c *Cluster) Endpoints() []string {
	var all []string
	for _, i := range c.Running() {
		all = append(all, c.Endpoint(i))
	}
	return all
}

// Running are the members that have been started and not stopped. A paused one counts.
func (c *Cluster) Running() []int {
	var all []int
	for i := range c.Size() {
		if c.PID(i) != 0 {
			all = append(all, i)
		}
	}
	return all
}

func (m *member) running() *child {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.child
}

func (m *member) set(ch *child) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.child = ch
}

// Start starts member i and does not wait for it: it can serve only when enough of the others run.
func (c *Cluster) Start(i int) error {
	m := c.member(i)
	if m.running() != nil {
		return fmt.Errorf("start %s: it runs already", m.name)
	}
	var args []string
	if c.cfg.Kind == KindCoterie {
		args = append(args, "server")
	}
	args = append(args,
		"--name", m.name,
		"--data-dir", c.DataDir(i),
		"--listen-client-urls", m.client, "--advertise-client-urls", m.client,
		"--listen-peer-urls", m.peer, "--initial-advertise-peer-urls", m.peer,
		"--log-outputs", "stderr",
	)
	if c.cfg.Kind == KindCoterie {
		args = append(args, TransportFlags()...)
	}
	args = slices.Concat(args, m.bootstrap, c.cfg.Flags, m.flags)
	command := slices.Concat(m.host.Command, []string{c.cfg.Binary}, args)
	ch, err := startChild(c.LogPath(i), command[0], command[1:]...)
	if err != nil {
		return fmt.Errorf("start %s: %w", m.name, err)
	}
	m.set(ch)
	return nil
}

// SetFlags gives member i flags of its own, from its next start on.
func (c *Cluster) SetFlags(i int, flags ...string) { c.member(i).flags = flags }

// MovePeer gives member i a new address for the others, from its next start on. The cluster must be told by itself, with
// a member update.
func (c *Cluster) MovePeer(i int) (string, error) {
	free, err := loopback.Addresses(1)
	if err != nil {
		return "", err
	}
	m := c.member(i)
	m.peer = "http://" + free[0]
	return m.peer, nil
}

// WaitReady returns when the given members, or all that run, have said that they serve clients since their last start.
func (c *Cluster) WaitReady(ctx context.Context, members ...int) error {
	if len(members) == 0 {
		members = c.Running()
	}
	for _, i := range members {
		ch := c.member(i).running()
		if ch == nil {
			return fmt.Errorf("wait for %s: it does not run", c.Name(i))
		}
		if err := ch.awaitLog(ctx, readyLine); err != nil {
			return fmt.Errorf("wait for %s: %w", c.Name(i), err)
		}
	}
	return nil
}

// Kill ends member i without a chance to finish.
func (c *Cluster) Kill(i int) error {
	m := c.member(i)
	ch := m.running()
	if ch == nil {
		return fmt.Errorf("kill %s: it does not run", m.name)
	}
	m.set(nil)
	select {
	case <-ch.exited:
		text, _ := ch.output()
		return fmt.Errorf("%s had ended before it was killed: %w; its log:\n%s", m.name, ch.err, tail(text))
	default:
	}
	ch.stop(syscall.SIGKILL)
	return nil
}

// Stop asks member i to end and reports it when that ends badly or not in time.
func (c *Cluster) Stop(i int) error {
	m := c.member(i)
	ch := m.running()
	if ch == nil {
		return nil
	}
	m.set(nil)
	if err := ch.terminate(20 * time.Second); err != nil {
		return fmt.Errorf("stop %s: %w", m.name, err)
	}
	return nil
}

// AwaitExit returns when member i has ended by itself, as one that has been removed does.
func (c *Cluster) AwaitExit(ctx context.Context, i int) error {
	m := c.member(i)
	ch := m.running()
	if ch == nil {
		return nil
	}
	select {
	case <-ch.exited:
		m.set(nil)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s has not ended: %w", m.name, ctx.Err())
	}
}

// Failed reports a member that has ended without being asked to.
func (c *Cluster) Failed() error {
	for i := range c.Size() {
		ch := c.member(i).running()
		if ch == nil {
			continue
		}
		select {
		case <-ch.exited:
			text, _ := ch.output()
			return fmt.Errorf("%s has ended by itself: %w; its log:\n%s", c.Name(i), ch.err, tail(text))
		default:
		}
	}
	return nil
}

// Pause stops member i from running, with its connections open, until Resume.
func (c *Cluster) Pause(i int) error { return c.signal(i, syscall.SIGSTOP) }

// Resume lets a paused member go on as if nothing had happened.
func (c *Cluster) Resume(i int) error { return c.signal(i, syscall.SIGCONT) }

func (c *Cluster) signal(i int, sig syscall.Signal) error {
	pid := c.PID(i)
	if pid == 0 {
		return fmt.Errorf("%s does not run", c.Name(i))
	}
	return syscall.Kill(pid, sig)
}

// Close ends all members. It may be called more than once.
func (c *Cluster) Close() error {
	var (
		all  sync.WaitGroup
		errs = make([]error, c.Size())
	)
	for i := range errs {
		all.Go(func() {
			if c.PID(i) != 0 {
				_ = c.Resume(i) // a paused one cannot end
			}
			errs[i] = c.Stop(i)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// RSS is the memory that member i holds, in bytes.
func (c *Cluster) RSS(i int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID(i)))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 3 && string(fields[0]) == "VmRSS:" {
			kib, err := strconv.ParseInt(string(fields[1]), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("the system does not say how much memory a process holds")
}

// Client connects to the given members, or to all that run. It does not wait for an answer.
func (c *Cluster) Client(members ...int) (*clientv3.Client, error) {
	endpoints := c.Endpoints()
	if len(members) > 0 {
		endpoints = nil
		for _, i := range members {
			endpoints = append(endpoints, c.Endpoint(i))
		}
	}
	return clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		DialOptions: soonAgain(),
		Logger:      zap.NewNop(),
	})
}

// Leader returns the member that a majority follows. It asks until there is one.
func (c *Cluster) Leader(ctx context.Context) (int, error) {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		if i, ok := c.leader(ctx); ok {
			return i, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("no leader: %w", ctx.Err())
		case <-again.C:
		}
	}
}

// leader asks every member once. The answer of the newest term counts, and only from those that follow it.
func (c *Cluster) leader(ctx context.Context) (int, bool) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	answers := make([]*clientv3.StatusResponse, c.Size())
	var all sync.WaitGroup
	for _, i := range c.Running() {
		all.Go(func() {
			cli, err := c.Client(i)
			if err != nil {
				return
			}
			defer cli.Close()
			if answer, err := cli.Status(ctx, c.Endpoint(i)); err == nil {
				answers[i] = answer
			}
		})
	}
	all.Wait()
	var term, id uint64
	for _, a := range answers {
		if a != nil && a.Leader != 0 && a.RaftTerm > term {
			term, id = a.RaftTerm, a.Leader
		}
	}
	found, followers := -1, 0
	for i, a := range answers {
		if a == nil || a.RaftTerm != term || a.Leader != id {
			continue
		}
		followers++
		if a.Header.MemberId == id {
			found = i
		}
	}
	return found, found >= 0 && (followers > 1 || c.Size() == 1)
}

// leaderClient connects to the leader: a learner does not answer what concerns members, and etcd waits for as long as the
// client does when it passes such a request on to a leader that no longer is.
func (c *Cluster) leaderClient(ctx context.Context) (*clientv3.Client, error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return nil, err
	}
	return c.Client(leader)
}

// ID is the member id of member i, as the cluster lists it.
func (c *Cluster) ID(ctx context.Context, i int) (uint64, error) {
	cli, err := c.leaderClient(ctx)
	if err != nil {
		return 0, err
	}
	defer cli.Close()
	list, err := cli.MemberList(ctx)
	if err != nil {
		return 0, fmt.Errorf("id of %s: %w", c.Name(i), err)
	}
	for _, m := range list.Members {
		if slices.Contains(m.PeerURLs, c.PeerURL(i)) {
			return m.ID, nil
		}
	}
	return 0, fmt.Errorf("id of %s: the cluster does not know %s", c.Name(i), c.PeerURL(i))
}

// AddMember tells the cluster of one more member and starts it. It returns its number without waiting for it.
func (c *Cluster) AddMember(ctx context.Context, learner bool) (int, error) {
	cli, err := c.leaderClient(ctx)
	if err != nil {
		return 0, err
	}
	defer cli.Close()
	i, err := c.place()
	if err != nil {
		return 0, err
	}
	list, err := c.announce(ctx, cli, c.PeerURL(i), learner)
	if err != nil {
		c.displace()
		return 0, fmt.Errorf("add member %d: %w", i, err)
	}
	c.member(i).bootstrap = c.bootstrap(list, "existing")
	return i, c.Start(i)
}

// announce adds a member and returns the members there are then, as the flag for founding lists them. A cluster refuses
// while it does not see all its members in health; that passes.
func (c *Cluster) announce(ctx context.Context, cli *clientv3.Client, url string, learner bool) ([]string, error) {
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	add := cli.MemberAdd
	if learner {
		add = cli.MemberAddAsLearner
	}
	for {
		resp, err := add(ctx, []string{url})
		if err == nil {
			var all []string
			for _, m := range resp.Members {
				for _, u := range m.PeerURLs {
					all = append(all, c.nameOf(u)+"="+u)
				}
			}
			return all, nil
		}
		if !strings.Contains(err.Error(), "unhealthy cluster") {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-again.C:
		}
	}
}

func (c *Cluster) nameOf(peer string) string {
	for i := range c.Size() {
		if c.PeerURL(i) == peer {
			return c.Name(i)
		}
	}
	return "unknown"
}
