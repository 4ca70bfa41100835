package engine

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Checkpoint makes in dir, which must not exist but on the same file system, a
// store that holds everything committed before the call, whole batches, and
// perhaps some committed since. Its tables are hard links to those of the
// engine. It is durable on return, and on an error nothing is left of it, unless
// there is a crash or the disk does not allow even that. Commits go on.
func (e *Engine) Checkpoint(dir string) error {
	if err := e.Flush(); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	done := make(chan error, 1)
	go func(db *pebble.DB) { // ends before this method returns, or hangs in what is abandoned
		done <- db.Checkpoint(dir)
	}(e.db)
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("checkpoint in %s: %w", dir, err)
		}
		return nil
	case <-e.abandoned:
		<-e.broken // follows at once
		return fmt.Errorf("checkpoint in %s: %w", dir, e.err())
	}
}

// A checkpoint that is looked at needs little memory.
const (
	glanceCacheBytes    = 4 << 20
	glanceMemTableBytes = 256 << 10
)

// Glance opens the checkpoint in dir to read a few of its records. It changes
// nothing there but for an empty file of Pebble's that locks the directory. The
// caller closes it.
func (e *Engine) Glance(dir string) (*Engine, error) {
	return Open(Options{
		Dir:           dir,
		MustExist:     true,
		FS:            e.o.FS,
		Logger:        e.o.Logger,
		Merger:        e.o.Merger,
		ReadOnly:      true,
		CacheBytes:    glanceCacheBytes,
		MemTableBytes: glanceMemTableBytes,
	})
}
