package mvcc

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/storage/engine"
)

// encodeIndex is a record of items.
func encodeIndex(items []indexItem) []byte {
	b := appendIndexHead(nil, 0, len(items))
	before := startOfIndex.main
	for i := range items {
		b = appendIndexItem(b, before, &items[i])
		before = items[i].main
	}
	return b
}

// decodeIndex are the items of a record.
func decodeIndex(v []byte) (all []indexItem, err error) {
	_, items, err := decodeIndexRecord(v)
	for err == nil {
		var ok bool
		if ok, err = items.next(); !ok {
			break
		}
		all = append(all, indexItem{items.revision, bytes.Clone(items.key)})
	}
	return all, err
}

func sameItems(a, b []indexItem) bool {
	return slices.EqualFunc(a, b, func(a, b indexItem) bool { return a.revision == b.revision && bytes.Equal(a.key, b.key) })
}

// TestMerger takes versions out of a record in every way in which the engine may put operands together: some first, from the newer or
// from the older side, and the results of that again.
func TestMerger(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		var items, want []indexItem
		at := revision{2, 0}
		for range 1 + rnd.IntN(12) {
			items = append(items, indexItem{at, []byte(strings.Repeat("k", rnd.IntN(4)))})
			at.sub += int64(rnd.IntN(3))
			if at.main += int64(rnd.IntN(2) * (1 + rnd.IntN(300))); at.compare(items[len(items)-1].revision) <= 0 {
				at = revision{at.main + 1, 0}
			}
		}
		operands := [][]byte{encodeIndex(items)}
		for _, it := range items {
			if rnd.IntN(2) == 0 {
				operands = append(operands, removal(it.revision))
			} else {
				want = append(want, it)
			}
		}
		rnd.Shuffle(len(operands)-1, func(i, j int) { operands[i+1], operands[j+1] = operands[j+1], operands[i+1] })
		for len(operands) > 1 {
			from := rnd.IntN(len(operands) - 1)
			to := from + 2 + rnd.IntN(len(operands)-from-1)
			group := operands[from:to]
			first, rest := group[0], group[1:]
			older := rnd.IntN(2) == 0
			if older {
				first, rest = group[len(group)-1], group[:len(group)-1]
				rest = slices.Clone(rest)
				slices.Reverse(rest)
			}
			m, err := Merger.Merge(nil, first)
			must(t, err)
			for _, o := range rest {
				if older {
					must(t, m.MergeOlder(o))
				} else {
					must(t, m.MergeNewer(o))
				}
			}
			v, _, err := m.Finish(from == 0)
			must(t, err)
			operands = slices.Concat(operands[:from], [][]byte{v}, operands[to:])
		}
		if got, err := decodeIndex(operands[0]); err != nil || !sameItems(got, want) {
			t.Fatalf("round %d: left are %v (%v), want %v", round, got, err, want)
		}
	}
}

// TestMergerRefusesDamage: what is not a record or a removal ends a merge with an error, and no version is lost for it.
func TestMergerRefusesDamage(t *testing.T) {
	record := encodeIndex([]indexItem{{revision{2, 0}, []byte("k")}})
	for _, operands := range [][][]byte{
		{nil}, {{7}}, {{indexRemoval, 1}}, {record, record}, {record[:len(record)-1], removal(revision{2, 0})},
		{append(record[:len(record):len(record)], 1), removal(revision{2, 0})},
	} {
		m, err := Merger.Merge(nil, operands[0])
		for _, o := range operands[1:] {
			if err == nil {
				err = m.MergeNewer(o)
			}
		}
		if err == nil {
			_, _, err = m.Finish(true)
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", operands, err)
		}
	}
}

// TestOpenNeedsTheMerger: with another one, what compaction takes out would be appended to the records.
func TestOpenNeedsTheMerger(t *testing.T) {
	eng, err := engine.Open(engine.Options{Dir: "db", FS: vfs.NewMem()})
	must(t, err)
	if s, err := Open(eng, nil, Options{}); err == nil {
		s.Close()
		t.Error("opened without it")
	}
	must(t, eng.Close())
}

// TestRevisionsAcrossRecords reads the revision index from every version of batches that take several records each, and then while
// compaction has taken some out, one, all but one, or all of a record.
func TestRevisionsAcrossRecords(t *testing.T) {
	h := newHarness(t)
	long := strings.Repeat("x", recordBytes/3)
	var want []indexItem
	for batch := range 3 {
		h.apply(func() {
			for i := range 10 {
				key := fmt.Sprintf("%s%d", long[:1+i*300+batch], i%4)
				want = append(want, indexItem{revision{h.s.PendingRevision() + 1, 0}, []byte(key)})
				_, err := h.s.Put(&pb.PutRequest{Key: []byte(key)})
				must(t, err)
			}
		})
	}
	h.apply(func() { // one revision of many records
		key := long + "many"
		var ops []*pb.RequestOp
		for i := range 12 {
			k := fmt.Sprintf("%s%02d", key, i)
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k)}}})
			want = append(want, indexItem{revision{h.s.PendingRevision() + 1, int64(i)}, []byte(k)})
		}
		_, err := h.s.Txn(&pb.TxnRequest{Success: ops})
		must(t, err)
	})
	records := 0
	h.each(revisionLower, revisionUpper, func(it *pebble.Iterator) {
		if records++; len(it.Value()) > recordBytes+len(long)+100 {
			t.Errorf("a record of %d bytes", len(it.Value()))
		}
	})
	if records < 6 || records > 12 {
		t.Errorf("%d versions are in %d records", len(want), records)
	}
	check := func() {
		t.Helper()
		if got := h.items(); !sameItems(got, want) {
			t.Fatalf("the revision index has %d items, want %d", len(got), len(want))
		}
		for i := range want {
			it, err := h.eng.NewIter(revisionLower, revisionUpper)
			must(t, err)
			c := revisions{it: it}
			if !c.seek(want[i].revision) || c.revision != want[i].revision || !bytes.Equal(c.key, want[i].key) {
				t.Fatalf("sought %v, found %v: %v", want[i].revision, c.revision, c.err)
			}
			must(t, it.Close())
		}
	}
	check()
	for _, keep := range []func(i int) bool{
		func(i int) bool { return i != 3 },
		func(i int) bool { return i%5 != 0 },
		func(i int) bool { return i == 7 || i > 18 },
		func(i int) bool { return i > 25 },
	} {
		b := h.eng.NewBatch()
		p := passStep{batch: b, known: &knownRecords{}}
		var err error
		p.index, err = h.eng.NewIter(revisionLower, revisionUpper)
		must(t, err)
		var left []indexItem
		for i, it := range want {
			if keep(i) {
				left = append(left, it)
			} else {
				must(t, p.remove(it.revision))
			}
		}
		must(t, errors.Join(p.index.Close(), h.eng.Commit(b), b.Close()))
		want = left
		check()
		must(t, h.eng.Flush())
		check()
	}
}

// TestCompactionShrinksTheRevisionIndex: of keys that are put again and again the index keeps one version each, and the bytes of no other.
func TestCompactionShrinksTheRevisionIndex(t *testing.T) {
	h := newHarness(t)
	const keys = 50
	for range 20 {
		h.apply(func() {
			for i := range keys {
				_, err := h.s.Put(&pb.PutRequest{Key: fmt.Appendf(nil, "key-%03d", i)})
				must(t, err)
			}
		})
	}
	h.compact(h.s.Revision())
	bytes, records := 0, 0
	h.each(revisionLower, revisionUpper, func(it *pebble.Iterator) {
		bytes += len(it.Value())
		records++
	})
	if most := keys*indexItemSize(len("key-000")) + recordOverhead; records != 1 || bytes > most {
		t.Errorf("%d keys take %d bytes in %d records, want one record of at most %d bytes", keys, bytes, records, most)
	}
	h.checkSize()
}

// TestRevisionsOutOfOrderAreRefused: a record whose items are not between its neighbours' is damage, whoever reads it.
func TestRevisionsOutOfOrderAreRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		key  revision
		item revision
	}{
		{"above its key", revision{3, 0}, revision{4, 0}},
		{"below the record before it", revision{5, 0}, revision{2, 0}},
		{"of no revision", revision{3, 0}, revision{0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			for range 4 {
				h.put("a", "1")
			}
			set(t, h.eng, string(appendRevisionKey(nil, c.key.main, c.key.sub)), string(encodeIndex([]indexItem{{c.item, []byte("a")}})))
			_, _, _, err := h.s.HashKV(t.Context(), 0)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("read with %v", err)
			}
		})
	}
}

// FuzzRevisions reads a record of the revision index, and takes a version out of it.
func FuzzRevisions(f *testing.F) {
	f.Add(encodeIndex([]indexItem{{revision{2, 0}, []byte("a")}, {revision{2, 1}, nil}, {revision{300, 7}, []byte("long key")}}), int64(2), int64(1))
	f.Add(removal(revision{2, 0}), int64(2), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, main, sub int64) {
		m, err := Merger.Merge(nil, b)
		if err == nil {
			err = m.MergeNewer(removal(revision{main, sub}))
		}
		var left []byte
		if err == nil {
			left, _, err = m.Finish(true)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		items, derr := decodeIndex(b)
		if derr != nil {
			if !errors.Is(derr, ErrCorrupt) {
				t.Fatal(derr)
			}
			if err == nil && (len(b) == 0 || b[0] != indexRemoval) {
				t.Fatalf("%x is no record (%v), but a version is taken out of it", b, derr)
			}
			return
		}
		if err != nil {
			t.Fatalf("%x is a record, but merged: %v", b, err)
		}
		for i, it := range items {
			if i > 0 && it.compare(items[i-1].revision) <= 0 {
				t.Fatalf("%v follows %v", it.revision, items[i-1].revision)
			}
		}
		items = slices.DeleteFunc(items, func(it indexItem) bool { return it.revision == revision{main, sub} })
		if got, err := decodeIndex(left); err != nil || !sameItems(got, items) {
			t.Fatalf("left are %v (%v), want %v", got, err, items)
		}
	})
}

// TestLongKeyFillsARecord: the bytes written are known also when the last version of a batch fills its record.
func TestLongKeyFillsARecord(t *testing.T) {
	h := newHarness(t)
	h.put("a", "1")
	h.put(strings.Repeat("k", recordBytes), "2")
	h.reopen()
	h.checkSize()
	if h.s.w.indexed.b != nil && cap(h.s.w.indexed.b) > 4*recordBytes {
		t.Errorf("%d bytes are kept", cap(h.s.w.indexed.b))
	}
}

// TestNoVersionIsTakenOutTwice: what the revision index does not have, or not any more, is not taken for another version of its record.
func TestNoVersionIsTakenOutTwice(t *testing.T) {
	h := newHarness(t)
	h.apply(func() {
		for i := range 3 {
			_, err := h.s.Put(&pb.PutRequest{Key: fmt.Append(nil, i)})
			must(t, err)
		}
	})
	var known knownRecords
	for _, c := range []struct {
		gone []revision
		ok   bool
	}{
		{[]revision{{3, 1}}, false},
		{[]revision{{5, 0}}, false},
		{[]revision{{2, 0}, {3, 0}, {4, 0}, {4, 0}}, false},
		{[]revision{{4, 0}, {2, 0}, {3, 0}}, true},
	} {
		known = nil
		b := h.eng.NewBatch()
		p := passStep{batch: b, known: &known}
		var err error
		p.index, err = h.eng.NewIter(revisionLower, revisionUpper)
		must(t, err)
		for _, r := range c.gone {
			err = errors.Join(err, p.remove(r))
		}
		if c.ok && err != nil || !c.ok && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v: %v", c.gone, err)
		}
		if c.ok && p.read == 0 {
			t.Error("nothing was read")
		}
		must(t, errors.Join(p.index.Close(), b.Close()))
	}
}

// TestUnreadableRevisionsAreAnError: what cannot be read does not pass for what is not there.
func TestUnreadableRevisionsAreAnError(t *testing.T) {
	var broken atomic.Bool
	unreadable := errors.New("unreadable")
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind == errorfs.OpFileReadAt {
			return unreadable
		}
		return nil
	}))
	h := newHarnessOn(t, fs)
	h.readError = unreadable
	for i := range 60 {
		h.put(fmt.Sprintf("%d%s", i%3, strings.Repeat("x", 4<<10)), "")
	}
	h.reopen() // which reads the end of the revision index
	broken.Store(true)
	defer broken.Store(false)
	if evs, next, err := h.s.ReadEvents(2, 3, func([]byte) bool { return true }, 1<<20); err == nil {
		t.Errorf("read %d revisions, then %d", len(evs), next)
	}
	if sum, _, _, err := h.s.HashKV(t.Context(), 3); err == nil {
		t.Errorf("hashed to %x", sum)
	}
}
