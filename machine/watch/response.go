package watch

import (
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coteriedb/coterie/wire"
)

// Identity is what the caller knows of itself, for the header of a response.
type Identity struct{ ClusterID, MemberID, Term uint64 }

// Responses are what a client is to be sent next, in this order: each is a
// pb.WatchResponse, of which the events are encoded already and shared with all
// others who receive them.
type Responses struct {
	// Identity completes the headers. The caller sets it.
	Identity Identity

	all    []response
	todo   []response // the next ones, which finish has yet to make
	bodies []body
	// front is where the part before the events is made.
	front pb.WatchResponse
}

// response is one of them: the id of the watcher, and the rest, which it has in
// common with others of its cohort.
type response struct {
	id   int64
	body int32 // in Responses.bodies
}

// body is what the responses to some watchers of a cohort have in common.
type body struct {
	// reply is the whole response if it is one to a request, or has no events.
	reply *pb.WatchResponse

	to       []*watcher // of the delivery
	sent     int        // responses: some watchers may have been canceled
	revision int64
	events   []*event
	bytes    int
	created  bool // by all of the events something is: none has a previous value
	fragment bool // more of the same revision follows
	// own is room for the events of several deliveries.
	own []*event
	// parts are the events as they are sent, if that is not events[i].encoded().
	parts [][]byte

	// What is encoded once, with the first of the responses: the header, and how
	// much the events are.
	header []byte
	size   int
}

const (
	// keptResponses, keptBodies and keptEvents are the room that Responses
	// keep when they are used again. They are what a batch may have, or what most
	// are content with.
	keptResponses = 2 * maxResponses
	keptBodies    = 64
	keptEvents    = 64
	// headerBytes is enough for an encoded header.
	headerBytes = 64
)

// idleResponses are used again by whoever has something to send.
var idleResponses = sync.Pool{New: func() any {
	return &Responses{front: pb.WatchResponse{Header: &pb.ResponseHeader{}}}
}}

func getResponses() *Responses { return idleResponses.Get().(*Responses) }

// put gives rs, which are empty, to others.
func (rs *Responses) put() {
	if cap(rs.all) > keptResponses {
		rs.all = nil
	}
	if cap(rs.todo) > keptResponses {
		rs.todo = nil
	}
	if cap(rs.bodies) > keptBodies {
		rs.bodies = nil
	}
	idleResponses.Put(rs)
}

// clear empties rs.
func (rs *Responses) clear() {
	for i := range rs.bodies {
		b := &rs.bodies[i]
		clear(b.own[:cap(b.own)])
		if cap(b.own) > keptEvents {
			b.own = nil
		}
		*b = body{own: b.own[:0], header: b.header[:0]}
	}
	rs.all, rs.todo, rs.bodies = rs.all[:0], rs.todo[:0], rs.bodies[:0]
}

// more tells whether there are responses that finish has yet to make.
func (rs *Responses) more() bool { return len(rs.todo) > 0 }

// newBody appends a body, with the room of earlier ones.
func (rs *Responses) newBody() *body {
	n := len(rs.bodies)
	if n < cap(rs.bodies) {
		rs.bodies = rs.bodies[:n+1]
	} else {
		rs.bodies = append(rs.bodies, body{})
	}
	return &rs.bodies[n]
}

func (rs *Responses) reply(r *pb.WatchResponse) {
	rs.todo = append(rs.todo, response{body: int32(len(rs.bodies))})
	rs.newBody().reply = r
}

// add adds the responses to the first n watchers of d, and returns how many
// events those are. Stream.mu is held.
func (rs *Responses) add(d *delivery, n int) (events int) {
	i := int32(len(rs.bodies))
	before := len(rs.todo)
	for _, w := range d.to[:n] {
		if w.state != canceled { // else the client wants no more of it
			w.elide = true
			rs.todo = append(rs.todo, response{id: w.id, body: i})
		}
	}
	d.to[0].slot = i
	b := rs.newBody()
	b.to, b.revision, b.events, b.bytes = d.to[:n], d.revision, d.events, d.bytes
	b.created = d.to[0].is(prevKV) && d.created()
	b.sent = len(rs.todo) - before
	return b.sent * len(d.events)
}

// joins tells whether d can become part of the i-th body: it is for the same
// watchers, and not too large then. Between two deliveries with the same list
// there is none to one of its watchers alone, since who leaves the cohort, but
// for good, leaves with all the others, and then the list is over.
func (rs *Responses) joins(i int, d *delivery, fragmentBytes int) bool {
	if i >= len(rs.bodies) {
		return false
	}
	b := &rs.bodies[i]
	if len(b.to) != len(d.to) || &b.to[0] != &d.to[0] {
		return false
	}
	if d.to[0].is(prevKV) && !(b.created && d.created()) {
		return false // how large previous values are is not known yet
	}
	limit := joinBytes
	if fragmentBytes > 0 && d.to[0].is(fragment) {
		limit = min(limit, fragmentBytes) // fragments are for large revisions, not many
	}
	return b.bytes+d.bytes <= limit
}

// join adds d to the i-th body, and returns how many events those are.
func (rs *Responses) join(i int, d *delivery) (events int) {
	b := &rs.bodies[i]
	if len(b.own) == 0 {
		b.own = append(b.own, b.events...)
	}
	b.own = append(b.own, d.events...)
	b.events = b.own
	b.bytes += d.bytes
	b.revision = d.revision
	return b.sent * len(d.events)
}

// created tells whether none of the events has a previous value.
func (d *delivery) created() bool {
	return !slices.ContainsFunc(d.events, func(e *event) bool { return !e.created })
}

// finish makes the next responses as their watchers want them, in place of those that it made before: all there are, but that
// it ends when it has read joinBytes of previous values.
func (rs *Responses) finish(src Source, fragmentBytes int) error {
	special := false
	for i := range rs.bodies {
		b := &rs.bodies[i]
		special = special || b.reply == nil && (b.to[0].is(prevKV) || b.to[0].is(fragment) && fragmentBytes > 0)
	}
	if !special {
		rs.all, rs.todo = rs.todo, rs.all[:0]
		return nil
	}
	for i := range rs.bodies {
		rs.bodies[i].parts = nil // all responses with them have been sent
	}
	rs.all = rs.all[:0]
	read := 0
	for i, r := range rs.todo {
		b := &rs.bodies[r.body]
		if b.reply == nil && b.to[0].is(prevKV) && !b.created && b.parts == nil {
			if read >= joinBytes {
				rs.todo = rs.todo[:copy(rs.todo, rs.todo[i:])]
				return nil
			}
			n, err := b.readPrevious(src)
			if err != nil {
				return err
			}
			read += n
		}
		if b.reply == nil && b.to[0].is(fragment) && fragmentBytes > 0 {
			rs.splitOne(r, fragmentBytes)
		} else {
			rs.all = append(rs.all, r)
		}
	}
	rs.todo = rs.todo[:0]
	return nil
}

// splitOne appends r in responses that are smaller than size, or have only one
// event. All but the last are marked as fragments.
func (rs *Responses) splitOne(r response, size int) {
	whole := rs.bodies[r.body]
	front := headerRoom + 2 + // tag and value of the mark
		protowire.SizeTag(1) + protowire.SizeBytes(protowire.SizeTag(3)+protowire.SizeVarint(uint64(whole.revision)))
	if r.id != 0 {
		front += protowire.SizeTag(2) + protowire.SizeVarint(uint64(r.id))
	}
	begin, sum := 0, front
	cut := func(end int) {
		rs.all = append(rs.all, response{id: r.id, body: int32(len(rs.bodies))})
		b := rs.newBody()
		b.to, b.revision, b.sent = whole.to, whole.revision, 1
		b.events = whole.events[begin:end:end]
		if whole.parts != nil {
			b.parts = whole.parts[begin:end:end]
		}
		b.fragment = end < len(whole.events)
		begin, sum = end, front
	}
	for i := range whole.events {
		n := len(whole.part(i))
		if i > begin && sum+n >= size {
			cut(i)
		}
		sum += n
	}
	cut(len(whole.events))
}

// readPrevious makes the parts of a response with previous values, and returns how many bytes they are.
func (b *body) readPrevious(src Source) (bytes int, err error) {
	b.parts = make([][]byte, len(b.events))
	for i, e := range b.events {
		if b.parts[i], err = e.encodedWithPrev(src); err != nil {
			return 0, err
		}
		bytes += len(b.parts[i])
	}
	return bytes, nil
}

// part returns the i-th event, encoded.
func (b *body) part(i int) []byte {
	if b.parts != nil {
		return b.parts[i]
	}
	return b.events[i].encoded()
}

// Len returns how many there are.
func (rs *Responses) Len() int { return len(rs.all) }

// AppendMessage appends the i-th, encoded, to dst: the bytes that the official
// codec gives for it.
func (rs *Responses) AppendMessage(dst []byte, i int) ([]byte, error) {
	r := &rs.all[i]
	b := &rs.bodies[r.body]
	if b.reply != nil {
		rs.identify(b.reply.Header)
		return wire.Append(dst, b.reply)
	}
	if len(b.header) == 0 {
		rs.encode(b)
	}
	// The encoding of a message is that of its fields in order, and events are
	// the last one.
	dst = slices.Grow(dst, len(b.header)+headerRoom+b.size)
	dst = append(dst, b.header...)
	if r.id != 0 {
		dst = protowire.AppendVarint(append(dst, tagWatchID), uint64(r.id))
	}
	if b.fragment {
		dst = append(dst, tagFragment, 1)
	}
	for i := range b.events {
		dst = append(dst, b.part(i)...)
	}
	return dst, nil
}

// The tags of the fields that follow the header in a response with events.
const (
	tagWatchID  = 2<<3 | byte(protowire.VarintType)
	tagFragment = 7<<3 | byte(protowire.VarintType)
)

// encode makes what is encoded once of a body.
func (rs *Responses) encode(b *body) {
	rs.front.Header.Revision = b.revision
	rs.identify(rs.front.Header)
	b.header = mustAppend(slices.Grow(b.header, headerBytes), &rs.front)
	b.size = 0
	for i := range b.events {
		b.size += len(b.part(i))
	}
}

func (rs *Responses) identify(h *pb.ResponseHeader) {
	h.ClusterId, h.MemberId, h.RaftTerm = rs.Identity.ClusterID, rs.Identity.MemberID, rs.Identity.Term
}
