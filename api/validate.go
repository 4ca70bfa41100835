package api

import (
	"bytes"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func checkRange(r *pb.RangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	if !inKeyOrder(r) {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if hasFilter(r) {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

// inKeyOrder tells whether a range is wanted in the order that keys are stored in.
func inKeyOrder(r *pb.RangeRequest) bool {
	return r.SortOrder == pb.RangeRequest_NONE || r.SortTarget == pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_ASCEND
}

// hasFilter tells whether a range is of keys with some revisions only.
func hasFilter(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.GetKey()) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// checkTxn checks a whole transaction: first each operation, then what no two of them may do.
func checkTxn(r *pb.TxnRequest, maxOps int) error {
	if err := checkTxnOps(r, maxOps); err != nil {
		return err
	}
	if _, err := checkOverlap(r.Success); err != nil {
		return err
	}
	_, err := checkOverlap(r.Failure)
	return err
}

// checkTxnOps allows maxOps on every way from the outermost transaction to an innermost one.
func checkTxnOps(r *pb.TxnRequest, maxOps int) error {
	n := max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	if n > maxOps {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.GetCompare() {
		if len(c.GetKey()) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, ops := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range ops {
			if err := checkOp(op, maxOps-n); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, maxOps int) error {
	switch o := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(o.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(o.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(o.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxnOps(o.RequestTxn, maxOps)
	}
	return rpctypes.ErrGRPCKeyNotFound // as etcd answers an operation that is none
}

// touched is what a list of operations, and those nested in it, may write.
type touched struct {
	puts map[string]struct{}
	dels spans
}

// checkOverlap refuses lists in which a key is put twice, or put and deleted.
//
// It is exactly as strict as etcd, which is not as strict as it could be: a deletion up to the
// end of the key space ("\x00") overlaps nothing, and of two nested transactions a deletion in
// the second does not collide with a put in the first. The store has to cope with these.
func checkOverlap(ops []*pb.RequestOp) (touched, error) {
	if len(ops) < 2 && !hasTxn(ops) {
		return touchedByOne(ops), nil
	}
	var dels spans
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			dels = append(dels, spanOf(d))
		}
	}
	t := touched{puts: map[string]struct{}{}, dels: dels.normal()}
	for _, op := range ops {
		if nested := op.GetRequestTxn(); nested != nil {
			if err := t.addTxn(nested); err != nil {
				return t, err
			}
		}
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if err := t.addPut(string(p.Key)); err != nil {
				return t, err
			}
		}
	}
	return t, nil
}

func hasTxn(ops []*pb.RequestOp) bool {
	return slices.ContainsFunc(ops, func(op *pb.RequestOp) bool { return op.GetRequestTxn() != nil })
}

func touchedByOne(ops []*pb.RequestOp) (t touched) {
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			t.dels = spans{spanOf(d)}.normal()
		}
		if p := op.GetRequestPut(); p != nil {
			t.puts = map[string]struct{}{string(p.Key): {}}
		}
	}
	return t
}

// addPut adds a put of this level.
func (t *touched) addPut(key string) error {
	if _, twice := t.puts[key]; twice || t.dels.contain(key) {
		return rpctypes.ErrGRPCDuplicateKey
	}
	t.puts[key] = struct{}{}
	return nil
}

// addTxn adds what a nested transaction touches. Only one of its branches is executed, so both
// may put the same key.
func (t *touched) addTxn(r *pb.TxnRequest) error {
	then, err := checkOverlap(r.Success)
	if err != nil {
		return err
	}
	otherwise, err := checkOverlap(r.Failure)
	if err != nil {
		return err
	}
	for k := range then.puts {
		if err := t.addPut(k); err != nil {
			return err
		}
	}
	for k := range otherwise.puts {
		if _, inThen := then.puts[k]; inThen {
			continue // checked against the deletions already
		}
		if err := t.addPut(k); err != nil {
			return err
		}
	}
	if len(then.dels)+len(otherwise.dels) > 0 {
		t.dels = slices.Concat(t.dels, then.dels, otherwise.dels).normal()
	}
	return nil
}

// span is a range of keys, from and to: [from, to).
type span struct{ from, to []byte }

func spanOf(d *pb.DeleteRangeRequest) span {
	if len(d.RangeEnd) == 0 {
		return span{d.Key, append(bytes.Clone(d.Key), 0)}
	}
	return span{d.Key, d.RangeEnd}
}

// spans is a set of keys. In its normal form it is sorted and no two spans touch.
type spans []span

// normal returns the normal form; it reorders s.
func (s spans) normal() spans {
	s = slices.DeleteFunc(s, func(x span) bool { return bytes.Compare(x.from, x.to) >= 0 })
	slices.SortFunc(s, func(a, b span) int { return bytes.Compare(a.from, b.from) })
	out := s[:0]
	for _, x := range s {
		if n := len(out); n > 0 && bytes.Compare(x.from, out[n-1].to) <= 0 {
			if bytes.Compare(out[n-1].to, x.to) < 0 {
				out[n-1].to = x.to
			}
			continue
		}
		out = append(out, x)
	}
	return out
}

// contain tells whether key is in the set, which is in normal form.
func (s spans) contain(key string) bool {
	k := []byte(key)
	i, found := slices.BinarySearchFunc(s, k, func(x span, k []byte) int { return bytes.Compare(x.from, k) })
	if found {
		return true
	}
	return i > 0 && bytes.Compare(k, s[i-1].to) < 0
}

// allSerializable tells whether no part of a read-only transaction has to be linearizable.
func allSerializable(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if !op.GetRequestRange().GetSerializable() {
				return false
			}
		}
	}
	return true
}
