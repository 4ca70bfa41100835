package consensus

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/wal"
)

// raftLogger passes raft's lines to zap. What raft holds for information is for
// debugging: with asynchronous writes it says something about each of them.
type raftLogger struct {
	*zap.SugaredLogger
	storage *storage
}

func (l raftLogger) Info(v ...any)                 { l.Debug(v...) }
func (l raftLogger) Infof(format string, v ...any) { l.Debugf(format, v...) }

func (l raftLogger) Warning(v ...any)                 { l.Warn(v...) }
func (l raftLogger) Warningf(format string, v ...any) { l.Warnf(format, v...) }

// Panic and Panicf end raft, which has met what must not be; guard makes an error of that. Most of it is what the leader
// knows this member to have had: a program that embeds members must not end for one whose directory is an older copy.
func (l raftLogger) Panic(v ...any) { l.Panicf("%s", fmt.Sprint(v...)) }

func (l raftLogger) Panicf(format string, v ...any) {
	if l.storage.failed == nil {
		l.storage.failed = fmt.Errorf("consensus: the log does not fit what this member is told: "+format+
			"; if its data directory or a part of it is an older copy, remove this member, empty the directory and add it again", v...)
	}
	panic(l.storage.failed)
}

// storage is the log as raft reads it. Raft panics when a read fails, or when it is told what does not fit the log; guard makes
// an error of that. Owned by the goroutine that owns the core.
type storage struct {
	*wal.Log
	failed   error // the read that failed, or what raft says
	snapshot func() (*pb.Snapshot, error)
}

// Snapshot implements raft.Storage.
func (s *storage) Snapshot() (*pb.Snapshot, error) { return s.snapshot() }

// Entries implements raft.Storage.
func (s *storage) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	es, err := s.Log.Entries(lo, hi, maxSize)
	if err != nil && !errors.Is(err, raft.ErrCompacted) && !errors.Is(err, raft.ErrUnavailable) {
		s.failed = fmt.Errorf("consensus: read the log: %w", err)
	}
	return es, err
}

// guard runs f, which steps raft, and returns its error, or why raft has panicked.
func (s *storage) guard(f func() error) (err error) {
	defer func() {
		if s.failed == nil {
			return // whatever else may panic is a defect
		}
		recover()
		err = s.failed
	}()
	return f()
}

// maxInflight bounds the bytes of entries on their way to a member. When one begins to catch up, raft reads as much from the log
// at once, and sends no heartbeat meanwhile: at 10 MB/s, that is within an election timeout.
const maxInflight = 4 << 20

func newRaft(cfg *Config, log *storage, applied uint64) (*raft.RawNode, error) {
	rn, err := raft.NewRawNode(&raft.Config{
		ID:                        cfg.ID,
		ElectionTick:              cfg.ElectionTicks,
		HeartbeatTick:             1,
		Storage:                   log,
		Applied:                   applied,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             1 << 20,
		MaxCommittedSizePerReady:  16 << 20,
		MaxUncommittedEntriesSize: 1 << 30, // the queue of proposals is bounded before
		MaxInflightMsgs:           256,
		MaxInflightBytes:          maxInflight,
		CheckQuorum:               true,
		PreVote:                   cfg.PreVote,
		ReadOnlyOption:            raft.ReadOnlySafe,
		DisableProposalForwarding: true, // core does it, with the term
		StepDownOnRemoval:         true,
		Logger:                    raftLogger{cfg.Logger.Sugar(), log},
	})
	if err != nil {
		return nil, fmt.Errorf("consensus: %w", err)
	}
	return rn, nil
}
