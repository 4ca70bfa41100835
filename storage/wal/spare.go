package wal

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/direct"
)

const (
	// spareName is the file for the segment to come. It has no other name until
	// it holds a first frame.
	spareName = "next.wal.tmp"
	// sparePiece is how much of it is written at once. It stays ahead of the
	// segment before by a factor, so that who writes little prepares little.
	sparePiece = 1 << 20
	spareAhead = 2
)

// spare is a file of zeros that will be a segment: its frames overwrite blocks
// that it has, whose sync waits for no metadata and so for nobody else's.
type spare struct {
	path string
	full int64 // the size that it is to have

	// Guarded by Log.mu.
	size   int64
	spoilt bool // it could not be written; the next one is tried when the next segment has begun

	// Owned by who prepares it.
	file  vfs.File // nil before and after
	zeros []byte
}

func (s *spare) ready() bool { return s.size >= s.full }

// extend writes n zeros more, the last of all if so said.
func (s *spare) extend(fs vfs.FS, n int64, last bool) (err error) {
	if s.file == nil {
		if s.file, err = fs.Create(s.path, writeCategory); err != nil {
			return err
		}
		s.zeros = make([]byte, sparePiece)
	}
	defer func() {
		if last || err != nil {
			err = errors.Join(err, s.file.Close())
			s.file, s.zeros = nil, nil
		}
	}()
	clear(s.zeros) // a file may write over what it is given
	if _, err := s.file.Write(s.zeros[:n]); err != nil {
		return err
	}
	return s.file.SyncData()
}

// wantsSpareLocked reports whether it is time for a piece of the spare.
func (l *Log) wantsSpareLocked() bool {
	s := l.mu.spare
	if l.o.NoSync || s != nil && (s.ready() || s.spoilt) {
		return false
	}
	prepared := int64(0)
	if s != nil {
		prepared = s.size
	}
	tail := l.mu.segments[len(l.mu.segments)-1]
	return spareAhead*tail.size.Load() >= prepared+min(sparePiece, l.o.SegmentBytes)
}

// readySpare returns the prepared file, if it is ready. It stays the spare until its name
// is free, lest Prepare makes another one under it: see usedSpareLocked.
func (l *Log) readySpare() *spare {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.mu.spare; s != nil && s.ready() {
		return s
	}
	return nil
}

// usedSpareLocked forgets what the segment that has just begun was made of, and what could not be written
// before it began.
func (l *Log) usedSpareLocked(used *spare) {
	if s := l.mu.spare; s != nil && (s == used || s.spoilt) {
		l.mu.spare = nil
	}
}

func (l *Log) spareReady() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.spare != nil && l.mu.spare.ready()
}

// ToPrepare receives when there is something for Prepare.
func (l *Log) ToPrepare() <-chan struct{} { return l.toPrepare }

// Prepare writes a piece of the file for the segment to come, if it is time for
// one. Like Purge it may be called by another goroutine than Append, one at a
// time: the disk has what it writes when Append needs it. If it fails, the
// segment to come will not have been prepared, and is only slower for that.
func (l *Log) Prepare() {
	l.mu.Lock()
	s, want := l.mu.spare, l.wantsSpareLocked()
	l.mu.Unlock()
	if !want {
		return
	}
	if s == nil {
		s = &spare{path: l.o.FS.PathJoin(l.o.Dir, spareName), full: direct.RoundUp(l.o.SegmentBytes)}
	}
	n := min(sparePiece, s.full-s.size)
	err := s.extend(l.o.FS, n, s.size+n == s.full)
	if err != nil {
		l.o.Logger.Warn("wal: could not prepare the next segment", zap.String("path", s.path), zap.Error(err))
		_ = l.o.FS.Remove(s.path) // it may be that there was no space; the next start removes it too
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.spare = s
	if s.spoilt = err != nil; !s.spoilt {
		s.size += n
	}
}

// closeSpare lets go of a file that is half prepared; the next start removes it.
func (l *Log) closeSpare() error {
	if s := l.mu.spare; s != nil && s.file != nil {
		return s.file.Close()
	}
	return nil
}
