package peer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// What a stream carries is frames. A frame is
//
//	checksum uint32  CRC-32C of all that follows
//	length   uint32  of the payload
//	kind     1 byte
//	payload
//
// Integers are little-endian.
const (
	frameHeaderLen = 9
	// maxFrame bounds a payload: the largest entry that can be proposed, and
	// what raft may put around it.
	maxFrame = 513 << 20
	// keepBuffer bounds the buffer that is kept from one frame to the next.
	keepBuffer = 4 << 20
	// firstRead is how much memory a frame gets before any of it has arrived.
	firstRead = 64 << 10
)

type frameKind byte

const (
	frameMessage  frameKind = 1 // a raftpb.Message
	framePing     frameKind = 2 // number, 8 bytes
	framePong     frameKind = 3 // the number of the ping; 0 is a sign of life that no ping asked for
	frameSnapshot frameKind = 4 // the head of a snapshot
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errFrameDamaged = errors.New("a frame was damaged on its way: its checksum does not match")
	errFrameLength  = errors.New("a frame is longer than any member sends")
)

// beginFrame leaves room for a frame's header; sealFrame fills it in when the
// payload has been appended.
func beginFrame(b []byte, kind frameKind) []byte {
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0, byte(kind))
}

func sealFrame(frame []byte) {
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(frame)-frameHeaderLen))
	binary.LittleEndian.PutUint32(frame, crc32.Checksum(frame[4:], castagnoli))
}

func appendFrame(b []byte, kind frameKind, payload []byte) []byte {
	start := len(b)
	b = append(beginFrame(b, kind), payload...)
	sealFrame(b[start:])
	return b
}

// appendNumber appends a ping or pong.
func appendNumber(b []byte, kind frameKind, number uint64) []byte {
	return appendFrame(b, kind, binary.LittleEndian.AppendUint64(nil, number))
}

// appendMessage appends a message's frame, or nothing if it cannot be sent.
func appendMessage(b []byte, m *raftpb.Message) ([]byte, error) {
	start := len(b)
	framed, err := proto.MarshalOptions{}.MarshalAppend(beginFrame(b, frameMessage), m)
	if err != nil {
		return b, fmt.Errorf("encode a message: %w", err)
	}
	if len(framed)-start-frameHeaderLen > maxFrame {
		return b, errFrameLength
	}
	sealFrame(framed[start:])
	return framed, nil
}

// frameReader reads frames. Its memory grows with the bytes that have arrived,
// never with a length that was merely claimed.
type frameReader struct {
	r   *bufio.Reader
	max uint32
	buf []byte
}

func newFrameReader(r io.Reader, maxPayload uint32) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, firstRead), max: maxPayload}
}

// next returns the next frame. Its payload is valid until the call after. At
// the end of the bytes the error is io.EOF, within a frame io.ErrUnexpectedEOF.
func (f *frameReader) next() (frameKind, []byte, error) {
	var head [frameHeaderLen]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.LittleEndian.Uint32(head[4:])
	if length > f.max {
		return 0, nil, errFrameLength
	}
	payload, err := f.payload(int(length))
	if err != nil {
		return 0, nil, err
	}
	sum := crc32.Update(crc32.Checksum(head[4:], castagnoli), castagnoli, payload)
	if sum != binary.LittleEndian.Uint32(head[:]) {
		return 0, nil, errFrameDamaged
	}
	return frameKind(head[8]), payload, nil
}

func (f *frameReader) payload(length int) ([]byte, error) {
	b := f.buf[:0]
	for len(b) < length {
		n := min(length-len(b), max(len(b), cap(b), firstRead))
		b = slices.Grow(b, n)[:len(b)+n]
		if _, err := io.ReadFull(f.r, b[len(b)-n:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	f.buf = b
	if cap(b) > keepBuffer {
		f.buf = nil
	}
	return b, nil
}

// decodeMessage decodes a message's payload and refuses what no member sends
// on a stream.
func decodeMessage(payload []byte) (*raftpb.Message, error) {
	m := &raftpb.Message{}
	if err := proto.Unmarshal(payload, m); err != nil {
		return nil, fmt.Errorf("decode a message: %w", err)
	}
	if !carried(m.GetType()) {
		return nil, fmt.Errorf("a message of type %s came, which members do not send one another", m.GetType())
	}
	return m, nil
}

// carried tells whether members send messages of a type on streams. The others
// are what a member tells itself, and MsgSnap, which comes with its files.
func carried(t raftpb.MessageType) bool {
	switch t {
	case raftpb.MsgProp,
		raftpb.MsgApp, raftpb.MsgAppResp,
		raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp,
		raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
		raftpb.MsgReadIndex, raftpb.MsgReadIndexResp,
		raftpb.MsgTransferLeader, raftpb.MsgTimeoutNow, raftpb.MsgForgetLeader:
		return true
	}
	return false
}
