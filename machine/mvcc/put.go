package mvcc

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/machine/lease"
)

// putReply is a response with its header, in one allocation.
type putReply struct {
	resp   pb.PutResponse
	header pb.ResponseHeader
}

// Put applies a put. It keeps nothing of the request.
func (s *Store) Put(r *pb.PutRequest) (*pb.PutResponse, error) {
	if r.IgnoreValue || r.IgnoreLease || r.Lease != 0 {
		if err := s.checkPut(&s.w.index.root, r); err != nil {
			return nil, err
		}
	}
	resp := s.put(r)
	s.w.finish()
	return resp, nil
}

// checkPut finds what makes a put fail that is checked against idx.
func (s *Store) checkPut(idx *root, r *pb.PutRequest) error {
	if r.Lease != 0 && !s.leases.Has(r.Lease) {
		return lease.ErrNotFound
	}
	if (r.IgnoreValue || r.IgnoreLease) && idx.get(aliasString(r.Key)) == nil {
		return ErrKeyNotFound
	}
	return nil
}

// put makes the next change of the command in progress, which was checked.
func (s *Store) put(r *pb.PutRequest) *pb.PutResponse {
	s.counters.puts.Add(1)
	reply := new(putReply)
	reply.resp.Header = &reply.header
	value, leaseID := r.Value, r.Lease
	if r.PrevKv || r.IgnoreValue || r.IgnoreLease {
		prev := s.previous(r)
		if r.IgnoreValue {
			value = prev.GetValue()
		}
		if r.IgnoreLease {
			leaseID = prev.GetLease()
		}
		if r.PrevKv {
			reply.resp.PrevKv = prev
		}
	}
	reply.header.Revision = s.change(r.Key, value, leaseID)
	return &reply.resp
}

// previous returns the pair that r replaces, or nil. A put that keeps value or
// lease was checked to have one; only a deletion in the same transaction can
// have taken it since, and then there is nothing to keep. (etcd's server
// crashes on that.)
func (s *Store) previous(r *pb.PutRequest) *mvccpb.KeyValue {
	st := s.pending()
	it := st.index.get(aliasString(r.Key))
	if it == nil {
		return nil
	}
	kv := &mvccpb.KeyValue{
		Key: []byte(it.key), CreateRevision: it.create, ModRevision: it.mod, Version: it.version, Lease: it.lease,
	}
	if r.PrevKv || r.IgnoreValue {
		value, err := st.value(it)
		if err != nil {
			fatal(err)
		}
		kv.Value = value
	}
	return kv
}

// change puts one key and returns the revision that this makes.
func (s *Store) change(key, value []byte, leaseID int64) int64 {
	w := &s.w
	rev, sub := w.rev+1, w.changes()
	it, existed := w.index.put(aliasString(key))
	if it.mod == rev || !existed && w.deleted {
		w.supersede(it.key)
	}
	oldLease := it.lease
	if !existed {
		it.create = rev
	}
	it.mod = rev
	it.version++
	it.lease = leaseID

	w.write(it.key, &record{sub: sub, create: it.create, version: it.version, lease: leaseID, value: value})
	kv := w.add(mvccpb.Event_PUT)
	kv.Key = aliasBytes(it.key) // not with the value: who keeps the key of an event need not keep its value
	if len(value) > 0 {
		kv.Value = bytes.Clone(value)
	}
	kv.CreateRevision = it.create
	kv.ModRevision = rev
	kv.Version = it.version
	kv.Lease = leaseID

	if oldLease != leaseID {
		if oldLease != 0 {
			s.leases.Detach(oldLease, it.key)
		}
		if leaseID != 0 {
			s.leases.Attach(leaseID, it.key)
		}
	}
	return rev
}
