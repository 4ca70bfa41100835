package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

// proposal is one command, or change of the membership, that waits to be
// replicated, or has been and waits to be applied.
type proposal struct {
	command  []byte
	change   *machine.Change // instead of a command
	term     uint64          // if not 0: to be proposed by this member as the leader of that term, or not at all
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
	term    uint64 // in which it was asked
	sent    time.Time
	readers []read
	asked   []*pb.Message // of other members, who have readers of their own
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

// Bounds on batches that go to another member to be appended.
const (
	// maxForwarded is how many batches may be on their way to the leader before
	// the next one grows instead. It holds for one tick: one may have been lost.
	maxForwarded = 4
	// maxUnanswered is how many may be without any sign of their coming back.
	maxUnanswered = 64
	// maxRounds is how many rounds of reads may be in flight; what comes meanwhile
	// shares the next one.
	maxRounds = 2
	// maxAsked is how many questions of other members for a read index may wait.
	maxAsked = 4096
	// maxAdopted is how many batches of other members wait here until raft takes
	// them.
	maxAdopted = 4096
)

// batch is a batch of this member on its way through raft. It can only be
// appended by the leader of its term.
type batch struct {
	sequence, term uint64
	callers        []proposal // none any more if their time is over
	number         uint64     // among the batches sent to the leader of the term, from 1; 0 if this member leads
	entry          *pb.Entry  // to be sent again; nil if this member leads
}

// origin is a start of a member, as it makes batches.
type origin struct{ member, proposer uint64 }

// apply is committed entries for the machine, with the callers who wait for
// each here; nil for another member's entries and for callers that gave up.
type apply struct {
	message *pb.Message
	callers [][]proposal
	change  uint64 // index of the last change of the membership among them, or 0
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
	// unstable counts the batches of this leader that are not yet on its disk.
	// A new one is made when there is none, so batches grow while the disk works.
	unstable uint64
	ticked   bool              // since the last batch was sent to a leader
	numbered uint64            // batches sent to the leader of sentIn
	sentIn   uint64            // the term of the last batch sent to a leader
	missed   bool              // some of what was sent to the leader may have been lost
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
	lead     uint64
	state    raft.StateType
	elected  bool // and the first entries of the term are not yet appended
	settled  bool // this leader has an entry of its term committed

	applied    uint64        // raft was told that entries up to here are applied
	conf       *pb.ConfState // as of applied
	changeFrom uint64        // raft takes no further change of the membership before this entry is applied
	received   uint64        // index of the last snapshot that raft took from another member
	presence
}

func (c *core) tick(now time.Time) {
	c.raft.Tick()
	c.ticked = true
	c.watch()
	c.sendAgain()
	c.succeed()
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
		if m.GetTerm() == c.raft.BasicStatus().GetTerm() {
			c.gone(m.GetFrom())
		}
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

// changed makes an applied change of the membership known to raft, which has it
// already if a snapshot of a later entry came while it was applied.
func (c *core) changed(a appliedChange) {
	if a.index > c.received {
		c.conf = c.raft.ApplyConfChange(a.change)
	}
}

// stable notes that an append with n entries is on disk.
func (c *core) stable(n uint64) { c.unstable -= min(n, c.unstable) }

// propose hands on what may be: other members' batches, and one of this member.
func (c *core) propose() {
	c.adopt()
	if len(c.proposals) == 0 {
		return
	}
	// What ready told may be a step old; a batch must carry the truth.
	b := c.raft.BasicStatus()
	leads := b.RaftState == raft.StateLeader
	if c.refuseOutdated(leads, b.GetTerm()); len(c.proposals) == 0 || b.Lead == raft.None {
		return
	}
	if leads && c.unstable > 0 || !leads && !c.mayForward() {
		return
	}
	n, e, err := c.nextEntry(leads)
	if err != nil {
		c.logger.Error("a proposal cannot be encoded", zap.Error(err)) // and will expire
		return
	}
	if e == nil {
		return
	}
	m := &pb.Message{Type: pb.MsgProp.Enum(), From: &c.id, Entries: []*pb.Entry{e}}
	made := batch{sequence: c.sequence + 1, term: b.GetTerm(), callers: c.proposals[:n:n]}
	if leads {
		if c.raft.Step(m) != nil {
			return // leadership is being passed on: they stay and are tried again
		}
		c.noteChange(e)
	} else {
		if c.sentIn != made.term {
			c.sentIn, c.numbered = made.term, 0
		}
		c.numbered++
		made.number, made.entry = c.numbered, e
		c.send(&made, b.Lead)
		c.ticked = false
	}
	c.sequence++
	c.inflight = append(c.inflight, made)
	c.proposals = c.proposals[n:]
	if len(c.proposals) == 0 {
		c.proposals = nil // the array belongs to the batches now
	}
}

// send passes a batch to the leader of its term.
func (c *core) send(b *batch, lead uint64) {
	c.outbox = append(c.outbox, &pb.Message{
		Type: pb.MsgProp.Enum(), From: &c.id, To: &lead, Term: new(b.term), Index: new(b.number), Entries: []*pb.Entry{b.entry},
	})
}

// sendAgain sends what the leader may have missed, once in a tick.
func (c *core) sendAgain() {
	b := c.raft.BasicStatus()
	if !c.missed || b.Lead == raft.None || b.Lead == c.id {
		return
	}
	c.missed = false
	for i := range c.inflight {
		if again := &c.inflight[i]; again.term == b.GetTerm() && again.entry != nil {
			c.send(again, b.Lead)
		}
	}
}

// unreachable notes that messages to a member were lost: to the leader, or to who
// was it, and still is, when its process was thought to have gone.
func (c *core) unreachable(id uint64) {
	c.missed = c.missed || id == c.lead || c.lead == raft.None
	c.raft.ReportUnreachable(id)
}

// adoptLater takes a batch of another member for adopt, if it is of the term in
// which this member leads and the next of its origin.
func (c *core) adoptLater(m *pb.Message) {
	b := c.raft.BasicStatus()
	if b.RaftState != raft.StateLeader || m.GetTerm() != b.GetTerm() || len(m.Entries) != 1 || len(c.adopted) >= maxAdopted {
		return
	}
	proposer, _, ok := entryOrigin(m.Entries[0])
	if !ok {
		return
	}
	if c.takenIn != b.GetTerm() {
		c.takenIn, c.taken = b.GetTerm(), map[origin]uint64{}
	}
	if from := (origin{m.GetFrom(), proposer}); m.GetIndex() == c.taken[from]+1 {
		c.taken[from]++
		c.adopted = append(c.adopted, m)
	}
}

// mayForward reports whether another batch may be sent to the leader.
func (c *core) mayForward() bool {
	return len(c.inflight) < maxForwarded || len(c.inflight) < maxUnanswered && c.ticked
}

// adopt has raft append the batches of other members, if this member leads in
// their term.
func (c *core) adopt() {
	if len(c.adopted) == 0 {
		return
	}
	b := c.raft.BasicStatus()
	keep := c.adopted[:0]
	for _, m := range c.adopted {
		if b.RaftState != raft.StateLeader || m.GetTerm() != b.GetTerm() {
			continue
		}
		cc, err := membershipChange(m.Entries[0])
		if err != nil {
			c.logger.Warn("another member's proposal cannot be decoded", zap.Error(err))
			continue
		}
		local := &pb.Message{Type: pb.MsgProp.Enum(), From: m.From, Entries: m.Entries}
		if cc != nil && !c.mayChange(cc.GetType() == pb.ConfChangeRemoveNode, cc.GetNodeId()) || c.raft.Step(local) != nil {
			keep = append(keep, m)
			continue
		}
		c.noteChange(m.Entries[0])
	}
	clear(c.adopted[len(keep):])
	c.adopted = keep
}

// mayChange reports whether raft would append a change of the membership; it
// replaces one by an empty entry while another may still be unapplied. From when
// on a new leader may is known when ready has told that it leads.
//
// A leader does not remove itself, but passes leadership on. It would stop to
// lead when it has applied that, perhaps before any other member has heard that
// the entry is committed. The last voter to stay would then wait for its vote.
func (c *core) mayChange(remove bool, id uint64) bool {
	if c.state != raft.StateLeader || c.applied < c.changeFrom {
		return false
	}
	if !remove || id != c.id || len(c.conf.GetVoters()) <= 1 {
		return true
	}
	c.passOn()
	return false
}

// passOn begins to pass leadership on to the voter that is furthest among those
// that are heard of.
func (c *core) passOn() {
	if c.raft.BasicStatus().LeadTransferee != raft.None {
		return
	}
	var to, match uint64
	c.raft.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
		if id != c.id && kind == raft.ProgressTypePeer && p.RecentActive && p.Match >= match {
			to, match = id, p.Match
		}
	})
	if to != raft.None {
		c.raft.TransferLeader(to)
	}
}

// noteChange remembers that raft has taken an entry that changes the membership.
// Its index is known when the entry comes to be written.
func (c *core) noteChange(e *pb.Entry) {
	if e.GetType() == pb.EntryConfChange {
		c.changeFrom = math.MaxUint64
	}
}

// refuseOutdated fails the proposals that are only for a leader of another term.
func (c *core) refuseOutdated(leads bool, term uint64) {
	c.proposals = slices.DeleteFunc(c.proposals, func(p proposal) bool {
		outdated := p.term != 0 && (!leads || p.term != term)
		if outdated {
			c.failProposal(p, ErrNotLeader)
		}
		return outdated
	})
}

// nextEntry makes an entry of the first n proposals. It returns none if they
// have to wait.
func (c *core) nextEntry(leads bool) (n int, _ *pb.Entry, _ error) {
	if change := c.proposals[0].change; change != nil {
		if leads && !c.mayChange(change.Kind == machine.RemoveMember, change.Member.ID) {
			return 0, nil, nil
		}
		data, err := encodeChange(change, c.proposer, c.sequence+1)
		return 1, &pb.Entry{Type: pb.EntryConfChange.Enum(), Data: data}, err
	}
	size := batchHeaderLen
	for n < len(c.proposals) && c.proposals[n].change == nil {
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
	return n, &pb.Entry{Data: b}, nil
}

// apply finds the callers of the entries that m asks to apply.
func (c *core) apply(m *pb.Message) apply {
	a := apply{message: m, callers: make([][]proposal, len(m.Entries))}
	for i, e := range m.Entries {
		c.repropose(e.GetTerm())
		if proposer, sequence, ok := entryOrigin(e); ok && proposer == c.proposer {
			a.callers[i] = c.take(sequence)
		}
		if e.GetType() == pb.EntryConfChange {
			a.change = e.GetIndex()
		}
	}
	return a
}

// repropose puts the batches of terms before the given one, of which an entry is
// committed, back in front of what waits: they are not in the log and never will be.
func (c *core) repropose(term uint64) {
	n := 0
	var again []proposal
	for ; n < len(c.inflight) && c.inflight[n].term < term; n++ {
		again = append(again, c.inflight[n].callers...)
	}
	if n > 0 {
		c.inflight = slices.Delete(c.inflight, 0, n)
		c.proposals = append(again, c.proposals...)
	}
}

// forget fails all batches, because the state of a snapshot takes the place of
// entries: which of them it has cannot be seen here. What comes of them is not
// looked for any more, and batches are numbered anew, as of another origin: none
// is kept to be sent again that would never come by.
func (c *core) forget() {
	for i := range c.inflight {
		c.giveUp(&c.inflight[i])
	}
	c.inflight = nil
	c.proposer++ // of 64 random bits
	c.numbered = 0
}

// giveUp fails the callers of a batch, which may still take effect.
func (c *core) giveUp(b *batch) {
	for _, p := range b.callers {
		c.failProposal(p, ErrTimeout)
	}
	b.callers = nil
}

// dropGivenUp forgets batches without callers, but for those that were sent to a
// leader: it takes none of a later number before it has them.
func (c *core) dropGivenUp() {
	c.inflight = slices.DeleteFunc(c.inflight, func(b batch) bool { return b.callers == nil && b.number == 0 })
}

// take returns and forgets the callers of a batch.
func (c *core) take(sequence uint64) []proposal {
	// Batches are applied in the order of their making, but for those that were
	// lost on their way to the leader: what is looked for stands in front.
	for i, b := range c.inflight {
		if b.sequence == sequence {
			// Of those that were sent in this term before it, and given up, none is still to come.
			from := i
			for from > 0 && c.inflight[from-1].term == b.term && c.inflight[from-1].callers == nil {
				from--
			}
			c.inflight = slices.Delete(c.inflight, from, i+1)
			return b.callers
		}
	}
	return nil
}

// requestRead starts a round when readers wait and not too many are in flight.
func (c *core) requestRead(now time.Time) {
	if len(c.rounds) >= maxRounds || len(c.readers)+len(c.asked) == 0 || c.lead == raft.None || !c.commitIsKnown() {
		return
	}
	c.roundID++
	r := &round{id: c.roundID, sent: now, readers: c.readers, asked: c.asked}
	c.rounds = append(c.rounds, r)
	c.readers, c.asked = nil, nil
	c.requestReadIndex(r)
}

// answer lets the readers of a confirmed round go on, here and on the members
// that asked, unless the term in which they did is over.
func (c *core) answer(r *round, index uint64) barrier {
	b := c.raft.BasicStatus()
	for _, m := range r.asked {
		if b.GetTerm() != r.term {
			break
		}
		c.outbox = append(c.outbox, &pb.Message{
			Type: pb.MsgReadIndexResp.Enum(), From: &c.id, To: m.From, Term: &r.term, Index: &index, Entries: m.Entries,
		})
	}
	return barrier{index, r.readers}
}

// commitIsKnown reports whether this member may ask for a read index. A new
// leader knows all that was committed only when an entry of its own term is.
// Raft sees to that itself, except for a leader that is alone: it answers at
// once, with a commit index that after a restart is behind what was
// acknowledged.
func (c *core) commitIsKnown() bool {
	if c.settled {
		return true
	}
	b := c.raft.BasicStatus() // what ready told may be a step old
	if b.RaftState != raft.StateLeader {
		return true
	}
	term, err := c.termOf(b.GetCommit())
	c.settled = err == nil && term == b.GetTerm()
	return c.settled
}

func (c *core) requestReadIndex(r *round) {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], c.proposer)
	binary.BigEndian.PutUint64(id[8:], r.id)
	r.term = c.raft.BasicStatus().GetTerm()
	c.raft.ReadIndex(id[:])
}

// confirmed returns the round that raft answers, and forgets it.
func (c *core) confirmed(rs raft.ReadState) *round {
	if len(rs.RequestCtx) != 16 || binary.BigEndian.Uint64(rs.RequestCtx) != c.proposer {
		return nil
	}
	id := binary.BigEndian.Uint64(rs.RequestCtx[8:])
	i := slices.IndexFunc(c.rounds, func(r *round) bool { return r.id == id })
	if i < 0 {
		return nil
	}
	r := c.rounds[i]
	c.rounds = slices.Delete(c.rounds, i, i+1)
	return r
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

// turn notes who leads and what this member is.
func (c *core) turn(lead uint64, state raft.StateType) {
	c.elected = state == raft.StateLeader && c.state != raft.StateLeader
	c.lead, c.state = lead, state
	c.turned()
	c.settled = false
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

// raftLogger passes raft's lines to zap. What raft holds for information is for
// debugging: with asynchronous writes it says something about each of them.
type raftLogger struct{ *zap.SugaredLogger }

func (l raftLogger) Info(v ...any)                 { l.Debug(v...) }
func (l raftLogger) Infof(format string, v ...any) { l.Debugf(format, v...) }

func (l raftLogger) Warning(v ...any)                 { l.Warn(v...) }
func (l raftLogger) Warningf(format string, v ...any) { l.Warnf(format, v...) }

// storage is the log as raft reads it. Raft panics when a read fails; guard makes
// an error of that. Owned by the goroutine that owns the core.
type storage struct {
	*wal.Log
	failed   error // the read that failed
	snapshot func() (*pb.Snapshot, error)
}

// Snapshot implements raft.Storage.
func (s *storage) Snapshot() (*pb.Snapshot, error) { return s.snapshot() }

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
		DisableProposalForwarding: true, // core does it, with the term
		StepDownOnRemoval:         true,
		Logger:                    raftLogger{cfg.Logger.Sugar()},
	})
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	return rn, nil
}
