package watch

import (
	"context"
	"slices"
	"sync"
)

const (
	// joinBytes is the size up to which deliveries to one watcher are joined into
	// one response, and to which one call of Next returns responses.
	joinBytes = 1 << 20
	// maxResponses bounds the responses of one call of Next.
	maxResponses = 1024
	// takeTurns is how many deliveries are taken between two rounds of
	// catchUp, so that neither those who lag nor those who do not starve.
	takeTurns = 64
	// headerRoom is what the caller adds to a header: cluster, member, term.
	headerRoom = 40
	// keptResponses is how many responses an idle stream keeps room for; larger
	// batches it shares with others.
	keptResponses = 1
	// pooledResponses is the room of shared batches. Larger ones are rare.
	pooledResponses = 64
)

// batches has room for responses: streams that are idle hold next to nothing,
// and making it anew for each event would be a large part of the event's cost.
var batches = sync.Pool{New: func() any { return new([pooledResponses]Response) }}

// makeRoom makes room for n responses in the batch, which is empty.
func (s *Stream) makeRoom(n int) {
	switch {
	case n <= cap(s.batch):
	case n <= keptResponses || n > pooledResponses:
		s.batch = slices.Grow(s.batch, n)
	default:
		s.batch = batches.Get().(*[pooledResponses]Response)[:0]
	}
}

// giveRoom gives back what an idle stream does not keep of the batch, which is
// empty, and cleared.
func (s *Stream) giveRoom() {
	if cap(s.batch) == pooledResponses {
		batches.Put((*[pooledResponses]Response)(s.batch[:pooledResponses]))
	}
	if cap(s.batch) > keptResponses {
		s.batch = nil
	}
}

// Next returns the responses that are to be sent next, waiting for one at
// least. They are the caller's until it calls Next again. Close ends the waiting,
// too; it costs less with a ctx that cannot end. An error other than ErrClosed and
// ctx's means that the history could not be read; the stream is of no use then.
func (s *Stream) Next(ctx context.Context) ([]Response, error) {
	clear(s.batch)
	s.batch = s.batch[:0]
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		todo, err := s.take()
		switch {
		case err != nil:
			return nil, err
		case todo == deliver:
			s.finish()
			return s.batch, nil
		case todo == readBack:
			if err := s.catchUp(); err != nil {
				return nil, err
			}
		default:
			s.giveRoom()
			if ctx.Done() == nil {
				<-s.ready
				continue
			}
			select {
			case <-s.ready:
			case <-ctx.Done():
			}
		}
	}
}

// todo is what Next does next.
type todo int

const (
	idle     todo = iota
	deliver       // what take has put into the batch
	readBack      // for the watchers that lag
)

// take decides what to do next, and takes deliveries out of the queue into the
// batch if that is it.
func (s *Stream) take() (todo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return idle, ErrClosed
	}
	if s.owed && s.lag.n == 0 {
		return readBack, nil // settles the debt
	}
	roomy := s.queue.bytes <= s.h.o.StreamBytes/2
	if s.lag.n > 0 && (s.queue.len() == 0 || roomy && s.taken >= takeTurns) {
		s.taken = 0
		return readBack, nil
	}
	s.fill()
	if len(s.batch) == 0 {
		return idle, nil
	}
	return deliver, nil
}

// fill takes deliveries out of the queue into the batch. s.mu is held.
func (s *Stream) fill() {
	if s.front == nil {
		s.front = newFront()
	}
	s.makeRoom(min(s.queue.len(), maxResponses))
	var (
		since  int // deliveries join responses from here on
		bytes  int
		events int // taken, and of those delivered
		sent   int
	)
	for s.queue.len() > 0 && len(s.batch) < maxResponses {
		d := s.queue.front()
		if len(s.batch) > 0 && bytes+d.bytes > joinBytes {
			break
		}
		events += len(d.events)
		switch {
		case d.reply != nil:
			s.batch = append(s.batch, Response{reply: d.reply})
			since = len(s.batch) // what comes later is not to overtake it
		case d.w.state != canceled: // else the client wants no more of it
			sent += len(d.events)
			s.add(d, since)
		}
		bytes += d.bytes
		s.taken++
		s.queue.pop()
	}
	if s.room != nil && s.queue.replies < maxReplies {
		close(s.room)
		s.room = nil
	}
	if events > 0 {
		s.h.counts.pending.Add(-int64(events))
		s.h.counts.delivered.Add(uint64(sent))
	}
}

// add puts a delivery into the batch, joined to an earlier one to its watcher if
// one is there from the index since on. s.mu is held.
func (s *Stream) add(d *delivery, since int) {
	w := d.w
	w.elide = true
	if i := int(w.slot); i >= since && i < len(s.batch) && s.batch[i].w == w {
		limit := joinBytes
		if f := s.h.o.FragmentBytes; f > 0 && w.is(fragment) {
			limit = min(limit, f) // fragments are for large revisions, not many
		}
		if r := &s.batch[i]; r.bytes+d.bytes <= limit {
			r.join(d)
			return
		}
	}
	w.slot = int32(len(s.batch))
	s.batch = append(s.batch, Response{w: w, revision: d.revision, events: d.events, bytes: d.bytes, front: s.front})
}

// finish makes the responses of the batch as their watchers want them.
func (s *Stream) finish() {
	split := false
	for i := range s.batch {
		r := &s.batch[i]
		if r.w == nil {
			continue
		}
		if r.w.is(prevKV) {
			r.readPrevious(s.h.src)
		}
		split = split || r.w.is(fragment)
	}
	if !split || s.h.o.FragmentBytes <= 0 {
		return
	}
	whole := s.batch
	s.batch = make([]Response, 0, len(whole))
	for i := range whole {
		if r := &whole[i]; r.w != nil && r.w.is(fragment) {
			s.batch = r.split(s.batch, s.h.o.FragmentBytes)
		} else {
			s.batch = append(s.batch, *r)
		}
	}
}
