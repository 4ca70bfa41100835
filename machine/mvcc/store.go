package mvcc

import (
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/engine"
)

// Defaults of Options.
const (
	DefaultCompactionBatchLimit = 1000
	DefaultCompactionSleep      = 10 * time.Millisecond
	DefaultStreamChunkBytes     = 3 << 19 // 1.5 MiB, etcd's
)

// Options configures a Store. The zero value is good.
type Options struct {
	Logger *zap.Logger
	// CompactionBatchLimit is with how many revisions physical compaction deals
	// for each CompactionSleep. Both are divided: it makes shorter pauses more often.
	CompactionBatchLimit int
	// CompactionSleep is for how long it pauses then.
	CompactionSleep time.Duration
	// StreamChunkBytes is the size that responses of RangeStream aim at. In
	// etcd it is the limit on the size of requests.
	StreamChunkBytes int
	// Gently makes Open rest for as long as it works, in small pieces: for a store
	// that is loaded beside one that serves.
	Gently bool
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.CompactionBatchLimit <= 0 {
		o.CompactionBatchLimit = DefaultCompactionBatchLimit
	}
	if o.CompactionSleep <= 0 {
		o.CompactionSleep = DefaultCompactionSleep
	}
	if o.StreamChunkBytes <= 0 {
		o.StreamChunkBytes = DefaultStreamChunkBytes
	}
	return o
}

// Leases is what the store needs of the lease table. Its methods are called on
// the apply goroutine, and by Open.
type Leases interface {
	Has(id int64) bool
	Attach(id int64, key string)
	Detach(id int64, key string)
}

// Store is the key space. Which of its methods may be called from where is
// said in the package comment: Begin, the commands and Publish from the apply
// goroutine, all others from anywhere.
type Store struct {
	eng    *engine.Engine
	leases Leases
	log    *zap.Logger

	streamChunkBytes int
	// commandBytes is maxCommandBytes, but for tests.
	commandBytes allowance

	// w belongs to the apply goroutine.
	w pending

	// view is what readers see. Stored by Open and Publish.
	view atomic.Pointer[view]
	// floor is the compacted revision up to which versions may have been
	// deleted. Raised by the compactor before it deletes the first.
	// Invariant: floor <= view.compact.
	floor atomic.Int64

	// written and freed are the bytes of all versions ever written, and of
	// those deleted. Each has one writer: Publish and the compactor.
	written atomic.Int64
	freed   atomic.Int64

	compactor *compactor
	images    *imager
	counters  counters

	// reading is held for reading by whoever reads the engine outside the apply
	// goroutine, and for ever for writing after Close.
	reading sync.RWMutex
}

// Revision is the published revision. A store without writes has revision 1.
func (s *Store) Revision() int64 { return s.view.Load().rev }

// CompactRevision is the published compacted revision. Like in etcd it is -1
// before the first compaction.
func (s *Store) CompactRevision() int64 { return s.view.Load().compact }

// SizeInUse is the size in bytes of the retained history: keys and values of
// its records as they are stored, before the engine compresses them, and those
// of the meta records, so that it is never 0. It is a function of the commands
// applied and of the progress of compaction.
func (s *Store) SizeInUse() int64 { return metaBytes + s.written.Load() - s.freed.Load() }

// metaBytes is about what the meta records occupy.
const metaBytes = 64

// Close stops physical compaction; the next Open goes on with it. SaveIndex comes
// before it where that Open is to be fast. It waits for readers, and those that come later get ErrClosed. It does not close the
// engine, which nothing here uses from then on. No command may be in progress.
func (s *Store) Close() {
	s.compactor.close()
	s.images.close()
	s.reading.Lock()
}

// read begins to read the engine. Who gets no error calls s.reading.RUnlock when
// he has done.
func (s *Store) read() error {
	if !s.reading.TryRLock() { // only Close stands in the way
		return ErrClosed
	}
	return nil
}
