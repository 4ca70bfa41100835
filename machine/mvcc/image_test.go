package mvcc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// items are the items of an index, which is checked on the way.
func items(t testing.TB, tr *tree) (all []item) {
	t.Helper()
	tr.root.ascend("", func(it *item) bool {
		all = append(all, *it)
		return true
	})
	if len(all) != tr.root.size {
		t.Fatalf("an index of size %d has %d items", tr.root.size, len(all))
	}
	for i := range all {
		if rank := tr.root.rank(all[i].key); rank != i || tr.root.get(all[i].key) == nil {
			t.Fatalf("item %d, %q, has rank %d", i, all[i].key, rank)
		}
	}
	return all
}

// checkIndex compares the index of an open store with that which the history
// makes, and the keys of leases with both.
func (h *harness) checkIndex() {
	h.t.Helper()
	want := &Store{eng: h.eng, leases: noLeases{}, log: zap.NewNop()}
	if err := want.loadFromHistory(h.s.w.rev, func() {}); err != nil {
		h.t.Fatal(err)
	}
	got := items(h.t, &h.s.w.index)
	if want := items(h.t, &want.w.index); !slices.Equal(got, want) {
		h.t.Fatalf("the index is\n%v\nand by the history\n%v", got, want)
	}
	leased := make(map[int64][]string)
	for _, it := range got {
		if it.lease != 0 {
			leased[it.lease] = append(leased[it.lease], it.key)
		}
	}
	for id, keys := range h.leases.keys {
		if slices.Sort(keys); !slices.Equal(keys, leased[id]) {
			h.t.Fatalf("lease %d has keys %q, by the index %q", id, keys, leased[id])
		}
	}
}

// image returns the revision of the image that the engine has.
func (h *harness) image() int64 { return h.s.images.rev.Load() }

func (h *harness) saveImage() {
	h.t.Helper()
	if err := h.s.images.save(1); err != nil {
		h.t.Fatal(err)
	}
}

// reopenAfterCrash opens what a crash leaves.
func (h *harness) reopenAfterCrash() {
	h.t.Helper()
	fs := h.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
	h.close()
	h.fs = fs
	h.leases.clear()
	h.open()
}

// change makes some random changes as one command or several.
func (h *harness) change(rng *rand.Rand) {
	key := func() []byte {
		return []byte([]string{"", "a\x00", "a", "b/", "\xff"}[rng.IntN(5)] + fmt.Sprint(rng.IntN(300)))
	}
	put := func() *pb.PutRequest {
		return &pb.PutRequest{Key: key(), Value: []byte("v"), Lease: []int64{0, 0, 5, 6}[rng.IntN(4)]}
	}
	h.apply(func() {
		for range 1 + rng.IntN(5) {
			var err error
			switch rng.IntN(6) {
			case 0:
				_, err = h.s.DeleteRange(&pb.DeleteRangeRequest{Key: key()})
			case 1:
				k := key()
				_, err = h.s.DeleteRange(&pb.DeleteRangeRequest{Key: k, RangeEnd: append(k, 'z')})
			case 2:
				_, err = h.s.Txn(&pb.TxnRequest{Success: []*pb.RequestOp{
					{Request: &pb.RequestOp_RequestPut{RequestPut: put()}},
					{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("b"), RangeEnd: []byte{0}}}},
				}})
			default:
				_, err = h.s.Put(put())
			}
			if err != nil {
				h.t.Fatal(err)
			}
		}
	})
}

// TestImageIsTheIndex: whatever is changed, copied, compacted, flushed and lost
// in a crash, the index that is loaded is that of the history.
func TestImageIsTheIndex(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			h := newHarnessOn(t, vfs.NewCrashableMem(), 5, 6)
			used := 0
			for range 12 {
				for range rng.IntN(60) {
					h.change(rng)
				}
				h.inAnyOrder(rng, func() { h.saveImage() }, func() {
					if rev := h.s.Revision(); rev > h.s.CompactRevision() && rev > 1 && rng.IntN(2) == 0 {
						h.compact(max(h.s.CompactRevision()+1, rev-rng.Int64N(30)))
					}
				}, func() {
					if err := h.eng.Flush(); err != nil {
						t.Fatal(err)
					}
				}, func() { h.change(rng) }, func() { h.change(rng) })
				if rng.IntN(3) == 0 {
					h.reopen()
				} else {
					h.reopenAfterCrash()
				}
				if h.image() > 0 {
					used++
				}
				h.checkIndex()
			}
			if used == 0 {
				t.Error("no image was ever used")
			}
		})
	}
}

func (h *harness) inAnyOrder(rng *rand.Rand, fns ...func()) {
	for _, i := range rng.Perm(len(fns)) {
		fns[i]()
	}
}

// TestImageOfManyChunks is one beside which all else goes on, and flushes at any
// moment decide what a crash leaves.
func TestImageOfManyChunks(t *testing.T) {
	h := newHarnessOn(t, vfs.NewCrashableMem())
	rng := rand.New(rand.NewPCG(1, 1))
	h.s.images.chunkBytes, h.s.images.batchBytes = 1<<10, 8<<10
	n := 0
	fill := func() {
		h.apply(func() {
			for range 1000 {
				key := fmt.Appendf(nil, "%0*d", 1+rng.IntN(200), rng.IntN(100_000))
				if _, err := h.s.Put(&pb.PutRequest{Key: key}); err != nil {
					t.Fatal(err)
				}
			}
			n += 1000
		})
	}
	for range 20 {
		fill()
	}
	for range 5 {
		var side sync.WaitGroup
		flushed := make(chan struct{})
		side.Go(func() {
			for {
				if err := h.eng.Flush(); err != nil {
					t.Error(err)
				}
				select {
				case <-flushed:
					return
				default:
				}
			}
		})
		side.Go(func() {
			if err := h.s.images.save(1); err != nil {
				t.Error(err)
			}
		})
		for range 3 {
			fill()
		}
		close(flushed)
		side.Wait()
		if got := h.s.images.head.chunks; got < 10 {
			t.Fatalf("%d chunks", got)
		}
		h.reopenAfterCrash()
		h.s.images.chunkBytes, h.s.images.batchBytes = 1<<10, 8<<10
		h.checkIndex()
	}
}

// TestCompactionExpiresTheImage: an image that has a key whose tombstone is gone
// would bring the key back.
func TestCompactionExpiresTheImage(t *testing.T) {
	h := newHarness(t)
	h.put("a", "1")
	h.put("b", "1")
	h.saveImage()
	h.apply(func() {
		if _, err := h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
			t.Fatal(err)
		}
	})
	h.put("b", "2")
	h.compact(5)
	h.reopen()
	h.checkIndex()
	if h.image() != 0 {
		t.Error("the image is still there")
	}
}

// TestImageThatIsOvertaken: compaction passes the revision of an image while that
// is written.
func TestImageThatIsOvertaken(t *testing.T) {
	h := newHarness(t)
	h.put("a", "1")
	v := h.s.view.Load()
	h.apply(func() {
		if _, err := h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
			t.Fatal(err)
		}
	})
	h.put("b", "1")
	h.compact(4)
	w := imageWriter{m: h.s.images, head: imageHead{generation: 1, rev: v.rev, keys: v.index.size}}
	if _, err := w.write(&v.index); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if h.image() != 0 {
		t.Error("the image is there")
	}
	h.checkIndex()
}

// TestDamagedImage: the history is read instead, that is said, and no compaction
// makes the image look sound later.
func TestDamagedImage(t *testing.T) {
	chunk := func(n uint32) string { return string(appendImageChunkKey(nil, 1, n)) }
	sum := func(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)) }
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	head := func(change func(*imageHead)) func([]byte) []byte {
		return func(b []byte) []byte {
			h, err := decodeImageHead(b)
			if err != nil {
				t.Fatal(err)
			}
			change(&h)
			return appendImageHead(nil, &h)
		}
	}
	body := func(change func([]byte) []byte) func([]byte) []byte {
		return func(b []byte) []byte { return sum(change(b[: len(b)-sumLen : len(b)-sumLen])) }
	}
	key := string(imageHeadKey)
	for _, c := range []struct {
		name, key string
		change    func([]byte) []byte
	}{
		{"head flipped", key, flip},
		{"head empty", key, func([]byte) []byte { return nil }},
		{"head of another version", key, func(b []byte) []byte { b[0]++; return sum(b[:imageHeadLen]) }},
		{"head longer", key, func(b []byte) []byte { return sum(append(b[:imageHeadLen:imageHeadLen], 0)) }},
		{"head in the future", key, head(func(h *imageHead) { h.rev += 1000 })},
		{"head of revision 0", key, head(func(h *imageHead) { h.rev = 0 })},
		{"one key more", key, head(func(h *imageHead) { h.keys++ })},
		{"one chunk more", key, head(func(h *imageHead) { h.chunks++ })},
		{"one chunk less", key, head(func(h *imageHead) { h.chunks-- })},
		{"another generation", key, head(func(h *imageHead) { h.generation++ })},
		{"chunk flipped", chunk(1), flip},
		{"chunk empty", chunk(1), func([]byte) []byte { return nil }},
		{"chunk gone", chunk(0), nil},
		{"chunk without items", chunk(1), body(func([]byte) []byte { return make([]byte, countLen) })},
		{"chunk cut short", chunk(1), body(func(b []byte) []byte { return b[:len(b)-1] })},
		{"chunk with more", chunk(1), body(func(b []byte) []byte { return append(b, 0) })},
		{"chunk of many items", chunk(1), body(func(b []byte) []byte { b[0] = 0xff; return b })},
		{"chunk with one item less", chunk(1), body(func(b []byte) []byte { b[countLen-1]--; return b })},
		{"chunk twice", chunk(1), func([]byte) []byte { return nil }}, // replaced below
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			h.s.images.chunkBytes = 1 << 10
			core, logs := observer.New(zapcore.ErrorLevel)
			h.opts.Logger = zap.New(core)
			h.apply(func() {
				for i := range 300 {
					if _, err := h.s.Put(&pb.PutRequest{Key: fmt.Appendf(nil, "%0100d", i*i)}); err != nil {
						t.Fatal(err)
					}
				}
			})
			h.saveImage()
			if h.s.images.head.chunks < 2 {
				t.Fatal("too few chunks for this test")
			}
			before, err := h.eng.Get([]byte(c.key), nil)
			if err != nil {
				t.Fatal(err)
			}
			b := h.eng.NewBatch()
			switch {
			case c.change == nil:
				err = b.Delete([]byte(c.key), nil)
			case c.name == "chunk twice":
				var first []byte
				first, err = h.eng.Get([]byte(chunk(0)), nil)
				err = errors.Join(err, b.Set([]byte(c.key), first, nil))
			default:
				err = b.Set([]byte(c.key), c.change(before), nil)
			}
			if err := errors.Join(err, h.eng.Commit(b), b.Close()); err != nil {
				t.Fatal(err)
			}
			h.reopen()
			if got := logs.FilterMessageSnippet("image of the index is damaged").Len(); got != 1 {
				t.Errorf("it was said %d times that the image is damaged", got)
			}
			h.checkIndex()
			h.apply(func() {
				if _, err := h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}); err != nil {
					t.Fatal(err)
				}
			})
			h.put("left", "1")
			h.compact(h.s.Revision())
			b = h.eng.NewBatch()
			if err := errors.Join(b.Set([]byte(c.key), before, nil), h.eng.Commit(b), b.Close()); err != nil {
				t.Fatal(err) // the disk has come to its senses
			}
			h.reopen()
			h.checkIndex()
		})
	}
}

// TestImageWithALongTail: one with so many changes after it that the history is read
// as fast. It is still one that a compaction has to take away.
func TestImageWithALongTail(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute under the race detector, and has one goroutine")
	}
	h := newHarness(t)
	h.put("a", "1")
	h.saveImage()
	h.apply(func() {
		if _, err := h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
			t.Fatal(err)
		}
		for range imageLeast + 1 {
			if _, err := h.s.Put(&pb.PutRequest{Key: []byte("b")}); err != nil {
				t.Fatal(err)
			}
		}
	})
	h.opts.CompactionBatchLimit = compactBatch
	h.reopen()
	h.checkIndex()
	h.compact(h.s.Revision())
	h.reopen()
	h.checkIndex()
}

// TestSaveIndex: what is saved is used, little is not saved, and nothing after Close.
func TestSaveIndex(t *testing.T) {
	h := newHarness(t)
	save := func() {
		t.Helper()
		if err := h.s.SaveIndex(); err != nil {
			t.Fatal(err)
		}
	}
	h.put("a", "1")
	save()
	if h.image() != 0 {
		t.Error("an image for a single key")
	}
	for range imageAtRest {
		h.put("a", "1")
	}
	save()
	rev := h.s.Revision()
	h.put("b", "1")
	save()
	h.reopen()
	if h.image() != rev {
		t.Errorf("the image is of revision %d, want %d", h.image(), rev)
	}
	h.checkIndex()
	s := h.s
	h.close()
	if err := s.SaveIndex(); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestImageIsRenewed: without anybody's asking.
func TestImageIsRenewed(t *testing.T) {
	h := newHarness(t)
	h.apply(func() {
		for range imageLeast {
			if _, err := h.s.Put(&pb.PutRequest{Key: []byte("b")}); err != nil {
				t.Fatal(err)
			}
		}
	})
	for h.image() != h.s.Revision() { // the end of the test's time is the limit
		runtime.Gosched()
	}
}

// TestImageBytes is the golden test of the image's format.
func TestImageBytes(t *testing.T) {
	h := newHarness(t, 300)
	h.put("key1", "v")
	h.put("key2", "v")
	h.apply(func() { _, _ = h.s.Put(&pb.PutRequest{Key: []byte("key2"), Lease: 300}) })
	h.saveImage()
	var got []string
	h.each(imageLower, imageUpper, func(it *pebble.Iterator) {
		got = append(got, fmt.Sprintf("%x %x", it.Key(), it.Value()))
	})
	want := []string{
		// head: version, generation, revision, keys, chunks, checksum.
		"6968 01" + "0000000000000001" + "0000000000000004" + "0000000000000002" + "00000001" + "xxxxxxxx",
		// chunk 0 of generation 1: two items; key1, mod 2, created then, version 1, no
		// lease; 3 bytes shared and "2", mod 4, created 1 before, version 2, lease 300.
		"696b" + "0000000000000001" + "00000000" + " 00000002" + "00046b657931" + "02000100" + "030132" + "040102ac02" + "xxxxxxxx",
	}
	for i := range got {
		if i < len(want) && len(got[i]) == len(want[i]) {
			got[i] = got[i][:len(got[i])-2*sumLen] + strings.Repeat("x", 2*sumLen)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("stored:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// FuzzImageChunk: no bytes make the decoder panic, and what it takes is in order.
func FuzzImageChunk(f *testing.F) {
	var w chunkWriter
	w.reset()
	for i := range 40 {
		w.add(&item{key: fmt.Sprintf("k%04d", i*7), create: 1 + int64(i), mod: 100, version: int64(i), lease: int64(i) << 40})
	}
	f.Add(bytes.Clone(w.finish()))
	w.reset()
	w.add(&item{})
	f.Add(bytes.Clone(w.finish()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= sumLen { // else mutants would not get past it
			binary.BigEndian.PutUint32(b[len(b)-sumLen:], crc32.Checksum(b[:len(b)-sumLen], castagnoli))
		}
		c, err := decodeChunk(b, 1000)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		tr, err := treeOf([]chunk{c})
		if err != nil {
			t.Fatal(err)
		}
		all := items(t, &tr)
		if len(all) != c.items || all[0].key != c.first || all[len(all)-1].key != c.last {
			t.Fatalf("%d items from %q to %q", c.items, c.first, c.last)
		}
	})
}
