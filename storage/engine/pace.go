package engine

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/coteriedb/coterie/storage/direct"
)

// Flushes and compactions are as fast as the disk if they are let, and then take the processors and the disk from the
// requests. Most have time: a flush until the next memtable is full, a compaction until level 0 has grown. So they
// write at no more than these rates, in bytes per second, for as long as nothing waits for them.
const (
	flushRate   = 96 << 20
	compactRate = 64 << 20
)

// Level 0 grows while compactions of it are slow. From sublevelsAhead beyond the number that begins one, each further
// sublevelsDouble double the rate; twice sublevelsAhead before writes would have to wait there is none.
const (
	sublevelsAhead  = 4
	sublevelsDouble = 3
)

// What Pebble calls the writes of flushes and compactions.
const (
	flushCategory   vfs.DiskWriteCategory = "pebble-memtable-flush"
	compactCategory vfs.DiskWriteCategory = "pebble-compaction"
)

// pace is the rates and what they depend on.
type pace struct {
	flushes, compactions throttle

	hurried atomic.Int32 // callers that wait for a flush
	ending  atomic.Bool  // the engine is being closed
	full    atomic.Bool  // more memtables than one wait to be flushed
	rate    atomic.Int64 // of compactions; 0 is as fast as can be
}

// look sets the rates by what is to be done.
func (p *pace) look(memTables float64, sublevels int32) {
	p.full.Store(memTables > 2) // one of them takes writes
	rate := int64(compactRate)
	switch ahead := sublevels - compactSublevels - sublevelsAhead; {
	case sublevels >= maxSublevels-2*sublevelsAhead:
		rate = 0
	case ahead >= 0:
		rate <<= 1 + ahead/sublevelsDouble
	}
	p.rate.Store(rate)
}

// newPace returns the rates of an engine with nothing to do.
func newPace() *pace {
	p := &pace{}
	p.rate.Store(compactRate)
	p.flushes.rate, p.compactions.rate = p.flushing, p.compacting
	return p
}

// hurry lifts the limit of flushes until the function that it returns is called.
func (p *pace) hurry() (done func()) {
	p.hurried.Add(1)
	return func() { p.hurried.Add(-1) }
}

func (p *pace) flushing() int64 {
	if p.full.Load() || p.hurried.Load() > 0 || p.ending.Load() {
		return 0
	}
	return flushRate
}

func (p *pace) compacting() int64 {
	if p.ending.Load() {
		return 0
	}
	return p.rate.Load()
}

// pacedFS is a file system on which flushes and compactions keep to their rates, and what they no longer need goes by
// pieces.
type pacedFS struct {
	vfs.FS
	pace *pace
}

// Unwrap implements vfs.FS.
func (fs *pacedFS) Unwrap() vfs.FS { return fs.FS }

// Create implements vfs.FS.
func (fs *pacedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, category)
	if err != nil {
		return nil, err
	}
	switch category {
	case flushCategory:
		return &pacedFile{f, &fs.pace.flushes}, nil
	case compactCategory:
		return &pacedFile{f, &fs.pace.compactions}, nil
	}
	return f, nil
}

// Remove implements vfs.FS. Tables that Pebble removes are read by nobody.
func (fs *pacedFS) Remove(name string) error {
	if !strings.HasSuffix(name, ".sst") {
		return fs.FS.Remove(name)
	}
	return direct.Remove(fs.FS, name, func() bool { return fs.pace.compacting() == 0 })
}

type pacedFile struct {
	vfs.File
	throttle *throttle
}

// Write implements vfs.File.
func (f *pacedFile) Write(b []byte) (int, error) {
	f.throttle.wait(len(b))
	return f.File.Write(b)
}

// throttle lets bytes pass at a rate.
type throttle struct {
	rate func() int64

	mu  sync.Mutex
	due time.Time // when all that has passed should have. Guarded by mu.
}

const (
	// credit is how much of the past may be made up for: more than timers are late.
	credit = 10 * time.Millisecond
	// shortest is the least pause that is worth a timer.
	shortest = 5 * time.Millisecond
)

// wait returns when n bytes may pass, or may do so within the shortest pause. That is soon: Pebble writes files in pieces
// of some 100 KiB at most.
func (t *throttle) wait(n int) {
	rate := t.rate()
	if rate == 0 {
		return
	}
	t.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-credit); t.due.Before(earliest) {
		t.due = earliest
	}
	pause := t.due.Sub(now)
	t.due = t.due.Add(time.Duration(n) * time.Second / time.Duration(rate))
	t.mu.Unlock()
	if pause >= shortest {
		time.Sleep(pause)
	}
}
