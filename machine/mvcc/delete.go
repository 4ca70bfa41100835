package mvcc

import (
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// DeleteRange applies a deletion. One that finds nothing makes no revision.
func (s *Store) DeleteRange(r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	left := s.commandBytes
	if err := left.takeRange(&s.w.index.root, spanOf(r.Key, r.RangeEnd)); err != nil {
		return nil, err
	}
	resp := s.deleteRange(r)
	s.w.finish()
	return resp, nil
}

// deleteRange makes the next changes of the command in progress.
func (s *Store) deleteRange(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	resp := &pb.DeleteRangeResponse{}
	sp := spanOf(r.Key, r.RangeEnd)
	if r.PrevKv {
		st := s.pending()
		prev, err := st.read(context.Background(), &pb.RangeRequest{Key: r.Key, RangeEnd: r.RangeEnd}, true)
		if err != nil {
			fatal(err)
		}
		resp.PrevKvs = prev.Kvs
	}
	// The items are taken out first, for a deletion changes the index under
	// an iteration.
	items := make([]item, 0, sp.count(&s.w.index.root))
	sp.each(&s.w.index.root, func(it *item) bool {
		items = append(items, *it)
		return true
	})
	for i := range items {
		s.delete(&items[i])
	}
	resp.Deleted = int64(len(items))
	resp.Header = &pb.ResponseHeader{Revision: s.w.reached()}
	return resp
}

// DeleteKeys deletes keys in sorted order, those that exist, in one revision,
// and returns the revision after it. It is how a lease takes its keys with it.
// CheckDeleteKeys comes first.
func (s *Store) DeleteKeys(keys []string) int64 {
	if !slices.IsSorted(keys) {
		keys = slices.Sorted(slices.Values(keys))
	}
	for _, key := range keys {
		if it := s.w.index.root.get(key); it != nil {
			s.delete(&item{key: it.key, mod: it.mod, lease: it.lease})
		}
	}
	s.w.finish()
	return s.w.rev
}

// delete deletes a key that exists.
func (s *Store) delete(it *item) {
	s.counters.deletes.Add(1)
	w := &s.w
	rev, sub := w.rev+1, w.changes()
	w.index.remove(it.key)
	if it.mod == rev {
		w.supersede(it.key)
	}
	w.deleted = true
	w.write(it.key, &record{sub: sub, tombstone: true})
	kv := w.add(mvccpb.Event_DELETE)
	kv.Key = []byte(it.key)
	kv.ModRevision = rev
	if it.lease != 0 {
		s.leases.Detach(it.lease, it.key)
	}
}
