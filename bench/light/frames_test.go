package light

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// sink is a connection that is never read and takes everything.
type sink struct{ net.Conn }

func (sink) Write(b []byte) (int, error) { return len(b), nil }
func (sink) Close() error                { return nil }

// reader gives out what it holds in pieces of one byte.
type reader struct {
	sink
	b, written []byte
}

func (r *reader) Write(b []byte) (int, error) {
	r.written = append(r.written, b...)
	return len(b), nil
}

func (r *reader) Read(b []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:1], r.b)
	r.b = r.b[n:]
	return n, nil
}

func framed(kind http2.FrameType, flags http2.Flags, id uint32, payload ...byte) []byte {
	return append(appendFrameHeader(nil, len(payload), kind, flags, id), payload...)
}

// open is a connection with one call under way on stream 1.
func open(t testing.TB) (c *Conn, answers *[]string, ends *[]error) {
	c, answers, ends = newConn(sink{}, "http", "x", nil), new([]string), new([]error)
	call := &Call{
		Method: "/a/b", Streaming: true,
		Message: func(b []byte) { *answers = append(*answers, string(b)) },
		End:     func(err error) { *ends = append(*ends, err) },
	}
	if err := c.Begin(call, []byte("request")); err != nil {
		t.Fatal(err)
	}
	return c, answers, ends
}

var okHeaders = []hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "application/grpc"}}

// dialUnready is Dial for a server whose settings come later.
func dialUnready(t *testing.T, address string) *Conn {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(nc, "http", address, nil)
	c.done.Go(c.read)
	c.done.Go(c.write)
	t.Cleanup(c.Close)
	return c
}

// encode returns header blocks in the order in which a server would send them.
func encode(blocks ...[]hpack.HeaderField) (out [][]byte) {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, fields := range blocks {
		b.Reset()
		for _, f := range fields {
			_ = enc.WriteField(f)
		}
		out = append(out, bytes.Clone(b.Bytes()))
	}
	return out
}

func TestFramesInAllForms(t *testing.T) {
	blocks := encode(okHeaders, []hpack.HeaderField{{Name: "grpc-status", Value: "5"}, {Name: "grpc-message", Value: "a%20b"}})
	head, trailer := blocks[0], blocks[1]
	var stream []byte
	add := func(f []byte) { stream = append(stream, f...) }
	add(framed(http2.FrameSettings, 0, 0))
	add(framed(http2.FramePing, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8))
	// Headers with padding and priority, in three frames.
	first := slices.Concat([]byte{2, 0, 0, 0, 0, 9}, head[:1], []byte{0, 0})
	add(framed(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersPriority, 1, first...))
	add(framed(http2.FrameContinuation, 0, 1, head[1:2]...))
	add(framed(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, head[2:]...))
	// Two messages and a half in padded data, then the rest in two parts.
	data := slices.Concat(appendMessage(nil, []byte("one")), appendMessage(nil, nil), appendMessage(nil, []byte("three")))
	add(framed(http2.FrameData, http2.FlagDataPadded, 1, slices.Concat([]byte{1}, data[:16], []byte{0})...))
	add(framed(http2.FrameData, 0, 1, data[16:18]...))
	add(framed(http2.FrameData, 0, 1, data[18:]...))
	add(framed(http2.FrameType(77), 0, 1, 1, 2, 3)) // unknown: ignored
	add(framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, trailer...))
	add(framed(http2.FrameData, 0, 1, data...)) // of a stream that is over: ignored

	c, answers, ends := open(t)
	r := &reader{b: stream}
	c.nc = r
	if err := c.readFrames(); !strings.Contains(err.Error(), "closed the connection") {
		t.Error(err)
	}
	if !slices.Equal(*answers, []string{"one", "", "three"}) || len(*ends) != 1 || status.Code((*ends)[0]) != codes.NotFound || status.Convert((*ends)[0]).Message() != "a b" {
		t.Errorf("%q, %v", *answers, *ends)
	}
	acks := append(framed(http2.FrameSettings, http2.FlagSettingsAck, 0), framed(http2.FramePing, http2.FlagPingAck, 0, 1, 2, 3, 4, 5, 6, 7, 8)...)
	if !bytes.Equal(r.written, acks) {
		t.Errorf("written: %x", r.written)
	}
}

// A reader that waited for the server to read would wait forever: the server waits for it to read.
func TestReaderDoesNotWaitForTheServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() { // ends with the connection
		nc, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer nc.Close()
		// It lets the client send much, answers the first call, and then reads only when it could send much more itself.
		ok, blocks := framed(http2.FrameSettings, 0, 0, 0, 4, 0x7f, 0, 0, 0), encode(okHeaders, []hpack.HeaderField{{Name: "grpc-status", Value: "0"}})
		ok = append(ok, framed(http2.FrameWindowUpdate, 0, 0, 0x7f, 0, 0, 0)...)
		ok = append(ok, framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, blocks[0]...)...)
		ok = append(ok, framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, blocks[1]...)...)
		for got, b := []byte(nil), make([]byte, 1024); err == nil && !bytes.Contains(got, []byte("first")); {
			var n int
			n, err = nc.Read(b)
			got = append(got, b[:n]...)
		}
		if err == nil {
			_, err = nc.Write(ok)
		}
		for range 64 << 20 / defaultMaxFrame {
			if err == nil {
				_, err = nc.Write(framed(http2.FrameData, 0, 1, make([]byte, defaultMaxFrame)...))
			}
		}
		served <- err
	}()
	c := dialUnready(t, l.Addr().String())
	ended := make(chan error, 2)
	call := &Call{Method: "/a/b", Message: func([]byte) {}}
	big := make([]byte, 32<<20) // more than any socket takes
	call.End = func(err error) {
		ended <- err
		if err == nil {
			if err := c.Begin(call, big); err != nil {
				t.Error(err)
			}
		}
	}
	if err := c.Begin(call, []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil { // all that it sent has been read
		t.Error(err)
	}
	<-ended
}

func TestBadFrames(t *testing.T) {
	head := encode(okHeaders)[0]
	opened := framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, head...)
	for want, b := range map[string][]byte{
		"a frame of 16385 bytes":           appendFrameHeader(nil, 16385, http2.FrameData, 0, 1),
		"data of no stream":                framed(http2.FrameData, 0, 0),
		"headers of no stream":             framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 0, head...),
		"data before headers":              framed(http2.FrameData, 0, 1),
		"more padding":                     append(slices.Clone(opened), framed(http2.FrameData, http2.FlagDataPadded, 1, 9)...),
		"padding without":                  append(slices.Clone(opened), framed(http2.FrameData, http2.FlagDataPadded, 1)...),
		"priority that is not":             framed(http2.FrameHeaders, http2.FlagHeadersPriority, 1, 1),
		"a continuation of nothing":        framed(http2.FrameContinuation, 0, 1),
		"a frame within a header block":    append(framed(http2.FrameHeaders, 0, 1, head...), framed(http2.FramePing, 0, 0)...),
		"a malformed ping":                 framed(http2.FramePing, 0, 0, 1),
		"malformed settings":               framed(http2.FrameSettings, 0, 0, 1),
		"a malformed WINDOW_UPDATE":        framed(http2.FrameWindowUpdate, 0, 0, 1),
		"a malformed RST_STREAM":           framed(http2.FrameRSTStream, 0, 1, 1),
		"a malformed GOAWAY":               framed(http2.FrameGoAway, 0, 0, 1),
		"a pushed stream":                  framed(http2.FramePushPromise, 0, 1, 0, 0, 0, 2),
		"a header block":                   framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, 0xff, 0xff),
		"connection error: PROTOCOL_ERROR": framed(http2.FrameSettings, 0, 0, 0, 5, 0, 0, 0, 1),
	} {
		c, _, _ := open(t)
		if _, err := c.frames(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
	}
}

func TestEndlessHeaders(t *testing.T) {
	c, _, _ := open(t)
	_, err := c.frames(framed(http2.FrameHeaders, 0, 1))
	for range maxHeaderBlock/defaultMaxFrame + 1 {
		if err == nil {
			_, err = c.frames(framed(http2.FrameContinuation, 0, 1, make([]byte, defaultMaxFrame)...))
		}
	}
	if err == nil || err.Error() != "endless headers" {
		t.Error(err)
	}
}

// The server may send more before it has used up what it may send.
func TestWindowsAreReplenished(t *testing.T) {
	c, _, _ := open(t)
	if _, err := c.frames(framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, encode(okHeaders)[0]...)); err != nil {
		t.Fatal(err)
	}
	const frames = 3 * connWindow / defaultMaxFrame
	allowed := map[uint32]int{0: connWindow, 1: streamWindow}
	message := make([]byte, defaultMaxFrame)
	copy(message, appendMessage(nil, make([]byte, defaultMaxFrame-messagePrefix)))
	for range frames {
		c.out = c.out[:0]
		if _, err := c.frames(framed(http2.FrameData, 0, 1, message...)); err != nil {
			t.Fatal(err)
		}
		for _, id := range []uint32{0, 1} {
			if allowed[id] -= len(message); allowed[id] < 0 {
				t.Fatalf("stream %d has no window left", id)
			}
		}
		for b := c.out; len(b) > 0; b = b[frameHeaderBytes+4:] {
			allowed[parseFrame(b).id] += int(b[frameHeaderBytes])<<24 | int(b[frameHeaderBytes+1])<<16 | int(b[frameHeaderBytes+2])<<8 | int(b[frameHeaderBytes+3])
		}
	}
}

func TestChangesTable(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, c := range []struct {
		block []byte
		want  bool
	}{
		{nil, false},
		{[]byte{0x88, 0x90}, false},      // indexed
		{[]byte{0xff, 0x01}, false},      // indexed, in two bytes
		{[]byte{0x08, 1, 'a'}, false},    // a literal with an indexed name
		{[]byte{0x10, 1, 'a', 1}, true},  // ends too early
		{[]byte{0x10, 1, 'a', 0}, false}, // never indexed
		{append([]byte{0x00, 0x7f, 0xad, 0x01}, long+"\x01b"...), false}, // a long name
		{[]byte{0x48, 1, 'a'}, true},                                     // added
		{[]byte{0x20}, true},                                             // a new size
		{[]byte{0x88, 0x3f, 0xe1, 0x1f}, true},
		{[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, true}, // no such index
	} {
		if got := changesTable(c.block); got != c.want {
			t.Errorf("%x: %v", c.block, got)
		}
	}
}

// A block that is said to leave the table alone says the same a second time, whatever was before.
func FuzzChangesTable(f *testing.F) {
	blocks := encode(okHeaders, okHeaders, []hpack.HeaderField{{Name: "grpc-status", Value: "0", Sensitive: true}})
	f.Add(blocks[0], blocks[1])
	f.Add(blocks[0], blocks[2])
	f.Add(blocks[0], blocks[0])
	f.Fuzz(func(t *testing.T, before, block []byte) {
		if changesTable(block) {
			t.Skip()
		}
		dec := hpack.NewDecoder(hpackTable, nil)
		if _, err := dec.DecodeFull(before); err != nil {
			t.Skip()
		}
		first, err := dec.DecodeFull(block)
		if err != nil {
			t.Skip()
		}
		if again, err := dec.DecodeFull(block); err != nil || !slices.Equal(first, again) {
			t.Errorf("first %v, then %v, %v", first, again, err)
		}
	})
}

// Whatever a server sends, a connection neither fails otherwise than with an error nor ends a call twice.
func FuzzFrames(f *testing.F) {
	head := encode(okHeaders)[0]
	f.Add(framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, head...))
	f.Add(slices.Concat(framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, head...), framed(http2.FrameData, 0, 1, appendMessage(nil, []byte("abc"))...),
		framed(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, 1, head...)))
	f.Add(framed(http2.FrameGoAway, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))
	f.Add(framed(http2.FrameRSTStream, 0, 1, 0, 0, 0, 8))
	f.Add(framed(http2.FrameSettings, 0, 0, 0, 3, 0, 0, 0, 1, 0, 4, 0, 0, 0, 9, 0, 1, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, _, ends := open(t)
		rest, err := c.frames(b)
		if err == nil && len(rest) >= frameHeaderBytes && len(rest) >= frameHeaderBytes+parseFrame(rest).length {
			t.Errorf("a complete frame is left: %x", rest)
		}
		if len(*ends) > 1 {
			t.Errorf("the call ended %d times", len(*ends))
		}
	})
}
