package mvcc

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func putOp(key string, value []byte, keep bool) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: value, IgnoreValue: keep}}}
}

func deleteOp(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

// What is counted before a command is never less than what it then writes,
// also where a transaction changes a key again and again.
func TestNoCommandWritesMoreThanWasCounted(t *testing.T) {
	h := newHarness(t)
	r := rand.New(rand.NewPCG(1, 0))
	keys := []string{"a", "b\x00\x00", "c", string(bytes.Repeat([]byte("d"), 300))}
	txn := func() *pb.TxnRequest {
		puts := r.Perm(len(keys)) // a key is put but once
		var nested []*pb.RequestOp
		for range 1 + r.IntN(6) {
			op := deleteOp("a", []string{"", "\x00", "c"}[r.IntN(3)])
			if len(puts) > 0 && r.IntN(2) == 0 {
				key := keys[puts[0]]
				puts = puts[1:]
				op = putOp(key, make([]byte, r.IntN(2000)), h.s.w.index.root.get(key) != nil && r.IntN(3) == 0)
			}
			nested = append(nested, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{op}}}})
		}
		return &pb.TxnRequest{Success: nested}
	}
	most := 0.0
	for range 2000 {
		h.apply(func() {
			r := txn()
			st := h.s.pending()
			path, err := st.decide(t.Context(), r, nil)
			if err != nil {
				t.Fatal(err)
			}
			left := h.s.commandBytes
			if _, err := st.check(r, path, &left); err != nil {
				t.Fatal(err)
			}
			counted, before := int64(h.s.commandBytes-left), h.s.w.batch.Len()
			written := h.s.w.written
			if _, err := h.s.Txn(r); err != nil {
				t.Fatal(err)
			}
			written = h.s.w.written - written
			inBatch := int64(h.s.w.batch.Len() - before)
			if written > counted || inBatch > counted*3/2 {
				t.Fatalf("%v\ncounted %d bytes, written are %d, and %d in the batch", r, counted, written, inBatch)
			}
			if counted > 0 {
				most = max(most, float64(written)/float64(counted))
			}
		})
	}
	if most < 0.7 {
		t.Errorf("at most %.2f of what was counted was ever written", most)
	}
	h.checkSize()
}

// A command that might write too much changes nothing.
func TestCommandsThatWriteTooMuch(t *testing.T) {
	h := newHarness(t)
	for i := range 100 {
		h.put(fmt.Sprintf("key%02d", i), "")
	}
	h.put("large", string(make([]byte, 3000)))
	h.s.commandBytes = 4000 // about 60 deletions
	txn := func(ops ...*pb.RequestOp) func() error {
		return func() error { _, err := h.s.Txn(&pb.TxnRequest{Success: ops}); return err }
	}
	remove := func(key, end string) func() error {
		return func() error {
			_, err := h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
			return err
		}
	}
	var keys []string
	for _, kv := range h.get("key", "kez", 0).Kvs {
		keys = append(keys, string(kv.Key))
	}
	for _, c := range []struct {
		name string
		do   func() error
		ok   bool
	}{
		{"delete all", remove("\x00", "\x00"), false},
		{"delete all in a transaction", txn(putOp("new", nil, false), deleteOp("key", "kez")), false},
		{"delete all in parts of one transaction", txn(deleteOp("key0", "key4"), deleteOp("key4", "key8"), deleteOp("key8", "kez")), false},
		{"a large put in a transaction", txn(putOp("new", make([]byte, 5000), false)), false},
		{"keep a large value", txn(putOp("large", nil, true)), false},
		{"the keys of a lease", func() error { return h.s.CheckDeleteKeys(keys) }, false},
		{"some keys of a lease", func() error { return h.s.CheckDeleteKeys(keys[:20]) }, true},
		{"some in a transaction", txn(putOp("new", nil, false), deleteOp("key0", "key2")), true},
		{"some", remove("key2", "key5"), true},
		{"one", remove("large", ""), true},
	} {
		before, bytes := h.s.Revision(), h.s.SizeInUse()
		h.apply(func() {
			if err := c.do(); c.ok && err != nil || !c.ok && !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s: %v", c.name, err)
			}
		})
		if !c.ok && (h.s.Revision() != before || h.s.SizeInUse() != bytes) {
			t.Errorf("%s: it was refused and changed something", c.name)
		}
	}
	if n := h.get("key", "kez", 0).Count; n != 50 {
		t.Errorf("%d keys are left", n)
	}
}
