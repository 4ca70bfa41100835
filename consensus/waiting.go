package consensus

import (
	"slices"
	"sync"
	"time"

	"github.com/coteriedb/coterie/machine"
)

// handed are callers whom the machine is to answer. Whoever owns the core tells them if their time is over before: the machine may hang.
type handed interface {
	// expire answers those whose time is over, and returns how many proposals that were and whether anybody still waits.
	expire(now time.Time) (proposals uint64, waits bool)
}

// results is who waits for the results of an entry.
type results struct {
	mu      sync.Mutex
	callers []proposal // none if there never were any, or they have been taken to be answered. Guarded by mu.
}

// asked tells whether anybody waits.
func (r *results) asked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.callers != nil
}

// take returns the callers to whoever answers them.
func (r *results) take() []proposal {
	r.mu.Lock()
	defer r.mu.Unlock()
	callers := r.callers
	r.callers = nil
	return callers
}

// expire implements handed. The deadlines of one batch are close together.
func (r *results) expire(now time.Time) (proposals uint64, waits bool) {
	r.mu.Lock()
	callers := r.callers
	if waits = callers != nil && now.Before(callers[len(callers)-1].deadline); !waits {
		r.callers = nil
	}
	r.mu.Unlock()
	if waits {
		return 0, true
	}
	for _, p := range callers {
		p.done(machine.Result{Err: ErrTimeout})
	}
	return uint64(len(callers)), false
}

// fail answers the callers with an error.
func (r *results) fail(err error) {
	for _, p := range r.take() {
		p.done(machine.Result{Err: err})
	}
}

// barrier is a confirmed round: its readers go on at index.
type barrier struct {
	index uint64

	mu      sync.Mutex
	readers []read // none if they have been taken to be answered. Guarded by mu.
}

// answer answers all readers.
func (b *barrier) answer(err error) {
	b.mu.Lock()
	readers := b.readers
	b.readers = nil
	b.mu.Unlock()
	for _, r := range readers {
		r.done(err)
	}
}

// waits tells whether any reader has not been answered.
func (b *barrier) waits() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.readers) > 0
}

// expire implements handed.
func (b *barrier) expire(now time.Time) (proposals uint64, waits bool) {
	b.mu.Lock()
	n := 0
	for n < len(b.readers) && !now.Before(b.readers[n].deadline) {
		n++
	}
	over := b.readers[:n]
	b.readers = b.readers[n:]
	waits = len(b.readers) > 0
	b.mu.Unlock()
	for _, r := range over {
		r.done(ErrTimeout)
	}
	return 0, waits
}

// expireHanded answers those whose time is over, and forgets who does not wait any more.
func (n *Node) expireHanded(now time.Time) {
	n.handed = slices.DeleteFunc(n.handed, func(h handed) bool {
		proposals, waits := h.expire(now)
		n.core.failed += proposals
		return !waits
	})
}
