// Package replica is what one member keeps on its disk, and the machine on it as
// consensus drives it: the data directory and whose it is, the log and the engine
// in it, and the snapshots that are taken of the state and that replace it.
//
// It promises that a crash at any moment leaves a directory that the next start
// opens as it was before or after what was going on, and that a directory which
// is refused is not changed. It knows nothing of raft, nor of how snapshots
// travel.
package replica

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/direct"
	"github.com/coteriedb/coterie/storage/engine"
)

// Replica is this member's state as consensus drives it: the machine of the
// moment on its engine. A snapshot from another member replaces both: the new
// machine is built from the files that were received, one pointer is moved, and
// the old one ends when its readers have.
type Replica struct {
	cfg Config
	dir *Dir

	current    atomic.Pointer[Generation]
	closed     atomic.Bool
	installing atomic.Bool
	taken      atomic.Uint64 // the last snapshot that consensus has taken
	outgoing   atomic.Uint64 // checkpoints made so far
	flushed    chan struct{} // of whichever engine is current
	retired    sync.WaitGroup
	ctx        context.Context // of forwarding flushes; ended by stop
	stop       context.CancelFunc
}

// Config configures New. All fields are required.
type Config struct {
	Logger *zap.Logger
	// Open loads the machine that an engine holds, beside one that serves.
	Open func(*engine.Engine) (*machine.Machine, error)
	// Switched is told of a new machine, and Changed of changes of the membership
	// that were applied, on the goroutine that applies.
	Switched func(*machine.Machine)
	Changed  func([]machine.Change)
}

// Generation is one machine and the engine under it.
type Generation struct {
	*machine.Machine
	Engine *engine.Engine
	// Dir is the engine's directory, in the data directory.
	Dir string
	// files is held for reading by whoever works on the engine beside the machine,
	// and for writing to close it.
	files sync.RWMutex
	ended context.CancelFunc
}

// New returns the replica whose first machine is m, on the engine of d. It is
// closed before d.
func New(d *Dir, m *machine.Machine, cfg Config) *Replica {
	r := &Replica{cfg: cfg, dir: d, flushed: make(chan struct{}, 1)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.follow(&Generation{Machine: m, Engine: d.Engine, Dir: d.id.Engine})
	return r
}

// Machine returns the machine of the moment.
func (r *Replica) Machine() *machine.Machine { return r.current.Load().Machine }

// Installing reports whether a snapshot is replacing the state.
func (r *Replica) Installing() bool { return r.installing.Load() }

// follow makes g current and passes its flushes on.
func (r *Replica) follow(g *Generation) {
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

// ErrClosed is returned after Close.
var ErrClosed = errors.New("replica: it has been closed")

// Acquire returns the current generation, whose engine stays open until Release.
func (r *Replica) Acquire() (*Generation, error) {
	for !r.closed.Load() {
		if g := r.current.Load(); g.files.TryRLock() { // else it has been replaced
			return g, nil
		}
	}
	return nil, ErrClosed
}

// Release lets the engine be closed.
func (g *Generation) Release() { g.files.RUnlock() }

// Apply implements consensus.StateMachine.
func (r *Replica) Apply(entries []machine.Entry) ([]machine.Result, error) {
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
		r.cfg.Changed(changes)
	}
	return results, nil
}

// Applied implements consensus.StateMachine.
func (r *Replica) Applied() uint64 { return r.current.Load().Applied() }

// DurableIndex implements consensus.StateMachine.
func (r *Replica) DurableIndex() (uint64, error) {
	g, err := r.Acquire()
	if err != nil {
		return 0, err
	}
	defer g.Release()
	return g.DurableIndex()
}

// Flushed implements consensus.StateMachine.
func (r *Replica) Flushed() <-chan struct{} { return r.flushed }

// StartFlush implements consensus.StateMachine. It is called like Apply.
func (r *Replica) StartFlush() error { return r.current.Load().StartFlush() }

// Install implements consensus.StateMachine.
func (r *Replica) Install(index, term uint64) error {
	r.installing.Store(true)
	defer r.installing.Store(false)
	dir := SnapshotDir(index)
	g, err := r.load(dir, index, term)
	if err != nil {
		return err
	}
	if err := r.dir.use(dir); err != nil {
		g.Close()
		return errors.Join(err, g.Engine.Close())
	}
	old := r.current.Load()
	r.follow(g)
	r.cfg.Switched(g.Machine)
	r.cfg.Logger.Info("state replaced by a snapshot", zap.Uint64("index", index), zap.Int64("revision", g.KV.Revision()))
	r.retired.Go(func() { r.retire(old) }) // ends with the readers of old; close waits
	return nil
}

// load opens the machine in a directory that holds a received snapshot.
func (r *Replica) load(dir string, index, term uint64) (*Generation, error) {
	o := r.dir.engine
	o.Dir, o.MustExist, o.ReadOnly = filepath.Join(r.dir.Path, dir), true, false
	eng, err := engine.Open(o)
	if err != nil {
		return nil, err
	}
	m, err := r.cfg.Open(eng)
	if err == nil && m.Applied() != index {
		m.Close()
		err = fmt.Errorf("the snapshot in %s is of entry %d, not %d", o.Dir, m.Applied(), index)
	}
	if err != nil {
		return nil, errors.Join(err, eng.Close())
	}
	return &Generation{Machine: m, Engine: eng, Dir: dir}, nil
}

// retire ends a machine that has been replaced and removes its files.
func (r *Replica) retire(g *Generation) {
	g.ended()
	g.Close()
	g.files.Lock() // for ever
	if err := errors.Join(g.Engine.Close(), direct.RemoveAll(r.dir.fs, filepath.Join(r.dir.Path, g.Dir))); err != nil {
		r.cfg.Logger.Warn("the state before a snapshot was not removed; the next start will", zap.String("dir", g.Dir), zap.Error(err))
	}
}

// Close ends the current machine. Consensus has stopped. The engine is closed
// after a flush, if flush says so, so that the next start replays nothing and
// reads little.
func (r *Replica) Close(flush bool) error {
	r.stop()
	r.retired.Wait()
	g := r.current.Load()
	var err error
	if flush {
		err = g.KV.SaveIndex()
	}
	g.Close()
	r.closed.Store(true) // before: whoever does not get the lock must see it
	g.files.Lock()
	if flush && err == nil {
		err = g.Engine.Flush()
	}
	return errors.Join(err, g.Engine.Close())
}
