// Package consensus drives raft: it packs commands into batches, has them
// written and replicated, hands the committed ones to the state machine in
// order, and confirms read indexes. It knows nothing of what commands say.
//
// The core steps raft and holds the callers, without I/O, goroutines or a
// clock. What a member does is done in turns: one feeds the core, one appends to
// the log, one applies to the machine. While the log writes a batch, the next one
// grows; while the machine applies a batch, the log writes another. A goroutine
// takes the turns of each kind, or a simulation takes them all. A command that
// comes alone to the only member may be taken through them by who proposes it.
package consensus

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

var (
	// ErrStopped says that the node has stopped, or failed, before the outcome
	// was known.
	ErrStopped = errors.New("consensus: node stopped")
	// ErrTimeout says that the outcome was not known in time. A proposal may
	// still take effect.
	ErrTimeout = errors.New("consensus: request timed out")
	// ErrTooManyRequests says that the queue of proposals or reads is full.
	ErrTooManyRequests = errors.New("consensus: too many requests")
	// ErrNoLeader says that no leader is known.
	ErrNoLeader = errors.New("consensus: no leader")
	// ErrNotLeader says that this member does not lead, or no longer in the term
	// that the call is for.
	ErrNotLeader = errors.New("consensus: not the leader")
)

// Bounds on what waits here.
const (
	// maxBatchBytes is the size above which a batch takes no further command.
	maxBatchBytes = 1 << 20
	// maxWaiting is the number of proposals, and of reads, that may wait.
	maxWaiting = 100_000
	// maxWaitingBytes is the size of proposals that may wait.
	maxWaitingBytes = 256 << 20
	// readRetry is how long a read-index round may take before it is asked again.
	readRetry = 500 * time.Millisecond
	// maxInbound is the size of messages from other members that may wait.
	maxInbound = 256 << 20
	// messageOverhead is what a message counts beside its entries.
	messageOverhead = 256
	// defaultKeepBytes is Config.KeepBytes.
	defaultKeepBytes = 256 << 20
	// maxKeptForSnapshot bounds the log that is kept while a snapshot is under
	// way, after which the member that gets it needs the entries since.
	maxKeptForSnapshot = 2 << 30
	// closePatience is how long Close waits for a failed node.
	closePatience = 10 * time.Second
)

// StateMachine is what consensus needs of the machine. One goroutine calls
// Apply; the others are called by any.
type StateMachine interface {
	// Apply applies entries and returns one result for each of their commands,
	// in order. An error means that the machine cannot go on.
	Apply(entries []machine.Entry) ([]machine.Result, error)
	// Applied returns the index of the last entry applied.
	Applied() uint64
	// DurableIndex returns the index that a crash at this instant leaves applied.
	DurableIndex() (uint64, error)
	// Flushed receives when DurableIndex may have moved.
	Flushed() <-chan struct{}
	// StartFlush makes DurableIndex move to what is applied now, in its own time.
	StartFlush() error
	// Install replaces the state by that of the received snapshot of the entry
	// with the index and term. It is called like Apply. The log names the snapshot
	// by then: a crash before Install has ended must lead to the same state.
	Install(index, term uint64) error
}

// Peers sends messages to other members.
type Peers interface {
	// Send does not wait. What cannot be sent is dropped and told to
	// Node.Unreachable; how a snapshot went, to Node.SnapshotSent.
	Send([]*pb.Message)
}

// Config configures Start. All fields are required, except that Peers may be nil
// for a member that stays alone.
type Config struct {
	ID      uint64
	Log     *wal.Log
	Machine StateMachine
	Peers   Peers
	// Voters and Learners are the members as of what the machine has applied;
	// none for a member that has yet to be sent a state.
	Voters, Learners []uint64
	// Tick is the length of a heartbeat interval.
	Tick          time.Duration
	ElectionTicks int
	PreVote       bool
	// AdvanceElection shortens the wait for the first election.
	AdvanceElection bool
	// RequestTimeout ends proposals and reads whose outcome is not known.
	RequestTimeout time.Duration
	// FlushEntries is the number of entries after which the machine's state is
	// made durable, so that the log can be cut.
	FlushEntries uint64
	// KeepEntries is how many applied entries the log keeps for slow followers.
	KeepEntries uint64
	// KeepBytes bounds the log that is kept for members that lag, which beyond it
	// are sent a snapshot; 0 means 256 MiB.
	KeepBytes int64
	Logger    *zap.Logger
}

// Status is a member's view of consensus at an instant.
type Status struct {
	ID, Leader, Term uint64
	Commit, Applied  uint64
	IsLeader         bool
	LeaderChanges    uint64 // seen since the start
	Pending          int    // proposals waiting or in flight
}

func (s *Status) describe() string {
	switch {
	case s.IsLeader:
		return "this member leads"
	case s.Leader == raft.None:
		return "no leader is known"
	}
	return "another member leads"
}

// Node is a running member.
type Node struct {
	cfg  Config
	core *core // Owned by TurnRaft.
	// handed are the callers whom the machine is to answer. Owned by TurnRaft; those that have been answered stay until the next tick.
	handed   []*results
	barriers barriers

	storage *storage // of the core

	stations  [TurnTrim]station
	beats     chan time.Time // capacity 1
	proposals *mailbox[proposal]
	reads     *mailbox[read]
	inbox     *mailbox[input]
	calls     *mailbox[func(*core)]
	inbound   *allowance
	appends   *mailbox[*pb.Message]
	applies   *mailbox[applyWork]

	writing  // Owned by TurnLog.
	applying // Owned by TurnApply.

	waiting      atomic.Int64 // proposals
	waitingBytes atomic.Int64
	waitingReads atomic.Int64
	applied      atomic.Uint64
	changeAt     atomic.Uint64 // the last change of the membership that is to be applied
	held         atomic.Bool   // applies wait for the log to have a commit index
	told         atomic.Uint64 // raft knows that entries up to here are applied
	cutTo        atomic.Uint64 // entries up to here may leave the log
	purging      bool          // Owned by who takes turns: there may be files of the log to remove.
	needed       atomic.Pointer[need]
	shortcut     shortcut
	alone        atomic.Bool   // there are no other members, and what was acknowledged before this start is applied
	failed       atomic.Uint64 // see FailedProposals
	status       atomic.Pointer[Status]
	leaderMoved  chan struct{} // capacity 1

	stop     chan struct{}
	stopOnce sync.Once
	err      atomic.Pointer[error]
	group    sync.WaitGroup // of all goroutines
	done     chan struct{}  // closed when all have returned
	deaf     chan struct{}  // closed when nobody looks into the mailboxes any more

	over      sync.Mutex
	applyOver bool // nothing more is applied. Guarded by over.
}

// input is something for the core from the other goroutines.
type input struct {
	messages []*pb.Message
	stable   uint64          // entries that an append has put on disk
	changes  []appliedChange // accepted by the machine; before the messages
	size     int             // that counts as inbound
}

// appliedChange is a change of the membership and the index of its entry.
type appliedChange struct {
	index  uint64
	change *pb.ConfChange
}

// Start starts a member whose log and machine are open.
func Start(cfg Config) (*Node, error) {
	n, err := New(cfg)
	if err != nil {
		return nil, err
	}
	// Close or fail ends these; Close waits for them.
	for name, loop := range map[string]func() error{"raft": n.raftLoop, "log": n.logLoop, "apply": n.applyLoop, "trim": n.trimLoop} {
		n.group.Go(func() {
			pprof.Do(context.Background(), pprof.Labels("coterie", name), func(context.Context) {
				if err := loop(); err != nil {
					n.fail(err)
				}
			})
		})
	}
	go func() { // ends with the four
		n.group.Wait()
		n.finish()
	}()
	return n, nil
}

// New makes a member that does nothing by itself: a simulation has it take its
// turns.
func New(cfg Config) (*Node, error) {
	applied := cfg.Machine.Applied()
	if err := prepareLog(&cfg, applied); err != nil {
		return nil, err
	}
	// Only now that they fit: what does not is refused as it is.
	if err := cfg.Log.Settle(); err != nil {
		return nil, err
	}
	log := &storage{Log: cfg.Log}
	if cfg.Peers == nil {
		cfg.Peers = noPeers{}
	}
	if cfg.KeepBytes == 0 {
		cfg.KeepBytes = defaultKeepBytes
	}
	rn, err := newRaft(&cfg, log, applied)
	if err != nil {
		return nil, err
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	n := &Node{
		cfg:         cfg,
		storage:     log,
		beats:       make(chan time.Time, 1),
		inbound:     newAllowance(maxInbound),
		leaderMoved: make(chan struct{}, 1),
		stop:        make(chan struct{}),
		done:        make(chan struct{}),
		deaf:        make(chan struct{}),
		core: &core{
			id:        cfg.ID,
			raft:      rn,
			logger:    cfg.Logger,
			proposer:  binary.BigEndian.Uint64(id[:]),
			batchMax:  maxBatchBytes,
			retryRead: readRetry,
			termOf:    cfg.Log.Term,
			applied:   applied,
			conf:      confState(&cfg),
			presence:  presence{timeout: uint64(cfg.ElectionTicks)},
		},
	}
	for t := range n.stations {
		n.stations[t].wake = make(chan struct{}, 1)
	}
	raftStation := &n.stations[TurnRaft]
	n.proposals, n.reads, n.inbox = newMailbox[proposal](raftStation), newMailbox[read](raftStation), newMailbox[input](raftStation)
	n.calls = newMailbox[func(*core)](raftStation)
	n.appends = newMailbox[*pb.Message](&n.stations[TurnLog])
	n.applies = newMailbox[applyWork](&n.stations[TurnApply])
	log.snapshot = n.core.snapshot
	n.needed.Store(&need{index: math.MaxUint64})
	n.applied.Store(applied)
	n.told.Store(applied)
	n.flushFrom = applied
	n.status.Store(&Status{ID: cfg.ID, Applied: applied})
	if len(cfg.Voters) == 1 && cfg.Voters[0] == cfg.ID {
		// No one else can lead: do not wait for an election timeout.
		if err := log.guard(rn.Campaign); err != nil {
			return nil, fmt.Errorf("consensus: %w", err)
		}
	} else if cfg.AdvanceElection {
		for range cfg.ElectionTicks - 1 {
			rn.Tick()
		}
	}
	return n, nil
}

func confState(cfg *Config) *pb.ConfState {
	return &pb.ConfState{Voters: cfg.Voters, Learners: cfg.Learners}
}

type noPeers struct{}

func (noPeers) Send([]*pb.Message) {}

// CheckLog reports why a log and a machine that has applied so far do not
// belong together. Start checks it too; it can be checked before anything is
// changed.
func CheckLog(log *wal.Log, applied uint64) error {
	hs, _, err := log.InitialState()
	if err != nil {
		return err
	}
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	if applied > last {
		return fmt.Errorf("consensus: the engine has applied entry %d, but the log ends with entry %d: "+
			"the log has lost entries; restore this member from a snapshot, or remove its data directory and let it join again", applied, last)
	}
	if applied+1 < first {
		return fmt.Errorf("consensus: the engine has applied entry %d, but the log begins with entry %d: "+
			"the log and the data directory are not of the same time; check --data-dir and --wal-dir", applied, first)
	}
	if hs.GetCommit() > last {
		return fmt.Errorf("consensus: entry %d was committed, but the log ends with entry %d: "+
			"the log has lost entries; restore this member from a snapshot, or remove its data directory and let it join again", hs.GetCommit(), last)
	}
	return nil
}

// prepareLog gives raft what the log does not store.
func prepareLog(cfg *Config, applied uint64) error {
	if err := CheckLog(cfg.Log, applied); err != nil {
		return err
	}
	cfg.Log.SetConfState(confState(cfg))
	hs, _, err := cfg.Log.InitialState()
	if err != nil {
		return err
	}
	// The commit index on disk may be behind, since it moves without a sync of
	// its own; what the engine has applied was committed.
	if hs.GetCommit() < applied {
		cfg.Log.RaiseCommit(applied)
	}
	return nil
}

// Propose replicates one command. done is called once, from a goroutine that
// must not be held up, with what the machine returned or with an error of this
// package. The command must not be changed until then.
func (n *Node) Propose(command []byte, done func(machine.Result)) {
	n.submit(proposal{command: command, done: done}, len(command))
}

// ProposeInTerm is Propose for a command that only the leader of the term may
// decide on. It gets ErrNotLeader, and has no effect, when this member is not.
func (n *Node) ProposeInTerm(term uint64, command []byte, done func(machine.Result)) {
	n.submit(proposal{command: command, term: term, done: done}, len(command))
}

// ProposeChange is Propose for a change of the membership.
func (n *Node) ProposeChange(change *machine.Change, done func(machine.Result)) {
	n.submit(proposal{change: change, done: done}, 0)
}

func (n *Node) submit(p proposal, size int) {
	done := p.done
	if err := n.admit(&n.waiting); err != nil {
		done(machine.Result{Err: err})
		return
	}
	if n.waitingBytes.Add(int64(size)) > maxWaitingBytes {
		n.waitingBytes.Add(-int64(size))
		n.waiting.Add(-1)
		done(machine.Result{Err: ErrTooManyRequests})
		return
	}
	p.deadline = time.Now().Add(n.cfg.RequestTimeout)
	p.done = func(r machine.Result) {
		n.waiting.Add(-1)
		n.waitingBytes.Add(-int64(size))
		done(r)
	}
	n.proposals.put(p)
	n.settleIfStopped()
}

// UpToDate reports whether the machine's state is known, without asking anyone,
// to include everything that was acknowledged anywhere before the call: this
// member is the only one, so that it acknowledges all there is, when applied.
func (n *Node) UpToDate() bool {
	select {
	case <-n.stop:
		return false
	default:
		return n.alone.Load()
	}
}

// ReadIndex calls done once, from a goroutine that must not be held up, when
// the machine's state includes everything that was acknowledged anywhere
// before the call, or with an error. It may do so before it returns.
func (n *Node) ReadIndex(done func(error)) {
	if n.UpToDate() {
		done(nil)
		return
	}
	if err := n.admit(&n.waitingReads); err != nil {
		done(err)
		return
	}
	n.reads.put(read{
		deadline: time.Now().Add(n.cfg.RequestTimeout),
		done: func(err error) {
			n.waitingReads.Add(-1)
			done(err)
		},
	})
	n.settleIfStopped()
}

func (n *Node) admit(waiting *atomic.Int64) error {
	select {
	case <-n.stop:
		return ErrStopped
	default:
	}
	if waiting.Add(1) > maxWaiting {
		waiting.Add(-1)
		return ErrTooManyRequests
	}
	return nil
}

// settleIfStopped answers what was put into a mailbox that nobody looks into any more.
func (n *Node) settleIfStopped() {
	select {
	case <-n.deaf:
		n.settleMail()
	default:
	}
}

// Status returns the state of a moment ago.
func (n *Node) Status() Status {
	s := *n.status.Load()
	s.Applied = n.applied.Load()
	s.Pending = int(n.waiting.Load())
	return s
}

// FailedProposals counts the proposals that were accepted and whose outcome was
// not known in time.
func (n *Node) FailedProposals() uint64 { return n.failed.Load() }

// LeaderMoved receives when Status has another leader, or the same in another
// term. It has one receiver.
func (n *Node) LeaderMoved() <-chan struct{} { return n.leaderMoved }

// Stopping is closed as soon as the node acknowledges nothing more, by Close or
// by a failure that Err tells. What it had begun may still have to end.
func (n *Node) Stopping() <-chan struct{} { return n.stop }

// Err returns the failure that stopped the node; nil after Close.
func (n *Node) Err() error {
	if p := n.err.Load(); p != nil {
		return *p
	}
	return nil
}

// Fail stops the node because of a failure elsewhere, such as the engine's.
// From now on nothing is acknowledged. It does not wait.
func (n *Node) Fail(err error) { n.fail(err) }

func (n *Node) fail(err error) {
	if n.err.CompareAndSwap(nil, &err) {
		n.cfg.Logger.Error("consensus: stopping, nothing more is acknowledged", zap.Error(err))
	}
	n.stopOnce.Do(func() { close(n.stop) })
}

// Close stops the node and waits. Callers that still wait get ErrStopped; what
// they proposed may have taken effect. After a failure it waits for a bounded
// time: a disk that hangs may hold a goroutine for ever. Then it reports false: the
// log and the machine are in use until Done is closed.
func (n *Node) Close() (ended bool) {
	n.stopOnce.Do(func() { close(n.stop) })
	var patience <-chan time.Time
	if n.Err() != nil {
		patience = time.After(closePatience)
	}
	select {
	case <-n.done:
		return true
	case <-patience:
		n.cfg.Logger.Error("consensus: gave up waiting for the disk")
		return false
	}
}

// Done is closed when nothing of the node runs any more.
func (n *Node) Done() <-chan struct{} { return n.done }

// finish answers those whose entries were not applied, when nothing works any
// more.
func (n *Node) finish() {
	n.over.Lock()
	defer n.over.Unlock()
	n.stopApplying()
	close(n.done)
}

func (n *Node) settleMail() {
	for _, p := range n.proposals.take() {
		p.done(machine.Result{Err: ErrStopped})
	}
	for _, r := range n.reads.take() {
		r.done(ErrStopped)
	}
}

// input feeds the core with what has come from the other goroutines and members.
func (n *Node) input() {
	ins := n.inbox.take()
	size := 0
	for _, in := range ins {
		n.core.stable(in.stable)
		for _, a := range in.changes {
			n.core.changed(a)
			n.alone.Store(n.alone.Load() && n.core.alone()) // before the new member hears anything
		}
		for _, m := range in.messages {
			n.core.step(m)
		}
		size += in.size
	}
	n.inbox.recycle(ins)
	n.inbound.release(size)
	n.told.Store(n.core.applied)
	calls := n.calls.take()
	for _, f := range calls {
		f(n.core)
	}
	n.calls.recycle(calls)
}

// perform hands the output of the core to those who do it.
func (n *Node) perform(out output) {
	// First: who is let go below may ask whether this member leads.
	n.publishStatus()
	if n.alone.Load() && !n.core.alone() {
		n.alone.Store(false) // before whom it follows now, or votes for, hears of that
	}
	if len(out.peers) > 0 {
		if slices.ContainsFunc(out.peers, func(m *pb.Message) bool { return m.GetType() == pb.MsgSnap }) {
			n.noteNeed() // before the log can be cut beyond what its receiver asks for next
		}
		n.cfg.Peers.Send(out.peers)
	}
	if out.written {
		n.appends.put(out.appends...)
	} else {
		n.appends.leave(out.appends...)
	}
	for _, a := range out.applies {
		if a.change > 0 {
			n.changeAt.Store(a.change)
			n.appends.put() // its commit index may wait there for the next write
		}
		for i := range a.callers {
			if a.callers[i].callers != nil { // nobody else has it yet
				n.handed = append(n.handed, &a.callers[i])
			}
		}
		n.applies.put(applyWork{apply: a})
	}
	for _, b := range out.barriers {
		if b.index <= n.applied.Load() {
			for _, r := range b.readers {
				r.done(nil)
			}
			continue
		}
		n.barriers.add(b)
		n.applies.put() // it may be applied by now
	}
	n.failed.Store(n.core.failed)
	for _, f := range out.failures {
		f()
	}
}

func (n *Node) publishStatus() {
	old := n.status.Load()
	b := n.core.raft.BasicStatus()
	s := Status{
		ID:            n.cfg.ID,
		Leader:        b.Lead,
		Term:          b.GetTerm(),
		Commit:        b.GetCommit(),
		IsLeader:      b.RaftState == raft.StateLeader,
		LeaderChanges: old.LeaderChanges,
	}
	if s.Leader != old.Leader && s.Leader != raft.None {
		s.LeaderChanges++
	}
	if s.Leader != old.Leader || s.Term != old.Term || s.IsLeader != old.IsLeader {
		n.cfg.Logger.Info("consensus: "+s.describe(), zap.Uint64("term", s.Term), zap.String("leader", fmt.Sprintf("%x", s.Leader)))
		defer func() {
			select {
			case n.leaderMoved <- struct{}{}:
			default:
			}
		}()
	}
	n.status.Store(&s)
}
