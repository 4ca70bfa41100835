package rpc

import (
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// sizes are messages of as many bytes, the first of which says which it is.
// One of a negative size cannot be encoded.
type sizes []int

func (s sizes) Len() int { return len(s) }

func (s sizes) AppendMessage(dst []byte, i int) ([]byte, error) {
	if s[i] < 0 {
		return nil, errors.New("no such message")
	}
	b := make([]byte, s[i])
	if len(b) > 0 {
		b[0] = byte(i)
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, wrapperspb.Bytes(b))
}

// counted is Traffic that counts what is sent.
type counted struct{ atomic.Int64 }

func (c *counted) Sent(n int)   { c.Add(int64(n)) }
func (c *counted) Received(int) {}

func TestMessages(t *testing.T) { onEach(t, testMessages) }

func testMessages(t *testing.T, transport Transport) {
	many := make(sizes, 500)
	for i := range many {
		many[i] = i % 300
	}
	for _, test := range []struct {
		name    string
		sizes   sizes
		arrive  int
		code    codes.Code
		options []grpc.CallOption
	}{
		{name: "none", arrive: 0},
		{name: "one, empty", sizes: sizes{0}, arrive: 1},
		{name: "many", sizes: many, arrive: len(many)},
		{name: "larger than a frame", sizes: sizes{10, frameBytes, 10, 5 * frameBytes, frameBytes - 10, 10, 0}, arrive: 7},
		{name: "compressed", sizes: sizes{10, 20, 10_000, 100_000}, arrive: 4, options: []grpc.CallOption{grpc.UseCompressor(gzip.Name)}},
		{name: "too large", sizes: sizes{10, 20, 1 << 20, 30}, arrive: 2, code: codes.ResourceExhausted},
		{name: "not to be encoded", sizes: sizes{10, -1, 30}, arrive: 1, code: codes.Internal},
		{name: "the first not to be encoded", sizes: sizes{-1, 30}, arrive: 0, code: codes.Internal},
	} {
		t.Run(test.name, func(t *testing.T) {
			var traffic counted
			s := NewServer(Options{Transport: transport, MaxSendBytes: 1 << 20, Traffic: &traffic})
			s.RegisterService(&grpc.ServiceDesc{
				ServiceName: "test", HandlerType: (*any)(nil),
				Streams: []grpc.StreamDesc{{StreamName: "Sizes", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
					return SendMessages(stream, test.sizes)
				}}},
			}, struct{}{})
			f := &fixture{Server: s}
			cc, err := grpc.NewClient(f.listen(t, Listener{}), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			stream, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/test/Sizes", test.options...)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(stream.SendMsg(&wrapperspb.BytesValue{}), stream.CloseSend()); err != nil {
				t.Fatal(err)
			}
			got, bytes := 0, 0
			for ; ; got++ {
				var m wrapperspb.BytesValue
				if err = stream.RecvMsg(&m); err != nil {
					break
				}
				if got >= len(test.sizes) || len(m.Value) != test.sizes[got] || len(m.Value) > 0 && m.Value[0] != byte(got) {
					t.Fatalf("message %d is of %d bytes", got, len(m.Value))
				}
				bytes += proto.Size(&m)
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			if got != test.arrive || status.Code(err) != test.code {
				t.Errorf("%d messages and %v, want %d and %v", got, err, test.arrive, test.code)
			}
			if b := int(traffic.Load()); test.code == codes.OK && b != bytes {
				t.Errorf("%d bytes were reported, of %d that came", b, bytes)
			}
		})
	}
}
