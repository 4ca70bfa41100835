package api

import (
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func put(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func del(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func rng(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func nest(then, otherwise []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: then, Failure: otherwise}}}
}

func ops(o ...*pb.RequestOp) []*pb.RequestOp { return o }

func TestCheckSingle(t *testing.T) {
	k := []byte("k")
	for name, tt := range map[string]struct{ got, want error }{
		"range":                    {checkRange(&pb.RangeRequest{Key: k}), nil},
		"range without key":        {checkRange(&pb.RangeRequest{RangeEnd: k, SortOrder: 9}), rpctypes.ErrGRPCEmptyKey},
		"range, order unknown":     {checkRange(&pb.RangeRequest{Key: k, SortOrder: 3}), rpctypes.ErrGRPCInvalidSortOption},
		"range, order negative":    {checkRange(&pb.RangeRequest{Key: k, SortOrder: -1}), rpctypes.ErrGRPCInvalidSortOption},
		"range, target unknown":    {checkRange(&pb.RangeRequest{Key: k, SortTarget: 5}), rpctypes.ErrGRPCInvalidSortOption},
		"put":                      {checkPut(&pb.PutRequest{Key: k}), nil},
		"put without key":          {checkPut(&pb.PutRequest{IgnoreValue: true, Value: k}), rpctypes.ErrGRPCEmptyKey},
		"put, value and ignored":   {checkPut(&pb.PutRequest{Key: k, IgnoreValue: true, Value: k, IgnoreLease: true, Lease: 1}), rpctypes.ErrGRPCValueProvided},
		"put, lease and ignored":   {checkPut(&pb.PutRequest{Key: k, IgnoreLease: true, Lease: 1}), rpctypes.ErrGRPCLeaseProvided},
		"put, value ignored":       {checkPut(&pb.PutRequest{Key: k, IgnoreValue: true, Lease: 1}), nil},
		"delete":                   {checkDelete(&pb.DeleteRangeRequest{Key: k}), nil},
		"delete without key":       {checkDelete(&pb.DeleteRangeRequest{RangeEnd: k}), rpctypes.ErrGRPCEmptyKey},
		"stream":                   {checkRangeStream(&pb.RangeRequest{Key: k, SortTarget: pb.RangeRequest_VALUE}), nil},
		"stream, ascending keys":   {checkRangeStream(&pb.RangeRequest{Key: k, SortOrder: pb.RangeRequest_ASCEND}), nil},
		"stream without key":       {checkRangeStream(&pb.RangeRequest{SortOrder: pb.RangeRequest_DESCEND}), rpctypes.ErrGRPCEmptyKey},
		"stream, descending keys":  {checkRangeStream(&pb.RangeRequest{Key: k, SortOrder: pb.RangeRequest_DESCEND}), status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")},
		"stream, ascending values": {checkRangeStream(&pb.RangeRequest{Key: k, SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_VALUE}), status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")},
		"stream, filtered":         {checkRangeStream(&pb.RangeRequest{Key: k, MinModRevision: 1}), status.Error(codes.Unimplemented, "RangeStream does not support revision filters")},
	} {
		t.Run(name, func(t *testing.T) { wantError(t, tt.got, tt.want) })
	}
}

func wantError(t *testing.T, got, want error) {
	t.Helper()
	if status.Code(got) != status.Code(want) || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCheckTxn(t *testing.T) {
	dup, many := rpctypes.ErrGRPCDuplicateKey, rpctypes.ErrGRPCTooManyOps
	cmp := func(keys ...string) (cs []*pb.Compare) {
		for _, k := range keys {
			cs = append(cs, &pb.Compare{Key: []byte(k)})
		}
		return cs
	}
	tests := []struct {
		name string
		txn  *pb.TxnRequest
		want error
	}{
		{"empty", &pb.TxnRequest{}, nil},
		{"compare without key", &pb.TxnRequest{Compare: cmp("a", "")}, rpctypes.ErrGRPCEmptyKey},
		{"four compares", &pb.TxnRequest{Compare: cmp("a", "a", "a", "a")}, many},
		{"three of each", &pb.TxnRequest{Compare: cmp("a", "b", "c"), Success: ops(put("a"), put("b"), put("c")), Failure: ops(put("a"), put("b"), put("c"))}, nil},
		{"four then", &pb.TxnRequest{Success: ops(put("a"), put("b"), put("c"), put("d"))}, many},
		{"four else", &pb.TxnRequest{Failure: ops(put("a"), put("b"), put("c"), put("d"))}, many},
		{"count before keys", &pb.TxnRequest{Success: ops(put(""), put(""), put(""), put(""))}, many},
		{"nested, within", &pb.TxnRequest{Success: ops(nest(ops(put("a"), put("b")), nil))}, nil},
		{"nested, too many in all", &pb.TxnRequest{Success: ops(nest(ops(put("a"), put("b"), put("c")), nil))}, many},
		{"nested in nested", &pb.TxnRequest{Success: ops(nest(ops(nest(ops(put("a")), nil)), nil))}, nil},
		{"nested too deep", &pb.TxnRequest{Success: ops(nest(ops(nest(ops(nest(ops(put("a")), nil)), nil)), nil))}, many},
		{"operation that is none", &pb.TxnRequest{Success: ops(&pb.RequestOp{})}, rpctypes.ErrGRPCKeyNotFound},
		{"put without key", &pb.TxnRequest{Failure: ops(put(""))}, rpctypes.ErrGRPCEmptyKey},
		{"nested range without key", &pb.TxnRequest{Failure: ops(nest(nil, ops(rng(""))))}, rpctypes.ErrGRPCEmptyKey},
		{"delete without key", &pb.TxnRequest{Success: ops(del("", "x"))}, rpctypes.ErrGRPCEmptyKey},

		{"put twice", &pb.TxnRequest{Success: ops(put("a"), put("a"))}, dup},
		{"put twice, else", &pb.TxnRequest{Failure: ops(put("a"), put("a"))}, dup},
		{"put in both branches", &pb.TxnRequest{Success: ops(put("a")), Failure: ops(put("a"))}, nil},
		{"put and delete", &pb.TxnRequest{Success: ops(put("a"), del("a", ""))}, dup},
		{"delete and put", &pb.TxnRequest{Success: ops(del("a", ""), put("a"))}, dup},
		{"delete twice", &pb.TxnRequest{Success: ops(del("a", ""), del("a", "c"))}, nil},
		{"put inside a deleted range", &pb.TxnRequest{Success: ops(put("b"), del("a", "c"))}, dup},
		{"put at a deleted range's end", &pb.TxnRequest{Success: ops(put("c"), del("a", "c"))}, nil},
		{"put before a deleted range", &pb.TxnRequest{Success: ops(put("Z"), del("a", "c"))}, nil},
		{"put behind a deleted key", &pb.TxnRequest{Success: ops(put("a\x00"), del("a", ""))}, nil},
		{"range, put and delete elsewhere", &pb.TxnRequest{Success: ops(rng("a"), put("a"), del("b", ""))}, nil},
		{"empty deleted range", &pb.TxnRequest{Success: ops(put("b"), del("c", "a"))}, nil},
		{"delete from key on, as etcd", &pb.TxnRequest{Success: ops(put("b"), del("a", "\x00"))}, nil},

		{"put above and below", &pb.TxnRequest{Success: ops(put("a"), nest(ops(put("a")), nil))}, dup},
		{"put above and below, else", &pb.TxnRequest{Success: ops(put("a"), nest(nil, ops(put("a"))))}, dup},
		{"delete above, put below", &pb.TxnRequest{Success: ops(del("a", ""), nest(nil, ops(put("a"))))}, dup},
		{"put above, delete below", &pb.TxnRequest{Success: ops(put("a"), nest(nil, ops(del("a", ""))))}, dup},
		{"both branches below", &pb.TxnRequest{Success: ops(nest(ops(put("a")), ops(put("a"))))}, nil},
		{"one branch puts, the other deletes", &pb.TxnRequest{Success: ops(nest(ops(put("a")), ops(del("a", ""))))}, nil},
		{"twice inside nested", &pb.TxnRequest{Success: ops(nest(nil, ops(put("a"), put("a"))))}, dup},
		{"two nested put", &pb.TxnRequest{Success: ops(nest(ops(put("a")), nil), nest(nil, ops(put("a"))))}, dup},
		{"nested delete, then nested put", &pb.TxnRequest{Success: ops(nest(ops(del("a", "")), nil), nest(ops(put("a")), nil))}, dup},
		{"nested put, then nested delete, as etcd", &pb.TxnRequest{Success: ops(nest(ops(put("a")), nil), nest(ops(del("a", "")), nil))}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantError(t, checkTxn(tt.txn, 3), tt.want) })
	}
}

// Many deletions and nested transactions are checked in a time that does not grow with their
// square: the test would not end if it did.
func TestCheckTxnLarge(t *testing.T) {
	const n = 200_000
	var many []*pb.RequestOp
	for i := range n {
		many = append(many, del(fmt.Sprintf("k%07d", i), ""), put(fmt.Sprintf("p%07d", i)))
	}
	wantError(t, checkTxn(&pb.TxnRequest{Success: many}, len(many)), nil)
	many = append(many, put(fmt.Sprintf("k%07d", n/2)))
	wantError(t, checkTxn(&pb.TxnRequest{Success: many}, len(many)), rpctypes.ErrGRPCDuplicateKey)
}

func TestSerializable(t *testing.T) {
	s := rng("a")
	s.GetRequestRange().Serializable = true
	for name, tt := range map[string]struct {
		txn  *pb.TxnRequest
		want bool
	}{
		"nothing to read":      {&pb.TxnRequest{}, true},
		"serializable":         {&pb.TxnRequest{Success: ops(s), Failure: ops(s)}, true},
		"one branch is not":    {&pb.TxnRequest{Success: ops(s), Failure: ops(rng("a"))}, false},
		"one operation is not": {&pb.TxnRequest{Success: ops(s, rng("a"))}, false},
	} {
		if got := allSerializable(tt.txn); got != tt.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

func FuzzCheckOverlap(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x13\x24\x35"))
	f.Fuzz(func(t *testing.T, program []byte) {
		// One list, no nesting: compared with the definition.
		var list []*pb.RequestOp
		for _, b := range program {
			a, z := string('a'+rune(b>>5)), string('a'+rune(b>>2&7))
			switch b & 3 {
			case 0, 1:
				list = append(list, put(a))
			case 2:
				list = append(list, del(a, z))
			case 3:
				list = append(list, del(a, ""))
			}
		}
		want := false
		for i, x := range list {
			for j, y := range list {
				p, d := x.GetRequestPut(), y.GetRequestDeleteRange()
				switch {
				case p == nil || i == j:
				case y.GetRequestPut() != nil:
					want = want || string(p.Key) == string(y.GetRequestPut().Key)
				case len(d.RangeEnd) == 0:
					want = want || string(p.Key) == string(d.Key)
				default:
					want = want || string(p.Key) >= string(d.Key) && string(p.Key) < string(d.RangeEnd)
				}
			}
		}
		_, err := checkOverlap(list)
		if got := errors.Is(err, rpctypes.ErrGRPCDuplicateKey); got != want {
			t.Errorf("%v: overlap is %t, want %t", list, got, want)
		}
	})
}
