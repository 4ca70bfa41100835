package mvcc

import (
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// wayward is a transaction of the kind that etcd's checks let through though it
// changes keys more than once: deletions up to the end of all keys, and puts.
func wayward(rng *rand.Rand) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for range 1 + rng.IntN(4) {
		key := fmt.Appendf(nil, "k%d", rng.IntN(4))
		if rng.IntN(2) == 0 {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: key, Value: fmt.Append(nil, rng.IntN(100))}}})
		} else {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: []byte{0}}}})
		}
	}
	return txn
}

// TestTheCompactedRevisionStaysWhole: whatever a revision did, when it is compacted
// to, its events and those after it are there as they were, and so are the keys as
// of then; and a restart finds the same last revision.
func TestTheCompactedRevisionStaysWhole(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h, rng := newHarness(t), rand.New(rand.NewPCG(seed, 5))
			var want []RevisionEvents // of revision 2 and on
			keys := []*pb.RangeResponse{nil, nil}
			for h.s.Revision() < 40 {
				want = append(want, h.apply(func() {
					if _, err := h.s.Txn(wayward(rng)); err != nil {
						t.Fatal(err)
					}
				})...)
				if rev := h.s.Revision(); int(rev) == len(keys) {
					keys = append(keys, h.get("a", "z", rev))
				}
			}
			last := h.s.Revision()
			for rev := int64(2); rev <= last; rev += 1 + rng.Int64N(3) {
				h.compact(rev)
				if rng.IntN(3) == 0 {
					h.reopen()
				}
				if h.s.Revision() != last {
					t.Fatalf("compacted to %d, the last revision is %d, was %d", rev, h.s.Revision(), last)
				}
				got, next, err := h.s.ReadEvents(rev, last, func([]byte) bool { return true }, 1<<20)
				if err != nil || next != last+1 {
					t.Fatal(next, err)
				}
				sameRevisions(t, got, want[rev-2:])
				for at := rev; at <= last; at++ {
					if now := h.get("a", "z", at); fmt.Sprint(now.Kvs) != fmt.Sprint(keys[at].Kvs) {
						t.Fatalf("compacted to %d, the keys at %d are %v, were %v", rev, at, now.Kvs, keys[at].Kvs)
					}
				}
				h.checkSize()
			}
		})
	}
}

func sameRevisions(t *testing.T, got, want []RevisionEvents) {
	t.Helper()
	flat := func(rs []RevisionEvents) (all []*mvccpb.Event) {
		for _, r := range rs {
			all = append(all, r.Events...)
		}
		return all
	}
	a, b := flat(got), flat(want)
	if len(a) != len(b) {
		t.Fatalf("%d events, want %d\n got %v\nwant %v", len(a), len(b), a, b)
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			t.Fatalf("event %d is %v, want %v", i, a[i], b[i])
		}
	}
}
