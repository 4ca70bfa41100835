package wire

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// commandLimit is how deeply messages in a command may be nested. A request is
// decoded with the default limit when it arrives and stands a level deeper in
// its command, so the limit is larger here: what is in the log cannot be
// refused any more.
const commandLimit = 2 * protowire.DefaultRecursionLimit

// maxDepth is how deeply transactions are decoded by hand.
const maxDepth = 32

// Unmarshal makes m what b encodes, or returns the official codec's error.
//
// The byte fields of m may share b's memory: b must not change while they are in
// use. Messages that m points to may be used again, so m must be the only one
// that points to them.
func Unmarshal(b []byte, m proto.Message) error {
	if !decode(b, m) {
		return officially(b, m)
	}
	return nil
}

func officially(b []byte, m proto.Message) error {
	var o proto.UnmarshalOptions
	if _, ok := m.(*pb.InternalRaftRequest); ok {
		o.RecursionLimit = commandLimit
	}
	return o.Unmarshal(b, m)
}

// decode decodes the messages that most requests are made of. It returns false
// for other messages, and for what it does not know or does not like, with m in
// any state.
func decode(b []byte, m proto.Message) bool {
	switch m := m.(type) {
	case *pb.RangeRequest:
		return decodeRange(b, m)
	case *pb.PutRequest:
		return decodePut(b, m)
	case *pb.DeleteRangeRequest:
		return decodeDeleteRange(b, m)
	case *pb.TxnRequest:
		return decodeOuterTxn(b, m)
	case *pb.CompactionRequest:
		return decodeCompaction(b, m)
	case *pb.LeaseGrantRequest:
		return decodeLeaseGrant(b, m)
	case *pb.LeaseRevokeRequest:
		return decodeLeaseRevoke(b, m)
	case *pb.LeaseKeepAliveRequest:
		return decodeLeaseKeepAlive(b, m)
	case *pb.LeaseTimeToLiveRequest:
		return decodeLeaseTimeToLive(b, m)
	case *pb.LeaseCheckpointRequest:
		return decodeLeaseCheckpoints(b, m)
	case *pb.WatchRequest:
		return decodeWatch(b, m)
	case *pb.InternalRaftRequest:
		var p parts
		p.from(m)
		return decodeCommand(b, m, &p)
	}
	return false
}

// The parsers below take an index into b and return the one behind what they
// have parsed, or -1. Loops end at a negative index, and say whether they have
// come to the end of b.

// fields decodes a message with field, which is given the tag of each field and
// the index behind it, and returns the index behind the field. A put takes a
// nanosecond or two longer this way than with a loop written out, of 11 µs.
func fields[M any](b []byte, m *M, field func(m *M, tag byte, b []byte, i int) int) bool {
	i := 0
	for uint(i) < uint(len(b)) {
		i = field(m, b[i], b, i+1)
	}
	return i == len(b)
}

// messageAt decodes a message that is a field of another.
func messageAt[M any](b []byte, i int, m *M, decode func([]byte, *M) bool) int {
	in, i := bytesAt(b, i)
	if i < 0 || !decode(in, m) {
		return -1
	}
	return i
}

// The types of fields, as they stand in the lower three bits of a tag.
const (
	varint = byte(protowire.VarintType)
	length = byte(protowire.BytesType)
)

func varintAt(b []byte, i int) (uint64, int) {
	if uint(i) < uint(len(b)) && b[i] < 0x80 {
		return uint64(b[i]), i + 1
	}
	return longVarintAt(b, i)
}

func longVarintAt(b []byte, i int) (uint64, int) {
	v, n := protowire.ConsumeVarint(b[i:])
	if n < 0 {
		return 0, -1
	}
	return v, i + n
}

func intAt(b []byte, i int) (int64, int) {
	v, i := varintAt(b, i)
	return int64(v), i
}

func boolAt(b []byte, i int) (bool, int) {
	v, i := varintAt(b, i)
	return v != 0, i
}

func enumAt[E ~int32](b []byte, i int) (E, int) {
	v, i := varintAt(b, i)
	return E(v), i
}

// bytesAt returns nil for a field that is empty, as the official codec does for
// fields that need not be told from absent ones.
func bytesAt(b []byte, i int) ([]byte, int) {
	n, i := varintAt(b, i)
	if i < 0 || n > uint64(len(b)-i) {
		return nil, -1
	}
	if n == 0 {
		return nil, i
	}
	end := i + int(n)
	return b[i:end:end], end
}

// extend makes room for one more message in a list. One that is left there from
// an earlier use is used again.
func extend[M any](list []*M) []*M {
	if n := len(list); n < cap(list) {
		list = list[:n+1]
		if list[n] == nil {
			list[n] = new(M)
		}
		return list
	}
	return append(list, new(M))
}
