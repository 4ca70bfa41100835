package consensus

import (
	"slices"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// presence is who is heard of, as far as it lets a cluster have a leader again
// sooner than raft's own clocks would: within two election timeouts, whichever
// way the leader was cut off.
//
// Raft's followers wait for one to two election timeouts, drawn at random, and
// if two of them stand at one time they wait as long again. So the second of the
// two passes at double speed, and the time of a candidate at three times the
// speed, in which votes still come and go as long as a round trip takes less than
// a sixth of the election timeout.
//
// A leader that hears of no majority steps down after one to two election
// timeouts, and if it is still heard its followers begin to wait only then. So
// it falls silent after one, and tells the others that they need not wait.
type presence struct {
	ticks    uint64
	heard    map[uint64]uint64 // by a leader: the tick in which each voter was last heard of
	since    uint64            // the tick in which the leader was last heard of, or lost, or another role begun
	timeout  uint64            // election timeout in ticks
	deserted bool              // this member leads, and has heard of no majority for an election timeout
	lost     int               // ticks until this member stands for election, because the leader has gone; 0: it does not
}

// hear notes that a member lives.
func (c *core) hear(m *pb.Message) {
	from := m.GetFrom()
	if _, follows := c.heard[from]; follows {
		c.heard[from] = c.ticks
	}
	if from == c.lead {
		c.since = c.ticks
	}
}

// turned begins to count anew for another leader or role.
func (c *core) turned() {
	c.since, c.deserted, c.retries = c.ticks, false, nil
	c.heard = map[uint64]uint64{}
}

// watch looks, in every tick, for a leader that is missed, or for followers.
func (c *core) watch() {
	c.ticks++
	if c.state != raft.StateLeader {
		for range c.haste() {
			c.raft.Tick()
		}
		return
	}
	voters := c.conf.GetVoters()
	missing := 0
	for _, v := range voters {
		if _, known := c.heard[v]; !known {
			c.heard[v] = c.ticks
		}
		if v != c.id && c.ticks-c.heard[v] > c.timeout {
			missing++
		}
	}
	c.deserted = missing > (len(voters)-1)/2
	if !c.deserted {
		return
	}
	term := c.raft.BasicStatus().GetTerm()
	for _, v := range voters {
		// In every tick: what was sent before may still come, and make them follow again.
		if v != c.id {
			c.outbox = append(c.outbox, &pb.Message{Type: pb.MsgForgetLeader.Enum(), From: &c.id, To: &v, Term: &term})
		}
	}
}

// haste is by how many ticks more raft's clock goes on in this one.
func (c *core) haste() int {
	switch {
	case c.state == raft.StateCandidate, c.state == raft.StatePreCandidate:
		return 2
	case c.ticks-c.since > c.timeout:
		return 1
	}
	return 0
}

// forsake gives up a leader of this term that says it is not heard. It answers
// all the same, as to a heartbeat: if the leader hears that, it leads on.
func (c *core) forsake(m *pb.Message) {
	if m.GetTerm() != c.raft.BasicStatus().GetTerm() {
		return
	}
	c.gone(m.GetFrom())
	c.outbox = append(c.outbox, &pb.Message{Type: pb.MsgHeartbeatResp.Enum(), From: &c.id, To: m.From, Term: m.Term})
}

// withheld tells whether a message would make others follow this member, which
// cannot lead.
func (c *core) withheld(m *pb.Message) bool {
	return c.deserted && (m.GetType() == pb.MsgApp || m.GetType() == pb.MsgHeartbeat)
}

// gone notes that a member's process has ended, or that it says itself that it
// cannot lead. When it led, nobody has to wait for an election timeout: the first
// voter stands soon, the others follow one after another if that fails.
func (c *core) gone(id uint64) {
	c.forgive(id)
	if c.lead != id || id == c.id {
		return
	}
	rank := slices.Index(slices.DeleteFunc(slices.Sorted(slices.Values(c.conf.GetVoters())), func(v uint64) bool { return v == id }), c.id)
	if rank < 0 {
		return // a learner
	}
	if err := c.raft.ForgetLeader(); err != nil {
		return
	}
	c.lost = 1 + 2*rank
}

// succeed stands for election when it is this member's turn after a leader has
// gone.
func (c *core) succeed() {
	if c.lost == 0 {
		return
	}
	if c.lost--; c.lost == 0 && c.raft.BasicStatus().Lead == raft.None {
		if err := c.raft.Campaign(); err != nil {
			c.logger.Debug("raft: no campaign", zap.Error(err))
		}
	}
}
