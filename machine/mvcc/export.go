package mvcc

import (
	"context"
	"encoding/binary"
	"errors"
	"math"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// ForEachRevision calls fn with every version that snap has, in the order in
// which they were made: the pair of a tombstone has the key alone. fn may keep
// it.
func (s *Store) ForEachRevision(ctx context.Context, snap *pebble.Snapshot, fn func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
	return eachRevision(ctx, snap, 0, math.MaxInt64-1, func(v *version) error {
		kv := &mvccpb.KeyValue{}
		if err := v.read(kv); err != nil {
			return err
		}
		return fn(v.main, v.sub, v.tombstone, kv)
	})
}

// Compactions returns the compacted revision in snap, and the one up to which
// physical compaction had finished; -1 for none.
func (s *Store) Compactions(snap *pebble.Snapshot) (scheduled, finished int64, err error) {
	if scheduled, err = snapshotInt(snap, metaScheduled); err != nil {
		return 0, 0, err
	}
	finished, err = snapshotInt(snap, metaFinished)
	return scheduled, finished, err
}

func snapshotInt(snap *pebble.Snapshot, key []byte) (int64, error) {
	v, err := snapshotGet(snap, key)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return noCompaction, nil
	case err != nil:
		return 0, err
	case len(v) != 8:
		return 0, corruptf("meta record %q has %d bytes instead of 8", key, len(v))
	}
	return int64(binary.BigEndian.Uint64(v)), nil
}
