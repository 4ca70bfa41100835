package coterie

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/api"
	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/replica"
)

// service is the member as package api sees it.
type service struct {
	*Node
	compacting atomic.Bool // a defragmentation is under way
}

var _ api.Node = (*service)(nil)

func (s *service) ProposeCommand(command []byte, done func(machine.Result)) {
	s.consensus.Propose(command, done)
}

func (s *service) ProposeCommandHere(command []byte, done func(machine.Result), late func()) {
	s.consensus.ProposeHere(command, done, late)
}

func (s *service) ReadIndex(ctx context.Context) error { return s.readIndex(ctx) }
func (s *service) UpToDate() bool                      { return s.consensus.UpToDate() }
func (s *service) ReadIndexAsync(done func(error))     { s.consensus.ReadIndex(done) }

func (s *service) Status() api.Status {
	st := s.consensus.Status()
	m, _ := s.machine().Members.Get(s.data.MemberID)
	return api.Status{Leader: st.Leader, Term: st.Term, Committed: st.Commit, Applied: st.Applied, IsLearner: m.IsLearner}
}

func (s *service) DBSize() int64 {
	g, err := s.replica.Acquire()
	if err != nil {
		return 0
	}
	defer g.Release()
	return g.Engine.DiskUsage()
}

func (s *service) KV() api.KV                      { return s.machine().KV }
func (s *service) NewWatchStream() api.WatchStream { return s.machine().Watch.NewStream() }
func (s *service) Lessor() api.Lessor              { return leaderLessor{s.Node} }
func (s *service) LeaseKeys(id int64) []string     { return s.machine().Leases.Keys(id) }
func (s *service) Alarms() []*pb.AlarmMember       { return s.machine().Alarms.List(pb.AlarmType_NONE) }
func (s *service) Auth() api.Auth                  { return s.machine().Auth }

// Defragment has the engine rewrite its files in the background, so that space
// of deleted data is given back sooner than it would be. Nothing waits for it.
func (s *service) Defragment(context.Context) error {
	if !s.compacting.CompareAndSwap(false, true) {
		return nil // one is under way already
	}
	s.group.Go(func() { // ends early when Close ends s.ctx
		defer s.compacting.Store(false)
		g, err := s.replica.Acquire()
		if err != nil {
			return
		}
		defer g.Release()
		if err := g.Engine.CompactAll(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("defragmentation failed", zap.Error(err))
		}
	})
	return nil
}

// Snapshot writes the state to a file and opens it. The file has no name while it
// is sent, so a crash leaves at most one that was being written.
func (s *service) Snapshot(ctx context.Context) (api.Snapshot, error) {
	began := time.Now()
	defer func() { s.front.metrics.SnapshotSave.Observe(time.Since(began).Seconds()) }()
	f, err := os.CreateTemp(s.cfg.DataDir, replica.ExportPattern)
	if err != nil {
		return api.Snapshot{}, fmt.Errorf("make a snapshot: %w", err)
	}
	path := f.Name()
	// The name was drawn; the file itself is made by Export.
	if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
		return api.Snapshot{}, err
	}
	g, err := s.replica.Acquire()
	if err != nil {
		return api.Snapshot{}, consensus.ErrStopped
	}
	err = g.Export(ctx, path)
	g.Release()
	if err != nil {
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
