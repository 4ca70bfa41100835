package api

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coteriedb/coterie/machine/mvcc"
)

type kvServer struct {
	s *Server
	pb.UnsafeKVServer
}

// Range implements pb.KVServer.
func (kv kvServer) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	if !r.Serializable {
		if err := kv.s.node.ReadIndex(ctx); err != nil {
			return nil, statusError(err)
		}
	}
	resp, err := kv.s.node.KV().Range(ctx, r)
	if err != nil {
		return nil, statusError(err)
	}
	resp.Header = kv.s.complete(resp.Header)
	return resp, nil
}

// RangeStream implements pb.KVServer.
func (kv kvServer) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	if err := checkRangeStream(r); err != nil {
		return err
	}
	ctx := stream.Context()
	if !r.Serializable {
		if err := kv.s.node.ReadIndex(ctx); err != nil {
			return statusError(err)
		}
	}
	return statusError(kv.s.node.KV().RangeStream(ctx, r, func(resp *pb.RangeStreamResponse) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		// Only the last part has a header.
		if rr := resp.RangeResponse; rr != nil && rr.Header != nil {
			kv.s.identify(rr.Header)
		}
		return stream.Send(resp)
	}))
}

// Put implements pb.KVServer.
func (kv kvServer) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	// As in etcd room is asked for before anything else, and the answer is the alarm's.
	if err := kv.s.charge(ctx, putCost(r)); err != nil {
		return nil, err
	}
	if err := checkPut(r); err != nil {
		return nil, err
	}
	resp, err := kv.s.propose(ctx, &pb.InternalRaftRequest{Put: r})
	if err != nil {
		return nil, err
	}
	put := resp.(*pb.PutResponse)
	put.Header = kv.s.complete(put.Header)
	return put, nil
}

// DeleteRange implements pb.KVServer.
func (kv kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	resp, err := kv.s.propose(ctx, &pb.InternalRaftRequest{DeleteRange: r})
	if err != nil {
		return nil, err
	}
	del := resp.(*pb.DeleteRangeResponse)
	del.Header = kv.s.complete(del.Header)
	return del, nil
}

// Txn implements pb.KVServer.
func (kv kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := kv.s.charge(ctx, txnCost(r)); err != nil {
		return nil, err
	}
	if err := checkTxn(r, int(kv.s.cfg.MaxTxnOps)); err != nil {
		return nil, err
	}
	var txn *pb.TxnResponse
	if mvcc.IsReadOnly(r) {
		if !allSerializable(r) {
			if err := kv.s.node.ReadIndex(ctx); err != nil {
				return nil, statusError(err)
			}
		}
		var err error
		if txn, err = kv.s.node.KV().ReadTxn(ctx, r); err != nil {
			return nil, statusError(err)
		}
	} else {
		resp, err := kv.s.propose(ctx, &pb.InternalRaftRequest{Txn: r})
		if err != nil {
			return nil, err
		}
		txn = resp.(*pb.TxnResponse)
	}
	txn.Header = kv.s.complete(txn.Header)
	return txn, nil
}

// Compact implements pb.KVServer. A physical compaction is answered when history is gone from
// disk, also if another request had asked for it.
func (kv kvServer) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	res := kv.s.node.Propose(ctx, &pb.InternalRaftRequest{Compaction: r})
	if r.Physical && res.Done != nil {
		select {
		case <-res.Done:
		case <-ctx.Done():
			return nil, statusError(ctx.Err())
		case <-kv.s.stop:
			return nil, rpctypes.ErrGRPCStopped
		}
	}
	if res.Err != nil {
		return nil, proposalError(res.Err)
	}
	// The revision is that of now, which the wait may have made a later one.
	return &pb.CompactionResponse{Header: kv.s.complete(nil)}, nil
}
