package coterie

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/machine"
)

// leaseProposer is what the lessor proposes through while this member leads in
// a term. After that nothing is proposed: another leader may have renewed the
// lease.
type leaseProposer struct {
	n    *Node
	term uint64
}

// Propose implements lessor.Proposer.
func (p leaseProposer) Propose(ctx context.Context, r *pb.InternalRaftRequest) error {
	command, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	answer := make(chan machine.Result, 1)
	p.n.consensus.ProposeInTerm(p.term, command, func(r machine.Result) { answer <- r })
	select {
	case r := <-answer:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Confirm implements lessor.Proposer: a linearizable read, after which this
// member still leads in the term, was one of this term.
func (p leaseProposer) Confirm(ctx context.Context) error {
	if err := p.n.readIndex(ctx); err != nil {
		return err
	}
	if st := p.n.consensus.Status(); !st.IsLeader || st.Term != p.term {
		return consensus.ErrNotLeader
	}
	return nil
}
