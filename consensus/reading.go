package consensus

import (
	"encoding/binary"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

const (
	// maxRounds is how many rounds of reads may be in flight; what comes meanwhile
	// shares the next one.
	maxRounds = 2
	// maxAsked is how many questions of other members for a read index may wait.
	maxAsked = 4096
)

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

func (c *core) expireReaders(rs []read, now time.Time) []read {
	keep := 0
	for ; keep < len(rs) && !now.Before(rs[keep].deadline); keep++ {
		c.failRead(rs[keep], ErrTimeout)
	}
	return rs[keep:]
}

func (c *core) failRead(r read, err error) {
	c.failures = append(c.failures, func() { r.done(err) })
}
