package coterie

import (
	"context"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/peer"
)

// snapshots is how a member's snapshots are made and received.
type snapshots struct{ n *Node }

var _ peer.Snapshots = snapshots{}

// Take implements peer.Snapshots.
func (s snapshots) Take(context.Context) (*peer.Snapshot, error) {
	c, err := s.n.replica.Take()
	if err != nil {
		return nil, err
	}
	return &peer.Snapshot{
		Metadata: &pb.SnapshotMetadata{
			Index:     &c.Index,
			Term:      &c.Term,
			ConfState: &pb.ConfState{Voters: c.Voters, Learners: c.Learners},
		},
		Dir: c.Dir, Files: c.Files, Release: c.Release,
	}, nil
}

// Begin implements peer.Snapshots.
func (s snapshots) Begin(meta *pb.SnapshotMetadata) (string, error) {
	return s.n.replica.Begin(meta.GetIndex())
}

// Received implements peer.Snapshots.
func (s snapshots) Received(ctx context.Context, m *pb.Message, dir string) error {
	return s.n.replica.Complete(m.GetSnapshot().GetMetadata().GetIndex(), dir, func() (bool, error) {
		return s.n.consensus.ReceiveSnapshot(ctx, m)
	})
}

// Aborted implements peer.Snapshots.
func (s snapshots) Aborted(dir string) { s.n.replica.Abort(dir) }
