// Package watch carries the events of the key space to those who watch it.
//
// It owns the recent events, the index of who watches what, and the queues of
// the watch streams. It promises each watcher every event of its range from
// its start revision on, exactly once, in the order of revisions, those of one
// revision together in one response (unless it asked for fragments); that a
// progress notification of a revision comes after every event up to it; and
// that a watcher which cannot be given all of that, because its history is
// compacted, is told so and canceled.
//
// It promises the rest of the server that Publish does not wait, whatever the
// watchers do, and that neither slow nor idle watchers cost the others
// anything to speak of. DESIGN.md says how.
//
// It knows nothing of connections, raft or the engine. Responses leave as
// values that encode themselves, all but what a member says of itself in their
// header.
package watch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// ErrClosed is returned by the methods of a stream after it, or its hub, was
// closed.
var ErrClosed = errors.New("watch: stream is closed")

// Source is the key space whose events are watched.
type Source interface {
	// Revision is the newest revision that readers see. It is never below
	// that of the last events published.
	Revision() int64
	CompactRevision() int64
	// ReadEvents returns the events of the revisions from to to on the keys
	// that match, in order and in whole revisions. Having gathered maxBytes it
	// may stop; next is the first revision not read. It returns
	// mvcc.ErrCompacted if from is below the compacted revision.
	ReadEvents(from, to int64, match func(key []byte) bool, maxBytes int) (evs []mvcc.RevisionEvents, next int64, err error)
	// PrevKV returns the key's state before the event, nil if there was none
	// or it is compacted.
	PrevKV(ev *mvccpb.Event) (*mvccpb.KeyValue, error)
}

// Clock is a monotonic clock.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Defaults of Options.
const (
	DefaultRingEvents       = 1 << 15
	DefaultRingBytes        = 32 << 20
	DefaultStreamBytes      = 4 << 20
	DefaultProgressInterval = 10 * time.Minute
)

// Options configures NewHub. The zero value is usable.
type Options struct {
	Logger *zap.Logger
	// Clock is the time of progress notifications; nil is the system's.
	Clock Clock
	// Jitter returns a number in [0, n), to spread progress notifications;
	// nil is random.
	Jitter func(n int64) int64
	// RingEvents and RingBytes bound the recent events kept in memory. The
	// newest revision is kept whatever its size.
	RingEvents int
	RingBytes  int
	// StreamBytes bounds the queue of a stream. A single revision may exceed
	// it when the queue is otherwise empty.
	StreamBytes int
	// ProgressInterval is the time between progress notifications for
	// watchers that asked for them.
	ProgressInterval time.Duration
	// FragmentBytes is the size from which a response is split for watchers
	// that asked for fragments; 0 is never.
	FragmentBytes int
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = systemClock{}
	}
	if o.Jitter == nil {
		o.Jitter = rand.Int64N
	}
	if o.RingEvents <= 0 {
		o.RingEvents = DefaultRingEvents
	}
	if o.RingBytes <= 0 {
		o.RingBytes = DefaultRingBytes
	}
	if o.StreamBytes <= 0 {
		o.StreamBytes = DefaultStreamBytes
	}
	if o.ProgressInterval <= 0 {
		o.ProgressInterval = DefaultProgressInterval
	}
}

// Hub distributes events to streams.
//
// Lock order: Hub.mu, Stream.mu, ring.mu.
type Hub struct {
	o    Options
	src  Source
	ring *ring
	// wake tells the distributor of new events or an earlier alarm.
	wake chan struct{}
	stop context.CancelFunc
	// distributor is done when the distributing goroutine has ended.
	distributor sync.WaitGroup

	// distributed is the revision up to which every synced watcher has its
	// events queued. Written with mu held: by the distributor, or by Publish
	// when there are no streams.
	distributed atomic.Int64

	// mu guards the fields below. It is held while one revision is
	// distributed, never while something is read or sent.
	mu      sync.Mutex
	streams map[*Stream]struct{}
	// open is how many streams there are.
	open atomic.Int64
	// synced has the watchers that get events from the distributor.
	synced index
	// full gathers the cohorts whose stream was full during one revision.
	full []*cohort
	// filled gathers the streams whose queue was empty and is no longer, until
	// they are told: once for many events, so that many go at a time.
	filled []*Stream
	// asking has the streams whose progress request waits for the distributor
	// to reach what is already published.
	asking []*Stream
	alarms alarms
	closed bool

	counts counts
}

// counts are the live figures behind Stats.
type counts struct {
	watchers, lagging, pending atomic.Int64
	delivered                  atomic.Uint64
}

// Stats are figures for metrics.
type Stats struct {
	Streams int
	// Watchers counts those not canceled, Lagging those of them that read
	// history rather than follow the distributor.
	Watchers, Lagging int
	// Pending counts events in the queues of streams.
	Pending int
	// Delivered counts events returned by Next, each for each watcher.
	Delivered uint64
}

// NewHub returns a hub for the events that follow src.Revision(). The caller
// closes it.
func NewHub(src Source, o Options) *Hub {
	o.setDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	rev := src.Revision()
	h := &Hub{
		o:       o,
		src:     src,
		ring:    newRing(rev+1, o.RingEvents, o.RingBytes),
		wake:    make(chan struct{}, 1),
		stop:    cancel,
		streams: map[*Stream]struct{}{},
	}
	h.distributed.Store(rev)
	// Ended by Close, which waits.
	h.distributor.Add(1)
	go pprof.Do(ctx, pprof.Labels("goroutine", "watch distributor"), h.run)
	return h
}

// Publish takes over the events of the revisions that follow the last ones
// published. It belongs to the apply goroutine, which has made them readable
// before. It does not wait for the distribution.
func (h *Hub) Publish(evs []mvcc.RevisionEvents) {
	if len(evs) > 0 && !h.keep(evs) {
		h.rouse()
	}
}

// keep puts events into the ring, and reports whether that was all: they need
// not be distributed if nobody watches, and nothing before them is to be.
func (h *Hub) keep(evs []mvcc.RevisionEvents) bool {
	if h.open.Load() > 0 { // mu may be held for as long as there are watchers
		h.ring.append(evs)
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring.append(evs)
	if len(h.streams) > 0 || h.distributed.Load() != evs[0].Revision-1 {
		return false
	}
	h.distributed.Store(evs[len(evs)-1].Revision)
	return true
}

// rouse makes the distributor look again.
func (h *Hub) rouse() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// NewStream returns a stream without watchers. The caller closes it.
func (h *Hub) NewStream() *Stream {
	s := &Stream{
		h:        h,
		ready:    make(chan struct{}, 1),
		done:     make(chan struct{}),
		watchers: map[int64]*watcher{},
		alarmPos: noAlarm,
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		s.mu.Lock()
		s.shut()
		s.mu.Unlock()
		return s
	}
	h.streams[s] = struct{}{}
	h.open.Store(int64(len(h.streams)))
	return s
}

// Close closes all streams and waits for the distributor.
func (h *Hub) Close() {
	h.stop()
	h.distributor.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.streams {
		s.mu.Lock()
		s.shut()
		s.mu.Unlock()
	}
	h.streams = nil
}

// Stats returns the current figures.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	streams := len(h.streams)
	h.mu.Unlock()
	return Stats{
		Streams:   streams,
		Watchers:  int(h.counts.watchers.Load()),
		Lagging:   int(h.counts.lagging.Load()),
		Pending:   int(max(0, h.counts.pending.Load())), // a reader may have been quicker than who counts
		Delivered: h.counts.delivered.Load(),
	}
}

func assertf(ok bool, format string, args ...any) {
	if !ok {
		panic("watch: " + fmt.Sprintf(format, args...))
	}
}
