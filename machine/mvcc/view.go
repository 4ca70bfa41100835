package mvcc

import (
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/storage/engine"
)

// view is what Publish shows to readers. It never changes.
type view struct {
	rev     int64
	compact int64 // compacted revision, noCompaction without one
	index   root
}

// noCompaction is the compacted revision before the first compaction, as etcd
// counts.
const noCompaction = -1

// state is the key space as one read or command sees it: a revision, the index
// at that revision, and where older and fuller records are read.
type state struct {
	s       *Store
	rev     int64
	compact int64
	index   root
	// snap, if set, is where records are read. What it holds stays; see pin.
	snap *pebble.Snapshot
	// writing is set for a state of the batch being applied, whose records
	// above the published revision are in memory. Apply goroutine only.
	writing bool
}

// latest is the published state. Records are read from the engine as it is at
// that moment, so a read can find that compaction has passed it: errStale.
func (s *Store) latest() state {
	v := s.view.Load()
	return state{s: s, rev: v.rev, compact: v.compact, index: v.index}
}

// pin is latest on a snapshot of the engine: no read of it runs into errStale,
// however long it takes. The caller releases it.
func (s *Store) pin() state {
	for {
		if st := s.latest(); st.hold() {
			return st
		}
	}
}

// hold takes the snapshot from which st is read from then on. It reports false,
// and takes none, if compaction has passed st.
func (st *state) hold() bool {
	st.snap = st.s.eng.NewSnapshot()
	// The compactor raises the floor before it deletes anything. At or below
	// our compacted revision, the snapshot has all that may be asked of it.
	if st.s.floor.Load() <= st.compact {
		return true
	}
	st.release()
	return false
}

func (st *state) release() {
	if st.snap != nil {
		_ = st.snap.Close() // it only fails if closed twice
		st.snap = nil
	}
}

// written returns the version of key made by main if it is still in memory.
func (st *state) written(key string, main int64) *mvccpb.KeyValue {
	if !st.writing || main <= st.s.w.base {
		return nil
	}
	e, _ := st.s.w.find(key, main)
	return e.GetKv()
}

// passed reports whether compaction may have deleted what a read at rev needs.
// It is asked after the engine was read or an iterator opened.
func (st *state) passed(rev int64) bool {
	return st.snap == nil && !st.writing && st.s.floor.Load() > rev
}

// record reads the version of key that the index names. It is not for versions
// in memory.
func (st *state) record(key string, main int64) (record, error) {
	k := appendHistoryKey(make([]byte, 0, 64), key, main)
	var b []byte
	var err error
	if st.snap != nil {
		b, err = snapshotGet(st.snap, k)
	} else {
		b, err = st.s.eng.Get(k, nil)
	}
	switch {
	case errors.Is(err, engine.ErrNotFound):
		if st.passed(st.rev) {
			return record{}, errStale
		}
		return record{}, corruptf("key %q has no record of revision %d", key, main)
	case err != nil:
		return record{}, err
	}
	r, err := decodeRecord(b, main)
	if err != nil {
		return record{}, keyError(key, main, err)
	}
	return r, nil
}

func snapshotGet(snap *pebble.Snapshot, key []byte) ([]byte, error) {
	v, closer, err := snap.Get(key)
	if err != nil {
		return nil, err
	}
	b := append([]byte(nil), v...)
	return b, closer.Close()
}

// iter opens an iterator over [lower, upper) of the history for a read at rev.
func (st *state) iter(lower, upper []byte, rev int64) (*pebble.Iterator, io.Closer, error) {
	if st.snap != nil {
		it, err := st.snap.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		return it, it, err
	}
	if st.writing && rev > st.s.w.base {
		it, err := st.s.w.overlaid(st.s.eng).NewIter(lower, upper)
		return it, it, err
	}
	it, err := st.s.eng.NewIter(lower, upper)
	if err != nil {
		return nil, nil, err
	}
	if st.passed(rev) {
		return nil, nil, errors.Join(errStale, it.Close())
	}
	return it, it, nil
}
