package sim

import pb "go.etcd.io/raft/v3/raftpb"

// promise is what a member has told others of the term that it is in, and whom it has voted for in it.
type promise struct{ term, vote uint64 }

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
}
