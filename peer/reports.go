package peer

import (
	"context"
	"sync"
)

// reports passes on what Send must not say itself, for it never blocks: that a
// member is unreachable, and that a snapshot was not even begun. What is said
// again before it was heard is said once; so it is bounded by the number of
// members.
type reports struct {
	wake chan struct{} // capacity 1
	mu   sync.Mutex
	lost map[uint64]bool // Guarded by mu.
	// Guarded by mu. Snapshots not begun, by member: each is told.
	failed map[uint64]int
}

func newReports() *reports {
	return &reports{wake: make(chan struct{}, 1), lost: make(map[uint64]bool), failed: make(map[uint64]int)}
}

func (r *reports) unreachable(id uint64) {
	r.mu.Lock()
	r.lost[id] = true
	r.mu.Unlock()
	wake(r.wake)
}

func (r *reports) snapshotFailed(id uint64) {
	r.mu.Lock()
	r.failed[id]++
	r.mu.Unlock()
	wake(r.wake)
}

// run passes reports on until ctx ends. Snapshots that have failed by then are
// still told.
func (r *reports) run(ctx context.Context, h Handler) {
	for ended := false; !ended; {
		select {
		case <-r.wake:
		case <-ctx.Done():
			ended = true
		}
		r.mu.Lock()
		lost, failed := r.lost, r.failed
		r.lost, r.failed = make(map[uint64]bool), make(map[uint64]int)
		r.mu.Unlock()
		for id, n := range failed {
			for range n {
				h.SnapshotSent(id, false)
			}
		}
		for id := range lost {
			h.Unreachable(id)
		}
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
