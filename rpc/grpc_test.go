package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echo is a service with a method of each kind, which returns what it is sent. Their names begin
// with /test.Echo/. What a method is asked for beyond that comes in metadata:
//
//	header, trailer   to be sent; "late" in header sends it with SendHeader
//	fail-bin          a status message, with a detail
//	wait              tell began, wait for the end of the context, and tell ended
type echo struct {
	began chan struct{}
	ended chan error
}

func newEchoService() *echo {
	return &echo{began: make(chan struct{}, 10), ended: make(chan error, 10)}
}

func (e *echo) register(s grpc.ServiceRegistrar) {
	stream := func(name string, up, down bool, h func(grpc.ServerStream) error) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, ClientStreams: up, ServerStreams: down,
			Handler: func(_ any, s grpc.ServerStream) error {
				if err := e.prepare(s.Context(), s.SetHeader, s.SendHeader, func(md metadata.MD) error { s.SetTrailer(md); return nil }); err != nil {
					return err
				}
				return h(s)
			}}
	}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil), Metadata: "test.proto",
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: e.unary}},
		Streams: []grpc.StreamDesc{
			stream("Up", true, false, e.up),
			stream("Down", false, true, e.down),
			stream("Both", true, true, e.both),
		},
	}, e)
}

func (e *echo) prepare(ctx context.Context, set, send, trailer func(metadata.MD) error) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md["trailer"]; len(v) > 0 {
		if err := trailer(metadata.Pairs("trailer", v[0], "trailer-bin", "\x00"+v[0])); err != nil {
			return err
		}
	}
	if v := md["header"]; len(v) > 0 {
		put := set
		if v[0] == "late" {
			put = send
		}
		if err := put(metadata.Pairs("header", v[0], "header-bin", "\xff"+v[0])); err != nil {
			return err
		}
	}
	if v := md["fail-bin"]; len(v) > 0 {
		st, err := status.New(codes.FailedPrecondition, v[0]).WithDetails(&healthpb.HealthCheckRequest{Service: v[0]})
		if err != nil {
			return err
		}
		return st.Err()
	}
	if len(md["wait"]) > 0 {
		e.began <- struct{}{}
		<-ctx.Done()
		e.ended <- ctx.Err()
		return ctx.Err()
	}
	return nil
}

func (e *echo) unary(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	in := new(wrapperspb.BytesValue)
	if err := decode(in); err != nil {
		return nil, err
	}
	h := func(ctx context.Context, r any) (any, error) {
		err := e.prepare(ctx,
			func(md metadata.MD) error { return grpc.SetHeader(ctx, md) },
			func(md metadata.MD) error { return grpc.SendHeader(ctx, md) },
			func(md metadata.MD) error { return grpc.SetTrailer(ctx, md) })
		if name, ok := grpc.Method(ctx); !ok || name != "/test.Echo/Unary" {
			return nil, fmt.Errorf("the method is %q", name)
		}
		return r, err
	}
	if interceptor == nil {
		return h(ctx, in)
	}
	return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: e, FullMethod: "/test.Echo/Unary"}, h)
}

func (e *echo) up(s grpc.ServerStream) error {
	var all []byte
	for {
		in := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
			return s.SendMsg(wrapperspb.Bytes(all))
		} else if err != nil {
			return err
		}
		all = append(all, in.Value...)
	}
}

// down sends the request a piece at a time.
func (e *echo) down(s grpc.ServerStream) error {
	in := new(wrapperspb.BytesValue)
	if err := s.RecvMsg(in); err != nil {
		return err
	}
	for piece := range slices.Chunk(in.Value, max(1, len(in.Value)/10)) {
		if err := s.SendMsg(wrapperspb.Bytes(piece)); err != nil {
			return err
		}
	}
	return nil
}

func (e *echo) both(s grpc.ServerStream) error {
	for {
		in := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(in); err != nil {
			return err
		}
	}
}

// echoClient calls a server of echo.
type echoClient struct {
	*grpc.ClientConn
	t       *testing.T
	service *echo
}

func newEcho(t *testing.T, o Options, dial ...grpc.DialOption) *echoClient {
	t.Helper()
	f := newFixture(t, o)
	e := newEchoService()
	e.register(f.Server)
	addr := f.listen(t, Listener{})
	cc, err := grpc.NewClient(addr, append(dial, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return &echoClient{cc, t, e}
}

// kinds are the ways in which a client sends bytes and gets them back, by method.
var kinds = map[string]func(ctx context.Context, cc grpc.ClientConnInterface, body []byte, opts ...grpc.CallOption) ([]byte, error){
	"Unary": func(ctx context.Context, cc grpc.ClientConnInterface, body []byte, opts ...grpc.CallOption) ([]byte, error) {
		out := new(wrapperspb.BytesValue)
		err := cc.Invoke(ctx, "/test.Echo/Unary", wrapperspb.Bytes(body), out, opts...)
		return out.Value, err
	},
	"Up": func(ctx context.Context, cc grpc.ClientConnInterface, body []byte, opts ...grpc.CallOption) ([]byte, error) {
		return exchange3(ctx, cc, "Up", body, 10, opts...)
	},
	"Down": func(ctx context.Context, cc grpc.ClientConnInterface, body []byte, opts ...grpc.CallOption) ([]byte, error) {
		return exchange3(ctx, cc, "Down", body, 1, opts...)
	},
	"Both": func(ctx context.Context, cc grpc.ClientConnInterface, body []byte, opts ...grpc.CallOption) ([]byte, error) {
		return exchange3(ctx, cc, "Both", body, 10, opts...)
	},
}

// exchange3 sends body in parts on a stream, and returns what comes.
func exchange3(ctx context.Context, cc grpc.ClientConnInterface, method string, body []byte, parts int, opts ...grpc.CallOption) ([]byte, error) {
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/"+method, opts...)
	if err != nil {
		return nil, err
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		for part := range slices.Chunk(body, max(1, (len(body)+parts-1)/max(1, parts))) {
			if s.SendMsg(wrapperspb.Bytes(part)) != nil {
				return // RecvMsg says why
			}
		}
		_ = s.CloseSend()
	})
	var all []byte
	for {
		out := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(out); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return all, err
		}
		all = append(all, out.Value...)
	}
}

func TestKinds(t *testing.T) { onEach(t, testKinds) }

func testKinds(t *testing.T, transport Transport) {
	var seen traffic
	c := newEcho(t, Options{Transport: transport, Traffic: &seen})
	var all sync.WaitGroup
	defer all.Wait()
	for name, call := range kinds {
		for _, size := range []int{1, 100, 16 << 10, 300 << 10, 3 << 20} {
			for _, compressor := range []string{"", gzip.Name} {
				all.Go(func() {
					body := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
					var opts []grpc.CallOption
					if compressor != "" {
						opts = append(opts, grpc.UseCompressor(compressor))
					}
					got, err := call(t.Context(), c, body, opts...)
					if err != nil || !bytes.Equal(got, body) {
						t.Errorf("%s, %d bytes, compression %q: %d bytes came back, %v", name, size, compressor, len(got), err)
					}
				})
			}
		}
	}
	all.Wait()
	if r, s := seen.received.Load(), seen.sent.Load(); r < 8*3<<20 || s < 8*3<<20 {
		t.Errorf("received %d bytes, and sent %d", r, s)
	}
}

func TestMetadata(t *testing.T) { onEach(t, testMetadata) }

func testMetadata(t *testing.T, transport Transport) {
	c := newEcho(t, Options{Transport: transport})
	for name, call := range kinds {
		for _, when := range []string{"early", "late"} {
			for _, fail := range []bool{false, true} {
				ctx := metadata.AppendToOutgoingContext(t.Context(), "header", when, "trailer", "t")
				if fail {
					ctx = metadata.AppendToOutgoingContext(ctx, "fail-bin", "100%: ü\nno")
				}
				var header, trailer metadata.MD
				_, err := call(ctx, c, []byte("abc"), grpc.Header(&header), grpc.Trailer(&trailer))
				what := fmt.Sprintf("%s, %s, fails: %t", name, when, fail)
				if fail {
					st := status.Convert(err)
					if st.Code() != codes.FailedPrecondition || st.Message() != "100%: ü\nno" || len(st.Details()) != 1 ||
						st.Details()[0].(*healthpb.HealthCheckRequest).GetService() != st.Message() {
						t.Errorf("%s: %v with %v", what, err, st.Details())
					}
				} else if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if got := fmt.Sprintf("%q", []any{header["header"], header["header-bin"], header["content-type"]}); got != fmt.Sprintf(`[[%q] [%q] ["application/grpc"]]`, when, "\xff"+when) {
					t.Errorf("%s: header %v", what, header)
				}
				if got := fmt.Sprintf("%q", []any{trailer["trailer"], trailer["trailer-bin"]}); got != `[["t"] ["\x00t"]]` {
					t.Errorf("%s: trailer %v", what, trailer)
				}
			}
		}
	}
}

func TestCancellation(t *testing.T) { onEach(t, testCancellation) }

func testCancellation(t *testing.T, transport Transport) {
	c := newEcho(t, Options{Transport: transport})
	for name, call := range kinds {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "wait", "y"), 30*time.Millisecond)
		_, err := call(ctx, c, []byte("abc"))
		cancel()
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s: the client got %v", name, err)
		}
		if err := <-c.service.ended; err == nil {
			t.Errorf("%s: the handler's context has not ended", name)
		}
		<-c.service.began
		ctx, cancel = context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "wait", "y"))
		go func() { // ends when the handler has begun
			<-c.service.began
			cancel()
		}()
		if _, err := call(ctx, c, []byte("abc")); status.Code(err) != codes.Canceled {
			t.Errorf("%s: the client got %v", name, err)
		}
		if err := <-c.service.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: the handler got %v", name, err)
		}
	}
}

// The end of a connection ends the contexts of its calls.
func TestDisconnection(t *testing.T) { onEach(t, testDisconnection) }

func testDisconnection(t *testing.T, transport Transport) {
	c := newEcho(t, Options{Transport: transport})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "wait", "y", "header", "late")
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/test.Echo/Both")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Header(); err != nil { // it has begun
		t.Fatal(err)
	}
	c.Close()
	if err := <-c.service.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the handler got %v", err)
	}
}

func TestMessageSizes(t *testing.T) { onEach(t, testMessageSizes) }

func testMessageSizes(t *testing.T, transport Transport) {
	const fits, tooLarge = 95, 105 // with three bytes of encoding
	receive := newEcho(t, Options{Transport: transport, MaxRecvBytes: 100})
	send := newEcho(t, Options{Transport: transport, MaxSendBytes: 100})
	for name, call := range kinds {
		if name == "Both" || name == "Up" {
			continue // they send in parts
		}
		for _, c := range []*echoClient{receive, send} {
			if _, err := call(t.Context(), c, make([]byte, fits)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		_, err := call(t.Context(), receive, make([]byte, tooLarge))
		if st := status.Convert(err); st.Code() != codes.ResourceExhausted || st.Message() != "grpc: received message larger than max (107 vs. 100)" {
			t.Errorf("%s, too large a request: %v", name, err)
		}
		_, err = call(t.Context(), receive, make([]byte, 1000), grpc.UseCompressor(gzip.Name))
		if st := status.Convert(err); st.Code() != codes.ResourceExhausted || st.Message() != "grpc: received message after decompression larger than max 100" {
			t.Errorf("%s, too large a request after decompression: %v", name, err)
		}
	}
	for name, want := range map[string]string{
		"Unary": "grpc: trying to send message larger than max (107 vs. 100)",
		"Up":    "trying to send message larger than max (107 vs. 100)",
	} {
		_, err := kinds[name](t.Context(), send, make([]byte, tooLarge))
		if st := status.Convert(err); st.Code() != codes.ResourceExhausted || st.Message() != want {
			t.Errorf("%s, too large an answer: %v", name, err)
		}
	}
}

func TestCardinality(t *testing.T) { onEach(t, testCardinality) }

func testCardinality(t *testing.T, transport Transport) {
	c := newEcho(t, Options{Transport: transport})
	for parts, want := range map[int]string{
		0: "cardinality violation: received no request message from non-client-streaming RPC",
		2: "cardinality violation: received multiple request messages for non-client-streaming RPC",
	} {
		_, err := exchange3(t.Context(), c, "Down", make([]byte, parts), parts)
		if st := status.Convert(err); st.Code() != codes.Internal || st.Message() != want {
			t.Errorf("%d requests: %v", parts, err)
		}
	}
	_, err := exchange3(t.Context(), c, "Unary", nil, 1)
	if st := status.Convert(err); st.Code() != codes.Unknown || st.Message() != "EOF" {
		t.Errorf("no request of a unary method: %v", err)
	}
}

func TestUnknownMethods(t *testing.T) { onEach(t, testUnknownMethods) }

func testUnknownMethods(t *testing.T, transport Transport) {
	c := newEcho(t, Options{Transport: transport})
	for method, want := range map[string]string{
		"/test.Echo/Other": "unknown method Other for service test.Echo",
		"/other/Unary":     "unknown service other",
		"/a/b/c":           "unknown service a/b",
		"/Unary":           `malformed method name: "/Unary"`,
	} {
		err := c.Invoke(t.Context(), method, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		if st := status.Convert(err); st.Code() != codes.Unimplemented || st.Message() != want {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestInterceptors(t *testing.T) { onEach(t, testInterceptors) }

func testInterceptors(t *testing.T, transport Transport) {
	var mu sync.Mutex
	var seen []string
	saw := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, what)
	}
	c := newEcho(t, Options{
		Transport: transport,
		UnaryInterceptor: func(ctx context.Context, r any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			saw(info.FullMethod)
			return h(ctx, r)
		},
		StreamInterceptor: func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			saw(fmt.Sprintf("%s %t %t", info.FullMethod, info.IsClientStream, info.IsServerStream))
			return h(srv, s)
		},
	})
	for _, call := range kinds {
		if _, err := call(t.Context(), c, []byte("abc")); err != nil {
			t.Error(err)
		}
	}
	slices.Sort(seen)
	if got := strings.Join(seen, ", "); got != "/test.Echo/Both true true, /test.Echo/Down false true, /test.Echo/Unary, /test.Echo/Up true false" {
		t.Errorf("seen %s", got)
	}
}

// What is sent and cannot be understood.
func TestUndecodable(t *testing.T) { onEach(t, testUndecodable) }

func testUndecodable(t *testing.T, transport Transport) {
	c := newEcho(t, Options{Transport: transport})
	for method, want := range map[string]string{
		"Unary": "grpc: error unmarshalling request: ",
		"Up":    "grpc: failed to unmarshal the received message: ",
	} {
		s, err := c.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/test.Echo/"+method)
		if err != nil {
			t.Fatal(err)
		}
		// Field 1 is a string of 5 bytes, of which none comes.
		if err := s.SendMsg(&wrapperspb.UInt64Value{Value: 5}); err != nil {
			t.Fatal(err)
		}
		_ = s.CloseSend()
		// A varint where bytes are expected is an unknown field, so send what is cut instead.
		if err := s.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			t.Errorf("%s: an unknown field: %v", method, err)
		}
		out := new(wrapperspb.BytesValue)
		err = c.Invoke(t.Context(), "/test.Echo/"+method, rawMessage{[]byte{0x0a, 5}}, out, grpc.ForceCodec(rawCodec{}))
		if st := status.Convert(err); st.Code() != codes.Internal || !strings.HasPrefix(st.Message(), want) {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return v.(rawMessage).bytes, nil }
func (rawCodec) Unmarshal(data []byte, v any) error { return proto.Unmarshal(data, v.(proto.Message)) }
func (rawCodec) Name() string                       { return "proto" }

func TestReflection(t *testing.T) { onEach(t, testReflection) }

func testReflection(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	reflection.Register(f.Server)
	f.Start()
	cc, err := f.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := reflectionpb.NewServerReflectionClient(cc).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range resp.GetListServicesResponse().GetService() {
		names = append(names, s.Name)
	}
	if !slices.Contains(names, healthpb.Health_ServiceDesc.ServiceName) {
		t.Errorf("the services are %v", names)
	}
}

func TestHandlerCompression(t *testing.T) { onEach(t, testHandlerCompression) }

func testHandlerCompression(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	f.HandleUnary(checkMethod, func(c *Call) { c.Reply(serving) })
	c := dial(t, f.listen(t, Listener{}), insecure.NewCredentials())
	var header metadata.MD
	resp, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "a"}, grpc.UseCompressor(gzip.Name), grpc.Header(&header))
	if err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v", resp, err)
	}
}

// A Handler whose client has stopped waiting.
func TestHandlerDeadline(t *testing.T) { onEach(t, testHandlerDeadline) }

func testHandlerDeadline(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	calls := make(chan *Call, 2)
	f.HandleUnary(checkMethod, func(c *Call) { calls <- c })
	c := dial(t, f.listen(t, Listener{}), insecure.NewCredentials())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Check(ctx, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	(<-calls).Reply(serving) // goes nowhere
	go func() { (<-calls).Reply(serving) }()
	mustCheck(t, c)
}

// Raw requests are refused alike, whatever is wrong with them.
func TestRefusals(t *testing.T) {
	type answer struct {
		code            int
		status, message string
	}
	tests := []struct {
		name   string
		change func(*http.Request)
		want   answer
	}{
		{"nothing wrong", func(*http.Request) {}, answer{200, "0", ""}},
		{"content type with a subtype", func(r *http.Request) { r.Header.Set("Content-Type", "application/grpc+proto") }, answer{200, "0", ""}},
		{"method", func(r *http.Request) { r.Method = "PUT" },
			answer{405, "13", `Received a HEADERS frame with :method "PUT" which should be POST`}},
		{"timeout", func(r *http.Request) { r.Header.Set("Grpc-Timeout", "soox") },
			answer{400, "13", `malformed grpc-timeout: transport: timeout unit is not recognized: "soox"`}},
		{"no time", func(r *http.Request) { r.Header.Set("Grpc-Timeout", "0n") }, answer{200, "4", "context deadline exceeded"}},
		{"metadata", func(r *http.Request) { r.Header.Set("X-Bin", "?") },
			answer{400, "13", `malformed binary metadata "?" in header "x-bin": illegal base64 data at input byte 0`}},
		{"encoding", func(r *http.Request) { r.Header.Set("Grpc-Encoding", "zip") },
			answer{200, "12", `grpc: Decompressor is not installed for grpc-encoding "zip"`}},
		{"identity", func(r *http.Request) { r.Header.Set("Grpc-Encoding", "identity") }, answer{200, "0", ""}},
		{"compressed without encoding", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("\x01\x00\x00\x00\x00")) },
			answer{200, "13", "grpc: compressed flag set with identity or empty encoding"}},
		{"unknown format", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("\x02\x00\x00\x00\x00")) },
			answer{200, "13", "grpc: received unexpected payload format 2"}},
		{"cut prefix", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("\x00\x00")) }, answer{200, "2", "EOF"}},
		{"cut message", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("\x00\x00\x00\x00\x05abc")) }, answer{200, "2", "unexpected EOF"}},
		{"bytes after the message", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("\x00\x00\x00\x00\x00more")) }, answer{200, "0", ""}},
	}
	onEach(t, func(t *testing.T, transport Transport) {
		f := newFixture(t, Options{Transport: transport})
		(&echo{}).register(f.Server)
		addr := f.listen(t, Listener{})
		h := &http.Transport{Protocols: new(http.Protocols)}
		h.Protocols.SetUnencryptedHTTP2(true)
		defer h.CloseIdleConnections()
		for _, tt := range tests {
			r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr+"/test.Echo/Unary", io.NopCloser(strings.NewReader("\x00\x00\x00\x00\x00")))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/grpc")
			tt.change(r)
			resp, err := h.RoundTrip(r)
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			_, _ = io.Copy(io.Discard, resp.Body) // up to the trailer
			resp.Body.Close()
			field := func(name string) string { return resp.Header.Get(name) + resp.Trailer.Get(name) }
			message := field("Grpc-Message")
			if got := (answer{resp.StatusCode, field("Grpc-Status"), message}); got != tt.want {
				t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
			}
			if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, "application/grpc") {
				t.Errorf("%s: content type %q", tt.name, got)
			}
		}
	})
}
