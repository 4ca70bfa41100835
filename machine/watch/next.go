package watch

import (
	"context"
	"errors"
	"fmt"

	"github.com/coteriedb/coterie/machine/mvcc"
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
)

// Next returns the responses that are to be sent next, waiting for one at
// least. They are the caller's until it calls Next again. Close ends the waiting,
// too; it costs less with a ctx that cannot end. An error other than ErrClosed and
// ctx's means that the history could not be read; the stream is of no use then.
func (s *Stream) Next(ctx context.Context) (*Responses, error) {
	if s.batch == nil {
		s.batch = getResponses()
	}
	if s.batch.more() {
		return s.finish()
	}
	s.batch.clear()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		todo, err := s.take()
		switch {
		case err != nil:
			return nil, err
		case todo == deliver:
			return s.finish()
		case todo == readBack:
			if err := s.catchUp(); err != nil {
				return nil, err
			}
		default:
			if err := s.await(ctx); err != nil {
				return nil, err
			}
		}
	}
}

// finish makes the next of the responses in the batch as they are sent.
func (s *Stream) finish() (*Responses, error) {
	err := s.batch.finish(s.h.src, s.h.o.FragmentBytes)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || errors.Is(err, mvcc.ErrClosed) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("watch: read what was before: %w", err)
	}
	return s.batch, nil
}

// await waits for something to do. Meanwhile the stream holds next to nothing.
func (s *Stream) await(ctx context.Context) error {
	s.batch.put()
	s.batch = nil
	defer func() { s.batch = getResponses() }()
	if ctx.Done() == nil {
		<-s.ready
		return nil
	}
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
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
	for s.fill(); !s.batch.more(); s.fill() {
		s.batch.clear() // what was taken was for watchers that are gone
		switch {
		case s.queue.len() > 0:
		case s.lag.n > 0:
			s.taken = 0
			return readBack, nil
		default:
			return idle, nil
		}
	}
	return deliver, nil
}

// fill takes deliveries out of the queue into the batch. s.mu is held.
func (s *Stream) fill() {
	var (
		b      = s.batch
		since  int // deliveries join bodies from here on
		bytes  int
		events int // taken, and of those delivered
		sent   int
	)
	for s.queue.len() > 0 && len(b.todo) < maxResponses {
		d := s.queue.front()
		if d.reply != nil {
			b.reply(d.reply)
			since = len(b.bodies) // what comes later is not to overtake it
			bytes += replyBytes
			s.taken++
			s.queue.pop()
			continue
		}
		room := (joinBytes - bytes) / d.bytes // watchers
		if i := int(d.to[0].slot); i >= since && b.joins(i, d, s.h.o.FragmentBytes) {
			if len(d.to) > room {
				break
			}
			sent += b.join(i, d)
			events += len(d.events) * len(d.to)
			bytes += d.size()
			s.taken++
			s.queue.pop()
			continue
		}
		n := min(len(d.to), maxResponses-len(b.todo), room)
		if n < 1 {
			if len(b.todo) > 0 {
				break
			}
			n = 1
		}
		sent += b.add(d, n)
		events += len(d.events) * n
		bytes += d.bytes * n
		s.taken += n
		if n < len(d.to) {
			s.queue.popSome(n)
			break
		}
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
