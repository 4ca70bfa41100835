package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/rpc/h2"
)

// exchanged is what unary and streaming methods of services share: header, trailer and status. It
// implements grpc.ServerTransportStream, for grpc.SetHeader and the like.
type exchanged struct {
	t   *own
	s   *h2.Stream
	r   *route
	ctx context.Context //nolint:containedctx // it is the method's

	mu sync.Mutex
	// Guarded by mu.
	header, trailer metadata.MD
	headSent, done  bool
}

var (
	errHeaderTooLate  = errors.New("transport: SendHeader called multiple times")
	errUnmarshal      = "grpc: error unmarshalling request: %v"
	errUnmarshalOnRcv = "grpc: failed to unmarshal the received message: %v"
)

// begin makes the context of a method.
func (t *own) begin(s *h2.Stream, r *route, e *exchanged) (cancel func()) {
	e.t, e.s, e.r = t, s, r
	e.ctx, cancel = t.context(s, r)
	s.OnEnd(func(error) { cancel() })
	e.ctx = grpc.NewContextWithServerTransportStream(e.ctx, e)
	return cancel
}

// Method implements grpc.ServerTransportStream.
func (e *exchanged) Method() string { return e.r.header.Path }

// Context implements grpc.ServerStream.
func (e *exchanged) Context() context.Context { return e.ctx }

// SetHeader implements grpc.ServerTransportStream and grpc.ServerStream.
func (e *exchanged) SetHeader(md metadata.MD) error {
	if md.Len() == 0 {
		return nil
	}
	if err := checkMetadata(md); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.headSent || e.done {
		return errHeaderTooLate
	}
	e.header = metadata.Join(e.header, md)
	return nil
}

// SendHeader implements grpc.ServerTransportStream and grpc.ServerStream.
func (e *exchanged) SendHeader(md metadata.MD) error {
	if err := checkMetadata(md); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return e.contextError()
	}
	if e.headSent {
		return errHeaderTooLate
	}
	e.header = metadata.Join(e.header, md)
	if err := e.s.SendHeader(e.head()); err != nil {
		return e.contextError()
	}
	return nil
}

// SetTrailer implements grpc.ServerTransportStream.
func (e *exchanged) SetTrailer(md metadata.MD) error {
	if md.Len() == 0 {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return errHeaderTooLate
	}
	e.trailer = metadata.Join(e.trailer, md)
	return nil
}

// head is the header to be sent now. It is called under mu.
func (e *exchanged) head() []h2.Field {
	e.headSent = true
	if len(e.header) == 0 {
		return e.r.head
	}
	return metadataFields(e.r.head[:len(e.r.head):len(e.r.head)], e.header)
}

// finish ends the answer.
func (e *exchanged) finish(st *status.Status) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return
	}
	e.done = true
	if !e.headSent && len(e.header) > 0 {
		_ = e.s.SendHeader(e.head())
	}
	_ = e.s.Finish(e.r.head, e.trailerOf(st))
}

// trailerOf is the trailer that ends the answer. It is called under mu.
func (e *exchanged) trailerOf(st *status.Status) []h2.Field {
	if st.Code() == codes.OK && len(e.trailer) == 0 {
		return trailerOK
	}
	fields := statusFields(st)
	if len(st.Proto().GetDetails()) > 0 {
		delete(e.trailer, "grpc-status-details-bin")
	}
	return metadataFields(fields, e.trailer)
}

// contextError is why nothing can be sent or received any more.
func (e *exchanged) contextError() error {
	if err := e.ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Canceled, context.Canceled.Error())
}

// serveUnary calls a unary method of a service.
func (t *own) serveUnary(s *h2.Stream, r *route, msg []byte) {
	e := new(exchanged)
	defer s.Release(false)
	defer t.begin(s, r, e)()
	decode := func(v any) error {
		if err := unmarshal(msg, v); err != nil {
			return status.Errorf(codes.Internal, errUnmarshal, err)
		}
		return nil
	}
	reply, err := r.method.unary.Handler(r.method.impl, e.ctx, decode, t.o.UnaryInterceptor)
	if err != nil {
		e.finish(errorStatus(err))
		return
	}
	e.mu.Lock()
	out := &outgoing{t: t, m: reply, compressor: r.compressor, tooLarge: unaryTooLarge}
	head, trailer := e.r.head, trailerOK
	if !e.headSent {
		head = e.head()
	}
	if len(e.trailer) > 0 {
		trailer = e.trailerOf(status.New(codes.OK, ""))
	}
	e.done = true
	e.mu.Unlock()
	if err = out.prepare(); err == nil {
		err = s.Answer(head, out, trailer, true)
	}
	if err != nil {
		_ = s.Finish(head, statusFields(status.Convert(err))) // of no effect if the stream has ended
	}
}

func unmarshal(msg []byte, v any) error {
	switch m := v.(type) {
	case *rawMessage:
		m.bytes = msg
		return nil
	case proto.Message:
		return proto.Unmarshal(msg, m)
	}
	return encoding.GetCodecV2("proto").Unmarshal(mem.BufferSlice{mem.SliceBuffer(msg)}, v)
}

// serverStream implements grpc.ServerStream.
type serverStream struct {
	exchanged
	received bool        // a message
	several  outgoingAll // of the one who sends
}

// serveStream calls a streaming method of a service.
func (t *own) serveStream(s *h2.Stream, r *route) {
	ss := new(serverStream)
	defer s.Release(false)
	defer t.begin(s, r, &ss.exchanged)()
	var err error
	d := r.method.stream
	if t.o.StreamInterceptor == nil {
		err = d.Handler(r.method.impl, ss)
	} else {
		info := &grpc.StreamServerInfo{FullMethod: r.method.name, IsClientStream: d.ClientStreams, IsServerStream: d.ServerStreams}
		err = t.o.StreamInterceptor(r.method.impl, ss, info, d.Handler)
	}
	if err != nil {
		ss.finish(errorStatus(err))
	} else {
		ss.finish(status.New(codes.OK, ""))
	}
}

// SetTrailer implements grpc.ServerStream.
func (ss *serverStream) SetTrailer(md metadata.MD) { _ = ss.exchanged.SetTrailer(md) }

// SendMsg implements grpc.ServerStream.
func (ss *serverStream) SendMsg(m any) error {
	out := &outgoing{t: ss.t, m: m, compressor: ss.r.compressor, tooLarge: streamTooLarge}
	if err := out.prepare(); err != nil {
		return ss.failed(err)
	}
	return ss.send(out)
}

func (ss *serverStream) send(m h2.Appender) error {
	ss.mu.Lock()
	if ss.done {
		ss.mu.Unlock()
		return ss.contextError()
	}
	head := ss.r.head
	if !ss.headSent {
		head = ss.head()
	}
	ss.mu.Unlock()
	return ss.failed(ss.s.Send(head, m))
}

// RecvMsg implements grpc.ServerStream.
func (ss *serverStream) RecvMsg(m any) error {
	msg, err := ss.receive()
	desc := ss.r.method.stream
	if errors.Is(err, io.EOF) {
		if !desc.ClientStreams && !ss.received {
			return ss.failed(status.Error(codes.Internal, "cardinality violation: received no request message from non-client-streaming RPC"))
		}
		return io.EOF
	}
	if err == nil {
		if err = unmarshal(msg, m); err != nil {
			err = status.Errorf(codes.Internal, errUnmarshalOnRcv, err)
		}
	}
	if err != nil {
		return ss.failed(err)
	}
	ss.received = true
	if desc.ClientStreams {
		return nil
	}
	switch _, err := ss.receive(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return ss.failed(err)
	}
	return ss.failed(status.Error(codes.Internal, "cardinality violation: received multiple request messages for non-client-streaming RPC"))
}

// failed ends the stream with an error in sending or receiving, and returns it as a status.
func (ss *serverStream) failed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = status.Error(codes.Internal, err.Error())
	default:
		if _, ok := status.FromError(err); !ok {
			return ss.contextError() // the stream has ended
		}
	}
	ss.finish(status.Convert(err))
	return err
}

// receive reads a message.
func (ss *serverStream) receive() ([]byte, error) {
	var prefix [prefixLen]byte
	if _, err := io.ReadFull(ss.s, prefix[:]); err != nil {
		return nil, err
	}
	n := clampInt(binary.BigEndian.Uint32(prefix[1:]))
	if limit := ss.t.o.MaxRecvBytes; n > limit {
		return nil, tooLarge(n, limit)
	}
	msg, err := readMessage(ss.s, n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return ss.t.plain(ss.r, prefix[0], msg)
}

// readMessage reads n bytes. It takes memory as they come, for a peer may say any length.
func readMessage(from io.Reader, n int) ([]byte, error) {
	const atOnce = 64 << 10
	msg := make([]byte, 0, min(n, atOnce))
	for len(msg) < n {
		at := len(msg)
		if at == cap(msg) {
			msg = append(msg, make([]byte, min(n-at, at))...)[:at]
		}
		end := min(cap(msg), n)
		if _, err := io.ReadFull(from, msg[at:end]); err != nil {
			return nil, err
		}
		msg = msg[:end]
	}
	return msg, nil
}
