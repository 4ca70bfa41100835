package watch

import (
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// eventOverhead is what an event occupies beside its key and value.
const eventOverhead = 256

// event is one event, shared by everyone who receives it. What is made of it
// for sending is kept with it, so that it is made once.
type event struct {
	ev *mvccpb.Event // immutable
	// prev is ev with the previous key-value pair. It is kept if it adds
	// little to the event, for the bounds on memory count only the event.
	prev  atomic.Pointer[mvccpb.Event]
	bytes int
	// self is a list of this event alone, so that handing out a part of a
	// revision neither allocates nor keeps the other parts alive.
	self [1]*event
}

// maxPrevBytes bounds the previous value that is kept with an event, beyond
// the event's own size.
const maxPrevBytes = 1 << 10

func newEvent(ev *mvccpb.Event) *event {
	e := &event{ev: ev, bytes: eventOverhead + kvBytes(ev.Kv)}
	e.self[0] = e
	return e
}

func kvBytes(kv *mvccpb.KeyValue) int { return len(kv.Key) + len(kv.Value) }

// withPrev returns the event with the key's previous state.
func (e *event) withPrev(src Source) *mvccpb.Event {
	created := e.ev.Type == mvccpb.Event_PUT && e.ev.Kv.CreateRevision == e.ev.Kv.ModRevision
	// What was found before a compaction must not be given after it: whether a
	// watcher gets it would depend on who asked before.
	compacted := e.ev.Kv.ModRevision-1 < src.CompactRevision()
	if created || compacted {
		return e.ev
	}
	if ev := e.prev.Load(); ev != nil {
		return ev
	}
	ev := &mvccpb.Event{Type: e.ev.Type, Kv: e.ev.Kv, PrevKv: src.PrevKV(e.ev)}
	if ev.PrevKv == nil || kvBytes(ev.PrevKv) <= e.bytes+maxPrevBytes {
		e.prev.Store(ev)
	}
	return ev
}

// entry is one revision. Several of its events may be on the same key.
type entry struct {
	revision int64
	events   []*event
	bytes    int
}

func newEntry(r mvcc.RevisionEvents) entry {
	if len(r.Events) == 1 {
		e := newEvent(r.Events[0])
		return entry{revision: r.Revision, events: e.self[:], bytes: e.bytes}
	}
	n := entry{revision: r.Revision, events: make([]*event, len(r.Events))}
	for i, ev := range r.Events {
		n.events[i] = newEvent(ev)
		n.bytes += n.events[i].bytes
	}
	return n
}
