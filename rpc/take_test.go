package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echoTaken answers each message with itself behind "taken " or "received ". Those that begin
// with "no" are not taken; answers to "long" are long.
func echoTaken(_ any, stream grpc.ServerStream) error {
	answer := func(how, text string) error {
		if text == "long" {
			text += strings.Repeat(".", 1000)
		}
		return stream.SendMsg(wrapperspb.String(how + text))
	}
	for {
		TakeMessages(stream, func(message []byte) bool {
			var m wrapperspb.StringValue
			if proto.Unmarshal(message, &m) != nil || len(m.Value) >= 2 && m.Value[:2] == "no" {
				return false
			}
			_ = answer("taken ", m.Value) // receiving tells
			return true
		})
		var m wrapperspb.StringValue
		if err := stream.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if m.Value == "no more" {
			return status.Error(codes.OutOfRange, m.Value)
		}
		if err := answer("received ", m.Value); err != nil {
			return err
		}
	}
}

// newTaken returns a client, and opens a stream to echoTaken.
func newTaken(t *testing.T, transport Transport) func(context.Context) grpc.ClientStream {
	s := NewServer(Options{Transport: transport, MaxRecvBytes: 1 << 20})
	desc := grpc.StreamDesc{StreamName: "Echo", ServerStreams: true, ClientStreams: true, Handler: echoTaken}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{desc},
	}, struct{}{})
	f := &fixture{Server: s}
	cc, err := grpc.NewClient(f.listen(t, Listener{}), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(64<<10)) // and no larger one later
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return func(ctx context.Context) grpc.ClientStream {
		t.Helper()
		stream, err := cc.NewStream(ctx, &desc, "/test/Echo")
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
}

func send(t *testing.T, stream grpc.ClientStream, text string) {
	t.Helper()
	if err := stream.SendMsg(wrapperspb.String(text)); err != nil {
		t.Fatal(err)
	}
}

// receive returns the next answer, and whether it is to a message that was taken.
func receive(t *testing.T, stream grpc.ClientStream) (text string, taken bool) {
	t.Helper()
	var m wrapperspb.StringValue
	if err := stream.RecvMsg(&m); err != nil {
		t.Fatal(err)
	}
	if text, taken = strings.CutPrefix(m.Value, "taken "); !taken {
		text = strings.TrimPrefix(text, "received ")
	}
	return text, taken
}

// awaitTaking returns when a message has been taken, if the transport can do that. One that comes
// before the handler waits again is not.
func awaitTaking(t *testing.T, transport Transport, stream grpc.ClientStream) {
	t.Helper()
	for taken := transport != Coterie; !taken; {
		send(t, stream, "go on")
		_, taken = receive(t, stream)
	}
}

func TestTakeMessages(t *testing.T) { onEach(t, testTakeMessages) }

func testTakeMessages(t *testing.T, transport Transport) {
	stream := newTaken(t, transport)(t.Context())
	exchange := func(text string) (taken bool) {
		t.Helper()
		send(t, stream, text)
		got, taken := receive(t, stream)
		if got != text {
			t.Fatalf("%.20q was answered with %.20q", text, got)
		}
		if taken && (transport != Coterie || text[:2] == "no") {
			t.Fatalf("%.20q was taken", text)
		}
		return taken
	}
	awaitTaking(t, transport, stream)
	large := strings.Repeat("l", 200_000) // comes in parts
	for range 20 {
		for _, text := range []string{"yes", "not this", "yes again", large, "no", "yes", "yes"} {
			exchange(text)
		}
	}
	// All at once: the order stays.
	const n = 3000
	for i := range n {
		send(t, stream, []string{"yes ", "no "}[i/7%2]+fmt.Sprint(i))
	}
	for i := range n {
		if got, _ := receive(t, stream); got != []string{"yes ", "no "}[i/7%2]+fmt.Sprint(i) {
			t.Fatalf("answer %d is %q", i, got)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&wrapperspb.StringValue{}); !errors.Is(err, io.EOF) {
		t.Errorf("the end is %v", err)
	}
}

// A client that does not read makes its own stream wait and nothing else. What is sent for it is
// bounded: when that much is, its messages are not taken any more.
func TestTakeMessagesOfWhoDoesNotRead(t *testing.T) { onEach(t, testTakeMessagesOfWhoDoesNotRead) }

func testTakeMessagesOfWhoDoesNotRead(t *testing.T, transport Transport) {
	open := newTaken(t, transport)
	stream, other := open(t.Context()), open(t.Context())
	awaitTaking(t, transport, stream)
	const n = 2000 // answers are 2 MB
	for range n {
		send(t, stream, "long")
	}
	for range 10 {
		send(t, other, "yes")
		if got, _ := receive(t, other); got != "yes" {
			t.Fatalf("beside it: %q", got)
		}
	}
	all := 0
	for range n {
		got, taken := receive(t, stream)
		if len(got) != len("long")+1000 {
			t.Fatalf("an answer of %d bytes", len(got))
		}
		if taken {
			all++
		}
	}
	if all > n/2 {
		t.Errorf("%d of %d messages were taken", all, n)
	}
}

// A stream may end while its messages are being taken: from either side.
func TestTakeMessagesUntilTheEnd(t *testing.T) { onEach(t, testTakeMessagesUntilTheEnd) }

func testTakeMessagesUntilTheEnd(t *testing.T, transport Transport) {
	open := newTaken(t, transport)
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		stream := open(ctx)
		for range 20 {
			send(t, stream, "yes")
		}
		receive(t, stream)
		cancel()
	}
	stream := open(t.Context())
	send(t, stream, "yes")
	receive(t, stream)
	send(t, stream, "no more")
	if err := stream.RecvMsg(&wrapperspb.StringValue{}); status.Code(err) != codes.OutOfRange {
		t.Errorf("the end is %v", err)
	}
}
