package coterie

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"
)

// TestMassExpiry: thousands of leases with keys end together, and writes go on.
func TestMassExpiry(t *testing.T) {
	defer goleak.VerifyNone(t)
	const leases, granters = 5000, 50
	n := openNode(t, testConfig(t))
	defer n.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	propose := func(r *pb.InternalRaftRequest) {
		if r := n.Propose(ctx, r); r.Err != nil {
			t.Error(r.Err)
		}
	}
	var group sync.WaitGroup
	for g := range int64(granters) {
		group.Go(func() {
			for id := g + 1; id <= leases; id += granters {
				propose(&pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: 2}})
				propose(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: fmt.Appendf(nil, "leased/%d", id), Lease: id}})
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}

	var took []time.Duration
	for left := 1; left > 0 && !t.Failed(); left = n.machine().Leases.Len() {
		begin := time.Now()
		propose(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("written"), Value: make([]byte, 256)}})
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	t.Logf("%d writes: median %v, slowest %v", len(took), took[len(took)/2], took[len(took)-1])
	r, err := n.machine().KV.Range(ctx, &pb.RangeRequest{Key: []byte("leased/"), RangeEnd: []byte("leased0"), CountOnly: true})
	must(t, err)
	if r.Count != 0 {
		t.Errorf("%d keys are left of leases that ended", r.Count)
	}
	n.lessor.Close() // when it has heard of all revocations
	if s := n.lessor.Stats(); s.Expired != leases {
		t.Errorf("%d leases expired, want %d", s.Expired, leases)
	}
}
