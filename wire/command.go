package wire

import (
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// headerTag is the tag of a command's header, field 100: the only field of those
// known here whose tag is longer than a byte.
const headerTag = 100<<3 | uint64(length)

const (
	headerTag0 = byte(headerTag&0x7f | 0x80)
	headerTag1 = byte(headerTag >> 7)
)

// A Decoder decodes commands into messages that it uses again. The zero value is
// ready to use, by one goroutine at a time.
type Decoder struct {
	request pb.InternalRaftRequest
	parts   parts
}

// Command returns the command that b encodes. It is valid until the next call,
// and as long as b does not change.
func (d *Decoder) Command(b []byte) (*pb.InternalRaftRequest, error) {
	if !decodeCommand(b, &d.request, &d.parts) {
		// The official codec makes new messages: the parts stay.
		if err := officially(b, &d.request); err != nil {
			return nil, err
		}
	}
	return &d.request, nil
}

// Request returns the command whose only request is field, which b encodes as it
// came from a client: the limit of nesting is that of a request. The command is
// valid until the next call, and as long as b does not change.
func (d *Decoder) Request(field protowire.Number, b []byte) (*pb.InternalRaftRequest, error) {
	d.request.Reset()
	if field < 16 && decodePart(byte(field)<<3|length, b, &d.request, &d.parts) {
		return &d.request, nil
	}
	d.request.Reset()
	m := d.request.ProtoReflect()
	part := m.NewField(m.Descriptor().Fields().ByNumber(field))
	if err := proto.Unmarshal(b, part.Message().Interface()); err != nil {
		return nil, err
	}
	m.Set(m.Descriptor().Fields().ByNumber(field), part)
	return &d.request, nil
}

// parts are the messages that commands consist of, each nil until it is needed.
type parts struct {
	header      *pb.RequestHeader
	rang        *pb.RangeRequest
	put         *pb.PutRequest
	deleteRange *pb.DeleteRangeRequest
	txn         *pb.TxnRequest
	compaction  *pb.CompactionRequest
	grant       *pb.LeaseGrantRequest
	revoke      *pb.LeaseRevokeRequest
	checkpoint  *pb.LeaseCheckpointRequest
}

// from takes the parts of a command that is not needed any more.
func (p *parts) from(m *pb.InternalRaftRequest) {
	*p = parts{
		header: m.Header, rang: m.Range, put: m.Put, deleteRange: m.DeleteRange, txn: m.Txn,
		compaction: m.Compaction, grant: m.LeaseGrant, revoke: m.LeaseRevoke, checkpoint: m.LeaseCheckpoint,
	}
}

func decodeCommand(b []byte, m *pb.InternalRaftRequest, p *parts) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
		if tag == 1<<3|varint {
			var id int64
			id, i = intAt(b, i)
			m.ID = uint64(id)
			continue
		}
		if tag == headerTag0 {
			if i == len(b) || b[i] != headerTag1 {
				return false
			}
			i++
		}
		var in []byte
		in, i = bytesAt(b, i)
		if i < 0 || !decodePart(tag, in, m, p) {
			return false
		}
	}
	return i == len(b)
}

// decodePart decodes a message of a command.
func decodePart(tag byte, b []byte, m *pb.InternalRaftRequest, p *parts) bool {
	switch tag {
	case 3<<3 | length:
		return part(b, &m.Range, &p.rang, decodeRange)
	case 4<<3 | length:
		return part(b, &m.Put, &p.put, decodePut)
	case 5<<3 | length:
		return part(b, &m.DeleteRange, &p.deleteRange, decodeDeleteRange)
	case 6<<3 | length:
		return part(b, &m.Txn, &p.txn, decodeOuterTxn)
	case 7<<3 | length:
		return part(b, &m.Compaction, &p.compaction, decodeCompaction)
	case 8<<3 | length:
		return part(b, &m.LeaseGrant, &p.grant, decodeLeaseGrant)
	case 9<<3 | length:
		return part(b, &m.LeaseRevoke, &p.revoke, decodeLeaseRevoke)
	case 11<<3 | length:
		return part(b, &m.LeaseCheckpoint, &p.checkpoint, decodeLeaseCheckpoints)
	case headerTag0:
		return part(b, &m.Header, &p.header, decodeRequestHeader)
	}
	return false
}

// part decodes what a field holds into a message that is kept for it. One that
// comes twice is merged, and not by this function.
func part[M any](b []byte, field, kept **M, decode func([]byte, *M) bool) bool {
	if *field != nil {
		return false
	}
	*field = filled(kept)
	return decode(b, *field)
}

func decodeRequestHeader(b []byte, m *pb.RequestHeader) bool {
	m.Reset()
	return fields(b, m, requestHeaderField)
}

func requestHeaderField(m *pb.RequestHeader, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | varint:
		m.ID, i = varintAt(b, i)
	case 2<<3 | length:
		var name []byte
		name, i = bytesAt(b, i)
		if !utf8.Valid(name) {
			return -1
		}
		m.Username = string(name)
	case 3<<3 | varint:
		m.AuthRevision, i = varintAt(b, i)
	default:
		return -1
	}
	return i
}

// AppendCommand appends the command whose only request is field, encoded as it
// came from a client. The header may be nil. The result is the official encoding
// of the command if raw is that of the request; otherwise it means the same.
// Nobody decodes raw here: it must be known that it can be.
func AppendCommand(dst []byte, header *pb.RequestHeader, field protowire.Number, raw []byte) []byte {
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	dst = protowire.AppendBytes(dst, raw)
	return appendHeaderField(dst, header)
}
