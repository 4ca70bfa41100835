package sim

import pb "go.etcd.io/raft/v3/raftpb"

// promise is what a member has told others: of the term that it is in, whom it has voted for in it, and up to which entry it has what
// the leader of it has.
type promise struct{ term, vote, index uint64 }

// promised notes what a message promises: its sender must know that after a crash.
func (n *network) promised(from *member, m *pb.Message) {
	switch m.GetType() {
	case pb.MsgVoteResp, pb.MsgAppResp:
	default:
		return
	}
	p := &from.promise
	if m.GetTerm() > p.term {
		*p = promise{term: m.GetTerm()}
	}
	if m.GetType() == pb.MsgVoteResp && !m.GetReject() && m.GetTerm() == p.term {
		if p.vote != 0 && p.vote != m.GetTo() {
			n.w.fail("member %d votes for %d and for %d in term %d", from.id, p.vote, m.GetTo(), p.term)
		}
		p.vote = m.GetTo()
	}
	if m.GetType() == pb.MsgAppResp && !m.GetReject() && m.GetTerm() == p.term {
		p.index = max(p.index, m.GetIndex())
	}
}

// checkPromise looks whether a member that has started knows what it had promised.
func (m *member) checkPromise(p *process) {
	hs, _, err := p.data.Log.InitialState()
	if err != nil {
		m.w.fail("member %d: %v", m.id, err)
		return
	}
	if hs.GetTerm() < m.promise.term || hs.GetTerm() == m.promise.term && m.promise.vote != 0 && hs.GetVote() != m.promise.vote {
		m.w.fail("member %d has told others of term %d and voted for %d, and starts in term %d with a vote for %d", m.id, m.promise.term, m.promise.vote, hs.GetTerm(), hs.GetVote())
	}
	last, err := p.data.Log.LastIndex()
	if err != nil {
		m.w.fail("member %d: %v", m.id, err)
		return
	}
	// In a later term another leader may have had it forget what the one before had not committed.
	if hs.GetTerm() == m.promise.term && last < m.promise.index {
		m.w.fail("member %d has told the leader of term %d that it has entry %d, and starts with entry %d as its last", m.id, m.promise.term, m.promise.index, last)
	}
}
