package h2

import (
	"bytes"
	"io"
	"net"
	"testing"

	"golang.org/x/net/http2"
)

// afterHandler answers /after by After, where it may, when a test lets it.
type afterHandler struct {
	*testHandler
	refused chan struct{}     // After reported false
	away    chan (chan<- act) // the reader is away; it does what it is told
}

// act is what a reader does that is away.
type act int

const (
	beLate act = iota
	answer
)

func (h *afterHandler) Request(s *Stream) Body {
	if s.Header().Path == "/after" {
		return Collect
	}
	return h.testHandler.Request(s)
}

func (h *afterHandler) Whole(s *Stream, body []byte, whole bool) {
	if s.Header().Path != "/after" {
		h.testHandler.Whole(s, body, whole)
		return
	}
	body = bytes.Clone(body)
	ok := s.After(func(late func()) {
		acts := make(chan act)
		h.away <- acts
		for a := range acts {
			if a == answer {
				h.answer(s, body)
				return
			}
			late()
		}
	})
	if !ok {
		h.refused <- struct{}{}
		h.answer(s, body)
	}
}

func newAfterFixture(t *testing.T) (*fixture, *afterHandler) {
	h := &afterHandler{refused: make(chan struct{}, 10), away: make(chan (chan<- act), 10)}
	f := newFixture(t, func(cfg *Config) {
		h.testHandler = cfg.Handler.(*testHandler)
		cfg.Handler = h
	})
	return f, h
}

// onBoth runs a test with a socket and without.
func onBoth(t *testing.T, test func(t *testing.T, h *afterHandler, c *client)) {
	for name, dial := range map[string]func(*fixture) *client{
		"socket": func(f *fixture) *client { return f.dial(t) },
		"pipe":   func(f *fixture) *client { return f.pipe(t) },
	} {
		t.Run(name, func(t *testing.T) {
			f, h := newAfterFixture(t)
			c := dial(f)
			c.call(c.id(), "/whole", "the handshake is over")
			c.expectAnswer(c.lastID, "the handshake is over")
			test(t, h, c)
		})
	}
}

func TestAfter(t *testing.T) {
	onBoth(t, func(t *testing.T, h *afterHandler, c *client) {
		for range 3 {
			id := c.id()
			c.call(id, "/after", "abc")
			<-h.away <- answer
			c.expectAnswer(id, "abc")
		}
		// A stream whose peer goes on sending waits for nothing.
		c.open(c.id(), "/hold", false)
		id := c.id()
		c.call(id, "/after", "abc")
		<-h.away <- answer
		c.expectAnswer(id, "abc")
		// A request that is not answered does.
		waits := c.id()
		c.call(waits, "/later", "def")
		s := <-h.later
		id = c.id()
		c.call(id, "/after", "ghi")
		<-h.refused
		c.expectAnswer(id, "ghi")
		h.answerLater(s)
		c.expectAnswer(waits, "def")
	})
}

// What is read together with the end of the connection is done.
func TestAfterAtTheEnd(t *testing.T) {
	f, h := newAfterFixture(t)
	nc, server := net.Pipe()
	c := f.connect(t, nc, &lastWords{Conn: server}, ConnOptions{})
	c.handshake()
	c.call(1, "/whole", "the handshake is over")
	c.expectAnswer(1, "the handshake is over")
	var request bytes.Buffer
	framer := http2.NewFramer(&request, nil)
	c.must(framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: c.request("/after"), EndHeaders: true}))
	c.must(framer.WriteData(3, true, []byte("end")))
	c.write(request.Bytes())
	<-h.away <- answer
	c.nc.Close()
}

// lastWords is a connection that ends with what says "end", as one of TLS may.
type lastWords struct{ net.Conn }

func (c *lastWords) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && bytes.HasSuffix(b[:n], []byte("end")) {
		err = io.EOF
	}
	return n, err
}

// What has been read together with more is not done after it.
func TestAfterWithMoreToHandle(t *testing.T) {
	f, h := newAfterFixture(t)
	c := f.dial(t)
	var both bytes.Buffer
	framer := http2.NewFramer(&both, nil)
	for _, id := range []uint32{1, 3} {
		c.must(framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.request("/after"), EndHeaders: true}))
		c.must(framer.WriteData(id, true, []byte("x")))
	}
	c.write(both.Bytes())
	<-h.refused
	// The second may be: the first has been answered, but its answer waits to be written.
	<-h.refused
	c.expectAnswer(1, "x")
	c.expectAnswer(3, "x")
}

// When it takes long the connection goes on, and again when that happens to who goes on.
func TestAfterThatTakesLong(t *testing.T) {
	onBoth(t, func(t *testing.T, h *afterHandler, c *client) {
		for range 3 {
			late := c.id()
			c.call(late, "/after", "late")
			acts := <-h.away
			acts <- beLate
			acts <- beLate // the second time says nothing new
			id := c.id()
			c.call(id, "/whole", "meanwhile")
			c.expectAnswer(id, "meanwhile")
			id = c.id()
			c.call(id, "/after", "beside")
			<-h.refused // the late one is not answered yet
			c.expectAnswer(id, "beside")
			acts <- answer
			c.expectAnswer(late, "late")
		}
		id := c.id()
		c.call(id, "/whole", "after all")
		c.expectAnswer(id, "after all")
	})
}

// A connection that ends while its reader is away, late or not, ends when that is back.
func TestConnectionEndsDuringAfter(t *testing.T) {
	for name, late := range map[string]bool{"in time": false, "late": true} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, h *afterHandler, c *client) {
				c.call(c.id(), "/after", "abc")
				acts := <-h.away
				if late {
					acts <- beLate
				}
				c.nc.Close()
				acts <- answer
				<-c.failed
			})
		})
	}
}
