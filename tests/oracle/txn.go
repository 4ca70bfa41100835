package oracle

import (
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// txnRequest makes a transaction, nested up to the given depth.
func (g *generator) txnRequest(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.opCount(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	for range g.opCount(5) {
		r.Success = append(r.Success, g.requestOp(depth))
	}
	for range g.opCount(4) {
		r.Failure = append(r.Failure, g.requestOp(depth))
	}
	return r
}

// safeTxnRequest makes a transaction that does not bring real etcd down. Etcd's search for overlapping
// operations takes the range end "\x00" literally, so a transaction may delete "from key on" what it also
// puts; a put that keeps the old value or lease then has nothing to keep, and etcd panics.
func (g *generator) safeTxnRequest() *pb.TxnRequest {
	r := g.txnRequest(g.IntN(3))
	if deletesToEnd(r) {
		forgetIgnore(r)
	}
	return r
}

// opCount is around n, rarely beyond what a transaction may have.
func (g *generator) opCount(n int) int {
	if g.chance(4) {
		return g.maxTxnOps + g.IntN(2)
	}
	return g.IntN(n)
}

func (g *generator) compare() *pb.Compare {
	c := &pb.Compare{
		Key:    g.key(),
		Target: pb.Compare_CompareTarget(g.IntN(5)),
		Result: pb.Compare_CompareResult(g.IntN(4)),
	}
	if g.chance(200) {
		c.RangeEnd = g.rangeEnd(c.Key)
	}
	union := c.Target
	if g.chance(20) {
		union = pb.Compare_CompareTarget(g.IntN(6)) // of another target, or none
	}
	if g.chance(5) {
		c.Target = pick(g, []pb.Compare_CompareTarget{5, -1})
	}
	if g.chance(5) {
		c.Result = pick(g, []pb.Compare_CompareResult{4, -1, math.MaxInt32})
	}
	rev := g.bound()
	if g.chance(300) {
		rev = g.rev - g.Int64N(20)
	}
	switch union {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: int64(g.IntN(4))}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: rev}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: rev}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: g.leaseForPut()}
	}
	return c
}

func (g *generator) requestOp(depth int) *pb.RequestOp {
	switch n := g.IntN(1000); {
	case n < 3:
		return &pb.RequestOp{}
	case n < 350:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}}
	case n < 750 || depth == 0 && n < 900:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.putRequest()}}
	case n < 850 || depth == 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.deleteRequest()}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txnRequest(depth - 1)}}
}

// eachOp visits the operations of a transaction and of those nested in it.
func eachOp(r *pb.TxnRequest, visit func(*pb.RequestOp)) {
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			visit(op)
			if inner := op.GetRequestTxn(); inner != nil {
				eachOp(inner, visit)
			}
		}
	}
}

func deletesToEnd(r *pb.TxnRequest) bool {
	found := false
	eachOp(r, func(op *pb.RequestOp) {
		if d := op.GetRequestDeleteRange(); d != nil && string(d.RangeEnd) == "\x00" {
			found = true
		}
	})
	return found
}

func forgetIgnore(r *pb.TxnRequest) {
	eachOp(r, func(op *pb.RequestOp) {
		if p := op.GetRequestPut(); p != nil {
			p.IgnoreValue, p.IgnoreLease = false, false
		}
	})
}
