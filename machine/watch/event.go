package watch

import (
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/wire"
)

// eventOverhead is what an event occupies beside its key and value.
const eventOverhead = 256

// event is one event, shared by everyone who receives it. It is encoded when
// the first of them needs it, and once; from then on it is its encoding, so that
// it takes memory for its value once, too.
type event struct {
	key      []byte
	revision int64
	deleted  bool
	created  bool // by a put: there is no previous value
	bytes    int
	// message is the event until it is encoded: one of message and encoding is
	// set, and encoding first.
	message  atomic.Pointer[mvccpb.Event] // immutable
	encoding atomic.Pointer[[]byte]
	// withPrev is the encoding with the previous key-value pair. It is kept if it
	// adds little to the event, for the bounds on memory count only the event.
	withPrev atomic.Pointer[[]byte]
	// self is a list of this event alone, so that handing out a part of a
	// revision neither allocates nor keeps the other parts alive.
	self [1]*event
}

// fieldsRoom is enough for all of an event's encoding but its key and value.
const fieldsRoom = 64

// maxPrevBytes bounds the previous value that is kept with an event, beyond
// the event's own size.
const maxPrevBytes = 1 << 10

func newEvent(ev *mvccpb.Event) *event {
	e := &event{
		key:      ev.Kv.Key,
		revision: ev.Kv.ModRevision,
		deleted:  ev.Type == mvccpb.Event_DELETE,
		bytes:    eventOverhead + len(ev.Kv.Key) + len(ev.Kv.Value),
	}
	e.created = !e.deleted && ev.Kv.CreateRevision == ev.Kv.ModRevision
	e.message.Store(ev)
	e.self[0] = e
	return e
}

// encoded returns the event as it stands in a response: an element of the list
// of events with its tag. It is shared.
func (e *event) encoded() []byte {
	if b := e.encoding.Load(); b != nil {
		return *b
	}
	if ev := e.message.Load(); ev != nil {
		room := make([]byte, 0, len(ev.Kv.Key)+len(ev.Kv.Value)+fieldsRoom)
		b := mustAppend(room, &pb.WatchResponse{Events: []*mvccpb.Event{ev}})
		e.encoding.CompareAndSwap(nil, &b)
		e.message.Store(nil)
	}
	return *e.encoding.Load()
}

// encodedWithPrev is encoded with the key's previous state.
func (e *event) encodedWithPrev(src Source) ([]byte, error) {
	// What was found before a compaction must not be given after it: whether a
	// watcher gets it would depend on who asked before.
	compacted := e.revision-1 < src.CompactRevision()
	if e.created || compacted {
		return e.encoded(), nil
	}
	if b := e.withPrev.Load(); b != nil {
		return *b, nil
	}
	b := e.encoded()
	grown := 0
	prev, err := src.PrevKV(e.reference())
	if err != nil {
		return nil, err
	}
	if prev != nil {
		field := mustAppend(nil, &mvccpb.Event{PrevKv: prev})
		b, grown = appendField(b, field), len(field)
	}
	if grown <= e.bytes+maxPrevBytes {
		e.withPrev.Store(&b)
	}
	return b, nil
}

// reference returns what names the event to the source: its key and revision.
func (e *event) reference() *mvccpb.Event {
	ev := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: e.key, ModRevision: e.revision}}
	if e.deleted {
		ev.Type = mvccpb.Event_DELETE
	}
	return ev
}

// mustAppend is wire.Append for messages without strings, which nothing can be
// wrong with.
func mustAppend(dst []byte, m proto.Message) []byte {
	dst, err := wire.Append(dst, m)
	assertf(err == nil, "a response cannot be encoded: %v", err)
	return dst
}

// appendField returns the encoding of an event with one more field, the last.
func appendField(event, field []byte) []byte {
	tag, typ, n := protowire.ConsumeTag(event)
	fields, m := protowire.ConsumeBytes(event[n:])
	assertf(n > 0 && m > 0 && n+m == len(event), "an event of %d bytes is not encoded as one field", len(event))
	size := len(fields) + len(field)
	b := make([]byte, 0, n+protowire.SizeBytes(size))
	b = protowire.AppendTag(b, tag, typ)
	b = protowire.AppendVarint(b, uint64(size))
	return append(append(b, fields...), field...)
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
