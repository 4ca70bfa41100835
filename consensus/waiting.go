package consensus

import (
	"slices"
	"sync"
	"time"

	"github.com/coteriedb/coterie/machine"
)

// results is who waits for the results of an entry. Whoever owns the core tells them if their time is over before there are any: the
// machine may hang.
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

// expire answers the callers if their time is over, returns how many that were, and whether any still wait. The
// deadlines of one batch are close together.
func (r *results) expire(now time.Time) (over uint64, waits bool) {
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
	index   uint64
	readers []read
}

// barriers are those whose index is not applied yet. Who applies lets readers go, and who owns the core tells them if their time is over before.
type barriers struct {
	mu  sync.Mutex
	all []barrier // Guarded by mu.
}

func (bs *barriers) add(b barrier) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	bs.all = append(bs.all, b)
}

// reach lets those readers go whose index is applied.
func (bs *barriers) reach(applied uint64) {
	bs.answer(nil, func(b *barrier) int {
		if b.index > applied {
			return 0
		}
		return len(b.readers)
	})
}

// expire answers those whose time is over.
func (bs *barriers) expire(now time.Time) {
	bs.answer(ErrTimeout, func(b *barrier) int {
		n := slices.IndexFunc(b.readers, func(r read) bool { return now.Before(r.deadline) })
		if n < 0 {
			return len(b.readers)
		}
		return n
	})
}

// fail answers all.
func (bs *barriers) fail(err error) {
	bs.answer(err, func(b *barrier) int { return len(b.readers) })
}

// answer answers the first readers of each, as many as some says, and forgets them.
func (bs *barriers) answer(err error, some func(*barrier) int) {
	var answered []read
	bs.mu.Lock()
	waiting := bs.all[:0]
	for _, b := range bs.all {
		n := some(&b)
		answered = append(answered, b.readers[:n]...)
		if b.readers = b.readers[n:]; len(b.readers) > 0 {
			waiting = append(waiting, b)
		}
	}
	clear(bs.all[len(waiting):])
	bs.all = waiting
	bs.mu.Unlock()
	for _, r := range answered {
		r.done(err)
	}
}

// expireHanded answers those whose time is over, and forgets who does not wait for results any more.
func (n *Node) expireHanded(now time.Time) {
	n.handed = slices.DeleteFunc(n.handed, func(r *results) bool {
		over, waits := r.expire(now)
		n.core.failed += over
		return !waits
	})
	n.barriers.expire(now)
}
