package consensus

import (
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// output is what a step of the core asks its owner to do. All parts may go on
// at the same time; the responses that a message carries are stepped when what
// it asks is done.
type output struct {
	appends  []*pb.Message // to the log, in order
	written  bool          // of them more than a commit index is to be written
	applies  []apply       // to the machine, in order
	peers    []*pb.Message // to other members
	barriers []barrier     // readers whose index is known
	failures []func()      // callers to be told of an error
}

// core is consensus without I/O, goroutines or a clock of its own: inputs go in
// by its methods, work comes out of ready. One goroutine owns it, or a
// simulation.
//
// A batch is appended by the leader of the term that it was made in, or never:
// a follower sends it to the leader that it knows together with the term, and a
// leader takes none of another term. Terms in the log only grow, so when an
// entry of a later term is committed, the batches of earlier terms that have
// not come by then never will, and they are proposed once more. A change of
// leaders thus loses no proposal and repeats none.
//
// Within a term a connection may break and lose what was sent to the leader. So
// a follower numbers its batches of a term, a leader takes each number once and in
// order, and what may have been lost is sent again.
type core struct {
	id        uint64
	raft      *raft.RawNode
	logger    *zap.Logger
	proposer  uint64
	batchMax  int
	retryRead time.Duration
	termOf    func(index uint64) (uint64, error) // of an entry in the log

	proposals []proposal // not yet in a batch
	sequence  uint64     // of the last batch
	// inflight are the batches proposed and not applied, oldest first, so that
	// their terms do not fall.
	inflight []batch
	// unstable counts the entries of this leader that are not yet on its disk.
	// It appends more when there are none, so that appends grow while the disk works.
	unstable uint64
	stuck    uint64            // ticks since there are some, or the disk last finished one
	ticked   bool              // since the last batch was sent to a leader
	numbered uint64            // batches sent to the leader of sentIn
	sentIn   uint64            // the term of the last batch sent to a leader
	missed   bool              // some of what was sent to the leader may have been lost
	oldest   uint64            // sequence of the batch that has been under way for longest
	waited   uint64            // ticks since it is that one, or was sent again
	resent   uint              // so many times
	adopted  []*pb.Message     // batches of other members that this leader has not appended yet
	taken    map[origin]uint64 // the number of the last batch adopted of each, in takenIn
	takenIn  uint64            // the term in which this member leads, or last adopted
	outbox   []*pb.Message     // for other members

	readers []read        // waiting for the next round
	asked   []*pb.Message // other members' questions to this leader, likewise
	rounds  []*round      // in flight, oldest first
	roundID uint64

	failures []func()
	failed   uint64 // proposals among the failures so far
	term     uint64 // that the log was last told to write
	vote     uint64 // likewise
	lead     uint64
	state    raft.StateType
	elected  bool // and the first entries of the term are not yet appended
	settled  bool // this leader has an entry of its term committed

	applied    uint64            // raft was told that entries up to here are applied
	conf       *pb.ConfState     // as of applied
	changeFrom uint64            // raft takes no further change of the membership before this entry is applied
	received   uint64            // index of the last snapshot that raft took from another member
	installs   map[uint64]uint64 // by a leader: the snapshot that a member was sent, until it says that it has it
	retries    map[uint64]retry  // of snapshots that could not be sent, by member
	presence
}

func (c *core) tick(now time.Time) {
	c.raft.Tick()
	c.ticked = true
	c.watch()
	c.yield()
	c.overdue()
	c.sendAgain()
	c.succeed()
	c.retrySnapshots()
	c.expire(now)
	for _, r := range c.rounds {
		if now.Sub(r.sent) >= c.retryRead && c.commitIsKnown() {
			// Raft drops a request without a word when it loses its leader.
			r.sent = now
			c.requestReadIndex(r)
		}
	}
}

// step feeds a message from a peer, or a response to an output.
func (c *core) step(m *pb.Message) {
	c.hear(m)
	switch m.GetType() {
	case pb.MsgForgetLeader:
		c.forsake(m)
		return
	case pb.MsgProp:
		c.adoptLater(m)
		return
	case pb.MsgReadIndex:
		// Raft would answer each in a round of heartbeats of its own. Who is not answered asks again.
		if c.state == raft.StateLeader && len(c.asked) < maxAsked && len(m.Entries) == 1 {
			c.asked = append(c.asked, m)
		}
		return
	case pb.MsgHeartbeatResp:
		if n := len(m.Context); n != 0 && n != 8 {
			return // raft would read beyond its end
		}
	case pb.MsgStorageApplyResp:
		if n := len(m.Entries); n > 0 {
			c.applied = max(c.applied, m.Entries[n-1].GetIndex())
		}
	case pb.MsgStorageAppendResp:
		if m.Snapshot != nil {
			c.applied = max(c.applied, m.Snapshot.GetMetadata().GetIndex())
		}
	}
	if err := c.raft.Step(m); err != nil && !errors.Is(err, raft.ErrProposalDropped) {
		c.logger.Debug("raft: message not taken", zap.Stringer("type", m.GetType()), zap.Error(err))
	}
}

// alone reports whether this member leads and there are no others.
func (c *core) alone() bool {
	voters := c.conf.GetVoters()
	return c.state == raft.StateLeader && len(voters) == 1 && voters[0] == c.id && len(c.conf.GetLearners()) == 0
}

// changed makes an applied change of the membership known to raft, which has it
// already if a snapshot of a later entry came while it was applied.
func (c *core) changed(a appliedChange) {
	if a.index > c.received {
		c.conf = c.raft.ApplyConfChange(a.change)
	}
}

// expire tells the callers whose time is over. What was proposed for them may
// still happen.
func (c *core) expire(now time.Time) {
	keep := 0
	for ; keep < len(c.proposals) && !now.Before(c.proposals[keep].deadline); keep++ {
		c.failProposal(c.proposals[keep], ErrTimeout)
	}
	c.proposals = c.proposals[keep:]
	for i := range c.inflight {
		b := &c.inflight[i]
		if b.callers == nil {
			continue
		}
		// One batch was made at one time: its deadlines are close together.
		if now.Before(b.callers[len(b.callers)-1].deadline) {
			break
		}
		c.giveUp(b)
	}
	c.dropGivenUp()
	c.readers = c.expireReaders(c.readers, now)
	c.rounds = slices.DeleteFunc(c.rounds, func(r *round) bool {
		r.readers = c.expireReaders(r.readers, now)
		return len(r.readers)+len(r.asked) == 0
	})
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
	for _, r := range c.rounds {
		rs = append(rs, r.readers...)
	}
	for _, r := range rs {
		c.failRead(r, err)
	}
	c.proposals, c.inflight, c.readers, c.rounds = nil, nil, nil, nil
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
		c.turn(rd.Lead, rd.RaftState)
	}
	for _, rs := range rd.ReadStates {
		if r := c.confirmed(rs); r != nil {
			if b := c.answer(r, rs.Index); len(b.readers) > 0 {
				out.barriers = append(out.barriers, b)
			}
		}
	}
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			if c.state == raft.StateLeader {
				c.unstable += uint64(len(m.Entries))
				for _, e := range m.Entries {
					// Raft assumes that what was in the log before this leader could be a change.
					if c.elected || e.GetType() == pb.EntryConfChange {
						c.changeFrom, c.elected = e.GetIndex(), false
					}
				}
			}
			if m.Snapshot != nil && !raft.IsEmptySnap(m.Snapshot) {
				meta := m.Snapshot.GetMetadata()
				c.received, c.conf = meta.GetIndex(), meta.GetConfState()
				c.forget()
			}
			out.appends = append(out.appends, m)
			out.written = out.written || c.mustWrite(m)
		case raft.LocalApplyThread:
			out.applies = append(out.applies, c.apply(m))
		default:
			if !c.withheld(m) {
				out.peers = append(out.peers, m)
			}
		}
	}
	out.peers = append(out.peers, c.outbox...)
	c.outbox = nil
	out.failures, c.failures = c.failures, nil
	return out
}

// mustWrite reports whether a message for the log is of anything but a commit
// index, which goes with the next write.
func (c *core) mustWrite(m *pb.Message) bool {
	moved := m.Term != nil && (m.GetTerm() != c.term || m.GetVote() != c.vote)
	if moved {
		c.term, c.vote = m.GetTerm(), m.GetVote()
	}
	return moved || len(m.Entries) > 0 || len(m.Responses) > 0 || m.Snapshot != nil && !raft.IsEmptySnap(m.Snapshot)
}

// turn notes who leads and what this member is.
func (c *core) turn(lead uint64, state raft.StateType) {
	c.elected = state == raft.StateLeader && c.state != raft.StateLeader
	c.lead, c.state = lead, state
	c.turned()
	c.settled, c.installs = false, nil
	if state != raft.StateLeader {
		c.unstable, c.asked = 0, nil
		for _, r := range c.rounds {
			r.asked = nil
		}
	}
	if lead == raft.None {
		return
	}
	c.lost = 0
	for _, r := range c.rounds {
		if c.commitIsKnown() {
			c.requestReadIndex(r) // the leader before may have taken it with him
		}
	}
}

func (c *core) hasReady() bool {
	return len(c.failures) > 0 || len(c.outbox) > 0 || c.raft.HasReady()
}

// snapshot is what raft says of the state that a lagging member is to be sent.
// The state itself is taken when it is sent, and then is this one or a later one.
func (c *core) snapshot() (*pb.Snapshot, error) {
	term, err := c.termOf(c.applied)
	if err != nil || c.applied == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(c.applied), Term: &term, ConfState: c.conf}}, nil
}
