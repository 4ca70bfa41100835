package replica

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/direct"
)

// Checkpoint is a consistent copy of the state of a moment.
type Checkpoint struct {
	machine.State
	Dir   string
	Files []string // names in Dir

	r *Replica
}

// Take makes a copy of the state. It is released when it has been sent.
func (r *Replica) Take() (*Checkpoint, error) {
	parent := filepath.Join(r.dir.Path, fmt.Sprintf(outgoingFormat, r.outgoing.Add(1)))
	if err := r.dir.fs.MkdirAll(parent, 0o700); err != nil {
		return nil, fmt.Errorf("make a snapshot: %w", err)
	}
	c := &Checkpoint{Dir: filepath.Join(parent, EngineDir), r: r}
	g, err := r.Acquire()
	if err == nil {
		c.State, err = g.Checkpoint(c.Dir)
		g.Release()
	}
	if err == nil {
		c.Files, err = r.dir.fs.List(c.Dir)
	}
	if err != nil {
		c.Release()
		return nil, fmt.Errorf("make a snapshot: %w", err)
	}
	return c, nil
}

// Release removes the copy.
func (c *Checkpoint) Release() {
	parent := filepath.Dir(c.Dir)
	if err := direct.RemoveAll(c.r.dir.fs, parent); err != nil {
		c.r.cfg.Logger.Warn("a sent snapshot was not removed", zap.String("dir", parent), zap.Error(err))
	}
}

// Begin returns an empty directory for the files of a snapshot of the entry with
// the index. One is received at a time.
func (r *Replica) Begin(index uint64) (string, error) {
	if applied := r.Applied(); index <= applied {
		return "", fmt.Errorf("entry %d is applied here, and the snapshot is of entry %d", applied, index)
	}
	if taken := r.taken.Load(); taken > r.Applied() {
		return "", fmt.Errorf("the snapshot of entry %d is being installed", taken)
	}
	dir := filepath.Join(r.dir.Path, SnapshotDir(index))
	if _, err := r.dir.fs.Stat(dir); err == nil {
		return "", fmt.Errorf("the snapshot of entry %d is being installed", index)
	}
	dir += incomingSuffix
	if err := r.dir.fs.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, r.dir.fs.MkdirAll(dir, 0o700)
}

// Complete is called when all files are in dir, which Begin has returned, synced
// and verified. The directory gets its name, which says that it is complete, and
// then hand gives the snapshot to consensus and returns whether that takes it.
func (r *Replica) Complete(index uint64, dir string, hand func() (taken bool, err error)) error {
	complete := filepath.Join(r.dir.Path, SnapshotDir(index))
	if err := r.dir.fs.Rename(dir, complete); err != nil {
		return errors.Join(err, r.dir.fs.RemoveAll(dir))
	}
	if err := SyncDir(r.dir.fs, r.dir.Path); err != nil {
		return errors.Join(err, r.dir.fs.RemoveAll(complete))
	}
	taken, err := hand()
	if err == nil && !taken {
		r.cfg.Logger.Info("a snapshot came too late to be of use", zap.Uint64("index", index))
		// What has the name of a complete one must be whole, also when a crash cuts the removal short.
		return errors.Join(r.dir.fs.Rename(complete, dir), direct.RemoveAll(r.dir.fs, dir))
	}
	if err == nil {
		r.taken.Store(index)
	}
	return err // after an error it may still be installed; the next start removes it if not
}

// Abort removes what Begin has made.
func (r *Replica) Abort(dir string) {
	if err := direct.RemoveAll(r.dir.fs, dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.cfg.Logger.Warn("an unfinished snapshot was not removed; the next start will", zap.String("dir", dir), zap.Error(err))
	}
}
