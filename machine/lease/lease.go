// Package lease is the table of leases, a part of the deterministic state
// machine: which leases exist, their granted and checkpointed times to live,
// and the keys attached to each.
//
// It promises that equal sequences of commands leave equal tables, and that a
// lease and its last checkpoint survive whatever the applied index that was
// committed with them survives. Which keys are attached is kept in memory
// only: every key's record names its lease, and mvcc attaches them anew when
// it opens.
//
// It reads no clock, but it keeps one: the time for which leaders have led, as
// their commands tell it. Checkpoints are stamped with it, so that what a lease
// had left at one stays known while the clock is moved on. When a lease expires
// is the lessor's business, which follows the table through a Feed and proposes
// revocations like any client.
package lease

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/coteriedb/coterie/storage/engine"
)

// MaxTTL is the longest time to live, in seconds, that a lease may be granted.
// As a time.Duration it still fits 64 bits.
const MaxTTL = 9_000_000_000

var (
	// ErrNotFound is returned for a lease that does not exist. No lease has
	// the id 0.
	ErrNotFound = errors.New("lease not found")
	// ErrExists is returned by Grant for an id in use.
	ErrExists = errors.New("lease already exists")
	// ErrTTLTooLarge is returned by Grant for a time to live above MaxTTL.
	ErrTTLTooLarge = errors.New("too large lease TTL")
)

// Lease is what the table holds of one lease, apart from its keys.
type Lease struct {
	ID int64
	// TTL is the granted time to live in seconds.
	TTL int64
	// RemainingTTL is what is left by the table's clock, in seconds, rounded up
	// and at least 1, if there was a checkpoint since the lease was granted or
	// renewed; else 0.
	RemainingTTL int64
	// Incarnation tells this lease from an earlier one of the same id. It is
	// unique within an open table and not stored.
	Incarnation uint64
}

// Remaining is the time to live, in seconds, with which a leader that knows
// nothing newer begins: the checkpointed one, else the granted one.
func (l Lease) Remaining() int64 {
	if l.RemainingTTL > 0 {
		return l.RemainingTTL
	}
	return l.TTL
}

// Table is the set of leases. Grant, Revoke, Checkpoint, Attach and Detach
// belong to the apply goroutine; the other methods may be called from any.
type Table struct {
	// mu guards all fields below. Only the apply goroutine locks it for
	// writing. Lock order: Table.mu, then Feed.mu.
	mu     sync.RWMutex
	leases map[int64]*record
	// clock is the time for which leaders have led.
	clock time.Duration
	// grants numbers incarnations.
	grants uint64
	feeds  []*Feed
}

// record is one lease with its keys. Its RemainingTTL is that of the last
// checkpoint, as it was at the time recorded.
type record struct {
	Lease
	recorded time.Duration
	keys     map[string]struct{} // nil while there are none
}

// Open reads the leases stored in eng. It fails on a record that it does not
// understand and changes nothing.
func Open(eng *engine.Engine) (*Table, error) {
	it, err := eng.NewIter([]byte{prefix}, []byte{prefix + 1})
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	t := &Table{leases: map[int64]*record{}}
	err = t.load(it)
	if err := errors.Join(err, it.Close()); err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	return t, nil
}

func (t *Table) load(it *pebble.Iterator) error {
	for it.First(); it.Valid(); it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if isClock(it.Key()) {
			if t.clock, err = decodeClock(value); err != nil {
				return err
			}
			continue
		}
		r, err := decode(it.Key(), value)
		if err != nil {
			return err
		}
		t.grants++
		r.Incarnation = t.grants
		t.leases[r.ID] = r
	}
	return it.Error()
}

// Grant creates the lease id with a time to live of ttl seconds.
func (t *Table) Grant(b *pebble.Batch, id, ttl int64) error {
	if id == 0 {
		return ErrNotFound
	}
	if ttl > MaxTTL {
		return ErrTTLTooLarge
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.leases[id] != nil {
		return ErrExists
	}
	r := &record{Lease: Lease{ID: id, TTL: ttl, Incarnation: t.grants + 1}}
	if err := r.store(b); err != nil {
		return err
	}
	t.grants++
	t.leases[id] = r
	t.tell(id)
	return nil
}

// Revoke removes the lease id and returns the keys that were attached to it,
// sorted. The caller deletes them in the same batch.
func (t *Table) Revoke(b *pebble.Batch, id int64) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.leases[id]
	if r == nil {
		return nil, ErrNotFound
	}
	if err := b.Delete(encodeKey(id), nil); err != nil {
		return nil, fmt.Errorf("delete lease %016x: %w", uint64(id), err)
	}
	delete(t.leases, id)
	t.tell(id)
	return r.sortedKeys(), nil
}

// Checkpoint records that the lease id has remainingTTL seconds left; 0 means
// all of its granted time. An unknown lease is ignored: it was revoked while
// its checkpoint was on its way. The id 0, which no lease has, is the clock's:
// it is moved on to as many nanoseconds, and never back.
func (t *Table) Checkpoint(b *pebble.Batch, id, remainingTTL int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id == 0 {
		return t.moveClock(b, time.Duration(remainingTTL))
	}
	r := t.leases[id]
	if r == nil {
		return nil
	}
	changed := record{Lease: r.Lease}
	changed.RemainingTTL = remainingTTL
	if remainingTTL != 0 {
		changed.recorded = t.clock
	}
	if err := changed.store(b); err != nil {
		return err
	}
	r.RemainingTTL, r.recorded = changed.RemainingTTL, changed.recorded
	t.tell(id)
	return nil
}

func (t *Table) moveClock(b *pebble.Batch, to time.Duration) error {
	if to <= t.clock {
		return nil
	}
	if err := b.Set(encodeKey(0), encodeClock(to), nil); err != nil {
		return fmt.Errorf("store the clock of leases: %w", err)
	}
	t.clock = to
	return nil
}

// Clock is the time for which leaders have led, as far as it was told.
func (t *Table) Clock() time.Duration {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.clock
}

// at returns the lease with what is left of it when the clock says now.
func (r *record) at(now time.Duration) Lease {
	l := r.Lease
	if l.RemainingTTL > 0 {
		l.RemainingTTL = max(1, l.RemainingTTL-int64((now-r.recorded)/time.Second))
	}
	return l
}

func (r *record) store(b *pebble.Batch) error {
	if err := b.Set(encodeKey(r.ID), encode(r), nil); err != nil {
		return fmt.Errorf("store lease %016x: %w", uint64(r.ID), err)
	}
	return nil
}

// Has tells whether the lease id exists.
func (t *Table) Has(id int64) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.leases[id] != nil
}

// Attach ties key to the lease id, which must exist: mvcc asks Has before it
// writes a key, and no stored key names a lease that is not stored.
func (t *Table) Attach(id int64, key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.leases[id]
	if r == nil {
		panic(fmt.Sprintf("lease: key %q attached to lease %016x, which does not exist", key, uint64(id)))
	}
	if r.keys == nil {
		r.keys = map[string]struct{}{}
	}
	r.keys[key] = struct{}{}
}

// Detach unties key from the lease id. The lease may be gone: the keys of a
// revoked lease are deleted after it.
func (t *Table) Detach(id int64, key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.leases[id]
	if r == nil {
		return
	}
	delete(r.keys, key)
	if len(r.keys) == 0 {
		r.keys = nil
	}
}

// Get returns the lease id.
func (t *Table) Get(id int64) (Lease, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.leases[id]
	if r == nil {
		return Lease{}, false
	}
	return r.at(t.clock), true
}

// Keys returns the keys attached to the lease id, sorted.
func (t *Table) Keys(id int64) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.leases[id]
	if r == nil {
		return nil
	}
	return r.sortedKeys()
}

func (r *record) sortedKeys() []string { return slices.Sorted(maps.Keys(r.keys)) }

// Len is the number of leases.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.leases)
}

// All returns every lease in the order of ids.
func (t *Table) All() []Lease {
	t.mu.RLock()
	all := make([]Lease, 0, len(t.leases))
	for _, r := range t.leases {
		all = append(all, r.at(t.clock))
	}
	t.mu.RUnlock()
	slices.SortFunc(all, func(a, b Lease) int { return cmp.Compare(a.ID, b.ID) })
	return all
}
