package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

// cluster is members in one process and the network between them.
type cluster struct {
	t     *testing.T
	limit func(*Config)
	disk  func(id uint64) vfs.FS // nil: in memory

	mu      sync.Mutex
	members map[uint64]*clusterMember // Guarded by mu.
	cut     map[[2]uint64]bool        // Guarded by mu. Directed links that lose everything.
	lose    func(*pb.Message) bool    // Guarded by mu. Messages that are lost, if set.
	moved   int                       // Guarded by mu. Snapshots that were sent.
}

// clusterMember is a member with its disk. It is its own Peers: what it sends
// goes through one goroutine for each receiver, in order.
type clusterMember struct {
	c       *cluster
	id      uint64
	fs      vfs.FS
	log     *wal.Log
	machine *journal
	node    *Node
	queues  map[uint64]chan *pb.Message
	done    chan struct{}
	group   sync.WaitGroup
}

func newCluster(t *testing.T, limit func(*Config), ids ...uint64) *cluster {
	c := &cluster{t: t, limit: limit, members: map[uint64]*clusterMember{}, cut: map[[2]uint64]bool{}}
	for _, id := range ids {
		c.found(id, ids)
	}
	t.Cleanup(func() {
		for _, m := range c.all() {
			m.stop()
		}
	})
	return c
}

// found makes the data of a first member and starts it.
func (c *cluster) found(id uint64, voters []uint64) *clusterMember {
	j := newJournal()
	for _, v := range voters {
		j.members = append(j.members, machine.Member{ID: v})
	}
	j.keptOf = j.members
	fs := vfs.FS(vfs.NewMem())
	if c.disk != nil {
		fs = c.disk(id)
	}
	return c.start(id, fs, j, 1)
}

// join makes the data of a member that joins and starts it.
func (c *cluster) join(id uint64) *clusterMember {
	j := newJournal()
	j.applied, j.durable = 0, 0
	return c.start(id, vfs.NewMem(), j, 0)
}

func (c *cluster) start(id uint64, fs vfs.FS, j *journal, first uint64) *clusterMember {
	c.t.Helper()
	o := wal.Options{Dir: "wal", FS: fs, ClusterID: 1, MemberID: id, SegmentBytes: 4 << 10, Logger: zap.NewNop()}
	found, err := wal.Exists(fs, "wal")
	must(c.t, err)
	var log *wal.Log
	if found {
		log, err = wal.Open(o)
	} else {
		must(c.t, fs.MkdirAll("wal", 0o755))
		log, err = wal.Create(o, first, first)
	}
	must(c.t, err)
	m := &clusterMember{c: c, id: id, fs: fs, log: log, machine: j, queues: map[uint64]chan *pb.Message{}, done: make(chan struct{})}
	cfg := Config{
		ID: id, Log: log, Machine: j, Peers: m, Voters: j.voters(), Learners: j.learners(),
		Tick: 5 * time.Millisecond, ElectionTicks: 10, PreVote: true,
		RequestTimeout: 20 * time.Second, FlushEntries: 20, KeepEntries: 5, KeepBytes: 16 << 10,
		Logger: zap.NewNop(),
	}
	if c.limit != nil {
		c.limit(&cfg)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m.node, err = Start(cfg)
	must(c.t, err)
	c.members[id] = m
	return m
}

func (m *clusterMember) stop() {
	m.node.Close()
	close(m.done)
	m.group.Wait()
	must(m.c.t, m.log.Close())
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	delete(m.c.members, m.id)
}

// restart starts the member again on what a crash leaves.
func (m *clusterMember) restart() *clusterMember {
	m.c.t.Helper()
	m.stop()
	return m.c.start(m.id, m.fs, m.machine.crash(), 1)
}

func (c *cluster) all() (list []*clusterMember) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *clusterMember) int { return int(a.id) - int(b.id) })
	return list
}

// link returns the member at the other end, or nil if the message is lost.
func (c *cluster) link(m *pb.Message) *clusterMember {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut[[2]uint64{m.GetFrom(), m.GetTo()}] || c.lose != nil && c.lose(m) {
		return nil
	}
	return c.members[m.GetTo()]
}

// isolate cuts a member off from all others, or connects it again.
func (c *cluster) isolate(id uint64, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.members {
		c.cut[[2]uint64{id, other}], c.cut[[2]uint64{other, id}] = cut, cut
	}
}

// Send implements Peers. It is called by two goroutines.
func (m *clusterMember) Send(ms []*pb.Message) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	for _, msg := range ms {
		q := m.queues[msg.GetTo()]
		if q == nil {
			q = make(chan *pb.Message, 4096)
			m.queues[msg.GetTo()] = q
			m.group.Go(func() { m.deliver(q) }) // ended and waited for by stop
		}
		select {
		case q <- msg:
		default: // lost
		}
	}
}

func (m *clusterMember) deliver(q chan *pb.Message) {
	for {
		var msg *pb.Message
		select {
		case <-m.done:
			return
		case msg = <-q:
		}
		to := m.c.link(msg)
		switch {
		case msg.GetType() == pb.MsgSnap:
			m.node.SnapshotSent(msg.GetTo(), to != nil && m.copyTo(to, msg))
		case to == nil:
			m.node.Unreachable(msg.GetTo())
		default:
			to.node.Receive(msg)
		}
	}
}

// copyTo gives a member the state of this one as it is now.
func (m *clusterMember) copyTo(to *clusterMember, msg *pb.Message) bool {
	state := m.machine.copy()
	meta := &pb.SnapshotMetadata{Index: &state.applied, Term: &state.term,
		ConfState: &pb.ConfState{Voters: state.voters(), Learners: state.learners()}}
	to.machine.offer(state)
	taken, err := to.node.ReceiveSnapshot(context.Background(), &pb.Message{
		Type: msg.Type, From: msg.From, To: msg.To, Term: msg.Term, Snapshot: &pb.Snapshot{Metadata: meta},
	})
	if taken {
		m.c.mu.Lock()
		defer m.c.mu.Unlock()
		m.c.moved++
	}
	return err == nil
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// leader waits until a member leads that a majority follows.
func (c *cluster) leader() (leader *clusterMember) {
	c.t.Helper()
	eventually(c.t, "a leader", func() bool {
		all := c.all()
		for _, m := range all {
			st := m.node.Status()
			followed := 0
			for _, o := range all {
				if other := o.node.Status(); other.Leader == m.id && other.Term == st.Term {
					followed++
				}
			}
			if st.IsLeader && followed > len(all)/2 {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}

func (c *cluster) follower() *clusterMember {
	c.t.Helper()
	l := c.leader()
	for _, m := range c.all() {
		if m != l {
			return m
		}
	}
	c.t.Fatal("no follower")
	return nil
}

// wantEqual waits until all machines have the same commands.
func (c *cluster) wantEqual() []string {
	c.t.Helper()
	var first []string
	eventually(c.t, "equal machines", func() bool {
		all := c.all()
		first = all[0].machine.list()
		return !slices.ContainsFunc(all, func(m *clusterMember) bool { return !slices.Equal(first, m.machine.list()) })
	})
	return first
}

func change(n *Node, ch machine.Change) error {
	answer := make(chan machine.Result, 1)
	n.ProposeChange(&ch, func(r machine.Result) { answer <- r })
	return (<-answer).Err
}

func TestClusterReplicates(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	c.leader()
	for i := range 30 {
		m := c.all()[i%3]
		if r := propose(m.node, fmt.Sprintf("%d@%d", i, m.id)); r.Err != nil {
			t.Fatalf("propose %d through member %d: %v", i, m.id, r.Err)
		}
		if err := readIndex(m.node); err != nil {
			t.Fatalf("read index through member %d: %v", m.id, err)
		}
		if got := len(m.machine.list()); got != i+1 {
			t.Fatalf("after a linearizable read member %d has %d commands, want %d", m.id, got, i+1)
		}
	}
	c.wantEqual()
}

// A leader whose disk has stopped to answer still heartbeats. It passes leadership
// on, and is a member like others when the disk answers again.
func TestLeaderWithAHungDiskPassesLeadershipOn(t *testing.T) {
	var hung atomic.Uint64 // the member whose disk it is
	answers := make(chan struct{})
	c := newCluster(t, nil)
	answer := sync.OnceFunc(func() { hung.Store(0); close(answers) })
	t.Cleanup(answer) // before the members are stopped
	c.disk = func(id uint64) vfs.FS {
		return errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSyncData && hung.Load() == id {
				<-answers
			}
			return nil
		}))
	}
	for _, id := range []uint64{1, 2, 3} {
		c.found(id, []uint64{1, 2, 3})
	}
	before := c.leader()
	if r := propose(before.node, "before"); r.Err != nil {
		t.Fatal(r.Err)
	}
	hung.Store(before.id)
	late := make(chan machine.Result, 1)
	go func() { late <- propose(before.node, "late") }() // answered when the disk answers
	eventually(t, "another leader", func() bool { return c.leader() != before })
	for i := range 5 {
		if r := propose(c.leader().node, fmt.Sprint("meanwhile ", i)); r.Err != nil {
			t.Fatalf("a proposal to the next leader: %v", r.Err)
		}
	}
	answer()
	if r := <-late; r.Err != nil {
		t.Fatalf("the proposal that waited for the disk: %v", r.Err)
	}
	if got := c.wantEqual(); len(got) != 7 {
		t.Fatalf("7 commands were proposed once, the machines have %v", got)
	}
}

// Every proposal is answered with success, and applied once, while leaders are
// deposed, isolated and restarted: the members propose again what was lost.
func TestChangesOfLeadersLoseAndRepeatNothing(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.KeepEntries, cfg.KeepBytes = 1<<20, 1<<30 }, 1, 2, 3, 4, 5)
	c.leader()
	const proposers, each = 8, 60
	type outcome struct {
		command string
		err     error
	}
	outcomes := make(chan outcome, proposers*each)
	var group sync.WaitGroup
	for p := range proposers {
		group.Go(func() {
			for i := range each {
				// Members 1 and 2 are not restarted, so that their callers live on.
				c.mu.Lock()
				m := c.members[uint64(1+p%2)]
				c.mu.Unlock()
				command := fmt.Sprintf("%d.%d", p, i)
				outcomes <- outcome{command, propose(m.node, command).Err}
			}
		})
	}
	finished := make(chan struct{})
	go func() { group.Wait(); close(finished) }() // ends with the proposers
	for step := 0; ; step++ {
		select {
		case <-finished:
		default:
			l := c.leader()
			switch {
			case step%3 == 0:
				c.isolate(l.id, true)
				eventually(t, "another leader", func() bool { return c.leader() != l })
				c.isolate(l.id, false)
			case step%3 == 1 && l.id > 2:
				l.restart()
			default:
				l.node.Retire(t.Context())
			}
			continue
		}
		break
	}
	close(outcomes)
	c.leader()
	applied := map[string]int{}
	for _, command := range c.wantEqual() {
		applied[command]++
	}
	for o := range outcomes {
		if o.err != nil {
			t.Errorf("%s: %v", o.command, o.err)
		}
		if applied[o.command] != 1 {
			t.Errorf("%s: applied %d times", o.command, applied[o.command])
		}
	}
}

func TestBatchLostOnTheWayToTheLeaderIsProposedAgain(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	l, f := c.leader(), c.follower()
	answer := make(chan machine.Result, 1)
	lost := 0
	c.mu.Lock()
	c.lose = func(m *pb.Message) bool {
		if m.GetType() == pb.MsgProp {
			lost++
		}
		return m.GetType() == pb.MsgProp
	}
	c.mu.Unlock()
	f.node.Propose([]byte("x"), func(r machine.Result) { answer <- r })
	eventually(t, "a lost message", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return lost > 0
	})
	c.mu.Lock()
	c.lose = nil
	c.mu.Unlock()
	l.node.Retire(t.Context())
	if r := <-answer; r.Err != nil {
		t.Fatal(r.Err)
	}
	if got := c.wantEqual(); !slices.Equal(got, []string{"x"}) {
		t.Fatalf("applied %q", got)
	}
}

// A connection that breaks for a while loses no batch, though the leader stays.
func TestBatchLostOnABrokenConnectionIsSentAgain(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	l, f := c.leader(), c.follower()
	const all = 300
	luck := rand.New(rand.NewPCG(1, 2)) // a pattern could meet the same batch each time that all are sent again
	c.mu.Lock()
	c.lose = func(m *pb.Message) bool { return m.GetType() == pb.MsgProp && luck.IntN(5) < 2 }
	c.mu.Unlock()
	term := l.node.Status().Term
	answers := make(chan machine.Result, all)
	for i := range all {
		f.node.Propose([]byte(fmt.Sprint(i)), func(r machine.Result) { answers <- r })
		if i%10 == 0 {
			must(t, readIndex(f.node)) // so that not all are one batch
		}
	}
	for range all {
		if r := <-answers; r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	got := c.wantEqual()
	slices.Sort(got)
	if n := len(got); n != all || len(slices.Compact(got)) != all {
		t.Errorf("%d commands applied, want each of %d once", n, all)
	}
	if now := l.node.Status(); now.Term != term {
		t.Errorf("the leader has changed: %+v", now)
	}
}

// Batches whose callers have given up do not stand in the way of later ones, for
// the leader takes them in order.
func TestBatchesThatWereGivenUpAreNotInTheWay(t *testing.T) {
	c := newCluster(t, func(cfg *Config) {
		cfg.RequestTimeout = 300 * time.Millisecond
		cfg.ElectionTicks = 12_000 // a minute: the leader must stay
	}, 1, 2, 3)
	must(t, c.all()[0].node.call(t.Context(), func(c *core) { must(t, c.raft.Campaign()) }))
	l, f := c.leader(), c.follower()
	term := l.node.Status().Term
	lose := func(all bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.lose = func(m *pb.Message) bool { return all && m.GetType() == pb.MsgProp }
	}
	lose(true)
	for range 3 {
		if r := propose(f.node, "given up"); !errors.Is(r.Err, ErrTimeout) {
			t.Fatalf("a proposal that cannot reach the leader: %v", r.Err)
		}
	}
	lose(false)
	eventually(t, "a proposal after the connection is back", func() bool { return propose(f.node, "late").Err == nil })
	if now := l.node.Status(); now.Term != term {
		t.Fatalf("the leader has changed: %+v", now)
	}
	if got := c.wantEqual(); len(got) < 4 || !slices.Equal(got[:3], []string{"given up", "given up", "given up"}) {
		t.Errorf("applied %q", got)
	}
}

func TestLeaderTakesNoBatchOfAnotherTerm(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	l, f := c.leader(), c.follower()
	batch := func(term, number uint64, command string) *pb.Message {
		return &pb.Message{Type: pb.MsgProp.Enum(), From: &f.id, To: &l.id, Term: &term, Index: &number,
			Entries: []*pb.Entry{{Data: appendCommand(appendBatchHeader(nil, 77, 1), []byte(command))}}}
	}
	term := l.node.Status().Term
	l.node.Receive(batch(term-1, 1, "late"))
	l.node.Receive(batch(term, 2, "after one that has not come"))
	l.node.Receive(batch(term, 1, "first"))
	l.node.Receive(batch(term, 1, "first")) // the network may repeat it
	if r := propose(l.node, "x"); r.Err != nil {
		t.Fatal(r.Err)
	}
	if got := c.wantEqual(); !slices.Equal(got, []string{"first", "x"}) {
		t.Fatalf("applied %q", got)
	}
}

func TestIsolatedLeaderAnswersNoRead(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.RequestTimeout = time.Second }, 1, 2, 3)
	l := c.leader()
	c.isolate(l.id, true)
	eventually(t, "another leader", func() bool { return c.leader() != l })
	if r := propose(c.leader().node, "new"); r.Err != nil {
		t.Fatal(r.Err)
	}
	if err := readIndex(l.node); !errors.Is(err, ErrTimeout) {
		t.Fatalf("a leader without its followers answered a read: %v", err)
	}
	c.isolate(l.id, false)
	eventually(t, "the old leader to follow", func() bool { return readIndex(l.node) == nil })
	if got := l.machine.list(); !slices.Equal(got, []string{"new"}) {
		t.Fatalf("after a linearizable read the old leader has %q", got)
	}
}

func TestLaggingMemberIsSentASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil, 1, 2, 3)
		f := c.follower()
		c.cutBehind(f)
		c.isolate(f.id, false)
		if got := len(c.wantEqual()); got != 200 {
			t.Fatalf("%d commands, want 200", got)
		}
		c.mu.Lock()
		moved := c.moved
		c.mu.Unlock()
		if moved == 0 {
			t.Fatal("no snapshot was sent")
		}
		// It works as before: it proposes, and a crash finds it where it was.
		if r := propose(f.node, "after"); r.Err != nil {
			t.Fatal(r.Err)
		}
		f.restart()
		// The member that was asked may have been the first to apply it, and forgets that it had.
		eventually(t, "the last command on all members", func() bool {
			got := c.wantEqual()
			return len(got) == 201 && got[200] == "after"
		})
	})
}

// cutBehind isolates a member until no other's log has the 200 commands that it lacks.
func (c *cluster) cutBehind(f *clusterMember) {
	c.t.Helper()
	c.isolate(f.id, true)
	filler := strings.Repeat("x", 1000)
	for i := range 200 {
		must(c.t, propose(c.leader().node, fmt.Sprint(i, filler)).Err)
	}
	eventually(c.t, "the logs to be cut", func() bool {
		last, err := f.log.LastIndex()
		must(c.t, err)
		for _, m := range c.all() {
			if first, err := m.log.FirstIndex(); m != f && (err != nil || first <= last+1) {
				return false
			}
		}
		return true
	})
}

// A member has got the state in another way than from its leader, as from the one before, whose snapshot took long; it refuses the one that its leader
// sends, and its leader has not heard how far it is. Nothing is committed without it: the leader has to go on behind what it has.
func TestWhoRefusesASnapshotMayHaveWhatItBrings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, func(cfg *Config) { cfg.Tick = 20 * time.Millisecond }, 1, 2, 3)
		leader, lagging := c.leader(), c.follower()
		other := c.all()[slices.IndexFunc(c.all(), func(m *clusterMember) bool { return m != leader && m != lagging })]
		c.cutBehind(lagging)
		var (
			silent  = true
			refused *pb.Message
		)
		c.mu.Lock()
		c.lose = func(m *pb.Message) bool {
			if m.GetType() == pb.MsgSnap {
				refused = m
				return true
			}
			return silent && m.GetType() == pb.MsgAppResp && m.GetFrom() == lagging.id && !m.GetReject()
		}
		c.mu.Unlock()
		c.isolate(lagging.id, false)
		var m *pb.Message
		eventually(t, "a snapshot", func() bool { c.mu.Lock(); defer c.mu.Unlock(); m = refused; return m != nil })
		if !leader.copyTo(lagging, m) {
			t.Fatal("the member does not take the state")
		}
		eventually(t, "the state", func() bool { return lagging.machine.Applied() == leader.machine.Applied() })
		synctest.Wait() // it has said so
		c.mu.Lock()
		silent = false
		c.mu.Unlock()
		c.isolate(other.id, true)
		must(t, propose(leader.node, "after").Err)
	})
}

func TestMembershipChanges(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	if r := propose(c.leader().node, "before"); r.Err != nil {
		t.Fatal(r.Err)
	}
	joiner := c.join(4)
	if err := change(c.follower().node, machine.Change{Kind: machine.AddMember, Member: machine.Member{ID: 4, IsLearner: true}}); err != nil {
		t.Fatalf("add a learner: %v", err)
	}
	c.wantEqual()
	progress := func(id uint64) (p Progress) {
		all, err := c.leader().node.Progress(t.Context())
		if err != nil {
			return p
		}
		return all[slices.IndexFunc(all, func(p Progress) bool { return p.ID == id })]
	}
	eventually(t, "the learner's progress", func() bool { return progress(4).Learner && progress(4).Match > 1 })
	if err := change(joiner.node, machine.Change{Kind: machine.PromoteMember, Member: machine.Member{ID: 4}}); err != nil {
		t.Fatalf("promote: %v", err)
	}
	eventually(t, "the voter's progress", func() bool { return progress(4).ID == 4 && !progress(4).Learner })
	// A rejected change reaches nobody, and the next one goes on.
	if err := change(c.leader().node, machine.Change{Kind: machine.RemoveMember, Member: machine.Member{ID: 99}}); !errors.Is(err, machine.ErrMemberNotFound) {
		t.Fatalf("remove an unknown member: %v", err)
	}
	l := c.leader()
	if err := change(l.node, machine.Change{Kind: machine.RemoveMember, Member: machine.Member{ID: l.id}}); err != nil {
		t.Fatalf("remove the leader: %v", err)
	}
	l.stop()
	if r := propose(c.leader().node, "after"); r.Err != nil {
		t.Fatal(r.Err)
	}
	for _, m := range c.all() {
		if v := m.machine.voters(); slices.Contains(v, l.id) || len(v) != 3 {
			eventually(t, "the same voters", func() bool { v = m.machine.voters(); return !slices.Contains(v, l.id) && len(v) == 3 })
		}
	}
}

// A leader that is to be removed passes leadership on, and its successor removes
// it, whoever has asked for that.
func TestLeaderDoesNotRemoveItself(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	removers := map[uint64][]uint64{} // by whom they remove
	c.mu.Lock()
	c.lose = func(m *pb.Message) bool {
		for _, e := range m.Entries {
			if cc, err := membershipChange(e); m.GetType() == pb.MsgApp && err == nil && cc.GetType() == pb.ConfChangeRemoveNode {
				removers[cc.GetNodeId()] = append(removers[cc.GetNodeId()], m.GetFrom())
			}
		}
		return false
	}
	c.mu.Unlock()
	for range 2 {
		l := c.leader()
		if err := change(c.follower().node, machine.Change{Kind: machine.RemoveMember, Member: machine.Member{ID: l.id}}); err != nil {
			t.Fatalf("remove the leader: %v", err)
		}
		l.stop()
		c.mu.Lock()
		if by := removers[l.id]; len(by) == 0 || slices.Contains(by, l.id) {
			t.Errorf("%d was removed by %d", l.id, by)
		}
		c.mu.Unlock()
	}
	if r := propose(c.leader().node, "after"); r.Err != nil {
		t.Fatal(r.Err)
	}
}

// Raft takes one change at a time. The others wait here for their turn.
func TestChangesAtTheSameTimeAllHappen(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	c.leader()
	errs := make(chan error, 9)
	for i := range 9 {
		m := c.all()[i%3]
		go func() { // ends with its answer, which is waited for
			errs <- change(m.node, machine.Change{Kind: machine.AddMember, Member: machine.Member{ID: uint64(10 + i), IsLearner: true}})
		}()
	}
	for range 9 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := len(c.leader().machine.learners()); got != 9 {
		t.Errorf("%d learners, want 9", got)
	}
}

func TestProposeInTerm(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	inTerm := func(m *clusterMember, term uint64) error {
		answer := make(chan machine.Result, 1)
		m.node.ProposeInTerm(term, []byte("x"), func(r machine.Result) { answer <- r })
		return (<-answer).Err
	}
	l, f := c.leader(), c.follower()
	term := l.node.Status().Term
	if err := inTerm(l, term); err != nil {
		t.Errorf("the leader: %v", err)
	}
	if err := inTerm(l, term-1); !errors.Is(err, ErrNotLeader) {
		t.Errorf("another term: %v", err)
	}
	if err := inTerm(f, term); !errors.Is(err, ErrNotLeader) {
		t.Errorf("a follower: %v", err)
	}
	// What is on its way when leadership is lost is not proposed again.
	c.isolate(l.id, true)
	answer := make(chan machine.Result, 1)
	l.node.ProposeInTerm(term, []byte("lost"), func(r machine.Result) { answer <- r })
	eventually(t, "another leader", func() bool { return c.leader() != l })
	c.isolate(l.id, false)
	if r := <-answer; !errors.Is(r.Err, ErrNotLeader) {
		t.Errorf("a deposed leader: %v", r.Err)
	}
	if got := c.wantEqual(); !slices.Equal(got, []string{"x"}) {
		t.Errorf("applied %q", got)
	}
}

func TestRetirePassesLeadershipOn(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	l := c.leader()
	l.node.Retire(t.Context())
	if st := l.node.Status(); st.IsLeader || st.Leader == 0 {
		t.Errorf("after Retire: %+v", st)
	}
}

// When a leader's process has ended, its followers need not wait for the
// election timeout.
func TestLeaderThatIsGoneIsReplacedAtOnce(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.ElectionTicks = 12_000 /* a minute */ }, 1, 2, 3)
	if err := c.all()[0].node.call(t.Context(), func(c *core) { must(t, c.raft.Campaign()) }); err != nil {
		t.Fatal(err)
	}
	l := c.leader()
	eventually(t, "all follow it", func() bool {
		return !slices.ContainsFunc(c.all(), func(m *clusterMember) bool { return m.node.Status().Leader != l.id })
	})
	l.stop()
	for _, m := range c.all() {
		m.node.Gone(l.id)
	}
	eventually(t, "another leader", func() bool { return c.leader() != l })
}

func TestAllowance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAllowance(10)
		if !a.take(8) || !a.take(2) {
			t.Fatal("no room below the limit")
		}
		taken := make(chan bool, 1)
		go func() { taken <- a.take(20) }() // ends when it has its room
		synctest.Wait()
		if len(taken) > 0 {
			t.Fatal("took more than the limit")
		}
		a.release(10)
		if !<-taken {
			t.Fatal("what is larger than the limit does not pass alone")
		}
		go func() { taken <- a.take(1) }() // ends with close
		a.close()
		if <-taken {
			t.Fatal("took after close")
		}
	})
}

// The last member of a cluster goes on alone, with what was committed.
func TestForceAlone(t *testing.T) {
	c := newCluster(t, nil, 1, 2, 3)
	if r := propose(c.leader().node, "kept"); r.Err != nil {
		t.Fatal(r.Err)
	}
	c.wantEqual()
	all := c.all()
	for _, m := range all {
		m.stop()
	}
	last := all[1]
	j := last.machine.crash()
	log, err := wal.Open(wal.Options{Dir: "wal", FS: last.fs, ClusterID: 1, MemberID: last.id, Logger: zap.NewNop()})
	must(t, err)
	must(t, ForceAlone(log, j.applied, last.id, j.members))
	must(t, log.Close())
	m := c.start(last.id, last.fs, j, 1)
	for _, want := range []string{"alone", "and after a restart"} {
		if r := propose(m.node, want); r.Err != nil {
			t.Fatal(r.Err)
		}
		if got := m.machine.list(); len(got) < 2 || got[0] != "kept" || got[len(got)-1] != want {
			t.Fatalf("applied %q", got)
		}
		if got := m.machine.voters(); !slices.Equal(got, []uint64{last.id}) {
			t.Fatalf("voters %x, want only %x", got, last.id)
		}
		m = m.restart()
	}
}

// One that has joined and been sent nothing has nothing to go on with.
func TestForceAloneWithoutAState(t *testing.T) {
	l, err := wal.Create(wal.Options{Dir: "", FS: vfs.NewMem(), ClusterID: 1, MemberID: 5, Logger: zap.NewNop()}, 0, 0)
	must(t, err)
	if ForceAlone(l, 0, 5, []machine.Member{{ID: 1}, {ID: 5}}) == nil {
		t.Error("the log of a member without a state was made that of a cluster of its own")
	}
	if last, _ := l.LastIndex(); last != 0 {
		t.Errorf("it was given %d entries", last)
	}
	must(t, l.Close())
}

// A follower comes back after it has missed 90 MiB. The disks read 25 MB/s. All
// times are the defaults: heartbeats of 100 ms, an election timeout of 1 s.
func TestLeaderHeartbeatsWhileItReadsForALaggingFollower(t *testing.T) {
	if testing.Short() {
		t.Skip("270 MiB through three logs are slow under the race detector")
	}
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		var reads atomic.Int64
		c := &cluster{t: t, members: map[uint64]*clusterMember{}, cut: map[[2]uint64]bool{}}
		c.limit = func(cfg *Config) {
			cfg.Tick, cfg.ElectionTicks = 100*time.Millisecond, 10
			cfg.KeepBytes, cfg.KeepEntries, cfg.FlushEntries = 1<<30, 1<<20, 1<<20
		}
		c.disk = func(uint64) vfs.FS {
			return errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind == errorfs.OpFileReadAt && slow.Load() {
					reads.Add(1)
					time.Sleep(40 * time.Millisecond) // a frame of 1 MiB
				}
				return nil
			}))
		}
		ids := []uint64{1, 2, 3}
		for _, id := range ids {
			c.found(id, ids)
		}
		t.Cleanup(func() {
			for _, m := range c.all() {
				m.stop()
			}
		})
		leader, lagging := c.leader(), c.follower()
		c.isolate(lagging.id, true)
		value := strings.Repeat("x", 1<<20)
		for range 90 {
			if r := propose(leader.node, value); r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		term := leader.node.Status().Term
		slow.Store(true)
		began := time.Now()
		c.isolate(lagging.id, false)
		highest := uint64(0)
		for time.Since(began) < 30*time.Second && lagging.machine.Applied() < leader.machine.Applied() {
			for _, m := range c.all() {
				highest = max(highest, m.node.Status().Term)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if behind := leader.machine.Applied() - lagging.machine.Applied(); behind > 0 || reads.Load() == 0 {
			t.Errorf("%d entries behind after %v and %d reads", behind, time.Since(began), reads.Load())
		}
		if highest > term {
			t.Errorf("the leader of term %d was replaced, term %d, because another member was catching up", term, highest)
		}
	})
}

// Each snapshot that a leader wants to send is refused at once, as by a member that is receiving one of another leader (409),
// or whose disk is full. Each has the leader's engine flushed, and a checkpoint made and removed.
func TestASnapshotThatIsRefusedIsNotTriedTenTimesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		c := newCluster(t, func(cfg *Config) { cfg.Tick = 20 * time.Millisecond }, 1, 2, 3)
		leader, lagging := c.leader(), c.follower()
		c.isolate(lagging.id, true)
		for i := range 100 {
			must(t, propose(leader.node, fmt.Sprint(i, string(make([]byte, 1000)))).Err)
		}
		eventually(t, "the log to be cut", func() bool {
			first, _ := leader.log.FirstIndex()
			last, _ := lagging.log.LastIndex()
			return first > last+1
		})
		c.mu.Lock()
		c.lose = func(m *pb.Message) bool {
			if m.GetType() == pb.MsgSnap {
				tries++
				return true
			}
			return false
		}
		c.mu.Unlock()
		c.isolate(lagging.id, false)
		const ticks = 100
		tried := func() int { c.mu.Lock(); defer c.mu.Unlock(); return tries }
		time.Sleep(ticks * 20 * time.Millisecond)
		n := tried()
		if n == 0 || n > ticks/5 {
			t.Errorf("%d snapshots were made and refused in %d heartbeat intervals", n, ticks)
		}
		// One that has ended, and is there again, does not wait for what was refused before.
		leader.node.Gone(lagging.id)
		time.Sleep(5 * 20 * time.Millisecond)
		if tried() == n {
			t.Error("a member that has begun anew waits for its snapshot")
		}
	})
}

// A snapshot takes long. Meanwhile another member has begun to lead; the state is committed all the same, and this member still
// lags. It must not have to receive everything once more.
func TestASnapshotOfTheLeaderBeforeIsTaken(t *testing.T) {
	l, m := newLog(t, vfs.NewMem()), newJournal()
	n := follower5(t, l, m)
	fromLeader(n, 1, 1, 1)
	n.Receive(&pb.Message{Type: pb.MsgHeartbeat.Enum(), From: new(uint64(2)), To: new(uint64(5)), Term: new(uint64(3)), Commit: new(uint64(1))})
	eventually(t, "the other to lead", func() bool { return n.Status().Leader == 2 })
	m.offer(&journal{applied: 99, term: 2})
	taken, err := n.ReceiveSnapshot(t.Context(), &pb.Message{
		Type: pb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: new(uint64(2)),
		Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(uint64(99)), Term: new(uint64(2)), ConfState: &pb.ConfState{Voters: []uint64{1, 2, 5}}}},
	})
	if err != nil || !taken {
		t.Errorf("taken: %v, %v; applied are 1 of 99 entries", taken, err)
	}
	n.Close()
	must(t, l.Close())
}

// collected keeps what a member sends.
type collected struct{ sent []*pb.Message }

func (c *collected) Send(ms []*pb.Message) { c.sent = append(c.sent, ms...) }

// Both followers of a leader answer each heartbeat, a round trip after it. In that time, once in an election timeout, raft has
// just begun to look anew for who answers: the leader is stopped, and must pass leadership on all the same.
func TestRetirePassesLeadershipOnAtAnyTime(t *testing.T) {
	l, out := newLog(t, vfs.NewMem()), &collected{}
	cfg := config(l, newJournal())
	cfg.Voters, cfg.ElectionTicks, cfg.Tick, cfg.Peers, cfg.PreVote = []uint64{1, 2, 5}, 10, time.Second, out, false
	n, err := New(cfg)
	must(t, err)
	defer func() { n.End(); must(t, l.Close()) }()
	work := func() {
		for busy := true; busy; {
			busy = false
			for _, turn := range []Turn{TurnRaft, TurnLog, TurnApply} {
				if n.Due(turn) {
					must(t, n.Take(turn))
					busy = true
				}
			}
		}
	}
	answer := func() { // what was sent so far
		sent := out.sent
		out.sent = nil
		for _, m := range sent {
			switch m.GetType() {
			case pb.MsgVote:
				n.Receive(&pb.Message{Type: pb.MsgVoteResp.Enum(), From: m.To, To: m.From, Term: m.Term})
			case pb.MsgHeartbeat:
				n.Receive(&pb.Message{Type: pb.MsgHeartbeatResp.Enum(), From: m.To, To: m.From, Term: m.Term, Context: m.Context})
			case pb.MsgApp:
				n.Receive(&pb.Message{Type: pb.MsgAppResp.Enum(), From: m.To, To: m.From, Term: m.Term, Index: new(m.GetIndex() + uint64(len(m.Entries)))})
			}
		}
		work()
	}
	must(t, func() error { return n.core.raft.Campaign() }())
	n.stations[TurnRaft].ring()
	work()
	for range 5 {
		answer()
	}
	if !n.Status().IsLeader {
		t.Fatalf("no leader: %+v", n.Status())
	}
	for tick := 1; tick <= 20; tick++ {
		n.Tick(time.Now())
		work()
		if all, gone := func() (heard int, err error) {
			done := make(chan struct{})
			go func() {
				var ps []Progress
				ps, err = n.Progress(t.Context())
				for _, p := range ps {
					if p.ID != 5 && p.Active {
						heard++
					}
				}
				close(done)
			}()
			for {
				select {
				case <-done:
					return heard, err
				default:
					work()
				}
			}
		}(); gone != nil || all == 0 {
			retired := make(chan struct{})
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			go func() { n.Retire(ctx); close(retired) }()
			began := time.Now()
			for over := false; !over; {
				select {
				case <-retired:
					over = true
				default:
					work()
				}
			}
			cancel()
			transfer := slices.ContainsFunc(out.sent, func(m *pb.Message) bool { return m.GetType() == pb.MsgTimeoutNow })
			t.Fatalf("tick %d: both followers have answered the heartbeat before, and none counts as active (%v); Retire has returned after %v, and told a follower to stand: %v",
				tick, gone, time.Since(began), transfer)
		}
		answer()
	}
}

// hungJournal never returns from an Apply, as when the engine waits for a disk that hangs.
type hungJournal struct {
	*journal
	began, leave chan struct{}
}

func (j *hungJournal) Apply(entries []machine.Entry) ([]machine.Result, error) {
	select {
	case j.began <- struct{}{}:
	default:
	}
	<-j.leave
	return j.journal.Apply(entries)
}

// The machine hangs (the disk of the engine, the log has another one, or a wait for room of the engine), the log goes on:
// writes are committed and read indexes are confirmed. Who waits must hear that his time is over.
func TestRequestsEndWhenTheMachineHangs(t *testing.T) {
	l := newLog(t, vfs.NewMem())
	m := &hungJournal{newJournal(), make(chan struct{}, 1), make(chan struct{})}
	cfg := config(l, m)
	cfg.RequestTimeout = 200 * time.Millisecond
	n := start(t, cfg)
	<-m.began // the leader's first entry is being applied
	answers := make(chan string, 2)
	n.Propose([]byte("x"), func(r machine.Result) { answers <- "put" })
	n.ReadIndex(func(error) { answers <- "read" })
	answered, over := []string{}, time.After(5*time.Second)
wait:
	for len(answered) < 2 {
		select {
		case a := <-answers:
			answered = append(answered, a)
		case <-over:
			t.Errorf("25 times the time limit is over; answered are only %q", answered)
			break wait
		}
	}
	close(m.leave)
	n.Close()
	must(t, l.Close())
}
