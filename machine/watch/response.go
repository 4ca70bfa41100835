package watch

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coteriedb/coterie/wire"
)

// Identity is what the caller knows of itself, for the header of a response.
type Identity struct{ ClusterID, MemberID, Term uint64 }

// Response is what a client is to be sent: a pb.WatchResponse, of which the
// events are encoded already and shared with all others who receive them.
type Response struct {
	// Identity completes the header. The caller sets it.
	Identity Identity

	w        *watcher
	revision int64
	events   []*event // shared while it is one delivery's
	bytes    int
	fragment bool // more of the same revision follows
	joined   bool // events is the response's own

	// parts are the events as they are sent, if that is not events[i].encoded().
	parts [][]byte
	// reply is the response if it is one to a request, or has no events.
	reply *pb.WatchResponse
	// front is where the part before the events is made, the stream's.
	front *pb.WatchResponse
}

// AppendMessage appends the encoded response to dst: the bytes that the official
// codec gives for it. It must not run at the same time for two responses of one
// stream.
func (r *Response) AppendMessage(dst []byte) ([]byte, error) {
	m := r.reply
	if m == nil {
		// The encoding of a message is that of its fields in order, and events
		// are the last one.
		m = r.front
		m.WatchId, m.Fragment, m.Header.Revision = r.w.id, r.fragment, r.revision
		dst = slices.Grow(dst, frontRoom+r.size())
	}
	m.Header.ClusterId, m.Header.MemberId, m.Header.RaftTerm = r.Identity.ClusterID, r.Identity.MemberID, r.Identity.Term
	dst, err := wire.Append(dst, m)
	if err != nil || r.reply != nil {
		return dst, err
	}
	for i := range r.len() {
		dst = append(dst, r.part(i)...)
	}
	return dst, nil
}

// frontRoom is enough for the part of a response before its events.
const frontRoom = 64

func newFront() *pb.WatchResponse { return &pb.WatchResponse{Header: &pb.ResponseHeader{}} }

// len returns the number of events.
func (r *Response) len() int {
	if r.parts != nil {
		return len(r.parts)
	}
	return len(r.events)
}

// part returns the i-th event, encoded.
func (r *Response) part(i int) []byte {
	if r.parts != nil {
		return r.parts[i]
	}
	return r.events[i].encoded()
}

// size is that of all events.
func (r *Response) size() (n int) {
	for i := range r.len() {
		n += len(r.part(i))
	}
	return n
}

// join adds a delivery to the same watcher.
func (r *Response) join(d *delivery) {
	if !r.joined {
		r.events = append(make([]*event, 0, 2*(len(r.events)+len(d.events))), r.events...)
		r.joined = true
	}
	r.events = append(r.events, d.events...)
	r.bytes += d.bytes
	r.revision = d.revision
}

// readPrevious makes the parts of a response with previous values.
func (r *Response) readPrevious(src Source) {
	r.parts = make([][]byte, len(r.events))
	for i, e := range r.events {
		r.parts[i] = e.encodedWithPrev(src)
	}
}

// split appends r to dst in responses that are smaller than size, or have only
// one event. All but the last are marked as fragments.
func (r *Response) split(dst []Response, size int) []Response {
	front := headerRoom + 2 + // tag and value of the mark
		protowire.SizeTag(1) + protowire.SizeBytes(protowire.SizeTag(3)+protowire.SizeVarint(uint64(r.revision)))
	if r.w.id != 0 {
		front += protowire.SizeTag(2) + protowire.SizeVarint(uint64(r.w.id))
	}
	begin, sum := 0, front
	cut := func(end int) {
		f := *r
		f.fragment = end < r.len()
		if f.parts != nil {
			f.parts = r.parts[begin:end:end]
		}
		f.events = r.events[begin:end:end]
		dst = append(dst, f)
		begin, sum = end, front
	}
	for i := range r.len() {
		n := len(r.part(i))
		if i > begin && sum+n >= size {
			cut(i)
		}
		sum += n
	}
	cut(r.len())
	return dst
}
