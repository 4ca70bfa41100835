package mvcc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// The revision index names the key of every retained version in the order in which
// they were made. A batch of commands writes a record or a few for all of its
// versions, and compaction takes single ones out again by merging a removal
// into the record: docs/format-mvcc.md.

// recordBytes is the size at which a record of the revision index is closed.
const recordBytes = 16 << 10

// The first byte of a value of the revision index.
const (
	indexRecord  = 0
	indexRemoval = 1 // of versions, from the record that it is merged into
)

// What a record begins with: its kind, the bytes written, the number of items.
const (
	indexHeadLen = 1 + 8 + 4
	removalLen   = mainLen + subLen
)

func appendIndexHead(dst []byte, written int64, items int) []byte {
	dst = append(dst, indexRecord)
	dst = binary.BigEndian.AppendUint64(dst, uint64(written))
	return binary.BigEndian.AppendUint32(dst, uint32(items))
}

// revision is what names a version.
type revision struct{ main, sub int64 }

func (r revision) compare(o revision) int {
	return cmp.Or(cmp.Compare(r.main, o.main), cmp.Compare(r.sub, o.sub))
}

// indexItem is a version as the revision index has it.
type indexItem struct {
	revision
	key []byte
}

// indexItemSize is about what the item of a key takes.
func indexItemSize(key int) int { return key + 6 }

// appendIndexItem appends the item that follows one of the revision before.
func appendIndexItem(dst []byte, before int64, it *indexItem) []byte {
	dst = binary.AppendUvarint(dst, uint64(it.main-before))
	dst = binary.AppendUvarint(dst, uint64(it.sub))
	dst = binary.AppendUvarint(dst, uint64(len(it.key)))
	return append(dst, it.key...)
}

// indexItems are the items of a record, which next goes through.
type indexItems struct {
	indexItem        // good after next; the key points into the record
	left      int    // not decoded yet
	rest      []byte // which they are
}

// next decodes the next item. It reports false at the end.
func (r *indexItems) next() (bool, error) {
	if r.left == 0 {
		if len(r.rest) > 0 {
			return false, corruptf("%d bytes follow the items of a record of the revision index", len(r.rest))
		}
		return false, nil
	}
	r.left--
	var v [3]uint64
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(r.rest); n <= 0 {
			return false, corruptf("record of the revision index is cut short")
		}
		r.rest = r.rest[n:]
	}
	before := r.revision
	r.main += int64(v[0])
	r.sub = int64(v[1])
	if r.main <= 0 || r.sub < 0 || r.compare(before) <= 0 || v[2] > uint64(len(r.rest)) {
		return false, corruptf("item of the revision index at %d/%d with a key of %d bytes follows %d/%d, with %d bytes left",
			r.main, r.sub, v[2], before.main, before.sub, len(r.rest))
	}
	r.key, r.rest = r.rest[:v[2]], r.rest[v[2]:]
	return true, nil
}

// startOfIndex is before all items.
var startOfIndex = revision{0, 0}

// decodeIndexRecord returns what a record says of the bytes written, and its items.
func decodeIndexRecord(v []byte) (written int64, items indexItems, err error) {
	if len(v) < indexHeadLen || v[0] != indexRecord {
		return 0, items, corruptf("revision record %x has not the form of one", v[:min(len(v), indexHeadLen)])
	}
	items = indexItems{left: int(binary.BigEndian.Uint32(v[9:])), rest: v[indexHeadLen:]}
	items.revision = startOfIndex
	return int64(binary.BigEndian.Uint64(v[1:])), items, nil
}

// indexWriter collects items, and adds them to a batch as records.
type indexWriter struct {
	limit int // recordBytes, but for tests
	b     []byte
	items int
	last  revision
}

func newIndexWriter() indexWriter { return indexWriter{limit: recordBytes} }

// add takes the next item. written is what goes into a record that it fills.
func (w *indexWriter) add(batch *pebble.Batch, it *indexItem, written int64) {
	if w.items == 0 {
		w.b = append(w.b[:0], make([]byte, indexHeadLen)...) // for finish
		w.last = startOfIndex
	}
	w.b = appendIndexItem(w.b, w.last.main, it)
	w.last = it.revision
	w.items++
	if len(w.b) >= w.limit {
		w.finish(batch, written)
	}
}

// finish adds the record of the items since the last one.
func (w *indexWriter) finish(batch *pebble.Batch, written int64) {
	if w.items == 0 {
		return
	}
	appendIndexHead(w.b[:0], written, w.items)
	op := batch.SetDeferred(revKeyLen, len(w.b))
	appendRevisionKey(op.Key[:0], w.last.main, w.last.sub)
	copy(op.Value, w.b)
	finish(op)
	w.items = 0
	if cap(w.b) > 4*recordBytes { // a long key
		w.b = nil
	}
}

// revisions goes through the items of the revision index. The memory of an item is
// good until the next.
type revisions struct {
	indexItems
	it  *pebble.Iterator // over the revision index
	err error
	// after and last are what the items of the record lie between: the key of the
	// record before it, if that was met, and its own.
	after, last revision
}

// seek, called first and once, moves to the first item at or after r. It reports
// false if there is none.
func (c *revisions) seek(r revision) bool {
	if !c.it.SeekGE(appendRevisionKey(nil, r.main, r.sub)) {
		c.err = c.it.Error()
		return false
	}
	ok := c.open()
	for ok = ok && c.next(); ok && c.compare(r) < 0; {
		ok = c.next()
	}
	return ok
}

// next moves to the next item. It reports false at the end, and after an error.
func (c *revisions) next() bool {
	for c.err == nil {
		var ok bool
		if ok, c.err = c.indexItems.next(); ok {
			if c.compare(c.after) <= 0 || c.compare(c.last) > 0 {
				c.err = corruptf("record %d/%d of the revision index, after %d/%d, has an item of %d/%d",
					c.last.main, c.last.sub, c.after.main, c.after.sub, c.main, c.sub)
			}
			return c.err == nil
		}
		if c.err != nil || !c.it.Next() || !c.open() {
			break
		}
	}
	if c.err == nil {
		c.err = c.it.Error()
	}
	return false
}

// open begins the record that the iterator stands on.
func (c *revisions) open() bool {
	var v []byte
	c.after = c.last
	if c.last.main, c.last.sub, c.err = splitRevisionKey(c.it.Key()); c.err == nil {
		v, c.err = c.it.ValueAndErr()
	}
	if c.err == nil {
		_, c.indexItems, c.err = decodeIndexRecord(v)
	}
	return c.err == nil
}

// eachItem calls fn with the items from from on, up to the revision to, and closes
// the iterator. It returns errEnough itself if fn does, unless something else has
// gone wrong.
func eachItem(ctx context.Context, it *pebble.Iterator, from revision, to int64, fn func(*indexItem) error) (err error) {
	defer func() {
		if failed := it.Close(); failed != nil {
			err = errors.Join(err, failed)
		}
	}()
	c := revisions{it: it}
	n := 0
	for ok := c.seek(from); ok && c.main <= to; ok = c.next() {
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return fmt.Errorf("mvcc: read of revisions: %w", ctx.Err())
		}
		if err := fn(&c.indexItem); err != nil {
			return err
		}
	}
	return c.err
}

// removal returns what is merged into a record to take a version out.
func removal(r revision) []byte { return appendRemoval([]byte{indexRemoval}, r) }

func appendRemoval(dst []byte, r revision) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.main))
	return binary.BigEndian.AppendUint64(dst, uint64(r.sub))
}

// Merger takes removed versions out of the records of the revision index. The
// engine of a Store must have been opened with it.
var Merger = &pebble.Merger{
	Name: "coterie.mvcc.2",
	Merge: func(key, value []byte) (pebble.ValueMerger, error) {
		m := &indexMerger{} // with an error, too: Pebble goes on with it where it reads backwards
		return m, m.add(value)
	},
}

// indexMerger is a record and the versions to take out of it. The order in which
// they come makes no difference.
type indexMerger struct {
	record []byte
	gone   []revision
}

func (m *indexMerger) MergeNewer(value []byte) error { return m.add(value) }
func (m *indexMerger) MergeOlder(value []byte) error { return m.add(value) }

func (m *indexMerger) add(v []byte) error {
	switch {
	case len(v) > 0 && v[0] == indexRecord && m.record == nil:
		m.record = bytes.Clone(v)
		return nil
	case len(v) == 0 || v[0] != indexRemoval || len(v)%removalLen != 1:
		return corruptf("%d bytes in the revision index are neither a record nor a removal", len(v))
	}
	for v = v[1:]; len(v) > 0; v = v[removalLen:] {
		m.gone = append(m.gone, revision{int64(binary.BigEndian.Uint64(v)), int64(binary.BigEndian.Uint64(v[mainLen:]))})
	}
	return nil
}

// Finish returns what is left of the record, or all removals as one if the record
// is not there.
//
// A merger can also say that nothing is left. That goes wrong in Pebble's
// compactions (issue 6168), so whoever takes the last version out deletes the
// record.
func (m *indexMerger) Finish(bool) ([]byte, io.Closer, error) {
	slices.SortFunc(m.gone, revision.compare)
	if m.record != nil {
		v, err := without(m.record, m.gone)
		return v, nil, err
	}
	v := []byte{indexRemoval}
	for _, r := range m.gone {
		v = appendRemoval(v, r)
	}
	return v, nil, nil
}

// without returns a record without those of its versions that are gone, which
// are in order.
func without(record []byte, gone []revision) ([]byte, error) {
	written, items, err := decodeIndexRecord(record)
	if err != nil {
		return nil, err
	}
	left := append(make([]byte, 0, len(record)), record[:indexHeadLen]...)
	n, before := 0, startOfIndex.main
	for {
		ok, err := items.next()
		if !ok || err != nil {
			appendIndexHead(left[:0], written, n)
			return left, err
		}
		for len(gone) > 0 && gone[0].compare(items.revision) < 0 {
			gone = gone[1:]
		}
		if len(gone) > 0 && gone[0] == items.revision {
			continue
		}
		left = appendIndexItem(left, before, &items.indexItem)
		before = items.main
		n++
	}
}

// knownRecords are what a pass of the compactor remembers of the records that it has
// taken versions out of, in order. It alone changes them meanwhile. To read a record again for
// each of its versions, and have what was taken out before applied to it each
// time, is ten times the work of all the rest.
type knownRecords []knownRecord

type knownRecord struct {
	first, last revision // its first item when it was read, and its key
	left        int      // items, those to go with the batch in progress not counted
}

// maxKnownRecords bounds the memory of a pass: a megabyte.
const maxKnownRecords = 16 << 10

// bound forgets all if that is too much.
func (k *knownRecords) bound() {
	if len(*k) > maxKnownRecords {
		*k = nil
	}
}

// find returns the record that has the version r. If it is not known it is read by
// an iterator over the revision index; read is its length then.
func (k *knownRecords) find(index *pebble.Iterator, r revision) (n *knownRecord, read int, err error) {
	at, _ := slices.BinarySearchFunc(*k, r, func(n knownRecord, r revision) int { return n.last.compare(r) })
	if at < len(*k) && (*k)[at].first.compare(r) <= 0 {
		n = &(*k)[at]
		if n.left == 0 {
			return nil, 0, corruptf("version %d/%d is taken out of a record of the revision index that has none any more", r.main, r.sub)
		}
		return n, 0, nil
	}
	c := revisions{it: index}
	if !c.seek(r) || c.revision != r {
		if c.err == nil {
			c.err = corruptf("the revision index lacks %d/%d, which is in the history", r.main, r.sub)
		}
		return nil, 0, c.err
	}
	v, err := index.ValueAndErr()
	if err != nil {
		return nil, 0, err
	}
	_, items, err := decodeIndexRecord(v)
	if err != nil {
		return nil, 0, err
	}
	met := knownRecord{last: c.last, left: items.left}
	if _, err := items.next(); err != nil {
		return nil, 0, err
	}
	met.first = items.revision
	if met.left == 1 { // it goes, and nothing more is asked of it
		return &met, len(v), nil
	}
	*k = slices.Insert(*k, at, met)
	return &(*k)[at], len(v), nil
}
