package lease

import (
	"slices"
	"sync"
)

// maxChanges bounds what a Feed remembers between two calls of Take. Beyond
// it the feed forgets single changes and says that everything may have changed.
const maxChanges = 1 << 16

// Feed tells one follower of a table which leases have been granted, revoked
// or checkpointed. It carries ids, not states: the follower reads the state
// from the table, where it is at least as new as the change.
type Feed struct {
	t     *Table
	ready chan struct{}

	mu      sync.Mutex // guards the fields below; a leaf, see Table.mu
	changed []int64
	all     bool
}

// Follow returns a feed of the changes from now on. The caller closes it.
func (t *Table) Follow() *Feed {
	f := &Feed{t: t, ready: make(chan struct{}, 1)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.feeds = append(t.feeds, f)
	return f
}

// tell notes a change of the lease id. t.mu is held.
func (t *Table) tell(id int64) {
	for _, f := range t.feeds {
		f.add(id)
	}
}

func (f *Feed) add(id int64) {
	f.mu.Lock()
	switch {
	case f.all:
	case len(f.changed) == maxChanges:
		f.all, f.changed = true, nil
	default:
		f.changed = append(f.changed, id)
	}
	f.mu.Unlock()
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// Ready receives after a change.
func (f *Feed) Ready() <-chan struct{} { return f.ready }

// Take appends to buf the ids that changed since the last call, in order and
// possibly repeated. If all is true too much has changed to say what, and the
// follower compares everything.
func (f *Feed) Take(buf []int64) (ids []int64, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids, all = append(buf, f.changed...), f.all
	f.changed, f.all = f.changed[:0], false
	if cap(f.changed) > 1<<10 {
		f.changed = nil // a burst is over
	}
	return ids, all
}

// Close ends the feed.
func (f *Feed) Close() {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	f.t.feeds = slices.DeleteFunc(f.t.feeds, func(g *Feed) bool { return g == f })
}
