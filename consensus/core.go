package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

// proposal is one command that waits to be replicated, or has been and waits
// to be applied.
type proposal struct {
	command  []byte
	deadline time.Time
	done     func(machine.Result)
}

// read is one reader that waits for a confirmed read index, and then for the
// machine to reach it.
type read struct {
	deadline time.Time
	done     func(error)
}

// round is one read-index request to raft and the readers that share it.
type round struct {
	id      uint64
	sent    time.Time
	readers []read
}

// barrier is a confirmed round: its readers go on at index.
type barrier struct {
	index   uint64
	readers []read
}

// output is what a step of the core asks its owner to do. All parts may go on
// at the same time; the responses that a message carries are stepped when what
// it asks is done.
type output struct {
	appends  []*pb.Message // to the log, in order
	applies  []apply       // to the machine, in order
	peers    []*pb.Message // to other members
	barriers []barrier     // readers whose index is known
	failures []func()      // callers to be told of an error
}

// batch is a batch of this member on its way through raft.
type batch struct {
	sequence uint64
	callers  []proposal
}

// apply is committed entries for the machine, with the callers who wait for
// each here; nil for another member's entries and for callers that gave up.
type apply struct {
	message *pb.Message
	callers [][]proposal
}

// core is consensus without I/O, goroutines or a clock of its own: inputs go in
// by its methods, work comes out of ready. One goroutine owns it, or a
// simulation.
type core struct {
	raft      *raft.RawNode
	logger    *zap.Logger
	proposer  uint64
	batchMax  int
	retryRead time.Duration

	proposals []proposal // not yet in a batch
	sequence  uint64     // of the last batch
	inflight  []batch    // proposed and not applied, oldest first
	// unstable counts the batches of this leader that are not yet on its disk.
	// A new one is made when there is none, so batches grow while the disk works.
	unstable uint64

	readers []read // waiting for the next round
	round   *round // in flight
	roundID uint64

	failures []func()
	failed   uint64 // proposals among the failures so far
	lead     uint64
	state    raft.StateType
	settled  bool                               // this leader has an entry of its term committed
	term     func(index uint64) (uint64, error) // of an entry in the log
}

func (c *core) tick(now time.Time) {
	c.raft.Tick()
	c.expire(now)
	if c.round != nil && now.Sub(c.round.sent) >= c.retryRead {
		// Raft drops a request without a word when it loses its leader.
		c.round.sent = now
		c.requestReadIndex()
	}
}

// step feeds a message from a peer, or a response to an output.
func (c *core) step(m *pb.Message) {
	if err := c.raft.Step(m); err != nil && !errors.Is(err, raft.ErrProposalDropped) {
		c.logger.Debug("raft: message not taken", zap.Stringer("type", m.GetType()), zap.Error(err))
	}
}

// stable notes that an append with n entries is on disk.
func (c *core) stable(n uint64) { c.unstable -= min(n, c.unstable) }

// propose makes one batch of the waiting proposals, when the log is free for it.
func (c *core) propose() {
	if len(c.proposals) == 0 || c.lead == raft.None || c.unstable > 0 {
		return
	}
	size, n := batchHeaderLen, 0
	for n < len(c.proposals) {
		size += len(c.proposals[n].command) + binary.MaxVarintLen32
		if n > 0 && size > c.batchMax {
			break
		}
		n++
	}
	b := appendBatchHeader(make([]byte, 0, size), c.proposer, c.sequence+1)
	for _, p := range c.proposals[:n] {
		b = appendCommand(b, p.command)
	}
	if err := c.raft.Propose(b); err != nil {
		return // no leader, or its queue is full: they stay and are tried again
	}
	c.sequence++
	c.inflight = append(c.inflight, batch{c.sequence, c.proposals[:n:n]})
	c.proposals = c.proposals[n:]
	if len(c.proposals) == 0 {
		c.proposals = nil // the array belongs to the batches now
	}
}

// apply finds the callers of the entries that m asks to apply.
func (c *core) apply(m *pb.Message) apply {
	a := apply{message: m, callers: make([][]proposal, len(m.Entries))}
	for i, e := range m.Entries {
		if e.GetType() != pb.EntryNormal || len(e.Data) < batchHeaderLen {
			continue
		}
		if proposer, sequence := batchOrigin(e.Data); proposer == c.proposer {
			a.callers[i] = c.take(sequence)
		}
	}
	return a
}

// take returns and forgets the callers of a batch.
func (c *core) take(sequence uint64) []proposal {
	// Batches are applied in the order of their making, but for those that a
	// change of leader lost: what is looked for stands in front.
	for i, b := range c.inflight {
		if b.sequence == sequence {
			c.inflight = slices.Delete(c.inflight, i, i+1)
			return b.callers
		}
	}
	return nil
}

// requestRead starts a round when readers wait and none is in flight.
func (c *core) requestRead(now time.Time) {
	if c.round != nil || len(c.readers) == 0 || c.lead == raft.None || !c.commitIsKnown() {
		return
	}
	c.roundID++
	c.round = &round{id: c.roundID, sent: now, readers: c.readers}
	c.readers = nil
	c.requestReadIndex()
}

// commitIsKnown reports whether this member may ask for a read index. A new
// leader knows all that was committed only when an entry of its own term is.
// Raft sees to that itself, except for a leader that is alone: it answers at
// once, with a commit index that after a restart is behind what was
// acknowledged.
func (c *core) commitIsKnown() bool {
	if c.state != raft.StateLeader || c.settled {
		return true
	}
	b := c.raft.BasicStatus()
	term, err := c.term(b.GetCommit())
	c.settled = err == nil && term == b.GetTerm()
	return c.settled
}

func (c *core) requestReadIndex() {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], c.proposer)
	binary.BigEndian.PutUint64(id[8:], c.round.id)
	c.raft.ReadIndex(id[:])
}

// expire tells the callers whose time is over. What was proposed for them may
// still happen.
func (c *core) expire(now time.Time) {
	keep := 0
	for ; keep < len(c.proposals) && !now.Before(c.proposals[keep].deadline); keep++ {
		c.failProposal(c.proposals[keep], ErrTimeout)
	}
	c.proposals = c.proposals[keep:]
	for len(c.inflight) > 0 {
		// One batch was made at one time: its deadlines are close together.
		callers := c.inflight[0].callers
		if now.Before(callers[len(callers)-1].deadline) {
			break
		}
		for _, p := range callers {
			c.failProposal(p, ErrTimeout)
		}
		c.inflight = slices.Delete(c.inflight, 0, 1)
	}
	c.readers = c.expireReaders(c.readers, now)
	if c.round != nil {
		if c.round.readers = c.expireReaders(c.round.readers, now); len(c.round.readers) == 0 {
			c.round = nil
		}
	}
}

func (c *core) expireReaders(rs []read, now time.Time) []read {
	keep := 0
	for ; keep < len(rs) && !now.Before(rs[keep].deadline); keep++ {
		c.failRead(rs[keep], ErrTimeout)
	}
	return rs[keep:]
}

func (c *core) failProposal(p proposal, err error) {
	c.failed++
	c.failures = append(c.failures, func() { p.done(machine.Result{Err: err}) })
}

func (c *core) failRead(r read, err error) {
	c.failures = append(c.failures, func() { r.done(err) })
}

// failAll tells every caller that the node has stopped.
func (c *core) failAll(err error) []func() {
	for _, p := range c.proposals {
		c.failProposal(p, err)
	}
	for _, b := range c.inflight {
		for _, p := range b.callers {
			c.failProposal(p, err)
		}
	}
	rs := c.readers
	if c.round != nil {
		rs = append(rs, c.round.readers...)
	}
	for _, r := range rs {
		c.failRead(r, err)
	}
	c.proposals, c.inflight, c.readers, c.round = nil, nil, nil, nil
	fs := c.failures
	c.failures = nil
	return fs
}

// ready collects what there is to do after inputs. It is called until hasReady
// is false.
func (c *core) ready() output {
	var out output
	rd := c.raft.Ready()
	if rd.SoftState != nil {
		c.lead, c.state = rd.Lead, rd.RaftState
		c.settled = false
		if c.state != raft.StateLeader {
			c.unstable = 0
		}
	}
	for _, rs := range rd.ReadStates {
		if c.round != nil && len(rs.RequestCtx) == 16 &&
			binary.BigEndian.Uint64(rs.RequestCtx) == c.proposer &&
			binary.BigEndian.Uint64(rs.RequestCtx[8:]) == c.round.id {
			out.barriers = append(out.barriers, barrier{rs.Index, c.round.readers})
			c.round = nil
		}
	}
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			if c.state == raft.StateLeader {
				c.unstable += uint64(len(m.Entries))
			}
			out.appends = append(out.appends, m)
		case raft.LocalApplyThread:
			out.applies = append(out.applies, c.apply(m))
		default:
			out.peers = append(out.peers, m)
		}
	}
	out.failures, c.failures = c.failures, nil
	return out
}

func (c *core) hasReady() bool { return len(c.failures) > 0 || c.raft.HasReady() }

// raftLogger passes raft's lines to zap.
type raftLogger struct{ *zap.SugaredLogger }

func (l raftLogger) Warning(v ...any)                 { l.Warn(v...) }
func (l raftLogger) Warningf(format string, v ...any) { l.Warnf(format, v...) }

// storage is the log as raft reads it. Raft panics when a read fails; guard makes
// an error of that. Owned by the goroutine that owns the core.
type storage struct {
	*wal.Log
	failed error // the read that failed
}

// Entries implements raft.Storage.
func (s *storage) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	es, err := s.Log.Entries(lo, hi, maxSize)
	if err != nil && !errors.Is(err, raft.ErrCompacted) && !errors.Is(err, raft.ErrUnavailable) {
		s.failed = fmt.Errorf("consensus: read the log: %w", err)
	}
	return es, err
}

// guard runs f, which steps raft, and returns its error, or that of a read of
// the log that made raft panic.
func (s *storage) guard(f func() error) (err error) {
	defer func() {
		if s.failed == nil {
			return // whatever else may panic is a defect
		}
		recover()
		err = s.failed
	}()
	return f()
}

func newRaft(cfg *Config, log *storage, applied uint64) (*raft.RawNode, error) {
	rn, err := raft.NewRawNode(&raft.Config{
		ID:                        cfg.ID,
		ElectionTick:              cfg.ElectionTicks,
		HeartbeatTick:             1,
		Storage:                   log,
		Applied:                   applied,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             1 << 20,
		MaxCommittedSizePerReady:  16 << 20,
		MaxUncommittedEntriesSize: 1 << 30, // the queue of proposals is bounded before
		MaxInflightMsgs:           256,
		MaxInflightBytes:          64 << 20,
		CheckQuorum:               true,
		PreVote:                   cfg.PreVote,
		ReadOnlyOption:            raft.ReadOnlySafe,
		Logger:                    raftLogger{cfg.Logger.Sugar()},
	})
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	return rn, nil
}
