package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"math"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// HashKV hashes the history up to rev, the latest for zero, to the value that
// etcd gives for the same history once its compactions have finished: the
// CRC-32C of the bucket's name and of all versions in the order of revisions,
// with keys and values as etcd stores them.
//
// Of the versions at or below the compacted revision those count that are
// alive at rev; but if nothing at all is, those that compaction retains. The
// tombstone at the compacted revision never counts.
//
// etcd remembers the hashes that its compactions computed and answers with them
// for exactly their revisions, until it restarts. This does not: the answer is
// the one after a restart.
func (s *Store) HashKV(ctx context.Context, rev int64) (sum uint32, hashRev, compactRev int64, err error) {
	if err := s.read(); err != nil {
		return 0, 0, 0, err
	}
	defer s.reading.RUnlock()
	st := s.pin()
	defer st.release()
	switch {
	case rev > 0 && rev < st.compact:
		return 0, 0, 0, ErrCompacted
	case rev > st.rev:
		return 0, 0, 0, ErrFutureRev
	case rev == 0:
		rev = st.rev
	}
	h := newHistoryHash()
	if rev > 0 {
		if err := st.hashHistory(ctx, h, rev); err != nil {
			return 0, 0, 0, err
		}
	}
	return h.sum.Sum32(), rev, st.compact, nil
}

func (st *state) hashHistory(ctx context.Context, h *historyHash, rev int64) error {
	k, err := st.newKeep(ctx, rev)
	if err != nil {
		return err
	}
	err = eachRevision(ctx, st.snap, 0, rev, func(v *version) error {
		if v.main <= st.compact {
			keep, err := k.keeps(v)
			if err != nil || !keep {
				return err
			}
		}
		kv := &h.kv
		kv.Reset()
		if err := v.read(kv); err != nil {
			return err
		}
		return h.add(v, kv)
	})
	return errors.Join(err, k.close())
}

// keep finds out which of the versions at or below the compacted revision a
// hash includes.
type keep struct {
	// at is the revision at which a version must be the newest of its key.
	at   int64
	it   *pebble.Iterator
	seek []byte
}

func (st *state) newKeep(ctx context.Context, rev int64) (*keep, error) {
	k := &keep{at: rev}
	alive, err := st.anyAlive(ctx, rev)
	if err != nil {
		return nil, err
	}
	if !alive {
		k.at = st.compact
	}
	k.it, err = st.snap.NewIter(&pebble.IterOptions{LowerBound: historyLower, UpperBound: historyUpper})
	return k, err
}

func (st *state) anyAlive(ctx context.Context, rev int64) (bool, error) {
	if rev == st.rev {
		return st.index.size > 0, nil
	}
	any := false
	err := st.scan(ctx, &span{open: true}, rev, func([]byte, int64, *record) bool {
		any = true
		return false
	})
	return any, err
}

// keeps reports whether v is a put and the newest version of its key at k.at.
func (k *keep) keeps(v *version) (bool, error) {
	k.seek = appendHistoryKey(k.seek[:0], aliasString(v.key), v.main)
	n := len(k.seek) - mainLen
	own := binary.BigEndian.Uint64(k.seek[n:])
	binary.BigEndian.PutUint64(k.seek[n:], ^uint64(k.at))
	if !k.it.SeekGE(k.seek) {
		return false, k.it.Error()
	}
	binary.BigEndian.PutUint64(k.seek[n:], own)
	if !bytes.Equal(k.it.Key(), k.seek) {
		return false, nil
	}
	b, err := k.it.ValueAndErr()
	if err != nil {
		return false, err
	}
	r, err := decodeRecord(b, v.main)
	return err == nil && !r.tombstone && r.sub == v.sub, err
}

func (k *keep) close() error { return k.it.Close() }

// historyHash is the hash, with memory to reuse.
type historyHash struct {
	sum hash.Hash32
	kv  mvccpb.KeyValue
	buf []byte
}

// etcdBucket is the name of the bucket that has the history in etcd's files.
const etcdBucket = "key"

func newHistoryHash() *historyHash {
	h := &historyHash{sum: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
	h.sum.Write([]byte(etcdBucket))
	return h
}

// add hashes a version as etcd stores it: the key is the revision, main '_'
// sub, with a 't' after it for a tombstone, and the value the encoded pair.
func (h *historyHash) add(v *version, kv *mvccpb.KeyValue) error {
	b := binary.BigEndian.AppendUint64(h.buf[:0], uint64(v.main))
	b = append(b, '_')
	b = binary.BigEndian.AppendUint64(b, uint64(v.sub))
	if v.tombstone {
		b = append(b, 't')
	}
	b, err := proto.MarshalOptions{}.MarshalAppend(b, kv)
	if err != nil {
		return err
	}
	h.buf = b
	h.sum.Write(b)
	return nil
}

// Hash hashes all that the store has in the engine, progress of compaction
// included. Like etcd's it is for tests.
func (s *Store) Hash(ctx context.Context) (uint32, error) {
	if err := s.read(); err != nil {
		return 0, err
	}
	defer s.reading.RUnlock()
	snap := s.eng.NewSnapshot()
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	err := hashSpace(ctx, sum, snap, historyLower, historyUpper)
	if err == nil {
		err = hashRevisions(ctx, sum, snap)
	}
	return sum.Sum32(), errors.Join(err, snap.Close())
}

// hashRevisions hashes the items of the revision index: how they are divided into
// records says how batches were.
func hashRevisions(ctx context.Context, sum hash.Hash32, snap *pebble.Snapshot) error {
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: revisionLower, UpperBound: revisionUpper})
	if err != nil {
		return err
	}
	var b []byte
	return eachItem(ctx, it, startOfIndex, math.MaxInt64, func(item *indexItem) error {
		b = append(appendRevisionKey(b[:0], item.main, item.sub), item.key...)
		sum.Write(b)
		return nil
	})
}

func hashSpace(ctx context.Context, sum hash.Hash32, snap *pebble.Snapshot, lower, upper []byte) (err error) {
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return fmt.Errorf("mvcc: hash: %w", ctx.Err())
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		sum.Write(it.Key())
		sum.Write(v)
	}
	return it.Error()
}
