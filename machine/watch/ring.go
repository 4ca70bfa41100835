package watch

import (
	"sync"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// ring holds the newest revisions.
type ring struct {
	maxEvents, maxBytes int

	// mu guards the fields below, for a time in proportion to what is copied
	// in or out: entries, not events.
	mu sync.RWMutex
	// buf is circular. Its length is a power of two and grows as needed up to
	// what maxEvents takes.
	buf []entry
	// first is the oldest revision held, the next one to come if n is 0.
	// Invariant: revision r is held at buf[r%len(buf)] for first <= r < first+n.
	first  int64
	n      int
	events int
	bytes  int
}

func newRing(first int64, maxEvents, maxBytes int) *ring {
	return &ring{maxEvents: maxEvents, maxBytes: maxBytes, buf: make([]entry, 64), first: first}
}

// append adds revisions and drops the oldest beyond the bounds, but never the
// newest.
func (r *ring) append(evs []mvcc.RevisionEvents) {
	entries := make([]entry, len(evs))
	for i := range evs {
		entries[i] = newEntry(evs[i])
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		want := r.first + int64(r.n)
		assertf(e.revision == want, "revision %d published, expected %d", e.revision, want)
		if r.n == len(r.buf) {
			r.grow()
		}
		*r.slot(e.revision) = e
		r.n++
		r.events += len(e.events)
		r.bytes += e.bytes
		for r.n > 1 && (r.events > r.maxEvents || r.bytes > r.maxBytes) {
			r.dropOldest()
		}
	}
}

func (r *ring) slot(revision int64) *entry { return &r.buf[revision&int64(len(r.buf)-1)] }

func (r *ring) grow() {
	old := r.buf
	r.buf = make([]entry, 2*len(old))
	for rev := r.first; rev < r.first+int64(r.n); rev++ {
		*r.slot(rev) = old[rev&int64(len(old)-1)]
	}
}

func (r *ring) dropOldest() {
	e := r.slot(r.first)
	r.events -= len(e.events)
	r.bytes -= e.bytes
	*e = entry{}
	r.first++
	r.n--
}

// bounds returns the oldest and the newest revision held; first is last+1 if
// there is none.
func (r *ring) bounds() (first, last int64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.first, r.first + int64(r.n) - 1
}

// read appends to dst up to limit revisions starting with from. It returns
// false if from is no longer held.
func (r *ring) read(dst []entry, from int64, limit int) ([]entry, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if from < r.first {
		return dst, false
	}
	end := min(r.first+int64(r.n), from+int64(limit))
	for rev := from; rev < end; rev++ {
		dst = append(dst, *r.slot(rev))
	}
	return dst, true
}
