package h2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// recording is a connection whose peer has sent all that it ever will.
type recording struct {
	net.Conn
	in   []byte
	step int // how much comes at a time
	out  bytes.Buffer
}

func (r *recording) Read(p []byte) (int, error) {
	if len(r.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.in[:min(r.step, len(r.in))])
	r.in = r.in[n:]
	return n, nil
}

func (r *recording) Write(p []byte) (int, error)     { return r.out.Write(p) }
func (r *recording) Close() error                    { return nil }
func (r *recording) SetDeadline(time.Time) error     { return nil }
func (r *recording) SetReadDeadline(time.Time) error { return nil }
func (r *recording) RemoteAddr() net.Addr            { return &net.TCPAddr{} }
func (r *recording) LocalAddr() net.Addr             { return &net.TCPAddr{} }

// FuzzConn: whatever a peer sends, the connection ends, nothing is left of its streams, and what
// was answered are frames.
func FuzzConn(f *testing.F) {
	for _, seed := range connections() {
		f.Add(seed, 7)
		f.Add(seed, 1<<20)
	}
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		if step <= 0 || len(data)/step > 1<<12 {
			return
		}
		h := &testHandler{later: make(chan *Stream, len(data)), ended: make(chan error, len(data)), bodies: map[*Stream][]byte{}}
		cfg := testConfig(h)
		cfg.MaxAbandoned = len(data) // whoever answers late comes after the end here
		s := NewServer(cfg)
		defer s.Close()
		nc := &recording{in: append([]byte(Preface), data...), step: step}
		c := newConn(s, nc, ConnOptions{})
		_ = c.serve() // whatever it is
		close(h.later)
		for late := range h.later {
			h.answerLater(late)
		}
		checkEnded(t, c)
		framer := http2.NewFramer(nil, &nc.out)
		framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for {
			if _, err := framer.ReadFrame(); err != nil {
				// The connection may have been cut while a frame was written, but by nothing else.
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("the answer is not made of frames: %v", err)
				}
				return
			}
		}
	})
}

// checkEnded checks that a connection that has ended holds nothing.
func checkEnded(t *testing.T, c *Conn) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.table.n != 0 || c.running != 0 || c.abandoned != 0 || c.heldBytes != 0 || c.unsent != 0 || c.ready != (queue{}) {
		t.Errorf("left: %d streams, %d running, %d abandoned, %d bytes held, %d unsent, ready %v",
			c.table.n, c.running, c.abandoned, c.heldBytes, c.unsent, c.ready)
	}
}

// connections are what clients may send after the preface.
func connections() [][]byte {
	var out [][]byte
	record := func(send func(*http2.Framer, func(string, ...string) []byte)) {
		var b bytes.Buffer
		framer := http2.NewFramer(&b, nil)
		framer.AllowIllegalWrites = true
		blocks := newBlocks()
		if err := framer.WriteSettings(); err != nil {
			panic(err)
		}
		send(framer, func(path string, more ...string) []byte { return blocks.encode(requestFields(path, more...)...) })
		out = append(out, b.Bytes())
	}
	must := func(errs ...error) {
		if err := errors.Join(errs...); err != nil {
			panic(err)
		}
	}
	open := func(f *http2.Framer, id uint32, block []byte, end bool) {
		must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: end, EndHeaders: true}))
	}
	record(func(f *http2.Framer, request func(string, ...string) []byte) {
		for i, path := range []string{"/whole", "/flow", "/later", "/hold", "/refuse", "/whole"} {
			id := uint32(2*i + 1)
			open(f, id, request(path, "timeout", "1h"), false)
			must(f.WriteData(id, false, []byte("abc")), f.WriteDataPadded(id, true, []byte("abc"), []byte{0, 0}))
		}
	})
	record(func(f *http2.Framer, request func(string, ...string) []byte) {
		must(f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}, http2.Setting{ID: http2.SettingHeaderTableSize}))
		open(f, 1, request("/whole", "content-length", "3"), false)
		must(f.WriteData(1, true, []byte("abc")), f.WriteWindowUpdate(1, 1), f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}),
			f.WriteWindowUpdate(0, 1<<20), f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100}))
	})
	record(func(f *http2.Framer, request func(string, ...string) []byte) {
		open(f, 1, request("/later"), true)
		must(f.WriteRSTStream(1, 8), f.WritePing(false, [8]byte{}), f.WritePing(true, [8]byte{}), f.WriteGoAway(0, 0, []byte("bye")),
			f.WritePriority(3, http2.PriorityParam{StreamDep: 1}), f.WriteSettingsAck())
		block := request("/flow", "x", "y")
		must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: block[:3], PadLength: 3, Priority: http2.PriorityParam{StreamDep: 1}}),
			f.WriteContinuation(5, false, block[3:4]), f.WriteContinuation(5, true, block[4:]), f.WriteData(5, false, []byte("abc")))
		open(f, 5, newBlocks().encode(hpack.HeaderField{Name: "x", Value: "z"}), true)
	})
	return out
}
