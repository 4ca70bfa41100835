package consensus

import (
	"encoding/binary"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
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

// Bounds on batches that go to another member to be appended.
const (
	// maxForwarded is how many batches may be on their way to the leader before
	// the next one grows instead. It holds for one tick: one may have been lost.
	maxForwarded = 4
	// maxUnanswered is how many may be without any sign of their coming back.
	maxUnanswered = 64
	// maxAdopted is how many batches of other members wait here until raft takes
	// them. It cannot be reached as long as each other member keeps to its own
	// bounds, and there are fewer than 64.
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
// each here; none for another member's entries and for callers that gave up.
type apply struct {
	message *pb.Message
	callers []results
	change  uint64 // index of the last change of the membership among them, or 0
}

// stable notes that an append with n entries is on disk.
func (c *core) stable(n uint64) {
	c.unstable -= min(n, c.unstable)
	if n > 0 {
		c.stuck = 0
	}
}

// yield passes leadership on while the disk has not finished an append for an
// election timeout. Nothing else would end it: a leader heartbeats without its
// disk, and appends nothing more.
func (c *core) yield() {
	if c.state != raft.StateLeader || c.unstable == 0 || len(c.conf.GetVoters()) <= 1 {
		c.stuck = 0
		return
	}
	if c.stuck++; c.stuck < c.timeout {
		return
	}
	if c.stuck == c.timeout {
		c.logger.Warn("consensus: the disk does not finish an append; passing leadership on", zap.Uint64("entries", c.unstable))
	}
	c.passOn()
}

// propose hands on what may be: to raft, if this member leads, else to the leader.
func (c *core) propose() {
	if len(c.adopted)+len(c.proposals) == 0 {
		return
	}
	// What ready told may be a step old; a batch must carry the truth.
	b := c.raft.BasicStatus()
	leads, term := b.RaftState == raft.StateLeader, b.GetTerm()
	c.adopted = slices.DeleteFunc(c.adopted, func(m *pb.Message) bool { return !leads || m.GetTerm() != term })
	c.refuseOutdated(leads, term)
	switch {
	case leads && c.unstable == 0:
		c.append(term)
	case !leads && b.Lead != raft.None && len(c.proposals) > 0 && c.mayForward():
		c.forward(term, b.Lead)
	}
}

// append has raft append the batches of other members, and one of this member, together: each append is a write to the
// log and a message to every other member, which cost more than what they carry.
func (c *core) append(term uint64) {
	changeFrom := c.changeFrom
	entries, rest := c.adopt()
	n, own := c.nextEntry(true)
	if own != nil {
		entries = append(entries, own)
		c.noteChange(own)
	}
	if len(entries) == 0 {
		c.adopted = rest
		return
	}
	if c.raft.Step(&pb.Message{Type: pb.MsgProp.Enum(), From: &c.id, Entries: entries}) != nil {
		c.changeFrom = changeFrom
		return // leadership is being passed on: they stay and are tried again
	}
	c.adopted = rest
	if own != nil {
		c.made(batch{term: term}, n)
	}
}

// forward sends a batch to the leader.
func (c *core) forward(term, lead uint64) {
	n, e := c.nextEntry(false)
	if e == nil {
		return
	}
	if c.sentIn != term {
		c.sentIn, c.numbered = term, 0
	}
	c.numbered++
	b := batch{term: term, number: c.numbered, entry: e}
	c.send(&b, lead)
	c.ticked = false
	c.made(b, n)
}

// made notes that the first n proposals are on their way in a batch.
func (c *core) made(b batch, n int) {
	c.sequence++
	b.sequence, b.callers = c.sequence, c.proposals[:n:n]
	c.inflight = append(c.inflight, b)
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

// overdue has all that is on its way to the leader sent again when the oldest of it has not come back for an election timeout, then two,
// four, up to 32. The leader takes none behind one that it has missed, be that lost without anybody telling or overtaken on its way,
// and would not in all of its term.
func (c *core) overdue() {
	if len(c.inflight) == 0 || c.inflight[0].entry == nil {
		c.oldest = 0
		return
	}
	if first := c.inflight[0].sequence; first != c.oldest {
		c.oldest, c.waited, c.resent = first, 0, 0
	}
	if c.waited++; c.waited >= c.timeout<<c.resent {
		c.missed, c.waited, c.resent = true, 0, min(c.resent+1, 5)
	}
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

// adopt returns the entries of other members' batches that raft may append, and the batches that have to wait.
func (c *core) adopt() (entries []*pb.Entry, rest []*pb.Message) {
	for _, m := range c.adopted {
		e := m.Entries[0]
		cc, err := membershipChange(e)
		switch {
		case err != nil:
			c.logger.Warn("another member's proposal cannot be decoded", zap.Error(err))
		case cc != nil && !c.mayChange(cc.GetType() == pb.ConfChangeRemoveNode, cc.GetNodeId()):
			rest = append(rest, m)
		default:
			entries = append(entries, e)
			c.noteChange(e)
		}
	}
	return entries, rest
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
		if id != c.id && kind == raft.ProgressTypePeer && c.isHeard(id, &p) && p.Match >= match {
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

// nextEntry makes an entry of the first n proposals. It returns none if there are none, or they have to wait.
func (c *core) nextEntry(leads bool) (n int, _ *pb.Entry) {
	if len(c.proposals) == 0 {
		return 0, nil
	}
	if change := c.proposals[0].change; change != nil {
		if leads && !c.mayChange(change.Kind == machine.RemoveMember, change.Member.ID) {
			return 0, nil
		}
		data, err := encodeChange(change, c.proposer, c.sequence+1)
		if err != nil {
			c.logger.Error("a proposal cannot be encoded", zap.Error(err)) // and will expire
			return 0, nil
		}
		return 1, &pb.Entry{Type: pb.EntryConfChange.Enum(), Data: data}
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
	return n, &pb.Entry{Data: b}
}

// apply finds the callers of the entries that m asks to apply.
func (c *core) apply(m *pb.Message) apply {
	a := apply{message: m, callers: make([]results, len(m.Entries))}
	for i, e := range m.Entries {
		c.repropose(e.GetTerm())
		if proposer, sequence, ok := entryOrigin(e); ok && proposer == c.proposer {
			a.callers[i].callers = c.take(sequence)
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

func (c *core) failProposal(p proposal, err error) {
	c.failed++
	c.failures = append(c.failures, func() { p.done(machine.Result{Err: err}) })
}
