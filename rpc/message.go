package rpc

import (
	"bytes"
	"encoding/binary"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// prefixLen is what comes before each message: whether it is compressed, and its length.
const prefixLen = 5

// message returns the message that a body is, in the body or decompressed. A body that ends early
// is Unknown, as in grpc-go; what follows the message is ignored there too. Of a body that is too
// large only the beginning is needed.
func (t *own) message(r *route, body []byte) ([]byte, error) {
	if len(body) < prefixLen {
		return nil, io.EOF
	}
	flag, n := body[0], clampInt(binary.BigEndian.Uint32(body[1:]))
	body = body[prefixLen:]
	if n > t.o.MaxRecvBytes {
		return nil, tooLarge(n, t.o.MaxRecvBytes)
	}
	if n > len(body) {
		return nil, io.ErrUnexpectedEOF
	}
	return t.plain(r, flag, body[:n])
}

func tooLarge(n, limit int) error {
	return status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", n, limit)
}

// plain returns a received message without compression.
func (t *own) plain(r *route, flag byte, msg []byte) ([]byte, error) {
	switch {
	case flag > 1:
		return nil, status.Errorf(codes.Internal, "grpc: received unexpected payload format %d", flag)
	case flag == 1 && r.recvCoding == "":
		return nil, status.Error(codes.Internal, "grpc: compressed flag set with identity or empty encoding")
	case flag == 1:
		var err error
		if msg, err = decompress(r.compressor, msg, t.o.MaxRecvBytes); err != nil {
			return nil, err
		}
	}
	if t.o.Traffic != nil {
		t.o.Traffic.Received(len(msg))
	}
	return msg, nil
}

func decompress(c encoding.Compressor, msg []byte, limit int) ([]byte, error) {
	z, err := c.Decompress(bytes.NewReader(msg))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to decompress the message: %v", err)
	}
	out, err := io.ReadAll(io.LimitReader(z, int64(limit)+1))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: failed to read decompressed data: %v", err)
	}
	if len(out) > limit {
		return nil, status.Errorf(codes.ResourceExhausted, "grpc: received message after decompression larger than max %d", limit)
	}
	return out, nil
}

// outgoing is a message to be sent, as it is encoded into the buffer of a connection.
type outgoing struct {
	t          *own
	m          any
	compressor encoding.Compressor // nil: none
	tooLarge   string              // what is said of one that is

	ready []byte // what prepare has encoded
	plain int    // how large that is without compression
}

const (
	unaryTooLarge  = "grpc: trying to send message larger than max (%d vs. %d)"
	streamTooLarge = "trying to send message larger than max (%d vs. %d)"
)

// prepare encodes a message that is to be compressed. It is called without the connection's lock, under which other messages
// are encoded: whoever answers on that connection, the goroutine that applies included, would wait.
func (m *outgoing) prepare() (err error) {
	if m.compressor != nil {
		m.ready, m.plain, err = m.encode(nil)
	}
	return err
}

// AppendBody implements h2.Appender.
func (m *outgoing) AppendBody(dst []byte) ([]byte, error) {
	if m.ready != nil {
		m.t.sent(m.plain)
		dst = append(dst, m.ready...)
		m.m, m.ready = nil, nil
		return dst, nil
	}
	dst, plain, err := m.encode(dst)
	if err != nil {
		return nil, err
	}
	m.t.sent(plain)
	m.m = nil // it may be large
	return dst, nil
}

// encode appends the message, and returns how large it is without compression.
func (m *outgoing) encode(dst []byte) (_ []byte, plain int, _ error) {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0)
	dst, err := appendMessage(dst, m.m)
	if err != nil {
		return nil, 0, status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	plain = len(dst) - start - prefixLen
	if m.compressor != nil && plain > 0 {
		if dst, err = compress(m.compressor, dst, start+prefixLen); err != nil {
			return nil, 0, status.Errorf(codes.Internal, "grpc: error while compressing: %v", err)
		}
		dst[start] = 1
	}
	n := len(dst) - start - prefixLen
	if n > m.t.o.MaxSendBytes {
		return nil, 0, status.Errorf(codes.ResourceExhausted, m.tooLarge, n, m.t.o.MaxSendBytes)
	}
	binary.BigEndian.PutUint32(dst[start+1:], uint32(n))
	return dst, plain, nil
}

func appendMessage(dst []byte, v any) ([]byte, error) {
	switch m := v.(type) {
	case nil:
		return dst, nil
	case Appender:
		return m.AppendMessage(dst)
	case proto.Message:
		return proto.MarshalOptions{}.MarshalAppend(dst, m)
	}
	out, err := encoding.GetCodecV2("proto").Marshal(v)
	if err != nil {
		return nil, err
	}
	defer out.Free()
	for _, b := range out {
		dst = append(dst, b.ReadOnlyData()...)
	}
	return dst, nil
}

// compress replaces what follows start by what it is compressed.
func compress(c encoding.Compressor, b []byte, start int) ([]byte, error) {
	var out bytes.Buffer
	z, err := c.Compress(&out)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(b[start:]); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return append(b[:start], out.Bytes()...), nil
}
