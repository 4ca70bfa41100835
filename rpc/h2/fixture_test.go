package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	testHead    = []Field{{Name: ":status", Value: "200"}, Frequent(1, "kind", "test")}
	testTrailer = []Field{Frequent(2, "end", "0")}
	testExpired = []Field{{Name: "end", Value: "expired"}}
)

// testHandler answers by path:
//
//	/whole    the collected body, at once
//	/later    likewise, when a test calls one of later
//	/flow     the body, after reading it to its end
//	/hold     nothing, until the stream ends; then it sends why to ended
//	/refuse   404 at once
type testHandler struct {
	later chan *Stream
	ended chan error

	mu     sync.Mutex
	bodies map[*Stream][]byte // of /later
}

func (h *testHandler) Request(s *Stream) Body {
	if d, err := time.ParseDuration(s.Varying()); err == nil {
		s.SetDeadline(time.Now().Add(d))
	}
	switch s.Header().Path {
	case "/whole", "/later":
		return Collect
	case "/flow":
		s.Hold()
		go h.flow(s)
		return Flow
	case "/hold":
		s.Hold()
		ended := make(chan error, 1)
		s.OnEnd(func(err error) { ended <- err })
		go func() {
			h.ended <- <-ended
			s.Release(false)
		}()
		return Flow
	}
	_ = s.Finish([]Field{{Name: ":status", Value: "404"}}, nil)
	return Discard
}

func (h *testHandler) flow(s *Stream) {
	defer s.Release(false)
	body, err := io.ReadAll(s)
	if err == nil {
		err = s.Send(testHead, Bytes(body))
	}
	if err == nil {
		_ = s.Finish(nil, testTrailer)
	}
}

func (h *testHandler) Whole(s *Stream, body []byte, whole bool) {
	switch {
	case !whole:
		_ = s.Finish([]Field{{Name: ":status", Value: "413"}}, nil)
		s.Release(true)
	case s.Header().Path == "/later":
		h.mu.Lock()
		h.bodies[s] = append([]byte(nil), body...)
		h.mu.Unlock()
		h.later <- s
	default:
		h.answer(s, body)
	}
}

func (h *testHandler) answer(s *Stream, body []byte) {
	if err := s.AnswerAndRelease(testHead, Bytes(body), testTrailer, false, true); err != nil {
		panic(err) // Bytes does not fail
	}
}

// answerLater answers a stream that came from later.
func (h *testHandler) answerLater(s *Stream) {
	h.mu.Lock()
	body := h.bodies[s]
	delete(h.bodies, s)
	h.mu.Unlock()
	h.answer(s, body)
}

func testConfig(h Handler) Config {
	return Config{
		Handler: h, MaxHeaderBytes: 16 << 10, MaxBodyBytes: 1 << 20, MaxStreams: 1<<32 - 1,
		MaxHeldBytes: 4 << 20, MaxUnsentBytes: 4 << 20, MaxAbandoned: 8,
		StreamWindow: 128 << 10, ConnWindow: 1 << 20,
		HandshakeTimeout: 10 * time.Second, PingMinTime: time.Minute,
		KeepaliveInterval: time.Hour, KeepaliveTimeout: 20 * time.Second,
		Varying: "timeout", ExpiredHead: testHead, ExpiredTrailer: testExpired,
	}
}

// fixture is a server and the outcomes of its connections.
type fixture struct {
	*Server
	handler *testHandler
	conns   sync.WaitGroup
}

func newFixture(t testing.TB, change func(*Config)) *fixture {
	h := &testHandler{later: make(chan *Stream, 1000), ended: make(chan error, 1000), bodies: map[*Stream][]byte{}}
	cfg := testConfig(h)
	if change != nil {
		change(&cfg)
	}
	f := &fixture{Server: NewServer(cfg), handler: h}
	t.Cleanup(f.stop)
	return f
}

func (f *fixture) stop() {
	f.Close()
	f.conns.Wait()
}

// client is a peer that sends what it likes.
type client struct {
	t  testing.TB
	nc net.Conn
	*http2.Framer
	encoder *hpack.Encoder
	block   bytes.Buffer
	failed  chan error // what ServeConn returned
	lastID  uint32
}

// id returns that of a new stream.
func (c *client) id() uint32 {
	c.lastID = max(1, c.lastID+2)
	if c.lastID%2 == 0 {
		c.lastID--
	}
	return c.lastID
}

// any is how events of the last stream begin.
func (c *client) any() string { return fmt.Sprintf("%d: ", c.lastID) }

// dial connects by a socket, and does the handshake.
func (f *fixture) dial(t testing.TB) *client {
	t.Helper()
	c := f.headed(t, nil)
	c.handshake()
	return c
}

// pipe connects without a socket.
func (f *fixture) pipe(t testing.TB) *client {
	t.Helper()
	nc, server := net.Pipe()
	c := f.connect(t, nc, server, ConnOptions{})
	c.handshake()
	return c
}

func (f *fixture) connect(t testing.TB, nc, server net.Conn, o ConnOptions) *client {
	c := &client{t: t, nc: nc, Framer: http2.NewFramer(nc, nc), failed: make(chan error, 1)}
	c.encoder = hpack.NewEncoder(&c.block)
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.AllowIllegalWrites = true
	f.conns.Go(func() { c.failed <- f.ServeConn(server, o) })
	t.Cleanup(func() { nc.Close() })
	return c
}

func (c *client) handshake() {
	c.t.Helper()
	c.expectSettings()
	c.write([]byte(Preface))
	c.must(c.WriteSettings())
}

func (c *client) expectSettings() {
	c.t.Helper()
	f, err := c.ReadFrame()
	if err != nil {
		c.t.Fatal(err)
	}
	if _, ok := f.(*http2.SettingsFrame); !ok {
		c.t.Fatalf("the server begins with %v", f)
	}
}

func (c *client) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) write(b []byte) {
	c.t.Helper()
	_, err := c.nc.Write(b)
	c.must(err)
}

// encode returns a header block.
func (c *client) encode(fields ...string) []byte {
	c.block.Reset()
	for _, f := range fields {
		name, value, _ := strings.Cut(f[1:], ":")
		c.must(c.encoder.WriteField(hpack.HeaderField{Name: f[:1] + name, Value: strings.TrimPrefix(value, " ")}))
	}
	return append([]byte(nil), c.block.Bytes()...)
}

// request returns a block for a path, with further fields.
func (c *client) request(path string, more ...string) []byte {
	return c.encode(append([]string{":method: POST", ":scheme: http", ":path: " + path, ":authority: x"}, more...)...)
}

// open sends the header of a request.
func (c *client) open(id uint32, path string, end bool, more ...string) {
	c.t.Helper()
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.request(path, more...), EndStream: end, EndHeaders: true}))
}

// call sends a whole request.
func (c *client) call(id uint32, path, body string, more ...string) {
	c.t.Helper()
	c.open(id, path, false, more...)
	for len(body) > maxFrame {
		c.must(c.WriteData(id, false, []byte(body[:maxFrame])))
		body = body[maxFrame:]
	}
	c.must(c.WriteData(id, true, []byte(body)))
}

// next returns the next event, as text: an answer's header, body and trailer as they come, resets,
// GOAWAY, and the end of the connection. It answers pings and settings and leaves them out.
func (c *client) next() string {
	c.t.Helper()
	for {
		f, err := c.ReadFrame()
		if err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				c.t.Fatal("the server says nothing")
			}
			return "closed"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			var b strings.Builder
			fmt.Fprintf(&b, "%d:", f.StreamID)
			for _, field := range f.Fields {
				fmt.Fprintf(&b, " %s=%s", strings.TrimPrefix(field.Name, ":"), field.Value)
			}
			if f.StreamEnded() {
				b.WriteString(" end")
			}
			return b.String()
		case *http2.DataFrame:
			end := ""
			if f.StreamEnded() {
				end = " end"
			}
			body := string(f.Data())
			if len(body) > 40 {
				body = fmt.Sprintf("%d bytes", len(body))
			}
			return fmt.Sprintf("%d: %q%s", f.StreamID, body, end)
		case *http2.RSTStreamFrame:
			return fmt.Sprintf("%d: reset %v", f.StreamID, f.ErrCode)
		case *http2.GoAwayFrame:
			return fmt.Sprintf("GOAWAY %d %v %s", f.LastStreamID, f.ErrCode, f.DebugData())
		case *http2.PingFrame:
			if !f.IsAck() {
				c.must(c.WritePing(true, f.Data))
			}
		}
	}
}

// expect compares what comes next.
func (c *client) expect(want ...string) {
	c.t.Helper()
	for i, w := range want {
		if got := c.next(); got != w {
			c.t.Fatalf("event %d is %q, want %q", i, got, w)
		}
	}
}

// expectAnswer expects an answer with a body.
func (c *client) expectAnswer(id uint32, body string) {
	c.t.Helper()
	if len(body) > 40 {
		body = fmt.Sprintf("%d bytes", len(body))
	}
	c.expect(fmt.Sprintf("%d: status=200 kind=test", id))
	if body != "" {
		c.expect(fmt.Sprintf("%d: %q", id, body))
	}
	c.expect(fmt.Sprintf("%d: end=0 end", id))
}

// headed connects by a socket from which head has been read already.
func (f *fixture) headed(t testing.TB, head []byte) *client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return f.connect(t, nc, server, ConnOptions{Socket: server.(syscall.Conn), Head: head})
}
