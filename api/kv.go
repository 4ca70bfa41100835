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
	resp, err := kv.s.read(ctx, &pb.InternalRaftRequest{Range: r})
	if err != nil {
		return nil, err
	}
	return resp.(*pb.RangeResponse), nil
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
	return write[*pb.PutResponse](ctx, kv.s, &pb.InternalRaftRequest{Put: r})
}

// DeleteRange implements pb.KVServer.
func (kv kvServer) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	return write[*pb.DeleteRangeResponse](ctx, kv.s, &pb.InternalRaftRequest{DeleteRange: r})
}

// Txn implements pb.KVServer.
func (kv kvServer) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if !mvcc.IsReadOnly(r) {
		return write[*pb.TxnResponse](ctx, kv.s, &pb.InternalRaftRequest{Txn: r})
	}
	resp, err := kv.s.read(ctx, &pb.InternalRaftRequest{Txn: r})
	if err != nil {
		return nil, err
	}
	return resp.(*pb.TxnResponse), nil
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
