package watch

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	// joinBytes is the size up to which successive deliveries to one watcher
	// are joined into one response.
	joinBytes = 1 << 20
	// takeTurns is how many deliveries are taken between two rounds of
	// catchUp, so that neither those who lag nor those who do not starve.
	takeTurns = 64
	// headerRoom is what the caller adds to a header: cluster, member, term.
	headerRoom = 40
)

// Next returns the next response, waiting for one. Events in it are shared:
// the caller must not change them. Only the revision of the header is filled
// in. An error other than ErrClosed and ctx's means that the history could not
// be read; the stream is of no use then.
func (s *Stream) Next(ctx context.Context) (*pb.WatchResponse, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if r := s.nextFragment(); r != nil {
			return r, nil
		}
		d, todo, err := s.take()
		switch {
		case err != nil:
			return nil, err
		case todo == deliver:
			s.respond(d)
		case todo == readBack:
			if err := s.catchUp(); err != nil {
				return nil, err
			}
		default:
			select {
			case <-s.ready:
			case <-s.done:
			case <-ctx.Done():
			}
		}
	}
}

// todo is what Next does next.
type todo int

const (
	idle     todo = iota
	deliver       // what take returned
	readBack      // for the watchers that lag
)

// take decides what to do next, and takes the delivery out of the queue if
// that is it.
func (s *Stream) take() (delivery, todo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return delivery{}, idle, ErrClosed
	}
	if s.owed && s.lag.n == 0 {
		return delivery{}, readBack, nil // settles the debt
	}
	roomy := s.queue.bytes <= s.h.o.StreamBytes/2
	if s.lag.n > 0 && (s.queue.len() == 0 || roomy && s.taken >= takeTurns) {
		s.taken = 0
		return delivery{}, readBack, nil
	}
	for s.queue.len() > 0 {
		d := s.pop()
		if d.w != nil && d.w.state == canceled {
			continue // the client wants no more of it
		}
		s.taken++
		if d.w != nil {
			s.join(&d)
			d.w.elide = true
			s.h.counts.delivered.Add(uint64(len(d.events)))
		}
		return d, deliver, nil
	}
	return delivery{}, idle, nil
}

// pop takes a delivery out of the queue. s.mu is held.
func (s *Stream) pop() delivery {
	d := s.queue.pop()
	s.h.counts.pending.Add(-int64(len(d.events)))
	if d.reply != nil && s.room != nil && s.queue.replies < maxReplies {
		close(s.room)
		s.room = nil
	}
	return d
}

// join adds to d the deliveries behind it that are to the same watcher. s.mu
// is held.
func (s *Stream) join(d *delivery) {
	limit := joinBytes
	if f := s.h.o.FragmentBytes; f > 0 && d.w.is(fragment) {
		limit = min(limit, f) // fragments are for large revisions, not many
	}
	shared := true // d.events belongs to others
	for s.queue.len() > 0 {
		m := s.queue.front()
		if m.w != d.w || d.bytes+m.bytes > limit {
			return
		}
		if shared {
			d.events = append(make([]*event, 0, 2*(len(d.events)+len(m.events))), d.events...)
			shared = false
		}
		d.events = append(d.events, m.events...)
		d.bytes += m.bytes
		d.revision = m.revision
		s.pop()
	}
}

func (s *Stream) nextFragment() *pb.WatchResponse {
	if len(s.fragments) == 0 {
		return nil
	}
	r := s.fragments[0]
	s.fragments[0] = nil
	if s.fragments = s.fragments[1:]; len(s.fragments) == 0 {
		s.fragments = nil
	}
	return r
}

// respond makes the response, or the fragments, for nextFragment to return.
func (s *Stream) respond(d delivery) {
	if d.reply != nil {
		s.fragments = append(s.fragments, d.reply)
		return
	}
	r := &pb.WatchResponse{
		Header:  header(d.revision),
		WatchId: d.w.id,
		Events:  make([]*mvccpb.Event, len(d.events)),
	}
	for i, e := range d.events {
		if r.Events[i] = e.ev; d.w.is(prevKV) {
			r.Events[i] = e.withPrev(s.h.src)
		}
	}
	if d.w.is(fragment) && s.h.o.FragmentBytes > 0 {
		s.fragments = split(r, s.h.o.FragmentBytes)
		return
	}
	s.fragments = append(s.fragments, r)
}

// split cuts r into responses that are smaller than size, or have only one
// event. All but the last are marked as fragments.
func split(r *pb.WatchResponse, size int) []*pb.WatchResponse {
	events := r.Events
	frame := proto.Size(&pb.WatchResponse{Header: r.Header, WatchId: r.WatchId, Fragment: true}) + headerRoom
	var parts []*pb.WatchResponse
	begin, sum := 0, frame
	cut := func(end int) {
		parts = append(parts, &pb.WatchResponse{
			Header:   r.Header,
			WatchId:  r.WatchId,
			Fragment: end < len(events),
			Events:   events[begin:end:end],
		})
		begin, sum = end, frame
	}
	for i, ev := range events {
		n := 1 + protowire.SizeBytes(proto.Size(ev)) // tag, length, event
		if i > begin && sum+n >= size {
			cut(i)
		}
		sum += n
	}
	cut(len(events))
	return parts
}
