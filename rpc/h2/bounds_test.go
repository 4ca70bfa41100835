package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestMaxStreams(t *testing.T) {
	c := newFixture(t, func(cfg *Config) { cfg.MaxStreams = 2 }).dial(t)
	c.open(1, "/hold", true)
	c.open(3, "/hold", true)
	c.call(5, "/whole", "")
	c.expect("5: reset REFUSED_STREAM")
	c.must(c.WriteRSTStream(1, 8))
	c.call(7, "/whole", "")
	c.expectAnswer(7, "")
}

// Bodies that do not end, or are not read, cost the stream that goes beyond the bound.
func TestMaxHeldBytes(t *testing.T) {
	for _, path := range []string{"/hold", "/whole"} {
		t.Run(path[1:], func(t *testing.T) {
			c := newFixture(t, func(cfg *Config) { cfg.MaxHeldBytes = 3 * maxFrame }).dial(t)
			for id := uint32(1); id <= 7; id += 2 {
				c.open(id, path, false)
				c.must(c.WriteData(id, false, make([]byte, maxFrame)))
			}
			c.expect("7: reset ENHANCE_YOUR_CALM")
			// What is given up makes room.
			c.must(c.WriteRSTStream(1, 8))
			c.open(9, path, false)
			c.must(c.WriteData(9, false, make([]byte, maxFrame)))
			c.call(11, "/whole", "abc")
			c.expectAnswer(11, "abc")
		})
	}
}

func TestMaxBodyBytes(t *testing.T) {
	c := newFixture(t, func(cfg *Config) { cfg.MaxBodyBytes = 10 }).dial(t)
	c.call(1, "/whole", "0123456789")
	c.expectAnswer(1, "0123456789")
	c.call(3, "/whole", "0123456789a")
	c.expect("3: status=413 end")
	c.open(5, "/whole", false)
	c.must(c.WriteData(5, false, []byte("01234")))
	c.must(c.WriteData(5, false, []byte("56789a")))
	c.expect("5: status=413 end", "5: reset NO_ERROR")
	c.must(c.WriteData(5, true, []byte("more"))) // it may have been on its way
	c.call(7, "/whole", "")
	c.expectAnswer(7, "")
}

// Answers that the peer has no room for are kept up to a bound; after that requests are refused.
func TestMaxUnsentBytes(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.MaxUnsentBytes = 3 * maxFrame / 2 })
	c := f.dial(t)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	body := string(make([]byte, maxFrame))
	c.call(1, "/whole", body)
	c.call(3, "/later", body)
	third := <-f.handler.later
	c.call(5, "/later", body)
	fifth := <-f.handler.later
	c.expect("1: status=200 kind=test")
	f.handler.answerLater(third)
	c.expect("3: status=200 kind=test")
	// A request that is under way cannot wait: its answer comes by a callback.
	f.handler.answerLater(fifth)
	c.expect("5: reset ENHANCE_YOUR_CALM")
	c.call(7, "/whole", "")
	c.expect("7: reset ENHANCE_YOUR_CALM")
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxFrame}))
	c.expect(`1: "16384 bytes"`, "1: end=0 end", `3: "16384 bytes"`, "3: end=0 end")
	c.call(9, "/whole", "")
	c.expectAnswer(9, "")
}

// Whoever may wait, waits for room.
func TestAnswerWaitsForRoom(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.MaxUnsentBytes = maxFrame / 2 })
	c := f.dial(t)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	c.call(1, "/later", "")
	s := <-f.handler.later
	c.call(3, "/whole", string(make([]byte, maxFrame)))
	c.expect("3: status=200 kind=test")
	done := make(chan error)
	go func() { done <- s.AnswerAndRelease(testHead, Bytes("abc"), testTrailer, true, true) }()
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxFrame}))
	c.expect(`3: "16384 bytes"`, "3: end=0 end")
	c.expectAnswer(1, "abc")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whoever waits for room stops waiting when its request is given up. Else nothing would be read any more, with many
// of them, and so nothing that makes room.
func TestGivenUpWhileItWaitsForRoom(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.MaxUnsentBytes = maxFrame / 2 })
	c := f.dial(t)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	n := f.cfg.MaxAbandoned + 1
	var all []*Stream
	for i := range n {
		c.call(uint32(2*i+1), "/later", "")
		all = append(all, <-f.handler.later)
	}
	c.call(101, "/whole", string(make([]byte, maxFrame)))
	c.expect("101: status=200 kind=test")
	done := make(chan error, n)
	for _, s := range all {
		go func() { done <- s.AnswerAndRelease(testHead, Bytes("abc"), testTrailer, true, true) }()
	}
	for i := range n {
		c.must(c.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel))
	}
	for range n {
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Fatal("a request that was given up still waits for room")
		}
	}
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxFrame}))
	c.expect(`101: "16384 bytes"`, "101: end=0 end")
}

// What streams send counts for the bound of their connection, too.
func TestSendWaitsForRoom(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.MaxUnsentBytes = maxFrame / 2 })
	c := f.dial(t)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	c.call(1, "/later", "")
	s := <-f.handler.later
	c.call(3, "/whole", string(make([]byte, maxFrame)))
	c.expect("3: status=200 kind=test")
	sent := make(chan error, 1)
	go func() { sent <- s.Send(testHead, Bytes("abc")) }()
	select {
	case err := <-sent:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxFrame}))
	c.expect(`3: "16384 bytes"`, "3: end=0 end", "1: status=200 kind=test", `1: "abc"`)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	s.Release(false)
	c.expect("1: reset INTERNAL_ERROR")
}

// An answer may be ended while another goroutine waits to send more of it.
func TestFinishWhileSendWaits(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial(t)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
	c.call(1, "/later", "")
	s := <-f.handler.later
	c.must(s.Send(testHead, Bytes(make([]byte, sendQuota))))
	sent := make(chan error, 1)
	go func() { sent <- s.Send(nil, Bytes("abc")) }()
	select {
	case err := <-sent:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	c.must(s.Finish(nil, testTrailer))
	select {
	case err := <-sent:
		if !errors.Is(err, ErrEnded) {
			t.Errorf("Send returns %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Send still waits")
	}
	s.Release(false)
	c.expect("1: status=200 kind=test")
	c.must(c.WriteWindowUpdate(0, sendQuota))
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: sendQuota}))
	for range sendQuota / maxFrame {
		c.expect(`1: "16384 bytes"`)
	}
	c.expect("1: end=0 end")
}

// A peer that has requests refused, and does not read that, is not read either until it does.
func TestRefusalsThatAreNotRead(t *testing.T) {
	f := newFixture(t, nil)
	c := f.pipe(t)
	c.open(1, "/refuse", true) // the table knows all of it from now on
	block := c.request("/refuse")
	const most = 8 * outMax
	var requests []byte
	id := uint32(3)
	for ; len(requests) < most; id += 2 {
		requests = append(append(requests, appendFrameHeader(nil, len(block), frameHeaders, flagEndHeaders|flagEndStream, id)...), block...)
	}
	c.must(c.nc.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)))
	taken, err := c.nc.Write(requests)
	if err == nil {
		t.Fatalf("all of %d bytes were taken", taken)
	}
	f.mu.Lock()
	for conn := range f.Server.conns {
		conn.mu.Lock()
		if n := len(conn.out); n > outMax+readBuffer {
			t.Errorf("%d bytes are framed and not written", n)
		}
		conn.mu.Unlock()
	}
	f.mu.Unlock()
	c.must(c.nc.SetWriteDeadline(time.Time{}))
	written := make(chan error, 1)
	go func() {
		_, err := c.nc.Write(requests[taken:])
		written <- err
	}()
	for at := uint32(1); at < id; at += 2 {
		c.expect(fmt.Sprintf("%d: status=404 end", at))
	}
	c.must(<-written)
}

// Many requests may fail at one time. That is no fault of a peer that then asks for an acknowledgement.
func TestPingBehindManyAnswers(t *testing.T) {
	c := &Conn{s: &Server{cfg: testConfig(nil)}, out: make([]byte, outMax)}
	c.control(appendPing(nil, flagAck, [8]byte{}))
	if c.closed || len(c.out) == outMax {
		t.Error("the connection is cut off")
	}
}

// A peer that changes the windows of its streams again and again is cut off; a few changes are in order.
func TestChangesOfTheInitialWindow(t *testing.T) {
	c := newFixture(t, nil).dial(t)
	const streams, changes = 5000, (freeLooks + 5000*looksForStream) / 5000
	block := c.request("/whole")
	c.write(append(appendFrameHeader(nil, len(block), frameHeaders, flagEndHeaders, 1), block...))
	block = c.request("/whole")
	var opened []byte
	for i := range uint32(streams - 1) {
		opened = append(append(opened, appendFrameHeader(nil, len(block), frameHeaders, flagEndHeaders, 3+2*i)...), block...)
	}
	c.write(opened)
	change := func(i int) {
		c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(1000 + i)}))
	}
	for i := range changes {
		change(i)
	}
	c.must(c.WriteData(1, true, []byte("abc")))
	c.expectAnswer(1, "abc")
	change(changes)
	change(changes + 1)
	c.expect(fmt.Sprintf("GOAWAY %d ENHANCE_YOUR_CALM INITIAL_WINDOW_SIZE changes too often", 2*streams-1), "closed")
}

func TestTooManySettings(t *testing.T) {
	for _, n := range []int{maxSettings, maxSettings + 1} {
		c := newFixture(t, nil).dial(t)
		settings := make([]http2.Setting, n)
		for i := range settings {
			settings[i] = http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)}
		}
		c.must(c.WriteSettings(settings...))
		if n > maxSettings {
			c.expect("GOAWAY 0 ENHANCE_YOUR_CALM too many settings in a frame", "closed")
			continue
		}
		c.call(1, "/whole", "abc")
		c.expectAnswer(1, "abc")
	}
}

// Streams that wait for the connection's window get it in turn, but for those that are given up.
func TestGivenUpWhileItWaitsForTheWindow(t *testing.T) {
	c := newFixture(t, nil).dial(t)
	c.call(1, "/whole", string(make([]byte, maxFrame))) // of the window 49,151 bytes are left
	c.call(3, "/whole", string(make([]byte, maxFrame)))
	c.call(5, "/whole", string(make([]byte, maxFrame)))
	c.expectAnswer(1, string(make([]byte, maxFrame)))
	c.expectAnswer(3, string(make([]byte, maxFrame)))
	c.expectAnswer(5, string(make([]byte, maxFrame)))
	c.call(7, "/whole", string(make([]byte, maxFrame))) // one byte of it has to wait
	c.expect("7: status=200 kind=test", `7: "16383 bytes"`)
	for id := uint32(9); id <= 17; id += 2 {
		c.call(id, "/whole", fmt.Sprint(id))
		c.expect(fmt.Sprintf("%d: status=200 kind=test", id))
	}
	for _, id := range []uint32{7, 13, 17} { // the first, one between, the last
		c.must(c.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	c.call(19, "/whole", "19")
	c.expect("19: status=200 kind=test")
	c.must(c.WriteWindowUpdate(0, 1000))
	for _, id := range []uint32{9, 11, 15, 19} {
		c.expect(fmt.Sprintf("%d: %q", id, fmt.Sprint(id)), fmt.Sprintf("%d: end=0 end", id))
	}
}

// A peer that opens streams and gives them up at once is read no further while the handler has too
// many of them.
func TestRapidReset(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial(t)
	const n = 50
	for i := range uint32(n) {
		c.call(2*i+1, "/later", "")
		c.must(c.WriteRSTStream(2*i+1, 8))
	}
	c.call(2*n+1, "/whole", "abc")
	answer := make(chan string, 1)
	last := fmt.Sprintf("%d: status=200 kind=test", 2*n+1)
	go func() {
		for e := ""; e != last; { // others may be answered before they are given up
			e = c.next()
		}
		answer <- last
	}()
	begun := 0
	for begun < n {
		s := <-f.handler.later
		begun++
		if waiting := len(f.handler.later) + 1; waiting > 9+1 {
			t.Errorf("%d abandoned requests at a time", waiting)
		}
		select {
		case a := <-answer:
			// The last request is read when no more than that many before it are not released.
			if left := n - (begun - 1); left > f.cfg.MaxAbandoned {
				t.Fatalf("with %d of %d left: %s", left, n, a)
			}
			answer <- a
		default:
		}
		f.handler.answerLater(s)
	}
	<-answer
}

// A connection that is not read from any more, because of that, still ends.
func TestRapidResetAndClose(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial(t)
	for i := range uint32(20) {
		c.call(2*i+1, "/later", "")
		c.must(c.WriteRSTStream(2*i+1, 8))
	}
	for range 9 {
		<-f.handler.later
	}
	f.Close()
	<-c.failed
}

func TestHeaderBounds(t *testing.T) {
	frame := func(kind, flags byte, payload []byte) []byte {
		return append(appendFrameHeader(nil, len(payload), kind, flags, 1), payload...)
	}
	t.Run("large list", func(t *testing.T) {
		c := newFixture(t, nil).dial(t)
		c.open(1, "/whole", true, "x: "+strings.Repeat("x", 15<<10), "y: "+strings.Repeat("x", 1<<10))
		c.expect("1: reset ENHANCE_YOUR_CALM")
		c.call(3, "/whole", "abc")
		c.expectAnswer(3, "abc")
	})
	t.Run("bomb", func(t *testing.T) {
		// One entry of the table, again and again, costs a byte each.
		c := newFixture(t, nil).dial(t)
		c.call(1, "/whole", "", "x: "+strings.Repeat("x", 3000))
		c.expectAnswer(1, "")
		c.write(append(appendFrameHeader(nil, 10_000, frameHeaders, flagEndHeaders|flagEndStream, 3), bytes.Repeat([]byte{0xbe}, 10_000)...))
		c.expect("3: reset ENHANCE_YOUR_CALM")
	})
	t.Run("endless block", func(t *testing.T) {
		c := newFixture(t, nil).dial(t)
		c.write(frame(frameHeaders, 0, make([]byte, maxFrame)))
		c.write(frame(frameContinuation, 0, make([]byte, 1)))
		c.expect("GOAWAY 0 ENHANCE_YOUR_CALM a header block that is too large", "closed")
	})
	t.Run("endless frames", func(t *testing.T) {
		c := newFixture(t, nil).dial(t)
		c.write(frame(frameHeaders, 0, nil))
		for range maxContinuations + 1 {
			c.write(frame(frameContinuation, 0, nil))
		}
		c.expect("GOAWAY 0 ENHANCE_YOUR_CALM a header block that is too large", "closed")
	})
}

// A peer that asks and does not read is cut off.
func TestControlFlood(t *testing.T) {
	for name, frame := range map[string][]byte{
		"settings": appendSettings(nil),
		"resets":   appendFrameHeader(nil, 0, frameData, 0, 1), // of a stream that has ended
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil)
			nc, server := net.Pipe()
			c := f.connect(t, nc, server, ConnOptions{})
			c.handshake()
			c.open(1, "/hold", true)
			c.must(c.WriteRSTStream(1, 8))
			flood := bytes.Repeat(frame, 100)
			sent := 0
			for sent < 4*outMax {
				n, err := nc.Write(flood)
				sent += n
				if err != nil {
					break
				}
			}
			if sent >= 4*outMax {
				t.Errorf("%d bytes were taken", sent)
			}
			nc.Close()
			if err := <-c.failed; err == nil || !strings.Contains(err.Error(), "does not read") {
				t.Errorf("the connection ended with %v", err)
			}
		})
	}
}

// An answer before the end of the request: what is on its way is no offence, and has no effect.
func TestAnsweredEarly(t *testing.T) {
	c := newFixture(t, nil).dial(t)
	c.open(1, "/refuse", false)
	c.expect("1: status=404 end", "1: reset NO_ERROR")
	c.must(c.WriteData(1, false, make([]byte, maxFrame)))
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode("name: x"), EndStream: true, EndHeaders: true}))
	c.must(c.WriteRSTStream(1, 0))
	c.call(3, "/whole", "abc")
	c.expectAnswer(3, "abc")
}

// failingBody cannot be encoded.
type failingBody struct{ error }

func (f failingBody) AppendBody([]byte) ([]byte, error) { return nil, f.error }

// An answer that cannot be encoded leaves nothing behind: another can be given.
func TestAnswerThatFails(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial(t)
	for i, blocked := range []bool{false, true} {
		if blocked {
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}))
			c.call(101, "/whole", "x")
			c.expect("101: status=200 kind=test")
		}
		id := uint32(103 + 2*i)
		if !blocked {
			id = 1
		}
		c.call(id, "/later", "")
		s := <-f.handler.later
		broken := failingBody{io.ErrNoProgress}
		if err := s.AnswerAndRelease(testHead, broken, testTrailer, false, true); err != broken.error {
			t.Errorf("the answer ended with %v", err)
		}
		_ = s.Finish(testHead, []Field{{Name: "end", Value: "13"}})
		s.Release(true)
		c.expect(fmt.Sprintf("%d: status=200 kind=test end=13 end", id))
	}
}

// A stream that is released without an answer is reset.
func TestReleaseWithoutAnswer(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial(t)
	c.call(1, "/later", "")
	(<-f.handler.later).Release(true)
	c.expect("1: reset INTERNAL_ERROR")
}

// Streams are used again, and what a late answer does goes to nobody else.
func TestReuse(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial(t)
	c.call(1, "/later", "one")
	one := <-f.handler.later
	c.must(c.WriteRSTStream(1, 8))
	c.call(3, "/later", "three")
	three := <-f.handler.later
	if one == three {
		t.Fatal("a stream was used again before it was released")
	}
	f.handler.answerLater(one) // goes nowhere
	f.handler.answerLater(three)
	c.expectAnswer(3, "three")
	c.call(5, "/later", "five")
	five := <-f.handler.later
	if five != three {
		t.Error("the stream was not used again")
	}
	f.handler.answerLater(five)
	c.expectAnswer(5, "five")
}
