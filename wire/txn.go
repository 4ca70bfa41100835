package wire

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// decodeTxn decodes a transaction in which others are nested less than depth
// deep.
func decodeTxn(b []byte, m *pb.TxnRequest, depth int) bool {
	if depth == 0 {
		return false
	}
	had := [...]int{len(m.Compare), len(m.Success), len(m.Failure)}
	compare, success, failure := m.Compare[:0], m.Success[:0], m.Failure[:0]
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		var in []byte
		in, i = bytesAt(b, i+1)
		if i < 0 {
			return false
		}
		ok := false
		switch tag {
		case 1<<3 | length:
			compare = extend(compare)
			ok = decodeCompare(in, compare[len(compare)-1])
		case 2<<3 | length:
			success = extend(success)
			ok = decodeRequestOp(in, success[len(success)-1], depth)
		case 3<<3 | length:
			failure = extend(failure)
			ok = decodeRequestOp(in, failure[len(failure)-1], depth)
		}
		if !ok {
			return false
		}
	}
	m.Compare = shrunk(compare, had[0])
	m.Success = shrunk(success, had[1])
	m.Failure = shrunk(failure, had[2])
	return i == len(b)
}

// shrunk returns a list, behind whose end it forgets the messages of the had
// ones before: they would keep bytes alive that nobody needs.
func shrunk[M any](list []*M, had int) []*M {
	if had > len(list) {
		clear(list[len(list):had])
	}
	return list
}

func decodeCompare(b []byte, m *pb.Compare) bool {
	union := m.TargetUnion
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
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
				return false
			}
			m.RangeEnd, i = bytesAt(b, i+1)
		default:
			return false
		}
	}
	return i == len(b)
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
	i := 0
	for uint(i) < uint(len(b)) {
		if m.Request != nil {
			return false // the last one counts, or is merged
		}
		tag := b[i]
		var in []byte
		in, i = bytesAt(b, i+1)
		if i < 0 {
			return false
		}
		ok := false
		switch tag {
		case 1<<3 | length:
			w := reuse[pb.RequestOp_RequestRange](old)
			w.RequestRange = filled(w.RequestRange)
			ok = decodeRange(in, w.RequestRange)
			m.Request = w
		case 2<<3 | length:
			w := reuse[pb.RequestOp_RequestPut](old)
			w.RequestPut = filled(w.RequestPut)
			ok = decodePut(in, w.RequestPut)
			m.Request = w
		case 3<<3 | length:
			w := reuse[pb.RequestOp_RequestDeleteRange](old)
			w.RequestDeleteRange = filled(w.RequestDeleteRange)
			ok = decodeDeleteRange(in, w.RequestDeleteRange)
			m.Request = w
		case 4<<3 | length:
			w := reuse[pb.RequestOp_RequestTxn](old)
			w.RequestTxn = filled(w.RequestTxn)
			ok = decodeTxn(in, w.RequestTxn, depth-1)
			m.Request = w
		}
		if !ok {
			return false
		}
	}
	return i == len(b)
}

// filled returns m, or a new message where there is none.
func filled[M any](m *M) *M {
	if m == nil {
		return new(M)
	}
	return m
}
