package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const checkMethod = "/grpc.health.v1.Health/Check"

// appended is a message that says what it is asked to.
type appended struct {
	m   proto.Message
	err error
}

func (a appended) AppendMessage(dst []byte) ([]byte, error) {
	if a.err != nil {
		return nil, a.err
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, a.m)
}

var serving = appended{m: &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}}

// callWith serves h in place of Check and calls it.
func callWith(t *testing.T, o Options, h Handler, ctx context.Context, service string) (*healthpb.HealthCheckResponse, error) {
	t.Helper()
	f := newFixture(t, o)
	f.HandleUnary(checkMethod, h)
	c := dial(t, f.listen(t, Listener{}), insecure.NewCredentials())
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return c.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
}

func TestHandlerAnswers(t *testing.T) { onEach(t, testHandlerAnswers) }

func testHandlerAnswers(t *testing.T, transport Transport) {
	later := make(chan *Call, 1)
	for name, h := range map[string]Handler{
		"now":      func(c *Call) { c.Reply(serving) },
		"later":    func(c *Call) { later <- c; go func() { (<-later).Reply(serving) }() },
		"with Go":  func(c *Call) { c.Go(func(context.Context) { c.Reply(serving) }) },
		"with ctx": func(c *Call) { c.Go(func(ctx context.Context) { _ = ctx.Err(); c.Reply(serving) }) },
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := callWith(t, Options{Transport: transport}, h, t.Context(), "")
			if err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
				t.Errorf("got %v, %v", resp, err)
			}
		})
	}
}

func TestHandlerErrors(t *testing.T) { onEach(t, testHandlerErrors) }

func testHandlerErrors(t *testing.T, transport Transport) {
	for _, tt := range []struct {
		answer func(*Call)
		want   *status.Status
	}{
		{func(c *Call) { c.Fail(status.Error(codes.NotFound, "no such: ü%\n")) }, status.New(codes.NotFound, "no such: ü%\n")},
		{func(c *Call) { c.Fail(errors.New("plain")) }, status.New(codes.Unknown, "plain")},
		{func(c *Call) { c.Fail(fmt.Errorf("wrapped: %w", status.Error(codes.Aborted, "inner"))) },
			status.New(codes.Aborted, "wrapped: rpc error: code = Aborted desc = inner")},
		{func(c *Call) { c.Fail(context.DeadlineExceeded) }, status.New(codes.DeadlineExceeded, "context deadline exceeded")},
		{func(c *Call) { c.Reply(appended{err: errors.New("cannot")}) },
			status.New(codes.Internal, "grpc: error while marshaling: cannot")},
		{func(c *Call) { c.Reply(appended{m: &healthpb.HealthCheckRequest{Service: "12345678"}}) },
			status.New(codes.ResourceExhausted, "grpc: trying to send message larger than max (10 vs. 9)")},
	} {
		_, err := callWith(t, Options{Transport: transport, MaxSendBytes: 9}, tt.answer, t.Context(), "")
		if got := status.Convert(err); got.Code() != tt.want.Code() || got.Message() != tt.want.Message() {
			t.Errorf("got %v, want %v", got, tt.want)
		}
	}
}

func TestHandlerSeesTheRequest(t *testing.T) { onEach(t, testHandlerSeesTheRequest) }

func testHandlerSeesTheRequest(t *testing.T, transport Transport) {
	ctx := metadata.AppendToOutgoingContext(t.Context(), "key", "first", "key", "second", "raw-bin", "\x00\xff")
	_, err := callWith(t, Options{Transport: transport}, func(c *Call) {
		var in healthpb.HealthCheckRequest
		if err := proto.Unmarshal(c.Request(), &in); err != nil || in.Service != "name" {
			t.Errorf("request is %v, %v", &in, err)
		}
		for key, want := range map[string]string{"key": "first", "raw-bin": "\x00\xff", "none": ""} {
			if got, ok := c.Metadata(key); got != want || ok != (want != "") {
				t.Errorf("metadata %s is %q, %t", key, got, ok)
			}
		}
		ctx := c.Context()
		md, _ := metadata.FromIncomingContext(ctx)
		if got := md["key"]; len(got) != 2 || got[1] != "second" {
			t.Errorf("metadata is %v", md)
		}
		p, ok := peer.FromContext(ctx)
		if !ok || p.Addr.String() != c.RemoteAddr().String() {
			t.Errorf("peer is %v, remote address %v", p, c.RemoteAddr())
		}
		at, ok := c.Deadline()
		if left := time.Until(at); !ok || left <= 0 || left > 10*time.Second {
			t.Errorf("deadline is in %v, %t", left, ok)
		}
		if inCtx, _ := ctx.Deadline(); inCtx.Sub(at).Abs() > time.Second {
			t.Errorf("deadline is %v, in the context %v", at, inCtx)
		}
		c.Reply(serving)
	}, ctx, "name")
	if err != nil {
		t.Error(err)
	}
}

func TestHandlerContextEndsWithTheCall(t *testing.T) { onEach(t, testHandlerContextEndsWithTheCall) }

func testHandlerContextEndsWithTheCall(t *testing.T, transport Transport) {
	var kept context.Context
	_, err := callWith(t, Options{Transport: transport}, func(c *Call) {
		kept = c.Context()
		c.Reply(serving)
	}, t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	<-kept.Done()
}

func TestHandlerContextEndsWithTheClient(t *testing.T) {
	onEach(t, testHandlerContextEndsWithTheClient)
}

func testHandlerContextEndsWithTheClient(t *testing.T, transport Transport) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	_, err := callWith(t, Options{Transport: transport}, func(c *Call) {
		c.Go(func(ctx context.Context) {
			cancel()
			<-ctx.Done()
			ended <- ctx.Err()
			c.Reply(serving)
		})
	}, ctx, "")
	if status.Code(err) != codes.Canceled {
		t.Errorf("the client got %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler got %v", err)
	}
}

func TestAppenderOnAStream(t *testing.T) { onEach(t, testAppenderOnAStream) }

func testAppenderOnAStream(t *testing.T, transport Transport) {
	s := NewServer(Options{Transport: transport})
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Two", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			return errors.Join(stream.SendMsg(serving), stream.SendMsg(serving))
		}}},
	}, struct{}{})
	f := &fixture{Server: s}
	cc, err := grpc.NewClient(f.listen(t, Listener{}), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	stream, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test/Two")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var got healthpb.HealthCheckResponse
		if err := stream.RecvMsg(&got); err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
			t.Fatalf("received %v, %v", &got, err)
		}
	}
}

func TestHandlerOfAnUnknownMethod(t *testing.T) { onEach(t, testHandlerOfAnUnknownMethod) }

func testHandlerOfAnUnknownMethod(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	f.HandleUnary("/grpc.health.v1.Health/Watch", func(*Call) {}) // not unary
	defer func() {
		if recover() == nil {
			t.Error("Start accepted it")
		}
		f.handlers = nil
	}()
	f.Start()
}

// padded is an answer with an unknown field of some bytes.
type padded []byte

func (p padded) AppendMessage(dst []byte) ([]byte, error) {
	return protowire.AppendBytes(protowire.AppendTag(dst, 99, protowire.BytesType), p), nil
}

// slow is a compressor that changes nothing, and takes until it is told to go on for what is large.
type slow struct{ begun, goOn chan struct{} }

const slowLarge = 1000

func (*slow) Name() string                                   { return "slow" }
func (*slow) Decompress(r io.Reader) (io.Reader, error)      { return r, nil }
func (s *slow) Compress(w io.Writer) (io.WriteCloser, error) { return &slowWriter{w, s}, nil }

type slowWriter struct {
	io.Writer
	s *slow
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if len(p) > slowLarge {
		close(w.s.begun)
		<-w.s.goOn
	}
	return w.Writer.Write(p)
}

func (w *slowWriter) Close() error { return nil }

var slowly = new(slow)

func init() { encoding.RegisterCompressor(slowly) }

// While an answer is compressed, others on the connection are sent; and an answer by a callback is not compressed, for what
// calls back has more to do.
func TestNobodyWaitsForCompression(t *testing.T) {
	large := make(padded, 2*slowLarge)
	for _, kind := range []string{checkMethod, "/test/Stream", "/test/Streams"} {
		t.Run(kind, func(t *testing.T) {
			slowly.begun, slowly.goOn = make(chan struct{}), make(chan struct{})
			f := newFixture(t, Options{})
			callbacks := make(chan *Call, 2)
			f.HandleUnary(checkMethod, func(c *Call) {
				var r healthpb.HealthCheckRequest
				if err := unmarshal(c.Request(), &r); err != nil || r.Service != "large" {
					callbacks <- c
					return
				}
				c.Go(func(context.Context) { c.Reply(large) })
			})
			f.RegisterService(&grpc.ServiceDesc{ServiceName: "test", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{
				{StreamName: "Stream", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error { return s.SendMsg(large) }},
				{StreamName: "Streams", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error { return SendMessages(s, sizes{2 * slowLarge}) }},
			}}, struct{}{})
			cc, err := grpc.NewClient(f.listen(t, Listener{}), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			errs := make(chan error, 3)
			call := func(method, service string, o ...grpc.CallOption) {
				stream, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, method, o...)
				if err == nil {
					err = errors.Join(stream.SendMsg(&healthpb.HealthCheckRequest{Service: service}), stream.CloseSend())
				}
				if err == nil {
					err = stream.RecvMsg(new(healthpb.HealthCheckResponse))
				}
				errs <- err
			}
			go call(checkMethod, "")
			go call(checkMethod, "", grpc.UseCompressor("slow"))
			one, other := <-callbacks, <-callbacks
			go call(kind, "large", grpc.UseCompressor("slow"))
			<-slowly.begun
			one.Reply(large)
			other.Reply(large) // it would wait, compressed
			for range 2 {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			close(slowly.goOn)
			if err := <-errs; err != nil {
				t.Error(err)
			}
		})
	}
}

// What is refused repeats little of the request, and was encoded once.
func TestRefusalIsShort(t *testing.T) {
	f := newFixture(t, Options{})
	cc, err := grpc.NewClient(f.listen(t, Listener{}), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	err = cc.Invoke(t.Context(), "/"+strings.Repeat("%", 4*maxEcho), new(healthpb.HealthCheckRequest), new(healthpb.HealthCheckResponse))
	if st := status.Convert(err); st.Code() != codes.Unimplemented || len(st.Message()) > 2*maxEcho {
		t.Errorf("%v with %d bytes", st.Code(), len(st.Message()))
	}
	err = cc.Invoke(t.Context(), "/a%b/c", new(healthpb.HealthCheckRequest), new(healthpb.HealthCheckResponse))
	if st := status.Convert(err); st.Message() != "unknown service a%b" {
		t.Errorf("%q", st.Message())
	}
}
