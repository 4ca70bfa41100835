package coterie

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coteriedb/coterie/api"
)

// errMembership refuses changes of the membership.
var errMembership = status.Error(codes.Unimplemented, "coterie: changes of the membership are not supported by this version")

// snapshotPattern names the files that snapshots are sent from. They exist
// without a name while they are sent, so a crash leaves at most one that was
// being written; the next start removes it.
const snapshotPattern = "snapshot-*.tmp"

// service is the member as package api sees it.
type service struct {
	*Node
	compacting atomic.Bool // a defragmentation is under way
}

var _ api.Node = (*service)(nil)

func (s *service) ReadIndex(ctx context.Context) error { return s.readIndex(ctx) }

func (s *service) Status() api.Status {
	st := s.consensus.Status()
	return api.Status{Leader: st.Leader, Term: st.Term, Committed: st.Commit, Applied: st.Applied}
}

func (s *service) DBSize() int64 { return s.data.engine.DiskUsage() }

func (s *service) KV() api.KV                      { return s.machine.KV }
func (s *service) NewWatchStream() api.WatchStream { return s.machine.Watch.NewStream() }
func (s *service) Lessor() api.Lessor              { return s.lessor }
func (s *service) LeaseKeys(id int64) []string     { return s.machine.Leases.Keys(id) }
func (s *service) Alarms() []*pb.AlarmMember       { return s.machine.Alarms.List(pb.AlarmType_NONE) }
func (s *service) Auth() api.Auth                  { return s.machine.Auth }

// Defragment has the engine rewrite its files in the background, so that space
// of deleted data is given back sooner than it would be. Nothing waits for it.
func (s *service) Defragment(context.Context) error {
	if !s.compacting.CompareAndSwap(false, true) {
		return nil // one is under way already
	}
	s.group.Go(func() { // ends early when Close ends s.ctx
		defer s.compacting.Store(false)
		if err := s.data.engine.CompactAll(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("defragmentation failed", zap.Error(err))
		}
	})
	return nil
}

// Snapshot writes the state to a file and opens it.
func (s *service) Snapshot(ctx context.Context) (api.Snapshot, error) {
	began := time.Now()
	defer func() { s.front.metrics.SnapshotSave.Observe(time.Since(began).Seconds()) }()
	f, err := os.CreateTemp(s.cfg.DataDir, snapshotPattern)
	if err != nil {
		return api.Snapshot{}, fmt.Errorf("make a snapshot: %w", err)
	}
	path := f.Name()
	// The name was drawn; the file itself is made by Export.
	if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
		return api.Snapshot{}, err
	}
	if err := s.machine.Export(ctx, path); err != nil {
		return api.Snapshot{}, err
	}
	f, err = os.Open(path)
	if err != nil {
		return api.Snapshot{}, err
	}
	info, err := f.Stat()
	if err := errors.Join(err, os.Remove(path)); err != nil {
		return api.Snapshot{}, errors.Join(err, f.Close())
	}
	return api.Snapshot{ReadCloser: f, Size: info.Size()}, nil
}

// removeSnapshots removes what a crash left of snapshots being written.
func removeSnapshots(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, snapshotPattern))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) MoveLeader(_ context.Context, to uint64) error {
	if _, ok := s.machine.Members.Get(to); !ok {
		return rpctypes.ErrBadLeaderTransferee
	}
	if to == s.consensus.Status().Leader {
		return nil
	}
	return rpctypes.ErrTimeout
}

func (s *service) Members() []*pb.Member {
	var out []*pb.Member
	for _, m := range s.machine.Members.List() {
		out = append(out, &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner})
	}
	return out
}

func (s *service) AddMember(context.Context, []string, bool) (*pb.Member, []*pb.Member, error) {
	return nil, nil, errMembership
}

func (s *service) RemoveMember(_ context.Context, id uint64) ([]*pb.Member, error) {
	if err := s.known(id); err != nil {
		return nil, err
	}
	return nil, rpctypes.ErrMemberNotEnoughStarted // it is the last one
}

func (s *service) UpdateMember(_ context.Context, id uint64, _ []string) ([]*pb.Member, error) {
	if err := s.known(id); err != nil {
		return nil, err
	}
	return nil, errMembership
}

func (s *service) PromoteMember(_ context.Context, id uint64) ([]*pb.Member, error) {
	if err := s.known(id); err != nil {
		return nil, err
	}
	return nil, rpctypes.ErrMemberNotLearner // the only member votes
}

func (s *service) known(id uint64) error {
	if _, ok := s.machine.Members.Get(id); !ok {
		return rpctypes.ErrMemberNotFound
	}
	return nil
}
