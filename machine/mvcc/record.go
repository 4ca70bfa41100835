package mvcc

import (
	"encoding/binary"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// record is one version of a key, as the history stores it under (key, main).
// Where one revision changes a key several times, that is the last change; the
// others are stored under (key, main, sub).
type record struct {
	sub       int64
	tombstone bool
	// The rest is zero in a tombstone.
	create  int64
	version int64
	lease   int64
	// value points into the memory that the record was decoded from.
	value []byte
}

// The first byte of a record.
const (
	recordPut       = 0
	recordTombstone = 1
)

// recordHeadMax bounds what precedes the value.
const recordHeadMax = 1 + 4*binary.MaxVarintLen64

// appendRecordHead appends all of r but its value.
func appendRecordHead(dst []byte, r *record) []byte {
	if r.tombstone {
		dst = append(dst, recordTombstone)
		return binary.AppendUvarint(dst, uint64(r.sub))
	}
	dst = append(dst, recordPut)
	dst = binary.AppendUvarint(dst, uint64(r.sub))
	dst = binary.AppendUvarint(dst, uint64(r.create))
	dst = binary.AppendUvarint(dst, uint64(r.version))
	return binary.AppendUvarint(dst, uint64(r.lease))
}

// decodeRecord decodes the record stored for main. The value is not copied.
func decodeRecord(b []byte, main int64) (record, error) {
	var r record
	if len(b) == 0 {
		return r, corruptf("empty record")
	}
	kind, rest := b[0], b[1:]
	if kind != recordPut && kind != recordTombstone {
		return r, corruptf("record of unknown kind %d", kind)
	}
	r.tombstone = kind == recordTombstone
	fields := [...]*int64{&r.sub, &r.create, &r.version, &r.lease}
	n := len(fields)
	if r.tombstone {
		n = 1
	}
	for _, f := range fields[:n] {
		v, w := binary.Uvarint(rest)
		if w <= 0 {
			return r, corruptf("record of %d bytes is cut short", len(b))
		}
		*f, rest = int64(v), rest[w:]
	}
	switch {
	case r.sub < 0:
		return r, corruptf("record with sub-revision %d", r.sub)
	case r.tombstone && len(rest) != 0:
		return r, corruptf("tombstone with %d bytes too many", len(rest))
	case r.isBump() && len(rest) == 0:
	case !r.tombstone && (r.create <= 0 || r.create > main || r.version <= 0):
		return r, corruptf("record of revision %d with create revision %d and version %d", main, r.create, r.version)
	}
	if !r.tombstone {
		r.value = rest
	}
	return r, nil
}

// isBump reports whether r is a version of no key, which raised the revision of
// a restored store and says nothing else. A pair of it is empty, as etcd has it.
func (r *record) isBump() bool {
	return !r.tombstone && r.create == 0 && r.version == 0 && r.lease == 0 && len(r.value) == 0
}

// keyValue fills kv with the version (key, main) of r.
func (r *record) keyValue(kv *mvccpb.KeyValue, key []byte, main int64) {
	kv.Key = key
	if r.tombstone || r.isBump() {
		return
	}
	kv.CreateRevision = r.create
	kv.ModRevision = main
	kv.Version = r.version
	kv.Lease = r.lease
	kv.Value = r.value
}

// recordSize is what one version adds to the size of the retained history:
// its history record and its item of the revision index, from the lengths of the
// history key, the record, and the key.
func recordSize(historyKey, rec, key int) int64 {
	return int64(historyKey) + int64(rec) + int64(indexItemSize(key))
}
