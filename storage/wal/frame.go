package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	pb "go.etcd.io/raft/v3/raftpb"
)

// A segment is a header and then frames, each of which was one write and one
// fdatasync. A frame is
//
//	length   uint32  of the payload
//	checksum uint32  CRC-32C of salt, number, length and payload
//	number   uint64  one more than the frame before, across segments
//	payload  records
//	padding  zeros up to a multiple of 8 bytes
//
// Integers are little-endian. The salt is random per segment, so that no value
// that a client stores can pass for a frame.
const (
	frameHeaderLen = 16
	frameAlign     = 8
)

// Kinds of records in a payload: kind byte, uvarint fields.
const (
	kindStart     = 1 // index, term of the entry before the segment's first
	kindHardState = 2 // term, vote, commit
	kindEntry     = 3 // term, index, type, length, data
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(salt uint64, number uint64, payload []byte) uint32 {
	var b [20]byte
	binary.LittleEndian.PutUint64(b[0:], salt)
	binary.LittleEndian.PutUint64(b[8:], number)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(payload)))
	return crc32.Update(crc32.Checksum(b[:], castagnoli), castagnoli, payload)
}

// sealFrame fills in the header of the frame in b, whose payload is complete,
// and pads it.
func sealFrame(b []byte, salt, number uint64) []byte {
	payload := b[frameHeaderLen:]
	binary.LittleEndian.PutUint32(b[0:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[4:], checksum(salt, number, payload))
	binary.LittleEndian.PutUint64(b[8:], number)
	for len(b)%frameAlign != 0 {
		b = append(b, 0)
	}
	return b
}

var errBadFrame = errors.New("no valid frame")

// parseFrame returns the payload and the whole length of the frame at the
// start of b, if it is valid.
func parseFrame(b []byte, salt, number uint64) (payload []byte, length int, err error) {
	if len(b) < frameHeaderLen {
		return nil, 0, errBadFrame
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n == 0 || n > int64(len(b)-frameHeaderLen) || binary.LittleEndian.Uint64(b[8:]) != number {
		return nil, 0, errBadFrame
	}
	payload = b[frameHeaderLen : frameHeaderLen+n]
	if checksum(salt, number, payload) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, 0, errBadFrame
	}
	length = frameHeaderLen + int(n)
	length += (frameAlign - length%frameAlign) % frameAlign
	if length > len(b) {
		return nil, 0, errBadFrame
	}
	return payload, length, nil
}

func appendStart(b []byte, p position) []byte {
	b = append(b, kindStart)
	b = binary.AppendUvarint(b, p.index)
	return binary.AppendUvarint(b, p.term)
}

func appendHardState(b []byte, hs *pb.HardState) []byte {
	b = append(b, kindHardState)
	b = binary.AppendUvarint(b, hs.GetTerm())
	b = binary.AppendUvarint(b, hs.GetVote())
	return binary.AppendUvarint(b, hs.GetCommit())
}

func appendEntry(b []byte, e *pb.Entry) []byte {
	b = append(b, kindEntry)
	b = binary.AppendUvarint(b, e.GetTerm())
	b = binary.AppendUvarint(b, e.GetIndex())
	b = binary.AppendUvarint(b, uint64(e.GetType()))
	b = binary.AppendUvarint(b, uint64(len(e.Data)))
	return append(b, e.Data...)
}

// record is one decoded record; exactly one field is set.
type record struct {
	start     *position
	hardState *pb.HardState
	entry     *pb.Entry
}

// decodePayload calls fn for each record. Data of entries is shared with b.
func decodePayload(b []byte, fn func(record) error) error {
	d := decoder{b: b}
	for len(d.b) > 0 && d.err == nil {
		kind := d.b[0]
		d.b = d.b[1:]
		var r record
		switch kind {
		case kindStart:
			r.start = &position{index: d.uvarint(), term: d.uvarint()}
		case kindHardState:
			term, vote, commit := d.uvarint(), d.uvarint(), d.uvarint()
			r.hardState = &pb.HardState{Term: &term, Vote: &vote, Commit: &commit}
		case kindEntry:
			term, index, typ := d.uvarint(), d.uvarint(), d.entryType()
			r.entry = &pb.Entry{Term: &term, Index: &index, Type: &typ, Data: d.bytes()}
		default:
			return fmt.Errorf("record of unknown kind %d", kind)
		}
		if d.err != nil {
			return d.err
		}
		if err := fn(r); err != nil {
			return err
		}
	}
	return d.err
}

var errShortRecord = errors.New("record is cut short")

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.err, d.b = errShortRecord, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

// entryType refuses a number that would be another one as an EntryType.
func (d *decoder) entryType() pb.EntryType {
	v := d.uvarint()
	if v > math.MaxInt32 {
		d.err, d.b = fmt.Errorf("an entry has the type %d", v), nil
	}
	return pb.EntryType(v)
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.err, d.b = errShortRecord, nil
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	if n == 0 {
		return nil
	}
	return v
}
