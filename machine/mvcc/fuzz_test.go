package mvcc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/internal/footprint"
)

// FuzzHeads decodes the head of an image of the index, and keys of the revision index.
func FuzzHeads(f *testing.F) {
	f.Add(appendImageHead(nil, &imageHead{generation: 1, rev: 7, keys: 3, chunks: 1}))
	f.Add(appendRevisionKey(nil, 7, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		if main, sub, err := splitRevisionKey(b); err == nil && !bytes.Equal(appendRevisionKey(nil, main, sub), b) {
			t.Errorf("%x is the key of %d/%d, which is encoded otherwise", b, main, sub)
		}
		reseal(b)
		h, err := decodeImageHead(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		if again := appendImageHead(nil, &h); !bytes.Equal(again, b) {
			t.Errorf("%x is the head %+v, which is encoded as %x", b, h, again)
		}
	})
}

// reseal gives what may be a part of an image a checksum that fits, else mutants would not get past it.
func reseal(b []byte) {
	if n := len(b) - sumLen; n >= 0 {
		binary.BigEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
	}
}

// FuzzOpen damages one record of a store, its key or its value, and opens it. It is refused as damaged, or it opens and answers:
// whatever is read then is read or refused, and takes no more memory than there is data.
func FuzzOpen(f *testing.F) {
	h := newHarness(f)
	for i := range 60 {
		h.put(string(rune('a'+i%7)), "value")
	}
	h.apply(func() {
		_, err := h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("b"), RangeEnd: []byte("d")})
		must(f, err)
	})
	must(f, h.s.SaveIndex())
	h.put("z", "after the image")
	h.s.Close()
	h.s = nil
	f.Cleanup(func() { must(f, h.eng.Close()) })
	type rec struct{ key, value []byte }
	var all []rec
	it, err := h.eng.NewIter(nil, nil)
	must(f, err)
	for it.First(); it.Valid(); it.Next() {
		all = append(all, rec{bytes.Clone(it.Key()), bytes.Clone(it.Value())})
	}
	must(f, it.Close())
	step := 1
	if testing.Short() {
		step = 8
	}
	for i := 0; i < len(all); i += step {
		f.Add(uint8(i), uint8(0), []byte{}, []byte{0xff}, false)
		f.Add(uint8(i), uint8(9), []byte{}, []byte{0, 0xff, 0xff}, true)
		f.Add(uint8(i), uint8(1), []byte{0}, []byte{}, false)
		f.Add(uint8(i), uint8(25), []byte{}, []byte{0xff, 0xff}, false) // of the head of an image: how many chunks it has
	}
	f.Fuzz(func(t *testing.T, which, at uint8, inKey, inValue []byte, cut bool) {
		was := all[int(which)%len(all)]
		key, value := patched(was.key, at, inKey, false), patched(was.value, at, inValue, cut)
		if key[0] == imageByte {
			reseal(value)
		}
		b := h.eng.NewBatch()
		must(t, b.Delete(was.key, nil))
		must(t, b.Set(key, value, nil))
		must(t, errors.Join(h.eng.Commit(b), b.Close()))
		defer func() {
			b := h.eng.NewBatch()
			must(t, b.Delete(key, nil))
			for _, r := range all {
				must(t, b.Set(r.key, r.value, nil))
			}
			must(t, errors.Join(h.eng.Commit(b), b.Close()))
		}()
		h.leases.clear()
		var s *Store
		if n := footprint.Of(func() { s, err = Open(h.eng, h.leases, h.opts) }); n > 32<<20 {
			t.Errorf("a store of %d small records took %d MiB to open", len(all), n>>20)
		}
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		defer s.Close()
		for _, rev := range []int64{0, 2, 30, s.Revision()} {
			_, _ = s.Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
		}
		_, _, _, _ = s.HashKV(t.Context(), 0)
		_, _, _ = s.ReadEvents(2, s.Revision(), func([]byte) bool { return true }, 1<<20)
	})
}

// patched is b with some bytes replaced, and cut behind them if asked.
func patched(b []byte, at uint8, patch []byte, cut bool) []byte {
	if len(b) == 0 {
		return bytes.Clone(patch)
	}
	from := int(at) % len(b)
	out := append(bytes.Clone(b[:from]), patch...)
	if end := from + len(patch); !cut && end < len(b) {
		out = append(out, b[end:]...)
	}
	return out
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
