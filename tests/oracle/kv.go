package oracle

import (
	"context"
	"fmt"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// operation is one call, prepared once and sent to both servers.
type operation struct {
	name string
	req  proto.Message
	via  string // clientv3, or empty for the generated client
	send func(ctx context.Context, s *side) (proto.Message, error)
}

func (o operation) String() string {
	via := ""
	if o.via != "" {
		via = " through " + o.via
	}
	if o.req == nil {
		return o.name + via
	}
	return o.name + via + " " + show(o.req)
}

// callOf makes an operation of a generated client's method.
func callOf[Req, Resp proto.Message](name string, req Req, method func(*side, context.Context, Req) (Resp, error)) operation {
	return operation{name: name, req: req, send: func(ctx context.Context, s *side) (proto.Message, error) {
		return method(s, ctx, req)
	}}
}

func rangeCall(req *pb.RangeRequest) operation {
	return callOf("Range", req, func(s *side, ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
		return s.kv.Range(ctx, r)
	})
}

func rangeStreamCall(req *pb.RangeRequest) operation {
	return callOf("RangeStream", req, func(s *side, ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
		return s.rangeStream(ctx, r)
	})
}

func putCall(req *pb.PutRequest) operation {
	return callOf("Put", req, func(s *side, ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
		return s.kv.Put(ctx, r)
	})
}

func deleteCall(req *pb.DeleteRangeRequest) operation {
	return callOf("DeleteRange", req, func(s *side, ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
		return s.kv.DeleteRange(ctx, r)
	})
}

func txnCall(req *pb.TxnRequest) operation {
	return callOf("Txn", req, func(s *side, ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
		return s.kv.Txn(ctx, r)
	})
}

func compactCall(req *pb.CompactionRequest) operation {
	return callOf("Compact", req, func(s *side, ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
		return s.kv.Compact(ctx, r)
	})
}

func hashKVCall(req *pb.HashKVRequest) operation {
	return callOf("HashKV", req, func(s *side, ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
		return s.maintenance.HashKV(ctx, r)
	})
}

// throughClient sends a KV operation the way users do, where clientv3 can express it.
func (o operation) throughClient() operation {
	op, ok := clientOp(o.req)
	if !ok {
		return o
	}
	o.via = "clientv3"
	o.send = func(ctx context.Context, s *side) (proto.Message, error) {
		resp, err := s.cli.Do(ctx, op)
		switch {
		case err != nil:
			return nil, err
		case resp.Get() != nil:
			return (*pb.RangeResponse)(resp.Get()), nil
		case resp.Put() != nil:
			return (*pb.PutResponse)(resp.Put()), nil
		case resp.Del() != nil:
			return (*pb.DeleteRangeResponse)(resp.Del()), nil
		case resp.Txn() != nil:
			return (*pb.TxnResponse)(resp.Txn()), nil
		}
		return nil, fmt.Errorf("clientv3 returned neither response nor error")
	}
	return o
}

// clientOp translates a request; false where clientv3 has no words for it.
func clientOp(m proto.Message) (clientv3.Op, bool) {
	switch r := m.(type) {
	case *pb.RangeRequest:
		_, order := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]
		_, target := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]
		if !order || !target {
			return clientv3.Op{}, false
		}
		opts := rangeEndOption(r.RangeEnd)
		opts = append(opts,
			clientv3.WithLimit(r.Limit), clientv3.WithRev(r.Revision),
			clientv3.WithSort(clientv3.SortTarget(r.SortTarget), clientv3.SortOrder(r.SortOrder)),
			clientv3.WithMinModRev(r.MinModRevision), clientv3.WithMaxModRev(r.MaxModRevision),
			clientv3.WithMinCreateRev(r.MinCreateRevision), clientv3.WithMaxCreateRev(r.MaxCreateRevision))
		opts = appendIf(opts, r.Serializable, clientv3.WithSerializable())
		opts = appendIf(opts, r.KeysOnly, clientv3.WithKeysOnly())
		opts = appendIf(opts, r.CountOnly, clientv3.WithCountOnly())
		return clientv3.OpGet(string(r.Key), opts...), true
	case *pb.PutRequest:
		opts := []clientv3.OpOption{clientv3.WithLease(clientv3.LeaseID(r.Lease))}
		opts = appendIf(opts, r.PrevKv, clientv3.WithPrevKV())
		opts = appendIf(opts, r.IgnoreValue, clientv3.WithIgnoreValue())
		opts = appendIf(opts, r.IgnoreLease, clientv3.WithIgnoreLease())
		return clientv3.OpPut(string(r.Key), string(r.Value), opts...), true
	case *pb.DeleteRangeRequest:
		opts := appendIf(rangeEndOption(r.RangeEnd), r.PrevKv, clientv3.WithPrevKV())
		return clientv3.OpDelete(string(r.Key), opts...), true
	case *pb.TxnRequest:
		return clientTxn(r)
	}
	return clientv3.Op{}, false
}

func clientTxn(r *pb.TxnRequest) (clientv3.Op, bool) {
	cmps := make([]clientv3.Cmp, len(r.Compare))
	for i, c := range r.Compare {
		cmps[i] = clientv3.FromCompare(c)
	}
	success, ok := clientOps(r.Success)
	if !ok {
		return clientv3.Op{}, false
	}
	failure, ok := clientOps(r.Failure)
	return clientv3.OpTxn(cmps, success, failure), ok
}

func clientOps(reqs []*pb.RequestOp) ([]clientv3.Op, bool) {
	ops := make([]clientv3.Op, len(reqs))
	for i, req := range reqs {
		var inner proto.Message
		switch r := req.Request.(type) {
		case *pb.RequestOp_RequestRange:
			inner = r.RequestRange
		case *pb.RequestOp_RequestPut:
			inner = r.RequestPut
		case *pb.RequestOp_RequestDeleteRange:
			inner = r.RequestDeleteRange
		case *pb.RequestOp_RequestTxn:
			inner = r.RequestTxn
		}
		op, ok := clientOp(inner)
		if !ok {
			return nil, false
		}
		ops[i] = op
	}
	return ops, true
}

func rangeEndOption(end []byte) []clientv3.OpOption {
	if len(end) == 0 {
		return nil
	}
	return []clientv3.OpOption{clientv3.WithRange(string(end))}
}

func appendIf(opts []clientv3.OpOption, yes bool, opt clientv3.OpOption) []clientv3.OpOption {
	if yes {
		return append(opts, opt)
	}
	return opts
}

// maybeThroughClient spreads the operations over both clients.
func (g *generator) maybeThroughClient(o operation) operation {
	if g.chance(400) {
		return o.throughClient()
	}
	return o
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{Key: g.key()}
	r.RangeEnd = g.rangeEnd(r.Key)
	r.Revision = g.revision()
	r.Limit = g.limit()
	r.Serializable = g.chance(200)
	r.KeysOnly = g.chance(100)
	r.CountOnly = g.chance(60)
	if g.chance(350) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.IntN(3))
		r.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
	}
	if g.chance(5) {
		r.SortOrder = pick(g, []pb.RangeRequest_SortOrder{3, -1})
	}
	if g.chance(5) {
		r.SortTarget = pick(g, []pb.RangeRequest_SortTarget{5, -1, math.MaxInt32})
	}
	if g.chance(200) {
		r.MinModRevision, r.MaxModRevision = g.bound(), g.bound()
		r.MinCreateRevision, r.MaxCreateRevision = g.bound(), g.bound()
	}
	return r
}

// rangeStreamRequest asks mostly for what RangeStream supports.
func (g *generator) rangeStreamRequest() *pb.RangeRequest {
	r := g.rangeRequest()
	if g.chance(850) {
		r.SortOrder, r.SortTarget = 0, 0
		r.MinModRevision, r.MaxModRevision, r.MinCreateRevision, r.MaxCreateRevision = 0, 0, 0, 0
	}
	return r
}

func (g *generator) putRequest() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: g.value(), Lease: g.leaseForPut(), PrevKv: g.chance(250)}
	if g.chance(50) {
		r.IgnoreValue = true
		if g.chance(850) {
			r.Value = nil
		}
	}
	if g.chance(50) {
		r.IgnoreLease = true
		if g.chance(850) {
			r.Lease = 0
		}
	}
	return r
}

func (g *generator) deleteRequest() *pb.DeleteRangeRequest {
	r := &pb.DeleteRangeRequest{Key: g.key(), PrevKv: g.chance(300)}
	// Wide deletions leave little to compare, so they are rarer than wide ranges.
	if g.chance(300) {
		r.RangeEnd = g.rangeEnd(r.Key)
	}
	return r
}

// compactRequest spares the revisions that may have deleted a key and put it again: a compaction of etcd to exactly such a
// one loses the key, which its index still names, and the next read of it ends the process.
func (g *generator) compactRequest() *pb.CompactionRequest {
	for {
		if r := g.anyCompactRequest(); !g.refilled[r.Revision] {
			return r
		}
	}
}

func (g *generator) anyCompactRequest() *pb.CompactionRequest {
	r := &pb.CompactionRequest{Physical: g.chance(500)}
	switch n := g.IntN(100); {
	case n < 70:
		first := max(g.compacted, 0) + 1
		r.Revision = first + g.Int64N(max(1, g.rev-first+1))
	case n < 75:
		r.Revision = g.rev
	case n < 80:
		r.Revision = g.rev + 1
	case n < 90:
		r.Revision = g.compacted - g.Int64N(3)
	default:
		r.Revision = pick(g, []int64{-1, -2, 1, math.MinInt64, math.MaxInt64})
	}
	return r
}

// hashableRevision gives a revision whose hash does not depend on what etcd remembers of earlier compactions:
// etcd keeps the hashes that its compactions computed, over less than HashKV covers, and answers with those.
func (g *generator) hashableRevision() int64 {
	for {
		rev := g.revision()
		if rev == 0 {
			rev = g.rev
		}
		if !g.compactions[rev] {
			return rev
		}
	}
}
