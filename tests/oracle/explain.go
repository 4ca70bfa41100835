package oracle

import (
	"context"
	"fmt"
	"sort"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// explainHash adds to a difference between two hashes the first revision at which the histories differ, and
// what each server says happened there.
func (r *runner) explainHash(ctx context.Context, m *side, diff *Difference) {
	hash := func(s *side, rev int64) (uint32, error) {
		resp, err := s.maintenance.HashKV(ctx, &pb.HashKVRequest{Revision: rev})
		return resp.GetHash(), err
	}
	first := max(r.gen.compacted, 1)
	var failed error
	at := first + int64(sort.Search(int(r.gen.rev-first), func(i int) bool {
		ref, err := hash(r.ref, first+int64(i))
		if err != nil {
			failed = err
		}
		sub, err := hash(m, first+int64(i))
		if err != nil {
			failed = err
		}
		return ref != sub
	}))
	if failed != nil {
		return // the difference stands without an explanation
	}
	diff.Reference += fmt.Sprintf("; first different at %d: %s", at, eventsAt(ctx, r.ref, at))
	diff.Subject += fmt.Sprintf("; first different at %d: %s", at, eventsAt(ctx, m, at))
}

// eventsAt reads one revision's events.
func eventsAt(ctx context.Context, s *side, rev int64) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := s.watch.Watch(ctx)
	if err != nil {
		return err.Error()
	}
	err = call.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: rev}}})
	if err != nil {
		return err.Error()
	}
	for {
		resp, err := call.Recv()
		if err != nil {
			return err.Error()
		}
		if resp.Canceled {
			return show(resp)
		}
		var events []string
		for _, ev := range resp.Events {
			if ev.Kv.ModRevision == rev {
				events = append(events, show(ev))
			}
		}
		if len(resp.Events) > 0 {
			return strings.Join(events, " ")
		}
	}
}
