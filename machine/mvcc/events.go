package mvcc

import (
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// versionOverhead is what a version read counts in ReadEvents beside its key
// and value, so that a call that finds little ends, too.
const versionOverhead = 32

// ReadEvents reads the events of the revisions from from to to, whole revisions
// in order, those with keys that match wants. It stops after about maxBytes,
// counting what match refuses as well, so a call may return no events before
// it has reached to. next is the first revision not read, to+1 at the end.
// Revisions below the compacted one give ErrCompacted.
func (s *Store) ReadEvents(from, to int64, match func(key []byte) bool, maxBytes int) (evs []RevisionEvents, next int64, err error) {
	if err := s.read(); err != nil {
		return nil, 0, err
	}
	defer s.reading.RUnlock()
	st := s.pin()
	defer st.release()
	if from < st.compact {
		return nil, from, ErrCompacted
	}
	to = min(to, st.rev)
	next = from
	bytes := 0
	err = eachRevision(context.Background(), st.snap, from, to, func(v *version) error {
		if v.main != next {
			if bytes >= maxBytes {
				return errEnough
			}
			next = v.main
		}
		bytes += len(v.key) + versionOverhead
		if !match(v.key) {
			return nil
		}
		ev := &mvccpb.Event{Kv: &mvccpb.KeyValue{}}
		if err := v.read(ev.Kv); err != nil {
			return err
		}
		if v.tombstone {
			ev.Type = mvccpb.Event_DELETE
			ev.Kv.ModRevision = v.main
		}
		bytes += len(ev.Kv.Value)
		if n := len(evs); n > 0 && evs[n-1].Revision == v.main {
			evs[n-1].Events = append(evs[n-1].Events, ev)
		} else {
			evs = append(evs, RevisionEvents{Revision: v.main, Events: []*mvccpb.Event{ev}})
		}
		return nil
	})
	switch {
	case err == errEnough:
		return evs, next + 1, nil
	case err != nil:
		return nil, from, err
	}
	return evs, max(to+1, from), nil
}

// errEnough ends eachRevision and eachItem before their end.
var errEnough = errors.New("enough")

// version is a record that eachRevision has come to. Its memory is good until
// the next.
type version struct {
	indexItem
	snap      *pebble.Snapshot
	tombstone bool // after read
}

// read reads the record itself into kv, which gets memory of its own.
func (v *version) read(kv *mvccpb.KeyValue) error {
	key := append([]byte(nil), v.key...)
	r, err := v.record(appendHistoryKey(make([]byte, 0, 64), aliasString(key), v.main))
	if err == nil && r.sub != v.sub {
		r, err = v.record(appendSupersededKey(nil, aliasString(key), v.main, v.sub))
	}
	if err == nil && r.sub != v.sub {
		err = corruptf("sub-revision %d is stored as %d", r.sub, v.sub)
	}
	if err != nil {
		return keyError(string(key), v.main, err)
	}
	r.keyValue(kv, key, v.main)
	v.tombstone = r.tombstone
	return nil
}

func (v *version) record(historyKey []byte) (record, error) {
	b, err := snapshotGet(v.snap, historyKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return record{}, corruptf("missing, though the revision index names it")
	}
	if err != nil {
		return record{}, err
	}
	return decodeRecord(b, v.main)
}

// eachRevision calls fn with the versions that snap has of revisions from from
// to to, in the order in which they were made.
func eachRevision(ctx context.Context, snap *pebble.Snapshot, from, to int64, fn func(*version) error) error {
	if from > to {
		return nil
	}
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: revisionLower, UpperBound: revisionUpper})
	if err != nil {
		return err
	}
	v := version{snap: snap}
	return eachItem(ctx, it, revision{max(from, 0), 0}, to, func(item *indexItem) error {
		v.indexItem = *item
		return fn(&v)
	})
}

// PrevKV returns the pair that ev changed or deleted; nil if there was none, or
// if the revision before ev is compacted.
func (s *Store) PrevKV(ev *mvccpb.Event) (*mvccpb.KeyValue, error) {
	if err := s.read(); err != nil {
		return nil, err
	}
	defer s.reading.RUnlock()
	rev := ev.Kv.ModRevision - 1
	st := s.latest()
	if ev.Kv.CreateRevision == ev.Kv.ModRevision || rev < max(st.compact, 1) || rev > st.rev {
		return nil, nil
	}
	sp := spanOf(ev.Kv.Key, nil)
	var kv *mvccpb.KeyValue
	err := st.scan(context.Background(), &sp, rev, func(key []byte, main int64, r *record) bool {
		kv = &mvccpb.KeyValue{}
		r.value = append([]byte(nil), r.value...)
		r.keyValue(kv, append([]byte(nil), key...), main)
		return false
	})
	if errors.Is(err, errStale) {
		return nil, nil // compaction has passed it
	}
	return kv, err
}
