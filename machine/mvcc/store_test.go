package mvcc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/storage/engine"
)

// recordOverhead bounds what a record of the revision index takes beside its items.
const recordOverhead = 64

// leaseTable is a lease table for tests.
type leaseTable struct {
	keys map[int64][]string
}

func newLeaseTable(ids ...int64) *leaseTable {
	t := &leaseTable{keys: make(map[int64][]string)}
	for _, id := range ids {
		t.keys[id] = nil
	}
	return t
}

func (t *leaseTable) Has(id int64) bool { _, ok := t.keys[id]; return ok }

func (t *leaseTable) Attach(id int64, key string) { t.keys[id] = append(t.keys[id], key) }

func (t *leaseTable) Detach(id int64, key string) {
	t.keys[id] = slices.DeleteFunc(t.keys[id], func(k string) bool { return k == key })
}

// harness is a store with its engine.
type harness struct {
	t      testing.TB
	fs     vfs.FS
	leases *leaseTable
	eng    *engine.Engine
	s      *Store
	opts   Options
	// recordBytes, if set, is in the place of the constant.
	recordBytes int
	// readError, if set, is what a test has reads fail with. The engine's compactions may meet it too.
	readError error
}

func newHarness(t testing.TB, leases ...int64) *harness {
	return newHarnessOn(t, vfs.NewMem(), leases...)
}

func newHarnessOn(t testing.TB, fs vfs.FS, leases ...int64) *harness {
	h := &harness{
		t: t, fs: fs, leases: newLeaseTable(leases...),
		opts: Options{CompactionBatchLimit: 7, CompactionSleep: time.Microsecond},
	}
	h.open()
	t.Cleanup(h.close)
	return h
}

// smallRecords has every second seed divide its batches into records of a few versions.
func (h *harness) smallRecords(seed uint64) {
	if seed%2 == 1 {
		h.recordBytes = 48
		h.s.w.indexed.limit = h.recordBytes
	}
}

// testCacheBytes leaves room for blocks beside the memtables, which the engine
// accounts to its cache.
const testCacheBytes = 256 << 20

func (h *harness) open() {
	h.t.Helper()
	eng, err := engine.Open(engine.Options{Dir: "db", Merger: Merger, FS: h.fs, CacheBytes: testCacheBytes, OnFatal: h.fatal})
	if err != nil {
		h.t.Fatal(err)
	}
	s, err := Open(eng, h.leases, h.opts)
	if err != nil {
		h.t.Fatal(err, eng.Close())
	}
	if h.recordBytes > 0 {
		s.w.indexed.limit = h.recordBytes
	}
	h.eng, h.s = eng, s
}

func (h *harness) fatal(err error) {
	if h.readError == nil || !errors.Is(err, h.readError) {
		h.t.Error(err)
	}
}

func (h *harness) close() {
	if h.s == nil {
		return
	}
	h.s.Close()
	if err := h.eng.Close(); err != nil {
		h.t.Error(err)
	}
	h.s, h.eng = nil, nil
}

// reopen restarts cleanly: all that was committed is there.
func (h *harness) reopen() {
	h.t.Helper()
	if err := h.eng.Flush(); err != nil {
		h.t.Fatal(err)
	}
	h.close()
	h.leases.clear()
	h.open()
}

func (t *leaseTable) clear() {
	for id := range t.keys {
		t.keys[id] = nil
	}
}

// apply applies the commands of fn as one batch.
func (h *harness) apply(fn func()) []RevisionEvents {
	h.t.Helper()
	b := h.eng.NewBatch()
	h.s.Begin(b)
	fn()
	before, announced := b.Len(), h.s.PendingBytes()
	h.s.Complete()
	records := announced/(cmp.Or(h.recordBytes, recordBytes)-indexHeadLen) + 1
	if added := b.Len() - before; added < announced/2 || added > announced+records*recordOverhead {
		h.t.Fatalf("completing adds %d bytes to the batch, announced were %d", added, announced)
	}
	if err := h.eng.Commit(b); err != nil {
		h.t.Fatal(err)
	}
	evs := h.s.Publish()
	if err := b.Close(); err != nil {
		h.t.Fatal(err)
	}
	return evs
}

func (h *harness) put(key, value string) {
	h.t.Helper()
	h.apply(func() {
		if _, err := h.s.Put(&pb.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
			h.t.Fatal(err)
		}
	})
}

// compact compacts and waits for the end of it.
func (h *harness) compact(rev int64) {
	h.t.Helper()
	var done <-chan struct{}
	h.apply(func() {
		var err error
		if done, err = h.s.Compact(rev); err != nil {
			h.t.Fatal(err)
		}
	})
	h.wait(done)
}

func (h *harness) wait(done <-chan struct{}) {
	h.t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		h.t.Fatal("compaction does not end")
	}
}

func (h *harness) get(key, end string, rev int64) *pb.RangeResponse {
	h.t.Helper()
	resp, err := h.s.Range(context.Background(), &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end), Revision: rev})
	if err != nil {
		h.t.Fatal(err)
	}
	return resp
}

// storedBytes is the size of the history as stored, and of the revision index as it is counted.
func (h *harness) storedBytes() int64 {
	h.t.Helper()
	var n int64
	h.each(historyLower, historyUpper, func(it *pebble.Iterator) {
		n += int64(len(it.Key()) + len(it.Value()))
	})
	for _, it := range h.items() {
		n += int64(indexItemSize(len(it.key)))
	}
	return n
}

// items are those of the revision index.
func (h *harness) items() (all []indexItem) {
	h.t.Helper()
	it, err := h.eng.NewIter(revisionLower, revisionUpper)
	must(h.t, err)
	must(h.t, eachItem(context.Background(), it, startOfIndex, math.MaxInt64, func(i *indexItem) error {
		all = append(all, indexItem{i.revision, bytes.Clone(i.key)})
		return nil
	}))
	return all
}

func (h *harness) each(lower, upper []byte, fn func(*pebble.Iterator)) {
	h.t.Helper()
	it, err := h.eng.NewIter(lower, upper)
	if err != nil {
		h.t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		fn(it)
	}
	if err := it.Close(); err != nil {
		h.t.Fatal(err)
	}
}

// checkSize compares the size kept incrementally with a count.
func (h *harness) checkSize() {
	h.t.Helper()
	if got, want := h.s.SizeInUse(), metaBytes+h.storedBytes(); got != want {
		h.t.Fatalf("SizeInUse is %d, stored are %d bytes", got, want)
	}
}

func TestStatsCountWhatWasDone(t *testing.T) {
	h := newHarness(t)
	for _, k := range []string{"a", "b", "a"} {
		h.put(k, "")
	}
	h.apply(func() {
		if _, err := h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("b")}); err != nil {
			t.Fatal(err)
		}
		put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("c")}}}
		if _, err := h.s.Txn(&pb.TxnRequest{Success: []*pb.RequestOp{put}}); err != nil {
			t.Fatal(err)
		}
	})
	h.compact(h.s.Revision())
	h.get("a", "", 0)
	want := Stats{Keys: 2, Puts: 4, Deletes: 1, Txns: 1, Ranges: 1, Compacted: 3} // a's first version, b and its deletion
	if got := h.s.Stats(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
