package watch

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine/mvcc"
)

const (
	// distributeBatch is how many revisions the distributor takes out of the
	// ring at a time.
	distributeBatch = 256
	// maxFilled is how many streams are told at the latest that they have got
	// something to send, so that the first do not wait for the last.
	maxFilled = 1024
	// historyRevisions and historyBytes bound one reading of the history.
	historyRevisions = 4096
	historyBytes     = 1 << 20
)

// run is the distributor: it gives each revision to the synced watchers.
func (h *Hub) run(ctx context.Context) {
	defer h.distributor.Done()
	scratch := make([]entry, 0, distributeBatch)
	var (
		timer <-chan time.Time
		until time.Time // when timer fires
	)
	for ctx.Err() == nil {
		busy := h.distributeSome(ctx, scratch)
		h.answerAsking()
		next, any := h.ringAlarms()
		if busy {
			continue
		}
		if any && (timer == nil || next.Before(until)) {
			timer, until = h.o.Clock.After(max(0, next.Sub(h.o.Clock.Now()))), next
		}
		select {
		case <-h.wake:
		case <-timer:
			timer = nil
		case <-ctx.Done():
		}
	}
}

// distributeSome distributes the next revisions and tells whether there were
// any.
func (h *Hub) distributeSome(ctx context.Context, scratch []entry) bool {
	from := h.distributed.Load() + 1
	entries, held := h.ring.read(scratch, from, distributeBatch)
	if !held {
		h.bridge(ctx, from)
		return true
	}
	for i := range entries {
		h.distribute(&entries[i])
	}
	h.tell()
	clear(entries)
	return len(entries) > 0
}

// distribute gives one revision to the synced watchers of its keys. Those
// whose stream has no room fall behind, with this revision as their next.
func (h *Hub) distribute(e *entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e.revision <= h.distributed.Load() {
		return // there was no stream when it was published
	}
	queued := 0
	h.synced.match(e, func(c *cohort, evs []*event, bytes int) {
		to := c.at(e.revision)
		if len(to) == 0 {
			return
		}
		switch c.s.offer(delivery{to: to, revision: e.revision, events: evs, bytes: bytes}) {
		case first:
			h.filled = append(h.filled, c.s)
			fallthrough
		case further:
			queued += len(evs) * len(to)
		case full:
			h.full = append(h.full, c)
		}
	})
	h.counts.pending.Add(int64(queued))
	for i, c := range h.full {
		h.unsync(c, e.revision)
		h.full[i] = nil
	}
	h.full = h.full[:0]
	h.distributed.Store(e.revision)
	if len(h.filled) >= maxFilled {
		h.tellFilled()
	}
}

// tell wakes the streams that have got something to send.
func (h *Hub) tell() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tellFilled()
}

// tellFilled is tell with h.mu held.
func (h *Hub) tellFilled() {
	for i, s := range h.filled {
		s.signal()
		h.filled[i] = nil
	}
	h.filled = h.filled[:0]
}

// offered is what became of a delivery that was offered to a stream.
type offered int

const (
	first   offered = iota // queued, with nothing before it
	further                // queued
	full                   // there is no room
	dropped                // the stream is closed
)

// offer queues d if there is room, or if there is nothing else.
func (s *Stream) offer(d delivery) offered {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return dropped
	}
	if s.queue.len() > 0 && s.queue.bytes+d.size() > s.h.o.StreamBytes {
		return full
	}
	s.queue.push(d)
	if s.queue.len() > 1 {
		return further
	}
	return first
}

// unsync makes the watchers of a cohort lag, who were given what is below from.
// All of them leave, since the list that deliveries share must not have any who
// lag. h.mu is held.
func (h *Hub) unsync(c *cohort, from int64) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range h.synced.removeAll(c) {
		w.next = max(w.next, from)
		s.fallBehind(w)
	}
}

// bridge distributes revisions that left the ring before the distributor came
// to them, out of the history. It reads them once for all watchers: were each
// to read for itself, one burst would send every stream of the server to the
// disk.
func (h *Hub) bridge(ctx context.Context, from int64) {
	first, _ := h.ring.bounds()
	for from < first && ctx.Err() == nil {
		to := min(first-1, from+historyRevisions-1)
		evs, next, err := h.src.ReadEvents(from, to, func([]byte) bool { return true }, historyBytes)
		if err != nil {
			if !errors.Is(err, mvcc.ErrCompacted) {
				h.o.Logger.Error("watch: cannot read missed events", zap.Int64("from", from), zap.Int64("to", to), zap.Error(err))
			}
			h.unsyncAll(from, first-1)
			return
		}
		assertf(len(evs) == int(next-from), "revisions %d to %d: %d have events", from, next-1, len(evs))
		for _, r := range evs {
			e := newEntry(r)
			h.distribute(&e)
		}
		h.tell()
		from = next
	}
}

// unsyncAll leaves the revisions from up to last to the watchers themselves:
// they find out whether they can have them, or why not.
func (h *Hub) unsyncAll(from, last int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []*cohort
	h.synced.eachCohort(func(c *cohort) {
		if c.from() <= last {
			all = append(all, c)
		}
	})
	for _, c := range all {
		h.unsync(c, from)
	}
	h.distributed.Store(max(last, h.distributed.Load()))
}
