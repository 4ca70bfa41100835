package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// importBatchBytes bounds a batch of an import.
const importBatchBytes = 1 << 20

// ErrImport refuses a history that no sequence of commands makes.
var ErrImport = errors.New("mvcc: this is not the history of a key space")

// Importer writes a history that came from elsewhere into an empty engine, so
// that Open finds there what it would have found had the commands been applied
// here. It is the inverse of ForEachRevision and Compactions.
type Importer struct {
	newBatch func() *pebble.Batch
	commit   func(*pebble.Batch) error
	batch    *pebble.Batch

	main, sub int64 // of the version added last
	written   int64
	indexed   indexWriter
	// current has the versions of the revision in progress, by key: an earlier
	// one moves aside when the key is changed again.
	current map[string]*record
}

// NewImporter returns an importer that writes through the functions.
func NewImporter(newBatch func() *pebble.Batch, commit func(*pebble.Batch) error) *Importer {
	return &Importer{newBatch: newBatch, commit: commit, current: make(map[string]*record), indexed: newIndexWriter()}
}

// Add adds one version. They come in the order in which they were made. The
// pair is the importer's from then on.
func (i *Importer) Add(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error {
	if main < i.main || main == i.main && i.main > 0 && sub <= i.sub {
		return fmt.Errorf("%w: revision %d/%d follows %d/%d", ErrImport, main, sub, i.main, i.sub)
	}
	r, err := importedRecord(main, sub, tombstone, kv)
	if err != nil {
		return err
	}
	if i.batch == nil {
		i.batch = i.newBatch()
	}
	if main != i.main {
		clear(i.current)
	}
	i.main, i.sub = main, sub
	key := string(kv.Key)
	if earlier := i.current[key]; earlier != nil {
		setRecord(i.batch, historyKeyLen(key)+subLen, earlier, func(dst []byte) { appendSupersededKey(dst, key, main, earlier.sub) })
		i.written += subLen
	}
	i.current[key] = r
	i.write(key, main, r)
	if i.batch.Len() < importBatchBytes {
		return nil
	}
	return i.flush()
}

func importedRecord(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) (*record, error) {
	r := &record{sub: sub, tombstone: tombstone}
	if tombstone {
		return r, nil
	}
	r.create, r.version, r.lease, r.value = kv.CreateRevision, kv.Version, kv.Lease, kv.Value
	if r.isBump() && len(kv.Key) == 0 && kv.ModRevision == 0 {
		return r, nil
	}
	if r.create <= 0 || r.create > main || r.version <= 0 || kv.ModRevision != main || len(kv.Key) == 0 {
		return nil, fmt.Errorf("%w: revision %d/%d puts key %q with create revision %d, mod revision %d and version %d",
			ErrImport, main, sub, kv.Key, r.create, kv.ModRevision, r.version)
	}
	return r, nil
}

// write adds both records of a version to the batch.
func (i *Importer) write(key string, main int64, r *record) {
	hl := historyKeyLen(key)
	n := setRecord(i.batch, hl, r, func(dst []byte) { appendHistoryKey(dst, key, main) })
	i.written += recordSize(hl, n, len(key))
	i.indexed.add(i.batch, &indexItem{revision{main, r.sub}, aliasBytes(key)}, i.written)
}

func (i *Importer) flush() error {
	b := i.batch
	i.batch = nil
	i.indexed.finish(b, i.written)
	return errors.Join(i.commit(b), b.Close())
}

// Bump moves the revision ahead by n, as if that many changes had been made,
// and returns it. What clients remember of the cluster that the history comes
// from is then in the past. That had a revision of at least that which it was
// compacted to: a compaction may have deleted the change that made it.
func (i *Importer) Bump(n uint64, compacted int64) (revision int64, err error) {
	was := max(i.main, compacted, 1)
	if n > uint64(math.MaxInt64/2) || was > math.MaxInt64/2 {
		return 0, fmt.Errorf("the revision %d cannot be raised by %d", was, n)
	}
	to := was + int64(n)
	return to, i.Add(to, 0, false, &mvccpb.KeyValue{})
}

// Finish writes what remains, and how far the history is compacted: to which
// revision that was asked for, and to which it is done; below 0 for not at all.
// The caller makes it durable.
func (i *Importer) Finish(scheduled, finished int64) error {
	scheduled = max(scheduled, finished)
	if scheduled > max(i.main, 1) {
		// A compaction deletes a deletion that it meets, and with it may go the only
		// trace of the newest revision. A deletion of no key holds its place: none of
		// those at the compacted revision is in a hash.
		if err := i.Add(scheduled, 0, true, &mvccpb.KeyValue{}); err != nil {
			return err
		}
	}
	if i.batch == nil {
		i.batch = i.newBatch()
	}
	if err := MarkFormat(i.batch); err != nil {
		return errors.Join(err, i.Close())
	}
	for _, m := range []struct {
		key []byte
		rev int64
	}{{metaScheduled, scheduled}, {metaFinished, finished}} {
		if m.rev < 0 {
			continue
		}
		if err := i.batch.Set(m.key, binary.BigEndian.AppendUint64(nil, uint64(m.rev)), nil); err != nil {
			return errors.Join(err, i.Close())
		}
	}
	return i.flush()
}

// Close gives up what Finish has not written.
func (i *Importer) Close() error {
	if i.batch == nil {
		return nil
	}
	b := i.batch
	i.batch = nil
	return b.Close()
}
