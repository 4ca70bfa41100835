package coterie

import (
	"context"

	"github.com/coteriedb/coterie/consensus"
)

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
