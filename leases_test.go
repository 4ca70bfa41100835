package coterie

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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

// While leadership moves, a client hears of it by an error upon which it tries again.
func TestLeaseErrorsWhenLeadershipMoves(t *testing.T) {
	nodes := openAll(t, testCluster(t, 3))
	defer closeAll(t, nodes)
	ctx := t.Context()
	lease, err := nodes[0].Client().Grant(ctx, 600)
	must(t, err)
	stop := make(chan struct{})
	var mu sync.Mutex
	bad := map[string]int{}
	var group sync.WaitGroup
	for _, n := range nodes {
		for range 4 {
			group.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					note := func(what string, err error) {
						if s, ok := status.FromError(err); err != nil && (!ok || s.Code() != codes.Unavailable) {
							var e rpctypes.EtcdError
							if errors.As(err, &e) && e.Code() == codes.Unavailable {
								return
							}
							mu.Lock()
							bad[fmt.Sprintf("%s: %v", what, err)]++
							mu.Unlock()
						}
					}
					_, err := n.Client().TimeToLive(ctx, lease.ID)
					note("TimeToLive", err)
					_, err = n.Client().KeepAliveOnce(ctx, lease.ID)
					note("KeepAliveOnce", err)
				}
			})
		}
	}
	for range 30 {
		l := leaderOf(t, nodes)
		to := others(nodes, l)[0].data.MemberID
		_, _ = l.Client().MoveLeader(ctx, to)
		time.Sleep(50 * time.Millisecond)
	}
	close(stop)
	group.Wait()
	for what, n := range bad {
		t.Errorf("%d times: %s", n, what)
	}
}
