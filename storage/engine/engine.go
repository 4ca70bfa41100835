// Package engine is the ordered store under the state machine: a thin layer
// over Pebble that fixes how Coterie uses it.
//
// Pebble's own write-ahead log is off, for the raft log already is one. A
// committed batch is visible at once and durable after a later flush; what a
// crash leaves is the state after some earlier batch, whole, because batches
// never straddle memtables and memtables are flushed in order. The caller
// stores its applied index in every batch and replays the raft log from there.
//
// The package knows nothing of keys, revisions or raft.
package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/direct"
)

// ErrNotFound is returned by Get and DurableGet for a key without a value.
var ErrNotFound = pebble.ErrNotFound

// Defaults of Options.
const (
	DefaultCacheBytes    = 96 << 20
	DefaultMemTableBytes = 20 << 20
)

// Options configures Open. Dir is required.
type Options struct {
	Dir string
	// MustExist makes Open refuse a directory that holds no store. Without it Open
	// makes a new store there, and Pebble removes what it does not know of: all the
	// tables of a store whose marker of the manifest is lost.
	MustExist bool
	// FS is the file system; nil is the disk, whose slow operations are logged.
	FS     vfs.FS
	Logger *zap.Logger
	// ReadOnly opens without changing anything on disk, until MakeWritable: so
	// that what is there can be judged before it is touched.
	ReadOnly bool
	// CacheBytes bounds the block cache together with the memtables: Pebble
	// reserves their memory in it. It must be several memtables and more.
	CacheBytes int64
	// MemTableBytes is the size at which a memtable is flushed. It bounds the
	// part of the raft log that a restart replays.
	MemTableBytes uint64
	// Merger says what a Merge in a batch does to a value. A store remembers its name,
	// and must always be opened with it; nil is Pebble's, which appends.
	Merger *pebble.Merger
	// OnFatal is called, possibly more than once and from any goroutine, when
	// the engine can no longer keep its promises: a write to disk failed or
	// data on disk is damaged. It must stop the process or the node.
	OnFatal func(error)
}

// Engine is an open store. Its methods may be called from any goroutine.
type Engine struct {
	o     Options
	db    *pebble.DB // replaced by MakeWritable
	cache *pebble.Cache
	// flushed is signalled after each flush; see Flushed.
	flushed chan struct{}
	room    *event // a flush or a compaction has ended
	pace    *pace
	failed  atomic.Pointer[error]
	// abandoned is closed when Pebble has stopped in its tracks; nothing more is
	// asked of it.
	abandoned chan struct{}
	abandon   sync.Once
	broken    chan struct{} // closed when failed is set
	writable  chan struct{} // closed when db takes writes

	memTableBytes int64
	// unchecked counts bytes committed since backlog was last looked at.
	unchecked atomic.Int64
}

// Writes wait while the memtables that wait to be flushed hold so many times
// the size of one, or level 0 has so many sublevels to be compacted. (Their
// number says nothing: the first ones are small, and are flushed together.)
// Pebble has such limits too, but a wait inside it does not end when the disk is
// broken for good; so its own are out of reach.
const (
	maxMemTables     = 4
	compactSublevels = 12 // begin a compaction
	maxSublevels     = 32
	outOfReach       = 1 << 20
	checksPerTable   = 8 // how often the backlog is looked at while a memtable fills
	// tableBytes is the size of tables. Each is synced when it is complete, and
	// where that makes the file system commit its journal, the log waits for it:
	// with Pebble's 2 and 4 MiB that would be many times a second.
	tableBytes = 32 << 20
)

// Open opens or creates the store in o.Dir. It holds a lock on the directory
// until Close, and refuses one that another process holds.
func Open(o Options) (*Engine, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = DefaultMemTableBytes
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	e := &Engine{
		o:             o,
		pace:          newPace(),
		cache:         pebble.NewCache(o.CacheBytes),
		flushed:       make(chan struct{}, 1),
		room:          newEvent(),
		abandoned:     make(chan struct{}),
		broken:        make(chan struct{}),
		writable:      make(chan struct{}),
		memTableBytes: int64(o.MemTableBytes),
	}
	if err := e.openChecked(); err != nil {
		e.cache.Unref()
		return nil, err
	}
	return e, nil
}

// openChecked opens the engine if its manifest is whole, but for what a crash may have torn.
func (e *Engine) openChecked() error {
	disk := e.o.FS
	if disk == nil {
		disk = vfs.Default
	}
	records, err := checkManifest(disk, e.o.Dir)
	if err != nil {
		return fmt.Errorf("open engine in %s: %w", e.o.Dir, err)
	}
	if err := e.openDB(e.o.ReadOnly); err != nil {
		return err
	}
	if m := e.db.Metrics().Total(); records == 1 && m.TablesCount > 0 {
		return errors.Join(fmt.Errorf("open engine in %s: the manifest is damaged: its second record is missing", e.o.Dir), e.db.Close())
	}
	return nil
}

func (e *Engine) openDB(readOnly bool) (err error) {
	fatal := e.fail(e.o.OnFatal)
	opts := &pebble.Options{
		FS:                          e.o.FS,
		Cache:                       e.cache,
		ReadOnly:                    readOnly,
		DisableWAL:                  true,
		ErrorIfNotExists:            e.o.MustExist,
		MemTableSize:                e.o.MemTableBytes,
		MemTableStopWritesThreshold: outOfReach,
		// Compactions of level 0 rewrite the level below too, for keys come in no
		// order. With Pebble's 4 they were a quarter of what a put costs; filters
		// keep the reads of single keys out of the tables that pile up.
		L0CompactionThreshold: compactSublevels,
		L0StopWritesThreshold: outOfReach,
		FormatMajorVersion:    pebble.FormatNewest,
		Merger:                e.o.Merger,
		Logger: &logger{z: e.o.Logger, abandon: func(err error) {
			e.abandon.Do(func() { close(e.abandoned) }) // first: who hears of the error may call Close
			fatal(err)
		}},
		EventListener: e.listener(e.o.Logger, fatal),
	}
	if opts.FS == nil {
		opts.FS = direct.New(vfs.Default, flushCategory, compactCategory)
		opts.WithFSDefaults() // it watches for slow operations, of which the wait for a turn is none
	}
	opts.FS = &pacedFS{opts.FS, e.pace}
	for i := range opts.TargetFileSizes {
		opts.TargetFileSizes[i] = tableBytes
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = yieldPolicy{bloom.FilterPolicy(10)}
	}
	if e.db, err = pebble.Open(e.o.Dir, opts); err != nil {
		e.db = nil
		return fmt.Errorf("open engine in %s: %w", e.o.Dir, err)
	}
	if !readOnly {
		close(e.writable)
	}
	return nil
}

// MakeWritable ends the time in which an engine opened with ReadOnly changes
// nothing on disk. Nothing of the engine may be in use meanwhile. After an
// error the engine can only be closed.
func (e *Engine) MakeWritable() error {
	err := e.db.Close()
	e.db = nil
	if err != nil {
		return fmt.Errorf("reopen engine in %s: %w", e.o.Dir, err)
	}
	return e.openDB(false)
}

// Merger is the merger that the engine was opened with.
func (e *Engine) Merger() *pebble.Merger { return e.o.Merger }

// Writable is closed when the engine takes writes.
func (e *Engine) Writable() <-chan struct{} { return e.writable }

// fail returns the function that records the first fatal error, which Commit
// and Flush return from then on, and passes every one to onFatal.
func (e *Engine) fail(onFatal func(error)) func(error) {
	return func(err error) {
		if e.failed.CompareAndSwap(nil, &err) {
			close(e.broken)
		}
		if onFatal != nil {
			onFatal(err)
		}
	}
}

func (e *Engine) err() error {
	if p := e.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// NewBatch returns an empty batch of writes.
func (e *Engine) NewBatch() *pebble.Batch { return e.db.NewBatch() }

// Commit applies b atomically. Its writes are visible on return, and durable
// once a later flush has finished. It waits while flushes and compactions are
// far behind. One goroutine's commits keep their order; one of several
// goroutines may wait while another goes on.
func (e *Engine) Commit(b *pebble.Batch) error {
	if err := e.err(); err != nil {
		return err
	}
	if e.unchecked.Add(int64(b.Len())) >= e.memTableBytes/checksPerTable {
		e.unchecked.Store(0)
		if err := e.waitForRoom(); err != nil {
			return err
		}
	}
	return b.Commit(pebble.NoSync)
}

func (e *Engine) waitForRoom() error {
	for {
		changed := e.room.next() // before looking, so that no change is missed
		m := e.db.Metrics()
		e.pace.look(float64(m.MemTable.Size)/float64(e.memTableBytes), m.Levels[0].Sublevels)
		if int64(m.MemTable.Size) <= maxMemTables*e.memTableBytes && m.Levels[0].Sublevels <= maxSublevels {
			return e.err()
		}
		select {
		case <-changed:
		case <-e.broken:
			return e.err()
		}
	}
}

// event is something that happens again and again and wakes all who wait.
type event struct {
	mu sync.Mutex
	c  chan struct{} // Guarded by mu. Closed and replaced by happen.
}

func newEvent() *event { return &event{c: make(chan struct{})} }

// next returns a channel that is closed when the event happens next.
func (e *event) next() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.c
}

func (e *event) happen() {
	e.mu.Lock()
	defer e.mu.Unlock()
	close(e.c)
	e.c = make(chan struct{})
}

// signal makes a channel of capacity 1 ready to receive from.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Get appends the value of key to dst. It returns ErrNotFound without one.
func (e *Engine) Get(key, dst []byte) ([]byte, error) {
	v, closer, err := e.db.Get(key)
	if err != nil {
		return nil, err
	}
	dst = append(dst, v...)
	return dst, closer.Close()
}

// NewIter returns an iterator over [lower, upper) of the state as of now. A nil
// bound is open. The caller closes it soon: it keeps replaced files alive.
func (e *Engine) NewIter(lower, upper []byte) (*pebble.Iterator, error) {
	return e.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
}

// Overlay is the state with the writes of an uncommitted batch laid over it.
type Overlay struct {
	from    *pebble.Batch
	indexed *pebble.Batch
	bytes   int    // of the batch that are in indexed
	count   uint32 // of its writes
}

// NewOverlay lays a batch over the state. The caller closes it before the batch.
func (e *Engine) NewOverlay(b *pebble.Batch) *Overlay {
	return &Overlay{from: b, indexed: e.db.NewIndexedBatch(), bytes: batchrepr.HeaderLen}
}

// NewIter returns an iterator over [lower, upper) of the state, and the batch, as of now. The
// caller closes it before the overlay, and before the batch is written to. It costs time in proportion to what was
// written to the batch since the last one.
func (o *Overlay) NewIter(lower, upper []byte) (*pebble.Iterator, error) {
	if all := o.from.Repr(); len(all) > o.bytes {
		repr := slices.Concat(make([]byte, batchrepr.HeaderLen), all[o.bytes:])
		batchrepr.SetCount(repr, o.from.Count()-o.count)
		var more pebble.Batch
		if err := errors.Join(more.SetRepr(repr), o.indexed.Apply(&more, nil)); err != nil {
			return nil, err
		}
		o.bytes, o.count = len(all), o.from.Count()
	}
	return o.indexed.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
}

// Close gives the overlay up.
func (o *Overlay) Close() error { return o.indexed.Close() }

// NewSnapshot returns the state as of now, for long reads. The caller closes it.
func (e *Engine) NewSnapshot() *pebble.Snapshot { return e.db.NewSnapshot() }

// DurableGet returns the value that key has after a crash at this instant.
func (e *Engine) DurableGet(key []byte) ([]byte, error) {
	it, err := e.db.NewIter(&pebble.IterOptions{
		LowerBound:                key,
		UpperBound:                append(append([]byte(nil), key...), 0),
		OnlyReadGuaranteedDurable: true,
	})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	if !it.First() {
		if err := it.Error(); err != nil {
			return nil, err
		}
		return nil, ErrNotFound
	}
	v, err := it.ValueAndErr()
	return append([]byte(nil), v...), err
}

// Flush makes everything committed before the call durable.
func (e *Engine) Flush() error {
	if err := e.err(); err != nil {
		return err
	}
	defer e.pace.hurry()()
	done, err := e.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-e.broken: // the flush would be tried again for ever
		return e.err()
	}
}

// StartFlush begins a flush and returns at once; Flushed tells of its end.
func (e *Engine) StartFlush() error {
	if err := e.err(); err != nil {
		return err
	}
	_, err := e.db.AsyncFlush()
	return err
}

// Flushed receives after flushes have finished, one value for any number of
// them, so that one goroutine can look at what has become durable.
func (e *Engine) Flushed() <-chan struct{} { return e.flushed }

// DiskUsage is the size in bytes of the files of the store, with what is still
// in memory on its way to them.
func (e *Engine) DiskUsage() int64 {
	m := e.db.Metrics()
	return int64(m.DiskSpaceUsage() + m.MemTable.Size)
}

// Close flushes nothing by itself beyond what Pebble has begun; what was not
// flushed is replayed from the raft log at the next start. After a failure that
// Pebble does not survive it returns that failure, and memory, files and the
// lock of the directory stay with the process.
func (e *Engine) Close() error {
	select {
	case <-e.abandoned:
		return e.err()
	default:
	}
	e.pace.ending.Store(true) // Pebble lets compactions end
	var err error
	if e.db != nil {
		err = e.db.Close()
	}
	e.cache.Unref()
	return err
}

// CompactAll rewrites all files, so that deleted data gives its space back now
// rather than in the course of later writes. Nothing else waits for it, and it
// leaves the disk to others for most of the time: it writes 64 MiB/s.
func (e *Engine) CompactAll(ctx context.Context) error {
	return e.db.Compact(ctx, []byte{0}, []byte{0xff, 0xff}, false)
}
