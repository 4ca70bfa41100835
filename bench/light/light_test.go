package light

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plain is a codec for messages that are bytes.
type plain struct{}

func (plain) Name() string { return "plain" }
func (plain) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}
func (plain) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = plain{}

// echo answers each request with itself, and methods called /fail/<code> with that code and the request as its message.
func echo(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	for {
		var b []byte
		if err := stream.RecvMsg(&b); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if strings.HasPrefix(method, "/fail/") {
			var code codes.Code
			if err := code.UnmarshalJSON([]byte(`"` + strings.TrimPrefix(method, "/fail/") + `"`)); err != nil {
				return err
			}
			return status.Error(code, string(b))
		}
		if md, _ := metadata.FromIncomingContext(stream.Context()); method == "/echo/Token" {
			b = []byte(strings.Join(md.Get("token"), ","))
		}
		if err := stream.SendMsg(&b); err != nil {
			return err
		}
	}
}

// serve starts a grpc-go server and returns its address.
func serve(t *testing.T, o ...grpc.ServerOption) (*grpc.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(o, grpc.UnknownServiceHandler(echo), grpc.ForceServerCodecV2(plain{}), grpc.MaxRecvMsgSize(64<<20))...)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }() // ended and awaited by the cleanup
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

func dial(t *testing.T, address string, o Options) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), address, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// invoke makes a unary call and waits for it.
func invoke(t *testing.T, c *Conn, method string, request []byte) (answer []byte, err error) {
	t.Helper()
	ended := make(chan error, 1)
	call := &Call{Method: method, Message: func(b []byte) { answer = bytes.Clone(b) }, End: func(err error) { ended <- err }}
	if err := c.Begin(call, request); err != nil {
		return nil, err
	}
	err = <-ended
	return answer, err
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 / 3)
	}
	return b
}

func TestUnaryCallsOfAllSizes(t *testing.T) {
	for name, o := range map[string][]grpc.ServerOption{
		"growing windows": nil,
		"fixed windows":   {grpc.StaticStreamWindowSize(64 << 10), grpc.StaticConnWindowSize(64 << 10)},
		"small table":     {grpc.HeaderTableSize(64)},
		"no table":        {grpc.HeaderTableSize(0)},
	} {
		t.Run(name, func(t *testing.T) {
			_, address := serve(t, o...)
			c := dial(t, address, Options{})
			for _, size := range []int{0, 1, 256, 16379, 16380, 65530, 200_000, 5 << 20} {
				for range 2 {
					answer, err := invoke(t, c, "/echo/Echo", content(size))
					if err != nil || !bytes.Equal(answer, content(size)) {
						t.Fatalf("%d bytes: %d came back, %v", size, len(answer), err)
					}
				}
			}
		})
	}
}

func TestStatuses(t *testing.T) {
	_, address := serve(t)
	c := dial(t, address, Options{})
	for range 3 { // from what is remembered, too
		for _, method := range []string{"NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE"} {
			for _, message := range []string{"etcdserver: no such thing", "100 % größer\n", ""} {
				var want codes.Code
				_ = want.UnmarshalJSON([]byte(`"` + method + `"`))
				if _, err := invoke(t, c, "/fail/"+method, []byte(message)); status.Code(err) != want || status.Convert(err).Message() != message {
					t.Errorf("%s %q: %v", method, message, err)
				}
			}
		}
		if answer, err := invoke(t, c, "/echo/Echo", []byte("fine")); err != nil || string(answer) != "fine" {
			t.Errorf("after failures: %q %v", answer, err)
		}
	}
	if len(c.answers.known) == 0 || len(c.answers.known) > maxKnown {
		t.Errorf("%d header blocks are remembered", len(c.answers.known))
	}
	if len(c.requests.known) == 0 {
		t.Error("no header block of requests is remembered")
	}
}

func TestManyCallsAtOnce(t *testing.T) {
	for _, streams := range []uint32{1, 7, 10_000} {
		t.Run(fmt.Sprint(streams), func(t *testing.T) {
			_, address := serve(t, grpc.MaxConcurrentStreams(streams))
			c := dial(t, address, Options{})
			// Each of 50 calls is begun again, from where it ended, until it has been answered 20 times.
			var all sync.WaitGroup
			for i := range 50 {
				all.Add(1)
				left, want := 20, ""
				call := &Call{Method: fmt.Sprintf("/echo/%d", i%3)}
				begin := func() {
					want = fmt.Sprintf("%d of %d", left, i)
					if err := c.Begin(call, []byte(want)); err != nil {
						t.Error(err)
						all.Done()
					}
				}
				call.Message = func(b []byte) {
					if string(b) != want {
						t.Errorf("%q instead of %q", b, want)
					}
				}
				call.End = func(err error) {
					if left--; err != nil || left == 0 {
						if err != nil {
							t.Error(err)
						}
						all.Done()
						return
					}
					begin()
				}
				begin()
			}
			all.Wait()
		})
	}
}

func TestStreams(t *testing.T) {
	_, address := serve(t)
	c := dial(t, address, Options{})
	got, ended := make(chan string, 1000), make(chan error, 1)
	call := &Call{Method: "/echo/Echo", Streaming: true, Message: func(b []byte) { got <- string(b) }, End: func(err error) { ended <- err }}
	if err := c.Begin(call, []byte("0")); err != nil {
		t.Fatal(err)
	}
	big := string(content(300_000))
	for i := 1; i < 300; i++ {
		c.Send(call, fmt.Append(nil, i))
	}
	c.Send(call, []byte(big))
	for i := range 300 {
		if s := <-got; s != fmt.Sprint(i) {
			t.Fatalf("answer %d is %.10q", i, s)
		}
	}
	if s := <-got; s != big {
		t.Errorf("%d bytes of %d came back", len(s), len(big))
	}
	c.Close()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("after Close: %v", err)
	}
	c.Send(call, []byte("nobody hears this"))
	if err := c.Begin(call, nil); status.Code(err) != codes.Canceled {
		t.Errorf("a call after Close: %v", err)
	}
}

func TestMetadata(t *testing.T) {
	_, address := serve(t)
	c := dial(t, address, Options{Metadata: map[string]string{"token": "abc"}})
	for range 3 {
		if answer, err := invoke(t, c, "/echo/Token", nil); err != nil || string(answer) != "abc" {
			t.Errorf("%q %v", answer, err)
		}
	}
}

func TestServerThatLeaves(t *testing.T) {
	s, address := serve(t)
	c := dial(t, address, Options{})
	got, ended := make(chan string, 10), make(chan error, 1)
	call := &Call{Method: "/echo/Echo", Streaming: true, Message: func(b []byte) { got <- string(b) }, End: func(err error) { ended <- err }}
	if err := c.Begin(call, []byte("one")); err != nil {
		t.Fatal(err)
	}
	<-got
	stopped := make(chan struct{})
	go func() { // ends when the call does
		s.GracefulStop()
		close(stopped)
	}()
	var err error
	for err == nil { // until the server's announcement has come
		_, err = invoke(t, c, "/echo/Echo", nil)
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a further call: %v", err)
	}
	c.Send(call, []byte("two"))
	if s := <-got; s != "two" {
		t.Errorf("the call under way: %q", s)
	}
	c.Close()
	<-ended
	<-stopped
}

func TestServerThatDies(t *testing.T) {
	s, address := serve(t)
	c := dial(t, address, Options{})
	got, ended := make(chan string, 1), make(chan error, 1)
	call := &Call{Method: "/echo/Echo", Streaming: true, Message: func(b []byte) { got <- string(b) }, End: func(err error) { ended <- err }}
	if err := c.Begin(call, []byte("one")); err != nil {
		t.Fatal(err)
	}
	<-got
	s.Stop()
	if err := <-ended; status.Code(err) != codes.Unavailable {
		t.Errorf("the call under way: %v", err)
	}
	if _, err := Dial(t.Context(), address, Options{}); err == nil {
		t.Error("connected to a server that is not there")
	}
}

func TestTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil) // for its certificate
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.StartTLS()
	defer web.Close()
	_, address := serve(t, grpc.Creds(credentials.NewServerTLSFromCert(&web.TLS.Certificates[0])))
	trusting := web.Client().Transport.(*http.Transport).TLSClientConfig
	c := dial(t, address, Options{TLS: trusting})
	for _, size := range []int{10, 300_000} {
		if answer, err := invoke(t, c, "/echo/Echo", content(size)); err != nil || !bytes.Equal(answer, content(size)) {
			t.Errorf("%d bytes came back, %v", len(answer), err)
		}
	}
	if _, err := Dial(t.Context(), address, Options{TLS: &tls.Config{}}); err == nil || !strings.Contains(err.Error(), "securing the connection") {
		t.Errorf("an unknown certificate: %v", err)
	}
	if _, err := Dial(t.Context(), web.Listener.Addr().String(), Options{TLS: trusting}); err == nil || !strings.Contains(err.Error(), "securing the connection") {
		t.Errorf("a server without HTTP/2: %v", err)
	}
}

func TestOtherServersAreRefused(t *testing.T) {
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/is/missing" {
			w.WriteHeader(404)
		}
		fmt.Fprint(w, "hello")
	}))
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	web.Start()
	defer web.Close()
	c := dial(t, web.Listener.Addr().String(), Options{})
	for method, want := range map[string]string{"/is/missing": "404", "/is/there": "text/plain"} {
		if _, err := invoke(t, c, method, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", method, err)
		}
	}
	c.Close() // before the server, which waits for it
}

func TestDialEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := Dial(ctx, "127.0.0.1:1", Options{}); err == nil {
		t.Error("no error")
	}
}

func TestServerThatSaysNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, l.Addr().String(), Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
