package mvcc

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"
	"weak"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/cockroachdb/pebble/v2"
	"github.com/coteriedb/coterie/storage/engine"
)

// TestHistoryKeyOrder: engine order is key order, newest version first.
func TestHistoryKeyOrder(t *testing.T) {
	keys := []string{
		"\x00", "\x00\x00", "\x00\x00\x00", "\x00\x01", "\x00\xff", "\x01", "a", "a\x00", "a\x00\x00b",
		"a\x00\x01", "a\x00\xff", "a\x01", "aa", "a\xff", "b", "\xff", "\xff\x00", "\xff\xff",
	}
	if !slices.IsSorted(keys) {
		t.Fatal("the table is not in order")
	}
	revs := []int64{1<<62 + 1, 300, 256, 255, 2, 1}
	var last []byte
	for _, key := range keys {
		lower, upper := appendKeyPrefix(nil, key), appendAfterKey(nil, key)
		for _, rev := range revs {
			k := appendHistoryKey(nil, key, rev)
			if bytes.Compare(last, k) >= 0 {
				t.Fatalf("key %q at %d does not sort after %x", key, rev, last)
			}
			if len(k) != historyKeyLen(key) {
				t.Fatalf("key %q: length %d is counted as %d", key, len(k), historyKeyLen(key))
			}
			if bytes.Compare(k, lower) < 0 || bytes.Compare(k, upper) >= 0 {
				t.Fatalf("key %q at %d is not within its bounds", key, rev)
			}
			// Of the changes of one revision, the last comes first.
			for _, sub := range []int64{1, 0} {
				last, k = k, appendSupersededKey(nil, key, rev, sub)
				prefix, main, err := splitHistoryKey(k)
				if bytes.Compare(last, k) >= 0 || !bytes.Equal(prefix, lower) || main != rev || err != nil {
					t.Fatalf("change %d of key %q at %d: %x, %d, %v", sub, key, rev, prefix, main, err)
				}
			}
			last = k
		}
	}
}

// TestStoredBytes is the format's golden test: see docs/format-mvcc.md.
func TestStoredBytes(t *testing.T) {
	h := newHarness(t, 5)
	h.apply(func() {
		_, _ = h.s.Put(&pb.PutRequest{Key: []byte("a\x00b"), Value: []byte("v1")})
		_, _ = h.s.Put(&pb.PutRequest{Key: []byte("k"), Value: []byte("v2"), Lease: 5})
		_, _ = h.s.Put(&pb.PutRequest{Key: []byte("k"), Value: []byte("v3")})
		_, _ = h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte{0}})
	})
	h.compact(3)
	var got []string
	h.each([]byte{metaByte}, []byte{revisionByte + 1}, func(it *pebble.Iterator) {
		got = append(got, hex.EncodeToString(it.Key())+" "+hex.EncodeToString(it.Value()))
	})
	want := []string{
		// meta: bytes freed, none; compaction finished; scheduled; format.
		"6366 0000000000000003",
		"6373 0000000000000003",
		"6376 02",
		// h "a\x00b" 5: tombstone, sub 0. Then 2: put, create 2, version 1, no lease.
		"686100ff620001" + "fffffffffffffffa" + " 0100",
		"686100ff620001" + "fffffffffffffffd" + " 0000020100" + "7631",
		// h "k" 5: tombstone, sub 1. 4: create 3, version 2. 3: lease 5.
		"686b0001" + "fffffffffffffffa" + " 0101",
		"686b0001" + "fffffffffffffffb" + " 0000030200" + "7633",
		"686b0001" + "fffffffffffffffc" + " 0000030105" + "7632",
		// r, of a batch, up to 5/1: a record, bytes written (31 + 26 + 26 + 26 + 21), five items: how far the revision is from the
		// last, sub, length, key.
		"72" + "0000000000000005" + "0000000000000001" + " 00" + "0000000000000082" + "00000005" +
			"020003610062" + "0100016b" + "0100016b" + "010003610062" + "0001016b",
	}
	if !slices.Equal(got, want) {
		t.Errorf("stored:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestOpenRefusesDamage: records that cannot be are named, and nothing panics.
func TestOpenRefusesDamage(t *testing.T) {
	put := string(appendRecordHead(nil, &record{create: 2, version: 1}))
	rev := "\x00\x00\x00\x00\x00\x00\x00\x02"
	zero := "\x00\x00\x00\x00\x00\x00\x00\x00"
	inv := "\xff\xff\xff\xff\xff\xff\xff\xfd"
	for _, c := range []struct{ name, key, value, want string }{
		{"empty record", "hk\x00\x01" + inv, "", `key "k" at revision 2: mvcc: damaged data: empty record`},
		{"unknown kind", "hk\x00\x01" + inv, "\x07" + put[1:], "unknown kind 7"},
		{"record cut short", "hk\x00\x01" + inv, put[:3], "cut short"},
		{"record without end", "hk\x00\x01" + inv, "\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "cut short"},
		{"created later", "hk\x00\x01" + inv, "\x00\x00\x03\x01\x00", "create revision 3"},
		{"version zero", "hk\x00\x01" + inv, "\x00\x00\x02\x00\x00", "version 0"},
		{"tombstone with value", "hk\x00\x01" + inv, "\x01\x00x", "tombstone"},
		{"short key", "hk\x01", put, "history key 686b01"},
		{"key without end", "hkkk" + inv, put, "history key"},
		{"revision zero", "hk\x00\x01" + "\xff\xff\xff\xff\xff\xff\xff\xff", put, "revision 0"},
		{"bad escape", "hk\x00\x05x\x00\x01" + inv, put, "bad escape"},
		{"key ends in escape", "hk\x00\x00\x01" + inv, put, "bad escape"},
		{"beyond the revision index", "hk\x00\x01" + "\xff\xff\xff\xff\xff\xff\xff\xf0", put, "reaches revision 15"},
		{"short revision key", "r\x01" + rev[1:], zero, "revision key"},
		{"long revision key", "r" + rev + zero + "\x00", zero, "revision key"},
		{"short revision record", "r\x01" + rev[1:] + zero, "\x00", "revision record"},
		{"revision record of another kind", "r\x01" + rev[1:] + zero, "\x07" + zero + "\x00\x00\x00\x00", "revision record"},
		{"revision record without items", "r\x01" + rev[1:] + zero, "\x00" + zero + "\x00\x00\x00\x00", "ends at 0/0"},
		{"revision record with more items", "r\x01" + rev[1:] + zero, "\x00" + zero + "\x00\x00\x00\x01", "cut short"},
		{"revision record with bytes behind", "r\x01" + rev[1:] + zero, "\x00" + zero + "\x00\x00\x00\x00k", "follow the items"},
		{"revision record of another end", "r\x01" + rev[1:] + zero, "\x00" + zero + "\x00\x00\x00\x01\x09\x00\x01a", "ends at 9/0"},
		{"unfinished finished", "cf", rev, "finished"},
		{"short meta", "cs", "\x01", `meta record "cs"`},
		{"compacted future", "cs", "\x00\x00\x00\x00\x00\x00\x00\x09", "compacted revision 9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			h.put("a", "1")
			set(t, h.eng, c.key, c.value)
			s, err := Open(h.eng, nil, h.opts)
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("opened with %v, want damage with %q", err, c.want)
			}
		})
	}
}

func TestOpenRefusesUnknownFormat(t *testing.T) {
	h := newHarness(t)
	set(t, h.eng, "cv", "\x01")
	if _, err := Open(h.eng, nil, h.opts); !errors.Is(err, ErrFormat) {
		t.Errorf("opened with %v", err)
	}
}

func set(t *testing.T, eng *engine.Engine, key, value string) {
	t.Helper()
	b := eng.NewBatch()
	if err := errors.Join(b.Set([]byte(key), []byte(value), nil), eng.Commit(b), b.Close()); err != nil {
		t.Fatal(err)
	}
}

func FuzzKey(f *testing.F) {
	f.Add("a\x00b", "a", int64(7))
	f.Add("", "\x00", int64(1))
	f.Fuzz(func(t *testing.T, a, b string, rev int64) {
		if rev <= 0 {
			return
		}
		ka, kb := appendHistoryKey(nil, a, rev), appendHistoryKey(nil, b, rev)
		if c := bytes.Compare(ka, kb); c != strings.Compare(a, b) {
			t.Fatalf("order of %q and %q is %d", a, b, c)
		}
		prefix, main, err := splitHistoryKey(ka)
		if err != nil || main != rev {
			t.Fatalf("%x: revision %d, %v", ka, main, err)
		}
		key, err := unescapeKey(nil, prefix)
		if err != nil || string(key) != a {
			t.Fatalf("%x: key %q, %v", ka, key, err)
		}
	})
}

func FuzzDecodeKey(f *testing.F) {
	f.Add([]byte("hk\x00\x01\xff\xff\xff\xff\xff\xff\xff\xfd"))
	f.Add([]byte("h\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		prefix, main, err := splitHistoryKey(b)
		if err != nil {
			return
		}
		key, err := unescapeKey(nil, prefix)
		if err != nil {
			return
		}
		// What decodes is what encodes to it.
		got := appendHistoryKey(nil, string(key), main)
		if len(b) > len(got) {
			got = appendSupersededKey(nil, string(key), main, int64(^binary.BigEndian.Uint64(b[len(got):])))
		}
		if !bytes.Equal(got, b) {
			t.Fatalf("%x decodes to %q at %d, which encodes to %x", b, key, main, got)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte("\x00\x00\x02\x01\x00value"), int64(2))
	f.Add([]byte("\x01\x00"), int64(2))
	f.Fuzz(func(t *testing.T, b []byte, main int64) {
		r, err := decodeRecord(b, main)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeRecord(append(appendRecordHead(nil, &r), r.value...), main)
		if err != nil || !sameRecord(r, again) {
			t.Fatalf("%+v, encoded and decoded: %+v, %v", r, again, err)
		}
	})
}

func sameRecord(a, b record) bool {
	return a.sub == b.sub && a.tombstone == b.tombstone && a.create == b.create && a.version == b.version &&
		a.lease == b.lease && bytes.Equal(a.value, b.value)
}

// TestKeyOfAnEventKeepsNoValue holds the event of a put to two allocations. The watchers' recent events keep keys, and for the
// value its encoding.
func TestKeyOfAnEventKeepsNoValue(t *testing.T) {
	h := newHarness(t)
	var key []byte
	var value weak.Pointer[byte]
	func() {
		events := h.apply(func() {
			if _, err := h.s.Put(&pb.PutRequest{Key: []byte("key"), Value: make([]byte, 1<<20)}); err != nil {
				t.Fatal(err)
			}
		})
		kv := events[0].Events[0].Kv
		key, value = kv.Key, weak.Make(&kv.Value[0])
	}()
	h.put("other", "") // the batch before is forgotten
	runtime.GC()
	if value.Value() != nil {
		t.Errorf("the value is in memory as long as the key %q is", key)
	}
	runtime.KeepAlive(key)
}
