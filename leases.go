package coterie

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/lessor"
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
	return leading(await(ctx, func(done func(machine.Result)) { p.n.consensus.ProposeInTerm(p.term, command, done) }).Err)
}

// Confirm implements lessor.Proposer: a linearizable read, after which this
// member still leads in the term, was one of this term.
func (p leaseProposer) Confirm(ctx context.Context) error {
	if err := p.n.readIndex(ctx); err != nil {
		return leading(err)
	}
	if !p.leads() {
		return lessor.ErrNotPrimary
	}
	return nil
}

// leading makes the lessor's error of one that says that this member does not lead any more.
func leading(err error) error {
	if errors.Is(err, consensus.ErrNotLeader) {
		return fmt.Errorf("%w: %w", lessor.ErrNotPrimary, err)
	}
	return err
}

// Confirmed implements lessor.Proposer.
func (p leaseProposer) Confirmed() bool { return p.n.consensus.UpToDate() && p.leads() }

// leads tells whether this member still leads in the term.
func (p leaseProposer) leads() bool {
	st := p.n.consensus.Status()
	return st.IsLeader && st.Term == p.term
}

// leaderLessor is the lessor of the leader, whichever member that is.
type leaderLessor struct{ n *Node }

// Renew implements api.Lessor.
func (l leaderLessor) Renew(ctx context.Context, id int64) (ttl int64, err error) {
	if l.n.leads() {
		return l.n.lessor.Renew(ctx, id)
	}
	return l.n.remoteLessor.Renew(ctx, id)
}

// RenewNow implements api.Lessor.
func (l leaderLessor) RenewNow(id int64) (ttl int64, ok bool) { return l.n.lessor.RenewNow(id) }

// TimeToLive implements api.Lessor.
func (l leaderLessor) TimeToLive(ctx context.Context, id int64) (granted, remaining int64, err error) {
	if l.n.leads() {
		return l.n.lessor.TimeToLive(ctx, id)
	}
	return l.n.remoteLessor.TimeToLive(ctx, id)
}

// Leases implements api.Lessor. Which leases there are every member knows.
func (l leaderLessor) Leases() []int64 { return l.n.lessor.Leases() }

func (n *Node) leads() bool { return n.consensus.Status().IsLeader }
