package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testCluster = 0xc1

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// node is a member of a test: a transport, the server that it is reached by,
// and a record of what its handler was told.
type node struct {
	*Transport
	t         testing.TB
	id        uint64
	url       string
	server    *http.Server
	served    chan struct{}
	snapshots *fakeSnapshots

	mu          sync.Mutex
	changed     chan struct{} // closed and renewed when anything below changes
	received    []*raftpb.Message
	unreachable map[uint64]int
	refused     map[uint64]int
	sent        map[uint64][]bool
	removed     int
	// block, if set, is called by Receive before it notes the message.
	block func(m *raftpb.Message)
}

func (n *node) note(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *node) Receive(m *raftpb.Message) {
	n.mu.Lock()
	block := n.block
	n.mu.Unlock()
	if block != nil {
		block(m)
	}
	n.note(func() { n.received = append(n.received, m) })
}
func (n *node) Unreachable(id uint64) { n.note(func() { n.unreachable[id]++ }) }
func (n *node) Refused(id uint64)     { n.note(func() { n.refused[id]++ }) }
func (n *node) Removed()              { n.note(func() { n.removed++ }) }
func (n *node) SnapshotSent(id uint64, ok bool) {
	n.note(func() { n.sent[id] = append(n.sent[id], ok) })
}

// await waits until cond holds; it is called with the record locked.
func (n *node) await(what string, cond func() bool) {
	n.t.Helper()
	timeout := time.After(patience)
	for {
		n.mu.Lock()
		ok, changed := cond(), n.changed
		n.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			n.t.Fatalf("member %x waited in vain for: %s", n.id, what)
		}
	}
}

// poll waits until cond holds, which nothing announces.
func poll(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(patience)
	for !cond() {
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// forget empties the record.
func (n *node) forget() {
	n.note(func() {
		n.received = nil
		clear(n.unreachable)
		clear(n.refused)
		clear(n.sent)
	})
}

// messages returns the messages received of a type.
func (n *node) messages(typ raftpb.MessageType) []*raftpb.Message {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*raftpb.Message
	for _, m := range n.received {
		if m.GetType() == typ {
			out = append(out, m)
		}
	}
	return out
}

type nodeOption func(*Config, *nodeSetup)

type nodeSetup struct {
	listener net.Listener
	tls      *tls.Config // of the listener
	url      string
}

func on(l net.Listener) nodeOption { return func(_ *Config, s *nodeSetup) { s.listener = l } }

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start starts a member. It knows no others.
func start(t testing.TB, id uint64, options ...nodeOption) *node {
	t.Helper()
	n := &node{
		t: t, id: id, changed: make(chan struct{}), served: make(chan struct{}),
		unreachable: make(map[uint64]int), refused: make(map[uint64]int), sent: make(map[uint64][]bool),
		snapshots: &fakeSnapshots{into: t.TempDir()},
	}
	var setup nodeSetup
	cfg := Config{
		ClusterID: testCluster, MemberID: id,
		Handler: n, Snapshots: n.snapshots,
		Version: fmt.Sprint("v", id), Logger: zap.NewNop(),
	}
	for _, o := range options {
		o(&cfg, &setup)
	}
	if setup.listener == nil {
		setup.listener = listen(t)
	}
	if setup.url == "" {
		scheme := "http://"
		if setup.tls != nil {
			scheme = "https://"
		}
		setup.url = scheme + setup.listener.Addr().String()
	}
	if cfg.PeerURLs == nil {
		cfg.PeerURLs = []string{setup.url}
	}
	n.url = setup.url
	var err error
	if n.Transport, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	n.server = &http.Server{Handler: n.Handler(), TLSConfig: setup.tls.Clone(), ErrorLog: zap.NewStdLog(zap.NewNop())}
	go func() {
		defer close(n.served)
		if setup.tls != nil {
			_ = n.server.ServeTLS(setup.listener, "", "")
		} else {
			_ = n.server.Serve(setup.listener)
		}
	}()
	t.Cleanup(n.stop)
	return n
}

// stop ends the member as its process's end would.
func (n *node) stop() {
	n.server.Close()
	<-n.served
	n.Close()
	n.server.Close()
}

func (n *node) member() Member { return Member{n.id, []string{n.url}} }

// meet makes the nodes know one another and waits until all are connected.
func meet(t testing.TB, nodes ...*node) {
	t.Helper()
	introduce(nodes...)
	connected(t, nodes...)
}

func introduce(nodes ...*node) {
	var members []Member
	for _, n := range nodes {
		members = append(members, n.member())
	}
	for _, n := range nodes {
		n.Update(members, nil)
	}
}

func connected(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		for _, o := range nodes {
			if n != o {
				poll(t, fmt.Sprintf("member %x to be connected with %x", n.id, o.id), func() bool { return !n.ActiveSince(o.id).IsZero() })
			}
		}
	}
}

// message makes a message whose index tells it from others.
func message(typ raftpb.MessageType, from, to, index uint64) *raftpb.Message {
	return &raftpb.Message{Type: typ.Enum(), From: &from, To: &to, Index: &index}
}

// bulk makes a MsgApp with an entry of the given size.
func bulk(from, to, index uint64, size int) *raftpb.Message {
	m := message(raftpb.MsgApp, from, to, index)
	m.Entries = []*raftpb.Entry{{Index: proto.Uint64(index + 1), Data: make([]byte, size)}}
	return m
}

func indexes(ms []*raftpb.Message) []uint64 {
	var out []uint64
	for _, m := range ms {
		out = append(out, m.GetIndex())
	}
	return out
}

func upTo(n uint64) []uint64 {
	var out []uint64
	for i := range n {
		out = append(out, i)
	}
	return out
}

// fakeSnapshots gives what it was told to and keeps what it gets.
type fakeSnapshots struct {
	mu       sync.Mutex
	into     string // parent of the directories for what is received
	give     *Snapshot
	taken    int
	released int
	begun    []*raftpb.SnapshotMetadata
	received []*raftpb.Message
	dirs     []string
	aborted  []string
	// during, if set, is called by Received.
	during func(ctx context.Context) error
}

var errNothingToTake = errors.New("nothing to take")

func (f *fakeSnapshots) Take(context.Context) (*Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.give == nil {
		return nil, errNothingToTake
	}
	f.taken++
	s := *f.give
	s.Release = func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.released++
	}
	return &s, nil
}

func (f *fakeSnapshots) Begin(meta *raftpb.SnapshotMetadata) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun = append(f.begun, meta)
	return f.into, nil
}

func (f *fakeSnapshots) Received(ctx context.Context, m *raftpb.Message, dir string) error {
	f.mu.Lock()
	during := f.during
	f.mu.Unlock()
	if during != nil {
		if err := during(ctx); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.received = append(f.received, m)
	f.dirs = append(f.dirs, dir)
	return nil
}

func (f *fakeSnapshots) Aborted(dir string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.aborted = append(f.aborted, dir)
}

func (f *fakeSnapshots) abortedDirs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.aborted)
}
