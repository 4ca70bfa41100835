package api

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// read answers a range, or a transaction that only reads.
func (s *Server) read(ctx context.Context, r *pb.InternalRaftRequest) (proto.Message, error) {
	linearizable, err := s.checkRead(r)
	if err != nil {
		return nil, err
	}
	if linearizable {
		if err := s.node.ReadIndex(ctx); err != nil {
			return nil, statusError(err)
		}
	}
	return s.readNow(ctx, r)
}

// checkRead checks what can be checked of a read without state.
func (s *Server) checkRead(r *pb.InternalRaftRequest) (linearizable bool, err error) {
	if r.Range != nil {
		return !r.Range.Serializable, checkRange(r.Range)
	}
	return !allSerializable(r.Txn), checkTxn(r.Txn, int(s.cfg.MaxTxnOps))
}

// readNow answers a read from the state of this moment.
func (s *Server) readNow(ctx context.Context, r *pb.InternalRaftRequest) (proto.Message, error) {
	if r.Range != nil {
		resp, err := s.node.KV().Range(ctx, r.Range)
		if err != nil {
			return nil, statusError(err)
		}
		resp.Header = s.complete(resp.Header)
		return resp, nil
	}
	resp, err := s.node.KV().ReadTxn(ctx, r.Txn)
	if err != nil {
		return nil, statusError(err)
	}
	resp.Header = s.complete(resp.Header)
	return resp, nil
}
