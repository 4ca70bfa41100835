package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Receive takes a message from another member, except for those about snapshots.
// It waits while too much of what came before has not been looked at.
func (n *Node) Receive(m *pb.Message) {
	if m.GetTo() != n.cfg.ID || raft.IsLocalMsg(m.GetType()) || m.GetType() == pb.MsgSnap {
		n.cfg.Logger.Warn("consensus: a message that is not for this member is dropped",
			zap.String("from", fmt.Sprintf("%x", m.GetFrom())), zap.Stringer("type", m.GetType()))
		return
	}
	size := messageOverhead
	for _, e := range m.Entries {
		size += len(e.Data)
	}
	if n.inbound.take(size) {
		n.inbox.put(input{messages: []*pb.Message{m}, size: size})
	}
}

// ReceiveSnapshot takes the message about a snapshot whose state has been
// received, and reports whether it will be installed. It will not if this member
// has got further by itself meanwhile.
func (n *Node) ReceiveSnapshot(ctx context.Context, m *pb.Message) (taken bool, err error) {
	index := m.GetSnapshot().GetMetadata().GetIndex()
	if _, err := ask(ctx, n, func(c *core) struct{} { c.stepSnapshot(m); return struct{}{} }); err != nil {
		return false, err
	}
	// What the step asked for has been performed when the next question is answered.
	return ask(ctx, n, func(c *core) bool { return c.received == index })
}

// stepSnapshot steps a snapshot's message. A state that is committed is so in any term: who leads now will do for the leader of an earlier term
// that has sent it.
func (c *core) stepSnapshot(m *pb.Message) {
	if term, lead := c.raft.BasicStatus().GetTerm(), c.lead; m.GetTerm() < term && lead != raft.None && lead != c.id {
		m = proto.CloneOf(m)
		m.Term, m.From = &term, &lead
	}
	c.step(m)
}

// Unreachable tells that messages to a member have been lost.
func (n *Node) Unreachable(id uint64) {
	n.calls.put(func(c *core) { c.unreachable(id) })
}

// SnapshotSent tells how it went to send a snapshot to a member.
func (n *Node) SnapshotSent(id uint64, ok bool) {
	n.calls.put(func(c *core) {
		c.snapshotSent(id, ok)
		n.noteNeed()
	})
}

// Gone tells that the process of a member has ended.
func (n *Node) Gone(id uint64) { n.calls.put(func(c *core) { c.gone(id) }) }

// Progress is how far a leader knows a member to be.
type Progress struct {
	ID      uint64
	Match   uint64 // the last entry that it has
	Learner bool
	Active  bool // it was heard of within an election timeout
}

// Progress returns how far all members are, and the leader's own last entry. It
// is ErrNotLeader unless this member leads.
func (n *Node) Progress(ctx context.Context) (all []Progress, err error) {
	all, err = ask(ctx, n, func(c *core) (all []Progress) {
		if c.state == raft.StateLeader {
			c.raft.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
				all = append(all, Progress{id, p.Match, kind == raft.ProgressTypeLearner, id == c.id || c.isHeard(id, &p)})
			})
		}
		return all
	})
	if err == nil && all == nil {
		err = ErrNotLeader
	}
	return all, err
}

// isHeard tells whether a leader has heard of a member within an election timeout. Raft begins to look anew at the end of each.
func (c *core) isHeard(id uint64, p *tracker.Progress) bool {
	at, known := c.heard[id]
	return p.RecentActive || known && c.ticks-at <= c.timeout
}

// transferPoll is how often a transfer of leadership is looked at.
const transferPoll = 5 * time.Millisecond

// TransferLeadership passes leadership to a member and returns when that leads,
// or when ctx ends.
func (n *Node) TransferLeadership(ctx context.Context, to uint64) error {
	leads, err := ask(ctx, n, func(c *core) bool {
		if c.state != raft.StateLeader {
			return false
		}
		c.raft.TransferLeader(to)
		return true
	})
	if err == nil && !leads {
		err = ErrNotLeader
	}
	if err != nil {
		return err
	}
	poll := time.NewTicker(transferPoll)
	defer poll.Stop()
	for n.Status().Leader != to {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-n.stop:
			return ErrStopped
		}
	}
	return nil
}

// Retire passes leadership, if this member has it, to the voter that is furthest
// among those that are heard of, and waits for that for at most an election
// timeout. It is for a member that is about to stop: nobody then has to find out.
func (n *Node) Retire(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(n.cfg.ElectionTicks)*n.cfg.Tick)
	defer cancel()
	all, err := n.Progress(ctx)
	if err != nil {
		return // it does not lead, or is past leading
	}
	var best Progress
	for _, p := range all {
		if p.ID != n.cfg.ID && !p.Learner && p.Active && (best.ID == 0 || p.Match > best.Match) {
			best = p
		}
	}
	if best.ID == 0 {
		return
	}
	if err := n.TransferLeadership(ctx, best.ID); err != nil && !errors.Is(err, ErrNotLeader) {
		n.cfg.Logger.Warn("consensus: leadership was not passed on in time", zap.String("to", fmt.Sprintf("%x", best.ID)), zap.Error(err))
	}
}

// ask runs f on the goroutine that owns the core, and returns what it returns.
func ask[T any](ctx context.Context, n *Node, f func(*core) T) (answer T, err error) {
	answers := make(chan T, 1)
	n.calls.put(func(c *core) { answers <- f(c) })
	select {
	case answer = <-answers:
		return answer, nil
	case <-ctx.Done():
		return answer, ctx.Err()
	case <-n.stop:
		return answer, ErrStopped
	}
}

// allowance bounds what waits: those who would exceed it wait themselves.
type allowance struct {
	limit int

	mu     sync.Mutex
	cond   sync.Cond // on mu: used has fallen, or closed is set
	used   int       // Guarded by mu.
	closed bool      // Guarded by mu.
}

func newAllowance(limit int) *allowance {
	a := &allowance{limit: limit}
	a.cond.L = &a.mu
	return a
}

// take adds n to what is used when there is room, and reports whether it has;
// not after close. What is larger than the limit passes alone.
func (a *allowance) take(n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.used > 0 && a.used+n > a.limit && !a.closed {
		a.cond.Wait()
	}
	if a.closed {
		return false
	}
	a.used += n
	return true
}

func (a *allowance) release(n int) {
	if n == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used -= n
	a.cond.Broadcast()
}

func (a *allowance) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.cond.Broadcast()
}
