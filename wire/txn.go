package wire

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// decodeOuterTxn decodes a transaction that is in no other.
func decodeOuterTxn(b []byte, m *pb.TxnRequest) bool { return decodeTxn(b, m, maxDepth) }

// decodeTxn decodes a transaction in which others are nested less than depth
// deep.
func decodeTxn(b []byte, m *pb.TxnRequest, depth int) bool {
	if depth == 0 {
		return false
	}
	compare, success, failure := m.Compare, m.Success, m.Failure
	m.Reset()
	m.Compare, m.Success, m.Failure = compare[:0], success[:0], failure[:0]
	operation := func(b []byte, m *pb.RequestOp) bool { return decodeRequestOp(b, m, depth) }
	ok := fields(b, m, func(m *pb.TxnRequest, tag byte, b []byte, i int) int {
		switch tag {
		case 1<<3 | length:
			m.Compare = extend(m.Compare)
			return messageAt(b, i, m.Compare[len(m.Compare)-1], decodeCompare)
		case 2<<3 | length:
			m.Success = extend(m.Success)
			return messageAt(b, i, m.Success[len(m.Success)-1], operation)
		case 3<<3 | length:
			m.Failure = extend(m.Failure)
			return messageAt(b, i, m.Failure[len(m.Failure)-1], operation)
		}
		return -1
	})
	shrunk(m.Compare, len(compare))
	shrunk(m.Success, len(success))
	shrunk(m.Failure, len(failure))
	return ok
}

// shrunk forgets the messages behind the end of a list that had more before: they
// would keep bytes alive that nobody needs.
func shrunk[M any](list []*M, had int) {
	if had > len(list) {
		clear(list[len(list):had])
	}
}

func decodeCompare(b []byte, m *pb.Compare) bool {
	union := m.TargetUnion
	m.Reset()
	return fields(b, m, func(m *pb.Compare, tag byte, b []byte, i int) int {
		switch tag {
		case 1<<3 | varint:
			m.Result, i = enumAt[pb.Compare_CompareResult](b, i)
		case 2<<3 | varint:
			m.Target, i = enumAt[pb.Compare_CompareTarget](b, i)
		case 3<<3 | length:
			m.Key, i = bytesAt(b, i)
		case 4<<3 | varint:
			u := reuse[pb.Compare_Version](union)
			u.Version, i = intAt(b, i)
			m.TargetUnion = u
		case 5<<3 | varint:
			u := reuse[pb.Compare_CreateRevision](union)
			u.CreateRevision, i = intAt(b, i)
			m.TargetUnion = u
		case 6<<3 | varint:
			u := reuse[pb.Compare_ModRevision](union)
			u.ModRevision, i = intAt(b, i)
			m.TargetUnion = u
		case 7<<3 | length:
			u := reuse[pb.Compare_Value](union)
			if u.Value, i = bytesAt(b, i); u.Value == nil {
				u.Value = []byte{} // an empty value is not an absent one
			}
			m.TargetUnion = u
		case 8<<3 | varint:
			u := reuse[pb.Compare_Lease](union)
			u.Lease, i = intAt(b, i)
			m.TargetUnion = u
		case 0x82: // the first byte of the tag of field 64
			if i == len(b) || b[i] != 64<<3>>7 {
				return -1
			}
			m.RangeEnd, i = bytesAt(b, i+1)
		default:
			return -1
		}
		return i
	})
}

// reuse returns the wrapper that a field held before, if it has the type wanted.
func reuse[W any](old any) *W {
	if w, ok := old.(*W); ok && w != nil {
		return w
	}
	return new(W)
}

func decodeRequestOp(b []byte, m *pb.RequestOp, depth int) bool {
	old := m.Request
	m.Reset()
	return fields(b, m, func(m *pb.RequestOp, tag byte, b []byte, i int) int {
		if m.Request != nil {
			return -1 // the last one counts, or is merged
		}
		switch tag {
		case 1<<3 | length:
			w := reuse[pb.RequestOp_RequestRange](old)
			m.Request = w
			return messageAt(b, i, filled(&w.RequestRange), decodeRange)
		case 2<<3 | length:
			w := reuse[pb.RequestOp_RequestPut](old)
			m.Request = w
			return messageAt(b, i, filled(&w.RequestPut), decodePut)
		case 3<<3 | length:
			w := reuse[pb.RequestOp_RequestDeleteRange](old)
			m.Request = w
			return messageAt(b, i, filled(&w.RequestDeleteRange), decodeDeleteRange)
		case 4<<3 | length:
			w := reuse[pb.RequestOp_RequestTxn](old)
			m.Request = w
			return messageAt(b, i, filled(&w.RequestTxn), func(b []byte, m *pb.TxnRequest) bool { return decodeTxn(b, m, depth-1) })
		}
		return -1
	})
}

// filled returns the message that a field holds, or a new one where it holds none.
func filled[M any](field **M) *M {
	if *field == nil {
		*field = new(M)
	}
	return *field
}
