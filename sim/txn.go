package sim

import (
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// maxNesting is how deep transactions in transactions go.
const maxNesting = 2

// txnDraw draws one transaction, as etcd's API lets it pass: no key is put twice, and none
// put and deleted, but by a deletion up to the end of all keys, or where one nested
// transaction deletes what one before it has put.
type txnDraw struct {
	*client
	op    uint64
	first int      // key that it writes
	used  int      // keys
	put   [][]byte // by nested transactions that are complete
}

func (c *client) txn(op uint64) *pb.TxnRequest {
	b := &txnDraw{client: c, op: op, first: c.draw(c.w.plan.Keys)}
	return b.txn(0, nil)
}

// txn draws a transaction that may delete the keys in elder.
func (b *txnDraw) txn(depth int, elder [][]byte) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range b.draw(3) {
		r.Compare = append(r.Compare, b.compare())
	}
	r.Success, r.Failure = b.branch(depth, elder), b.branch(depth, elder)
	return r
}

// fresh returns a key that the transaction has not written, nil if there is none.
func (b *txnDraw) fresh() []byte {
	if b.used == b.w.plan.Keys {
		return nil
	}
	b.used++
	return fmt.Appendf(nil, "k%02d", (b.first+b.used)%b.w.plan.Keys)
}

// branch draws what a transaction does.
func (b *txnDraw) branch(depth int, elder [][]byte) (ops []*pb.RequestOp) {
	for range b.draw(4) {
		switch n := b.draw(20); {
		case n < 6:
			if key := b.fresh(); key != nil {
				p := b.client.put(b.op)
				p.Key, p.Value = key, fmt.Appendf(nil, "v%d.%d", b.op, b.used)
				ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}})
			}
		case n < 11:
			d := &pb.DeleteRangeRequest{Key: b.fresh(), PrevKv: b.chance(50)}
			if len(elder) > 0 && b.chance(50) {
				d.Key = elder[b.draw(len(elder))]
			}
			if d.Key != nil {
				ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: d}})
			}
		case n < 12:
			d := &pb.DeleteRangeRequest{Key: b.key(), RangeEnd: []byte{0}, PrevKv: b.chance(50)}
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: d}})
		case n < 17:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: b.rangeRequest()}})
		case depth < maxNesting:
			nested := b.txn(depth+1, slices.Clone(b.put))
			b.put = append(b.put, putBy(nested)...)
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: nested}})
		}
	}
	return ops
}

// putBy returns the keys that a transaction may put.
func putBy(r *pb.TxnRequest) (keys [][]byte) {
	for _, op := range slices.Concat(r.Success, r.Failure) {
		if p := op.GetRequestPut(); p != nil {
			keys = append(keys, p.Key)
		}
	}
	return keys
}

// readTxn draws a transaction that only reads.
func (c *client) readTxn() *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range c.draw(3) {
		r.Compare = append(r.Compare, c.compare())
	}
	for _, ops := range []*[]*pb.RequestOp{&r.Success, &r.Failure} {
		for range 1 + c.draw(3) {
			*ops = append(*ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: c.rangeRequest()}})
		}
	}
	return r
}

func (c *client) compare() *pb.Compare {
	m := &pb.Compare{Key: c.key(), Result: pb.Compare_CompareResult(c.draw(4))}
	if c.chance(20) {
		m.Key, m.RangeEnd = c.span()
	}
	rev := c.w.truth.revision()
	switch c.draw(5) {
	case 0:
		m.Target, m.TargetUnion = pb.Compare_VERSION, &pb.Compare_Version{Version: int64(c.draw(3))}
	case 1:
		m.Target, m.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: max(0, rev-int64(c.draw(20)))}
	case 2:
		m.Target, m.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: max(0, rev-int64(c.draw(40)))}
	case 3:
		m.Target, m.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: fmt.Appendf(nil, "v%d", c.draw(int(c.w.lastOp)))}
	case 4:
		m.Target, m.TargetUnion = pb.Compare_LEASE, &pb.Compare_Lease{}
		if l := c.aLease(); l != nil {
			m.TargetUnion = &pb.Compare_Lease{Lease: l.id}
		}
	}
	return m
}
