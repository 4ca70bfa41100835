package watch

import (
	"errors"
	"fmt"
	"math"

	"github.com/coteriedb/coterie/machine/mvcc"
)

const (
	// ringRevisions bounds one reading of the ring.
	ringRevisions = 512
	// finalRevisions is how far behind the distributor watchers may be for
	// the rest to be read while the distributor is kept waiting.
	finalRevisions = 64
)

// never is a revision after all others.
const never = math.MaxInt64

// catchUp brings the watchers that lag forward by a bounded step, and back to
// the distributor if they have reached it. It belongs to Next: a client that
// does not read costs nothing.
//
// There are two kinds of them, those whose next revision is in the ring and
// those who need the history. A step serves all of one kind; the kinds take
// turns, so that a few revisions missed do not wait for a year's history.
func (s *Stream) catchUp() error {
	s.mu.Lock()
	s.round++
	recent, old := s.oldest()
	if recent != never && (old == never || s.round%2 == 0) {
		s.readRing(recent, ringRevisions)
		s.mu.Unlock()
	} else {
		s.mu.Unlock()
		if old != never {
			if err := s.readHistory(old); err != nil {
				return err
			}
		}
	}
	s.rejoin()
	return nil
}

// oldest returns the lowest next revision of the watchers within the ring and
// of those before it, never if there are none. s.mu is held.
func (s *Stream) oldest() (recent, old int64) {
	first, _ := s.h.ring.bounds()
	recent, old = never, never
	s.lag.each(func(w *watcher) {
		if w.next >= first {
			recent = min(recent, w.next)
		} else {
			old = min(old, w.next)
		}
	})
	return recent, old
}

// readRing queues up to limit revisions from the ring for the watchers whose
// next revision is from or later. s.mu is held.
func (s *Stream) readRing(from int64, limit int) {
	entries, held := s.h.ring.read(nil, from, limit)
	if !held {
		return // dropped since; the history has it
	}
	next := s.queueEntries(entries, from+int64(len(entries)), func(w *watcher) bool { return w.next >= from })
	s.lag.each(func(w *watcher) {
		if w.next >= from {
			w.next = max(w.next, next)
		}
	})
}

// readHistory queues some revisions from the history for the watchers that
// need them, or ends those that cannot have them any more.
func (s *Stream) readHistory(from int64) error {
	src := s.h.src
	_, last := s.h.ring.bounds()
	s.mu.Lock()
	round := s.round
	// Those who come to lag during the reading are not in it: what was read
	// before they came was not matched with their keys.
	s.lag.each(func(w *watcher) { w.round = round })
	s.mu.Unlock()

	covered := func(key []byte) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.lag.covers(key)
	}
	evs, next, err := src.ReadEvents(from, min(last, from+historyRevisions-1), covered, historyBytes)
	if err != nil && !errors.Is(err, mvcc.ErrCompacted) {
		return fmt.Errorf("watch: read history from revision %d: %w", from, err)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if err != nil {
		s.compactOld(src.CompactRevision())
		return nil
	}
	entries := make([]entry, len(evs))
	for i := range evs {
		entries[i] = newEntry(evs[i])
	}
	members := func(w *watcher) bool { return w.round == round }
	next = s.queueEntries(entries, next, members)
	s.lag.each(func(w *watcher) {
		if members(w) {
			w.next = max(w.next, next)
		}
	})
	return nil
}

// compactOld ends the watchers that need revisions below c, unless the ring
// still has them. s.mu is held.
func (s *Stream) compactOld(c int64) {
	first, _ := s.h.ring.bounds()
	var lost []*watcher
	s.lag.each(func(w *watcher) {
		if w.next < min(c, first) {
			lost = append(lost, w)
		}
	})
	for _, w := range lost {
		s.compact(w, c)
	}
}

// queueEntries queues the events of entries, which hold all there are below
// next, for those who lag and are among the members. It stops when the queue
// is full and returns the first revision not dealt with. s.mu is held.
func (s *Stream) queueEntries(entries []entry, next int64, members func(w *watcher) bool) int64 {
	before, events := s.queue.len(), s.queue.events
	for i := range entries {
		e := &entries[i]
		if i > 0 && s.queue.bytes >= s.h.o.StreamBytes {
			next = e.revision
			break
		}
		s.lag.match(e, func(c *cohort, evs []*event, bytes int) {
			for i, w := range c.members {
				if c.has(i) && members(w) && e.revision >= w.next {
					s.queue.push(delivery{to: c.members[i : i+1], revision: e.revision, events: evs, bytes: bytes})
				}
			}
		})
	}
	s.h.counts.pending.Add(int64(s.queue.events - events))
	s.stamp(s.queue.len()-before, next-1) // and Next, which calls this, looks into the queue again
	return next
}

// stamp raises the revision of each watcher's last delivery among the last n,
// which are to one watcher each, to rev: it has what there was up to there. etcd
// too shows those who catch up how far they got.
func (s *Stream) stamp(n int, rev int64) {
	seen := make(map[*watcher]struct{}, min(n, s.lag.n))
	for i := len(s.queue.elems) - 1; n > 0 && len(seen) < s.lag.n; i, n = i-1, n-1 {
		d := &s.queue.elems[i]
		if _, ok := seen[d.to[0]]; !ok {
			seen[d.to[0]] = struct{}{}
			d.revision = rev
		}
	}
}

// rejoin makes the watchers synced that have caught up with the distributor,
// and answers the progress request that waited for the last of them.
func (s *Stream) rejoin() {
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	at := h.distributed.Load()
	// The distributor stands still now, so whoever is close gets there.
	if recent, _ := s.oldest(); recent <= at && at-recent < finalRevisions {
		s.readRing(recent, finalRevisions)
	}
	var ws []*watcher
	s.lag.each(func(w *watcher) {
		if w.next > at {
			ws = append(ws, w)
		}
	})
	for _, w := range ws {
		s.lag.remove(w)
		w.state = synced
		h.counts.lagging.Add(-1)
		h.synced.add(w)
	}
	if s.owed && s.lag.n == 0 {
		s.owed = false
		h.ask(s)
		h.rouse()
	}
}
