package wire

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
)

// Guesses of lengths, for appendMessage. They decide only how often bytes move.
const (
	headerGuess = 40
	// integersGuess is the size of a key-value pair without key and value.
	integersGuess = 24
)

func guessKV(kv *mvccpb.KeyValue) int {
	return len(kv.GetKey()) + len(kv.GetValue()) + integersGuess
}

func guessKVs(kvs []*mvccpb.KeyValue) int {
	n := headerGuess
	for _, kv := range kvs {
		n += guessKV(kv) + 4 // tag and length
	}
	return n
}

func guessRange(m *pb.RangeResponse) int { return guessKVs(m.GetKvs()) }

func guessEvent(ev *mvccpb.Event) int {
	n := 2 + 3 + guessKV(ev.GetKv())
	if prev := ev.GetPrevKv(); prev != nil {
		n += 3 + guessKV(prev)
	}
	return n
}

// roomForRange makes room for a response at once that may be large.
func roomForRange(b []byte, m *pb.RangeResponse) []byte {
	if len(m.GetKvs()) < 2 {
		return b
	}
	return slices.Grow(b, guessRange(m))
}

// roomForEvents is like roomForRange.
func roomForEvents(b []byte, m *pb.WatchResponse) []byte {
	if len(m.GetEvents()) < 2 {
		return b
	}
	n := headerGuess
	for _, ev := range m.Events {
		n += guessEvent(ev)
	}
	return slices.Grow(b, n)
}

func appendResponseHeader(b []byte, m *pb.ResponseHeader) []byte {
	if m == nil {
		return b
	}
	b = appendUint(b, 1, m.ClusterId)
	b = appendUint(b, 2, m.MemberId)
	b = appendInt(b, 3, m.Revision)
	b = appendUint(b, 4, m.RaftTerm)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

// appendHeader appends the header of a response: field 1 of all of them.
func appendHeader(b []byte, h *pb.ResponseHeader) []byte {
	if h == nil {
		return b
	}
	return appendMessage(b, 1, headerGuess, h, appendResponseHeader)
}

func appendKeyValue(b []byte, m *mvccpb.KeyValue) []byte {
	if m == nil {
		return b
	}
	b = appendBytes(b, 1, m.Key)
	b = appendInt(b, 2, m.CreateRevision)
	b = appendInt(b, 3, m.ModRevision)
	b = appendInt(b, 4, m.Version)
	b = appendBytes(b, 5, m.Value)
	b = appendInt(b, 6, m.Lease)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

// appendKV appends a field that is a key-value pair.
func appendKV(b []byte, number byte, kv *mvccpb.KeyValue) []byte {
	return appendMessage(b, number, guessKV(kv), kv, appendKeyValue)
}

func appendEvent(b []byte, m *mvccpb.Event) []byte {
	if m == nil {
		return b
	}
	b = appendInt(b, 1, int64(m.Type))
	if m.Kv != nil {
		b = appendKV(b, 2, m.Kv)
	}
	if m.PrevKv != nil {
		b = appendKV(b, 3, m.PrevKv)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendRangeResponse(b []byte, m *pb.RangeResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	for _, kv := range m.Kvs {
		b = appendKV(b, 2, kv)
	}
	b = appendBool(b, 3, m.More)
	b = appendInt(b, 4, m.Count)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendRangeStreamResponse(b []byte, m *pb.RangeStreamResponse) []byte {
	if m == nil {
		return b
	}
	if m.RangeResponse != nil {
		b = appendMessage(b, 1, guessRange(m.RangeResponse), m.RangeResponse, appendRangeResponse)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendPutResponse(b []byte, m *pb.PutResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	if m.PrevKv != nil {
		b = appendKV(b, 2, m.PrevKv)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendDeleteRangeResponse(b []byte, m *pb.DeleteRangeResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	b = appendInt(b, 2, m.Deleted)
	for _, kv := range m.PrevKvs {
		b = appendKV(b, 3, kv)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendTxnResponse(b []byte, m *pb.TxnResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	b = appendBool(b, 2, m.Succeeded)
	for _, op := range m.Responses {
		b = appendMessage(b, 3, guessResponseOp(op), op, appendResponseOp)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func guessResponseOp(m *pb.ResponseOp) int {
	if m != nil {
		if r, ok := m.Response.(*pb.ResponseOp_ResponseRange); ok && r != nil {
			return guessRange(r.ResponseRange) + 3 // tag and length
		}
	}
	return headerGuess
}

func appendResponseOp(b []byte, m *pb.ResponseOp) []byte {
	if m == nil {
		return b
	}
	switch r := m.Response.(type) {
	case *pb.ResponseOp_ResponseRange:
		if r != nil {
			b = appendMessage(b, 1, guessRange(r.ResponseRange), r.ResponseRange, appendRangeResponse)
		}
	case *pb.ResponseOp_ResponsePut:
		if r != nil {
			b = appendMessage(b, 2, headerGuess, r.ResponsePut, appendPutResponse)
		}
	case *pb.ResponseOp_ResponseDeleteRange:
		if r != nil {
			b = appendMessage(b, 3, headerGuess, r.ResponseDeleteRange, appendDeleteRangeResponse)
		}
	case *pb.ResponseOp_ResponseTxn:
		if r != nil {
			b = appendMessage(b, 4, headerGuess, r.ResponseTxn, appendTxnResponse)
		}
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendWatchResponse(b []byte, m *pb.WatchResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	b = appendInt(b, 2, m.WatchId)
	b = appendBool(b, 3, m.Created)
	b = appendBool(b, 4, m.Canceled)
	b = appendInt(b, 5, m.CompactRevision)
	b = appendBytes(b, 6, m.CancelReason)
	b = appendBool(b, 7, m.Fragment)
	for _, ev := range m.Events {
		b = appendMessage(b, 11, guessEvent(ev), ev, appendEvent)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseGrantResponse(b []byte, m *pb.LeaseGrantResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	b = appendInt(b, 2, m.ID)
	b = appendInt(b, 3, m.TTL)
	b = appendBytes(b, 4, m.Error)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseRevokeResponse(b []byte, m *pb.LeaseRevokeResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseKeepAliveResponse(b []byte, m *pb.LeaseKeepAliveResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	b = appendInt(b, 2, m.ID)
	b = appendInt(b, 3, m.TTL)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseTimeToLiveResponse(b []byte, m *pb.LeaseTimeToLiveResponse) []byte {
	if m == nil {
		return b
	}
	b = appendHeader(b, m.Header)
	b = appendInt(b, 2, m.ID)
	b = appendInt(b, 3, m.TTL)
	b = appendInt(b, 4, m.GrantedTTL)
	for _, key := range m.Keys {
		b = protowire.AppendBytes(append(b, 5<<3|length), key)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}
