package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip" // clients may compress
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// rawMessage takes or gives the bytes of a message as they are.
type rawMessage struct{ bytes []byte }

// codec is gRPC's own protobuf codec, which also knows Appender and rawMessage and reports sizes.
type codec struct {
	encoding.CodecV2
	traffic Traffic // may be nil
}

func newCodec(t Traffic) encoding.CodecV2 { return codec{encoding.GetCodecV2("proto"), t} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (out mem.BufferSlice, err error) {
	switch m := v.(type) {
	case *rawMessage:
		out = mem.BufferSlice{mem.SliceBuffer(m.bytes)}
	case Appender:
		var b []byte
		b, err = m.AppendMessage(nil)
		out = mem.BufferSlice{mem.SliceBuffer(b)}
	default:
		out, err = c.CodecV2.Marshal(v)
	}
	if c.traffic != nil && err == nil {
		c.traffic.Sent(out.Len())
	}
	return out, err
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if c.traffic != nil {
		c.traffic.Received(data.Len())
	}
	if m, ok := v.(*rawMessage); ok {
		m.bytes = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// withHandlers returns desc with the methods that have a Handler replaced by it.
func withHandlers(desc *grpc.ServiceDesc, handlers map[string]Handler) *grpc.ServiceDesc {
	replaced := *desc
	replaced.Methods = nil
	for _, m := range desc.Methods {
		if h, ok := handlers["/"+desc.ServiceName+"/"+m.MethodName]; ok {
			m.Handler = adapt(h)
		}
		replaced.Methods = append(replaced.Methods, m)
	}
	return &replaced
}

// adapt makes a Handler a method of a service: it runs on the call's goroutine, which waits.
func adapt(h Handler) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var in rawMessage
		if err := decode(&in); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		w := &waiting{ctx: ctx, in: in.bytes, answered: make(chan struct{})}
		h(&Call{w})
		select {
		case <-w.answered:
		case <-ctx.Done(): // nobody waits for the answer any more
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		if w.err != nil {
			return nil, w.err
		}
		return &w.out, nil
	}
}

// waiting is a call whose goroutine waits for the answer.
type waiting struct {
	ctx context.Context //nolint:containedctx // it is the call's
	in  []byte
	// Set before answered is closed.
	out      rawMessage
	err      error
	answered chan struct{}
}

func (w *waiting) request() []byte { return w.in }

func (w *waiting) reply(m Appender) {
	b, err := m.AppendMessage(nil)
	if err != nil {
		err = status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	w.out.bytes, w.err = b, err
	close(w.answered)
}

func (w *waiting) fail(err error) {
	if err == nil {
		err = errors.New("rpc: a call failed without an error")
	}
	w.err = err
	close(w.answered)
}

func (w *waiting) metadata(key string) (string, bool) {
	if v := metadata.ValueFromIncomingContext(w.ctx, key); len(v) > 0 {
		return v[0], true
	}
	return "", false
}

func (w *waiting) deadline() (time.Time, bool) { return w.ctx.Deadline() }
func (w *waiting) context() context.Context    { return w.ctx }

func (w *waiting) remoteAddr() net.Addr {
	p, ok := peer.FromContext(w.ctx)
	if !ok {
		panic("rpc: a call without a peer")
	}
	return p.Addr
}

// run needs no goroutine: the call has one, and it has nothing else to do.
func (w *waiting) run(f func(context.Context)) { f(w.ctx) }

// after does not promise anything: only the call's own goroutine would wait, and it is woken for each call anyhow.
func (w *waiting) after(func(late func())) bool { return false }

// checkHandlers panics unless each handler stands for a unary method of a service.
func checkHandlers(services []service, handlers map[string]Handler) {
	known := map[string]bool{}
	for _, s := range services {
		for _, m := range s.desc.Methods {
			known["/"+s.desc.ServiceName+"/"+m.MethodName] = true
		}
	}
	for name := range handlers {
		if !known[name] {
			panic(fmt.Sprintf("rpc: a handler for %s, which is no unary method of a registered service", name))
		}
	}
}
