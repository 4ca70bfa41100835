package coterie

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/peer"
	"github.com/coteriedb/coterie/storage/direct"
	"github.com/coteriedb/coterie/storage/engine"
)

// replica is this member's state as consensus drives it: the machine of the
// moment on its engine. A snapshot from another member replaces both: the new
// machine is built from the files that were received, one pointer is moved, and
// the old one ends when its readers have.
type replica struct {
	data     *dataDir
	log      *zap.Logger
	open     func(*engine.Engine) (*machine.Machine, error)
	options  engine.Options
	switched func(*generation)      // told of a new machine, on the goroutine that applies
	changed  func([]machine.Change) // told of changes of the membership that were applied, likewise

	current    atomic.Pointer[generation]
	installing atomic.Int32  // 1 while a snapshot replaces the state
	flushed    chan struct{} // of whichever engine is current
	retired    sync.WaitGroup
	ctx        context.Context // of forwarding flushes; ended by stop
	stop       context.CancelFunc
}

var _ consensus.StateMachine = (*replica)(nil)

// generation is one machine and the engine under it.
type generation struct {
	*machine.Machine
	engine *engine.Engine
	dir    string
	// files is held for reading by whoever works on the engine beside the machine,
	// and for writing to close it.
	files sync.RWMutex
	ended context.CancelFunc
}

// begin makes g, the machine of a start, the current one.
func (r *replica) begin(g *generation) {
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.flushed = make(chan struct{}, 1)
	r.follow(g)
}

// follow makes g current and passes its flushes on.
func (r *replica) follow(g *generation) {
	ctx, cancel := context.WithCancel(r.ctx)
	g.ended = cancel
	r.current.Store(g)
	r.retired.Go(func() { // ended by retiring g, or by close, which waits
		for {
			select {
			case <-ctx.Done():
				return
			case <-g.Flushed():
			}
			select {
			case r.flushed <- struct{}{}:
			default:
			}
		}
	})
}

// acquire returns the current generation, whose engine stays open until release.
func (r *replica) acquire() *generation {
	for {
		if g := r.current.Load(); g.files.TryRLock() { // else it has been replaced
			return g
		}
	}
}

func (g *generation) release() { g.files.RUnlock() }

// Apply implements consensus.StateMachine.
func (r *replica) Apply(entries []machine.Entry) ([]machine.Result, error) {
	results, err := r.current.Load().Apply(entries)
	if err != nil {
		return nil, err
	}
	var changes []machine.Change
	rest := results
	for i := range entries {
		if c := entries[i].Change; c != nil {
			if rest[0].Err == nil {
				changes = append(changes, *c)
			}
			rest = rest[1:]
		}
		rest = rest[len(entries[i].Commands):]
	}
	if len(changes) > 0 {
		r.changed(changes)
	}
	return results, nil
}

// Applied implements consensus.StateMachine.
func (r *replica) Applied() uint64 { return r.current.Load().Applied() }

// DurableIndex implements consensus.StateMachine.
func (r *replica) DurableIndex() (uint64, error) {
	g := r.acquire()
	defer g.release()
	return g.DurableIndex()
}

// Flushed implements consensus.StateMachine.
func (r *replica) Flushed() <-chan struct{} { return r.flushed }

// StartFlush implements consensus.StateMachine. It is called like Apply.
func (r *replica) StartFlush() error { return r.current.Load().StartFlush() }

// Install implements consensus.StateMachine.
func (r *replica) Install(index, term uint64) error {
	r.installing.Store(1)
	defer r.installing.Store(0)
	dir := r.data.snapshotDir(index)
	g, err := r.load(dir, index, term)
	if err != nil {
		return err
	}
	if err := r.data.use(dir); err != nil {
		return errors.Join(err, g.engine.Close())
	}
	old := r.current.Load()
	r.follow(g)
	r.switched(g)
	r.log.Info("state replaced by a snapshot", zap.Uint64("index", index), zap.Int64("revision", g.KV.Revision()))
	r.retired.Go(func() { r.retire(old) }) // ends with the readers of old; close waits
	return nil
}

// load opens the machine in a directory that holds a received snapshot.
func (r *replica) load(dir string, index, term uint64) (*generation, error) {
	o := r.options
	o.Dir, o.MustExist, o.ReadOnly = filepath.Join(r.data.dir, dir), true, false
	eng, err := engine.Open(o)
	if err != nil {
		return nil, err
	}
	m, err := r.open(eng)
	if err == nil && m.Applied() != index {
		m.Close()
		err = fmt.Errorf("the snapshot in %s is of entry %d, not %d", o.Dir, m.Applied(), index)
	}
	if err != nil {
		return nil, errors.Join(err, eng.Close())
	}
	return &generation{Machine: m, engine: eng, dir: dir}, nil
}

// retire ends a machine that has been replaced and removes its files.
func (r *replica) retire(g *generation) {
	g.ended()
	g.Close()
	g.files.Lock() // for ever
	if err := errors.Join(g.engine.Close(), direct.RemoveAll(filepath.Join(r.data.dir, g.dir))); err != nil {
		r.log.Warn("the state before a snapshot was not removed; the next start will", zap.String("dir", g.dir), zap.Error(err))
	}
}

// close ends the current machine. Consensus has stopped. The engine is closed
// after a flush, if flush says so, so that the next start replays nothing and
// reads little.
func (r *replica) close(flush bool) error {
	if r.current.Load() == nil {
		return nil
	}
	r.stop()
	r.retired.Wait()
	g := r.current.Load()
	var err error
	if flush {
		err = g.KV.SaveIndex()
	}
	g.Close()
	g.files.Lock()
	if flush && err == nil {
		err = g.engine.Flush()
	}
	return errors.Join(err, g.engine.Close())
}

// Names of what comes and goes in a data directory. The next start removes what
// a crash has left of it.
const (
	incomingSuffix  = ".incoming"      // behind an engine's directory, until the snapshot is complete
	outgoingPattern = "outgoing-*.tmp" // checkpoints being sent
)

// snapshots is how a member's snapshots are made and received.
type snapshots struct{ n *Node }

var _ peer.Snapshots = snapshots{}

// Take implements peer.Snapshots.
func (s snapshots) Take(ctx context.Context) (*peer.Snapshot, error) {
	r := s.n.replica
	parent, err := os.MkdirTemp(r.data.dir, outgoingPattern)
	if err != nil {
		return nil, fmt.Errorf("make a snapshot: %w", err)
	}
	release := func() {
		if err := direct.RemoveAll(parent); err != nil {
			s.n.log.Warn("a sent snapshot was not removed", zap.String("dir", parent), zap.Error(err))
		}
	}
	dir := filepath.Join(parent, engineDir)
	g := r.acquire()
	state, err := g.Checkpoint(dir)
	g.release()
	var files []string
	if err == nil {
		files, err = fileNames(dir)
	}
	if err != nil {
		release()
		return nil, fmt.Errorf("make a snapshot: %w", err)
	}
	return &peer.Snapshot{
		Metadata: &pb.SnapshotMetadata{
			Index:     &state.Index,
			Term:      &state.Term,
			ConfState: &pb.ConfState{Voters: state.Voters, Learners: state.Learners},
		},
		Dir: dir, Files: files, Release: release,
	}, nil
}

func fileNames(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Begin implements peer.Snapshots.
func (s snapshots) Begin(meta *pb.SnapshotMetadata) (string, error) {
	if meta.GetIndex() <= s.n.replica.Applied() {
		return "", fmt.Errorf("entry %d is applied here, and the snapshot is of entry %d", s.n.replica.Applied(), meta.GetIndex())
	}
	dir := filepath.Join(s.n.data.dir, s.n.data.snapshotDir(meta.GetIndex()))
	if _, err := os.Stat(dir); err == nil {
		return "", fmt.Errorf("the snapshot of entry %d is being installed", meta.GetIndex())
	}
	dir += incomingSuffix
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.Mkdir(dir, 0o700)
}

// Received implements peer.Snapshots: the directory gets its name, which says
// that it is complete, and then consensus decides.
func (s snapshots) Received(ctx context.Context, m *pb.Message, dir string) error {
	data := s.n.data
	complete := filepath.Join(data.dir, data.snapshotDir(m.GetSnapshot().GetMetadata().GetIndex()))
	if err := os.Rename(dir, complete); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err := syncDir(data.dir); err != nil {
		return errors.Join(err, os.RemoveAll(complete))
	}
	taken, err := s.n.consensus.ReceiveSnapshot(ctx, m)
	if err == nil && !taken {
		s.n.log.Info("a snapshot came too late to be of use", zap.Uint64("index", m.GetSnapshot().GetMetadata().GetIndex()))
		// What has the name of a complete one must be whole, also when a crash cuts the removal short.
		return errors.Join(os.Rename(complete, dir), direct.RemoveAll(dir))
	}
	return err // after an error it may still be installed; the next start removes it if not
}

// Aborted implements peer.Snapshots.
func (s snapshots) Aborted(dir string) {
	if err := direct.RemoveAll(dir); err != nil {
		s.n.log.Warn("an unfinished snapshot was not removed; the next start will", zap.String("dir", dir), zap.Error(err))
	}
}
