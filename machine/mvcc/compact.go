package mvcc

import (
	"encoding/binary"
)

// Compact makes revisions below rev unreadable and asks for the deletion of
// the versions that only they show. That happens in the background, after
// Publish; done closes at its end, or when the store is closed. With
// ErrCompacted done is that of the compactions asked for before.
func (s *Store) Compact(rev int64) (done <-chan struct{}, err error) {
	w := &s.w
	ch := make(chan struct{})
	switch {
	case rev <= w.compact:
		err = ErrCompacted
	case rev > w.rev:
		return nil, ErrFutureRev
	default:
		w.compact = rev
		if err := w.batch.Set(metaScheduled, binary.BigEndian.AppendUint64(nil, uint64(rev)), nil); err != nil {
			fatal(err)
		}
	}
	w.waiters = append(w.waiters, compactWaiter{rev: w.compact, done: ch})
	return ch, err
}
