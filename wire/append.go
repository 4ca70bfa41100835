package wire

import (
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Append appends what the official codec encodes m to when it is asked to be
// deterministic. It fails as that does: for a string that is not UTF-8.
func Append(dst []byte, m proto.Message) ([]byte, error) {
	switch m := m.(type) {
	case *pb.RangeResponse:
		return appendRangeResponse(roomForRange(dst, m), m), nil
	case *pb.PutResponse:
		return appendPutResponse(dst, m), nil
	case *pb.DeleteRangeResponse:
		return appendDeleteRangeResponse(dst, m), nil
	case *pb.TxnResponse:
		return appendTxnResponse(dst, m), nil
	case *pb.RangeStreamResponse:
		return appendRangeStreamResponse(roomForRange(dst, m.GetRangeResponse()), m), nil
	case *pb.WatchResponse:
		if utf8.ValidString(m.GetCancelReason()) {
			return appendWatchResponse(roomForEvents(dst, m), m), nil
		}
	case *pb.LeaseGrantResponse:
		if utf8.ValidString(m.GetError()) {
			return appendLeaseGrantResponse(dst, m), nil
		}
	case *pb.LeaseRevokeResponse:
		return appendLeaseRevokeResponse(dst, m), nil
	case *pb.LeaseKeepAliveResponse:
		return appendLeaseKeepAliveResponse(dst, m), nil
	case *pb.LeaseTimeToLiveResponse:
		return appendLeaseTimeToLiveResponse(dst, m), nil
	case *pb.ResponseHeader:
		return appendResponseHeader(dst, m), nil
	case *mvccpb.KeyValue:
		return appendKeyValue(dst, m), nil
	case *mvccpb.Event:
		return appendEvent(dst, m), nil
	case *pb.InternalRaftRequest:
		if m == nil {
			return dst, nil
		}
		if utf8.ValidString(m.Header.GetUsername()) && !hasOtherParts(m) {
			return appendCommand(dst, m), nil
		}
	case *pb.RangeRequest:
		return appendRange(dst, m), nil
	case *pb.PutRequest:
		return appendPut(dst, m), nil
	case *pb.DeleteRangeRequest:
		return appendDeleteRange(dst, m), nil
	case *pb.TxnRequest:
		return appendTxn(dst, m), nil
	case *pb.LeaseGrantRequest:
		return appendLeaseGrant(dst, m), nil
	case *pb.LeaseRevokeRequest:
		return appendLeaseRevoke(dst, m), nil
	case *pb.LeaseKeepAliveRequest:
		return appendLeaseKeepAlive(dst, m), nil
	}
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
}

// The functions below append a field, or nothing if it has its zero value. Their
// numbers are below 16, so that tags are bytes.

func appendUint(b []byte, number byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(append(b, number<<3|varint), v)
}

func appendInt(b []byte, number byte, v int64) []byte {
	return appendUint(b, number, uint64(v))
}

func appendBool(b []byte, number byte, v bool) []byte {
	if !v {
		return b
	}
	return append(b, number<<3|varint, 1)
}

func appendBytes[S ~[]byte | ~string](b []byte, number byte, v S) []byte {
	if len(v) == 0 {
		return b
	}
	b = append(b, number<<3|length)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}

// appendMessage appends a field that is there, m's encoding by body. The length
// stands in front of it and is not known yet: guess says how much room it gets.
// What is appended moves only if the guess was so wrong that the room does not
// fit.
func appendMessage[M any](b []byte, number byte, guess int, m *M, body func([]byte, *M) []byte) []byte {
	return lengthPrefixed(append(b, number<<3|length), guess, m, body)
}

func lengthPrefixed[M any](b []byte, guess int, m *M, body func([]byte, *M) []byte) []byte {
	room := protowire.SizeVarint(uint64(guess))
	at := len(b)
	b = append(b, make([]byte, room)...)
	b = body(b, m)
	n := len(b) - at - room
	if want := protowire.SizeVarint(uint64(n)); want != room {
		b = moved(b, at+room, want-room)
	}
	protowire.AppendVarint(b[:at], uint64(n))
	return b
}

// moved moves what b holds from an index on.
func moved(b []byte, from, by int) []byte {
	n := len(b)
	if by > 0 {
		b = append(b, make([]byte, by)...)
	}
	copy(b[from+by:], b[from:n])
	return b[:n+by]
}
