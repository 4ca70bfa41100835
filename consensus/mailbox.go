package consensus

import "sync"

// mailbox passes values to one receiving goroutine without ever blocking the
// sender. What it holds is bounded by its senders: raft limits the appends and
// applies in flight, Node limits proposals and reads.
type mailbox[T any] struct {
	of *station // of the receiver; may be shared by several mailboxes

	mu    sync.Mutex
	items []T // Guarded by mu.
	spare []T // Guarded by mu. The array of the slice taken before last.
}

func newMailbox[T any](of *station) *mailbox[T] { return &mailbox[T]{of: of} }

func (b *mailbox[T]) put(items ...T) {
	b.leave(items...)
	b.of.ring()
}

// leave is put for what can wait until something else is put.
func (b *mailbox[T]) leave(items ...T) {
	b.mu.Lock()
	b.items = append(b.items, items...)
	b.mu.Unlock()
}

// take returns what has come since the last call, in order. The slice is the
// caller's until it calls recycle.
func (b *mailbox[T]) take() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.items
	b.items, b.spare = b.spare[:0], nil
	return items
}

// recycle gives the array of a taken slice back for reuse.
func (b *mailbox[T]) recycle(items []T) {
	clear(items)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.spare = items[:0]
}
