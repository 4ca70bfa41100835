package mvcc

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/storage/engine"
)

// pending is the batch being applied. All of it belongs to the apply goroutine.
type pending struct {
	batch *pebble.Batch
	// base is the published revision; what is above it is in events, and in
	// the engine only once the batch is committed.
	base int64
	// rev is the revision of the last finished command, compact the compacted
	// revision after it.
	rev     int64
	compact int64
	index   tree
	// written is the size of all that was ever written, see recordSize.
	written int64
	// events are the changes above base, in order, those of the revision in
	// progress last.
	events []*mvccpb.Event
	revs   []revisionSpan
	// indexed collects what Complete adds to the batch, and indexBytes is its size.
	indexed    indexWriter
	indexBytes int
	// deleted is set once the revision in progress has deleted a key.
	deleted bool
	// overlay is the engine with the batch, made when first needed.
	overlay *engine.Overlay
	// waiters are told of the end of compactions that the batch asked for.
	waiters []compactWaiter
}

// revisionSpan says which events a revision has. The last of pending.revs may
// be in progress: then its revision is pending.rev+1.
type revisionSpan struct {
	start, end int
	// byKey finds events in a revision of many; made when first needed, with
	// those before indexed.
	byKey   map[string]int
	indexed int
}

// findByScan is the number of events up to which a revision is searched
// without a map.
const findByScan = 16

// Begin starts a batch of commands whose writes go to b. The caller calls
// Complete, commits b, and then calls Publish.
func (s *Store) Begin(b *pebble.Batch) {
	w := &s.w
	w.lift()
	w.batch = b
	w.base = w.rev
	w.events, w.revs, w.waiters = nil, nil, nil
	w.indexBytes = 0
}

// PendingBytes is about how many bytes Complete will add to the batch: the sum over
// versions, and so a function of the commands, however they are divided into
// batches. Apply goroutine only.
func (s *Store) PendingBytes() int { return s.w.indexBytes }

// Complete adds to the batch what the revision index says of it: a record or a few
// for all versions, where one for each were half of the keys that the engine
// sorts.
func (s *Store) Complete() {
	w := &s.w
	for n := range w.revs {
		r := &w.revs[n]
		for sub, ev := range w.events[r.start:r.end] {
			it := indexItem{revision{w.base + 1 + int64(n), int64(sub)}, ev.Kv.Key}
			w.indexed.add(w.batch, &it, w.written)
		}
	}
	w.indexed.finish(w.batch, w.written)
	w.indexBytes = 0
	w.lift()
}

// RevisionEvents are the changes of one revision, in the order in which they
// were made.
type RevisionEvents struct {
	Revision int64
	Events   []*mvccpb.Event
}

// Publish shows the commands since Begin, whose batch is committed, to readers
// and returns their events: whole revisions, in order, without gaps. The
// events are shared and must not be changed.
func (s *Store) Publish() []RevisionEvents {
	w := &s.w
	old := s.view.Load()
	if w.rev != old.rev || w.compact != old.compact {
		s.written.Store(w.written)
		v := &view{rev: w.rev, compact: w.compact, index: w.index.freeze()}
		s.view.Store(v)
		s.images.look(v)
	}
	if len(w.waiters) > 0 {
		// After the view: the compactor's floor must not pass what is published.
		s.compactor.schedule(w.compact, w.waiters)
	}
	var out []RevisionEvents
	if len(w.revs) > 0 {
		out = make([]RevisionEvents, len(w.revs))
		for i, r := range w.revs {
			out[i] = RevisionEvents{Revision: w.base + 1 + int64(i), Events: w.events[r.start:r.end:r.end]}
		}
	}
	w.base = w.rev
	w.batch, w.events, w.revs, w.waiters = nil, nil, nil, nil
	return out
}

// overlaid returns the engine with the batch laid over it.
func (w *pending) overlaid(eng *engine.Engine) *engine.Overlay {
	if w.overlay == nil {
		w.overlay = eng.NewOverlay(w.batch)
	}
	return w.overlay
}

// lift takes the batch away from the engine, if it was laid over it.
func (w *pending) lift() {
	if w.overlay != nil {
		_ = w.overlay.Close() // it was only read from
		w.overlay = nil
	}
}

// PendingRevision is the revision after the last command of the batch being
// applied. Apply goroutine only.
func (s *Store) PendingRevision() int64 { return s.w.rev }

// pending is the state after the last change of the batch, that of a
// transaction in progress included.
func (s *Store) pending() state {
	return state{s: s, rev: s.w.reached(), compact: s.w.compact, index: s.w.index.root, writing: true}
}

// changes is the number of changes of the command in progress.
func (w *pending) changes() int64 {
	if n := len(w.revs); n > 0 && w.base+int64(n) > w.rev {
		r := &w.revs[n-1]
		return int64(r.end - r.start)
	}
	return 0
}

// reached is the revision that reads of the command in progress see.
func (w *pending) reached() int64 {
	if w.changes() > 0 {
		return w.rev + 1
	}
	return w.rev
}

// finish ends a command. It makes a revision if it changed anything.
func (w *pending) finish() {
	w.rev = w.reached()
	w.deleted = false
}

// change is an event with its key-value pair, in one allocation.
type change struct {
	event mvccpb.Event
	kv    mvccpb.KeyValue
}

// add appends an event to the revision in progress, and returns its pair to
// fill.
func (w *pending) add(t mvccpb.Event_EventType) *mvccpb.KeyValue {
	if w.changes() == 0 {
		w.revs = append(w.revs, revisionSpan{start: len(w.events), end: len(w.events)})
	}
	c := new(change)
	c.event.Type = t
	c.event.Kv = &c.kv
	w.events = append(w.events, &c.event)
	w.revs[len(w.revs)-1].end++
	return &c.kv
}

// find returns the event of the last change that main, which is above base,
// made to key, and its sub-revision; nil if it made none.
func (w *pending) find(key string, main int64) (*mvccpb.Event, int64) {
	i := w.revs[main-w.base-1].last(w.events, key)
	if i < 0 {
		return nil, 0
	}
	return w.events[i], int64(i - w.revs[main-w.base-1].start)
}

// last returns the position of the last event of key in the span, or -1.
func (r *revisionSpan) last(events []*mvccpb.Event, key string) int {
	if r.end-r.start <= findByScan {
		for i := r.end - 1; i >= r.start; i-- {
			if aliasString(events[i].Kv.Key) == key {
				return i
			}
		}
		return -1
	}
	if r.byKey == nil {
		r.byKey = make(map[string]int, r.end-r.start)
		r.indexed = r.start
	}
	for ; r.indexed < r.end; r.indexed++ {
		r.byKey[aliasString(events[r.indexed].Kv.Key)] = r.indexed
	}
	if i, ok := r.byKey[key]; ok {
		return i
	}
	return -1
}

// write appends one version of key, made by the revision in progress, to the
// batch. Its event is added after it.
func (w *pending) write(key string, r *record) {
	main := w.rev + 1
	hl := historyKeyLen(key)
	n := setRecord(w.batch, hl, r, func(dst []byte) { appendHistoryKey(dst, key, main) })
	w.written += recordSize(hl, n, len(key))
	w.indexBytes += indexItemSize(len(key))
}

// supersede makes room for a further change of a key by the revision in
// progress: the last one, if there was any, moves aside. etcd's checks of
// transactions mean to prevent this, but a deletion from a key on beside a put
// gets past them, and so does a put before a deletion in nested transactions.
func (w *pending) supersede(key string) {
	if w.changes() == 0 {
		return
	}
	main := w.rev + 1
	e, sub := w.find(key, main)
	if e == nil {
		return
	}
	r := record{sub: sub, tombstone: e.Type == mvccpb.Event_DELETE}
	if !r.tombstone {
		r.create, r.version, r.lease, r.value = e.Kv.CreateRevision, e.Kv.Version, e.Kv.Lease, e.Kv.Value
	}
	setRecord(w.batch, historyKeyLen(key)+subLen, &r, func(dst []byte) { appendSupersededKey(dst, key, main, sub) })
	w.written += subLen
}

// setRecord appends a record to a batch. fill writes the key. It returns the
// record's length.
func setRecord(batch *pebble.Batch, keyLen int, r *record, fill func(dst []byte)) int {
	var head [recordHeadMax]byte
	h := appendRecordHead(head[:0], r)
	op := batch.SetDeferred(keyLen, len(h)+len(r.value))
	fill(op.Key[:0])
	copy(op.Value[copy(op.Value, h):], r.value)
	finish(op)
	return len(h) + len(r.value)
}

// finish ends a deferred write. It can only fail where the batch is indexed.
func finish(op *pebble.DeferredBatchOp) {
	if err := op.Finish(); err != nil {
		fatal(err)
	}
}

// fatal ends the process for an error that leaves a command half done: to go
// on would let this member's state part from that of the others.
func fatal(err error) {
	panic(fmt.Errorf("mvcc: while applying a command: %w", err))
}
