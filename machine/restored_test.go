package machine

import (
	"context"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/watch"
)

// TestWatchersOfBeforeARestore: a state was restored that is older than what its
// clients have seen, with its revision raised above that. Who goes on with a watch
// is told that he has lost what is in between, and does not wait for revisions that
// come by a second time; who begins after it misses nothing.
func TestWatchersOfBeforeARestore(t *testing.T) {
	h := imported(t, history(2, 3), ImportOptions{Bump: 100})
	defer h.close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := h.Watch.NewStream()
	defer s.Close()
	for id, start := range map[int64]int64{1: 3, 2: 4, 3: 60, 4: 102, 5: 104} {
		must(t, s.Create(ctx, &pb.WatchCreateRequest{Key: []byte("k"), WatchId: id, StartRevision: start}))
	}
	h.apply(put("k", "next", 0))
	lost, told := map[int64]int64{}, false
	for len(lost) < 4 || !told {
		rs, err := s.Next(ctx)
		must(t, err)
		for _, r := range decodeResponses(t, rs) {
			switch {
			case r.Created:
			case r.Canceled:
				lost[r.WatchId] = r.CompactRevision
			case r.WatchId != 5 || len(r.Events) != 1 || r.Events[0].Kv.ModRevision != 104:
				t.Errorf("told %v", r)
			default:
				told = true
			}
		}
	}
	for id := int64(1); id <= 4; id++ {
		if lost[id] != 103 {
			t.Errorf("watcher %d is told that what it needs is compacted at %d, want 103", id, lost[id])
		}
	}
}

func decodeResponses(t *testing.T, rs *watch.Responses) (all []*pb.WatchResponse) {
	t.Helper()
	for i := range rs.Len() {
		b, err := rs.AppendMessage(nil, i)
		must(t, err)
		r := &pb.WatchResponse{}
		must(t, proto.Unmarshal(b, r))
		all = append(all, r)
	}
	return all
}
