package h2

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// TestErrors has what RFC 9113 and RFC 7541 say of what a server may be sent. The cases are those
// of h2spec, and some more.
func TestErrors(t *testing.T) {
	raw := func(c *client, kind, flags byte, stream uint32, payload string) {
		c.write(append(appendFrameHeader(nil, len(payload), kind, flags, stream), payload...))
	}
	block := func(b ...byte) func(*client) {
		return func(c *client) { raw(c, frameHeaders, flagEndHeaders|flagEndStream, 1, string(b)) }
	}
	header := func(fields ...string) func(*client) {
		return func(c *client) {
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(fields...), EndStream: true, EndHeaders: true}))
		}
	}
	const method, scheme, path = ":method: GET", ":scheme: http", ":path: /whole"
	const (
		answered   = "1: status=200 kind=test"
		connection = "GOAWAY "
	)
	long := strings.Repeat("x", maxFrame+1)
	for _, tt := range []struct {
		name string
		send func(*client)
		want string // begin of the next event
	}{
		// Frames, RFC 9113, section 4.
		{"unknown type", func(c *client) { raw(c, 0x16, 0, 0, "12345678"); c.open(1, "/whole", true) }, answered},
		{"undefined flag", func(c *client) { raw(c, framePing, 0x16, 0, "12345678"); c.open(1, "/whole", true) }, answered},
		{"reserved bit", func(c *client) { raw(c, framePing, 0, 1<<31, "12345678"); c.open(1, "/whole", true) }, answered},
		{"largest frame", func(c *client) { c.open(1, "/whole", false); raw(c, frameData, 1, 1, long[1:]) }, answered},
		{"too large DATA", func(c *client) { c.open(1, "/whole", false); raw(c, frameData, 1, 1, long) }, "GOAWAY 1 FRAME_SIZE_ERROR"},
		{"too large HEADERS", func(c *client) { raw(c, frameHeaders, flagEndHeaders, 1, long) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"too large unknown", func(c *client) { raw(c, 0x16, 0, 0, long) }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"PRIORITY within a block", func(c *client) {
			raw(c, frameHeaders, flagEndStream, 1, string(c.request("/whole")))
			raw(c, framePriority, 0, 1, "\x00\x00\x00\x00\x00")
		}, "GOAWAY 0 PROTOCOL_ERROR"},
		{"another block within a block", func(c *client) {
			raw(c, frameHeaders, flagEndStream, 1, string(c.request("/whole")))
			raw(c, frameHeaders, flagEndStream|flagEndHeaders, 3, string(c.request("/whole")))
		}, "GOAWAY 0 PROTOCOL_ERROR"},
		{"unknown type within a block", func(c *client) {
			raw(c, frameHeaders, flagEndStream, 1, string(c.request("/whole")))
			raw(c, 0x16, 0, 1, "")
		}, "GOAWAY 0 PROTOCOL_ERROR"},

		// Streams, section 5.
		{"DATA on an idle stream", func(c *client) { c.must(c.WriteData(1, true, nil)) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"RST_STREAM on an idle stream", func(c *client) { c.must(c.WriteRSTStream(1, 8)) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"WINDOW_UPDATE on an idle stream", func(c *client) { c.must(c.WriteWindowUpdate(1, 8)) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"CONTINUATION on an idle stream", func(c *client) { raw(c, frameContinuation, 4, 1, "") }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"DATA after the end", func(c *client) { c.open(1, "/hold", true); c.must(c.WriteData(1, true, nil)) }, "1: reset STREAM_CLOSED"},
		{"HEADERS after the end", func(c *client) { c.open(1, "/hold", true); c.open(1, "/hold", true) }, "1: reset STREAM_CLOSED"},
		{"CONTINUATION after the end", func(c *client) { c.open(1, "/hold", true); raw(c, frameContinuation, 4, 1, "") }, "GOAWAY 1 PROTOCOL_ERROR"},
		{"DATA after RST_STREAM", func(c *client) {
			c.open(1, "/hold", false)
			c.must(c.WriteRSTStream(1, 8))
			c.must(c.WriteData(1, true, nil))
		}, "1: reset STREAM_CLOSED"},
		{"HEADERS after RST_STREAM", func(c *client) {
			c.open(1, "/hold", false)
			c.must(c.WriteRSTStream(1, 8))
			c.open(1, "/hold", true)
		}, "GOAWAY 1 STREAM_CLOSED"},
		{"RST_STREAM twice", func(c *client) {
			c.open(1, "/hold", false)
			c.must(c.WriteRSTStream(1, 8))
			c.must(c.WriteRSTStream(1, 8))
			c.open(3, "/whole", true)
		}, "3: status=200"},
		{"WINDOW_UPDATE after RST_STREAM", func(c *client) {
			c.open(1, "/hold", false)
			c.must(c.WriteRSTStream(1, 8))
			c.must(c.WriteWindowUpdate(1, 8))
			c.open(3, "/whole", true)
		}, "3: status=200"},
		{"PRIORITY after RST_STREAM", func(c *client) {
			c.open(1, "/hold", false)
			c.must(c.WriteRSTStream(1, 8))
			raw(c, framePriority, 0, 1, "\x00\x00\x00\x00\x00")
			c.open(3, "/whole", true)
		}, "3: status=200"},
		{"a stream of even number", func(c *client) { c.open(2, "/whole", true) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"HEADERS on stream 0", func(c *client) { c.open(0, "/whole", true) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"an older stream", func(c *client) { c.open(5, "/hold", true); c.open(3, "/whole", true) }, "GOAWAY 5 PROTOCOL_ERROR"},
		{"HEADERS that depend on themselves", func(c *client) {
			raw(c, frameHeaders, flagEndHeaders|flagEndStream|flagPriority, 1, "\x80\x00\x00\x01\x00"+string(c.request("/whole")))
		}, "1: reset PROTOCOL_ERROR"},
		{"HEADERS with a priority", func(c *client) {
			raw(c, frameHeaders, flagEndHeaders|flagEndStream|flagPriority, 1, "\x00\x00\x00\x00\x00"+string(c.request("/whole")))
		}, answered},
		{"HEADERS cut in its priority", func(c *client) {
			raw(c, frameHeaders, flagEndHeaders|flagEndStream|flagPriority, 1, "\x00\x00")
		}, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"PRIORITY that depends on itself", func(c *client) { raw(c, framePriority, 0, 1, "\x00\x00\x00\x01\x00") }, "1: reset PROTOCOL_ERROR"},

		// Definitions of frames, section 6.
		{"DATA on stream 0", func(c *client) { c.must(c.WriteData(0, true, nil)) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"DATA with padding", func(c *client) {
			c.open(1, "/whole", false)
			raw(c, frameData, flagPadded|flagEndStream, 1, "\x02ab\x00\x00")
		}, answered},
		{"DATA with more padding than payload", func(c *client) {
			c.open(1, "/whole", false)
			raw(c, frameData, flagPadded|flagEndStream, 1, "\x05ab\x00\x00")
		}, "GOAWAY 1 PROTOCOL_ERROR"},
		{"DATA without the length of its padding", func(c *client) {
			c.open(1, "/whole", false)
			raw(c, frameData, flagPadded|flagEndStream, 1, "")
		}, "GOAWAY 1 FRAME_SIZE_ERROR"},
		{"HEADERS with padding", func(c *client) {
			raw(c, frameHeaders, flagPadded|flagEndHeaders|flagEndStream, 1, "\x02"+string(c.request("/whole"))+"\x00\x00")
		}, answered},
		{"HEADERS with more padding than payload", func(c *client) {
			raw(c, frameHeaders, flagPadded|flagEndHeaders|flagEndStream, 1, "\xff"+string(c.request("/whole")))
		}, "GOAWAY 0 PROTOCOL_ERROR"},
		{"PRIORITY on stream 0", func(c *client) { raw(c, framePriority, 0, 0, "\x00\x00\x00\x00\x00") }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"PRIORITY of 4 bytes", func(c *client) { raw(c, framePriority, 0, 1, "\x00\x00\x00\x00") }, "1: reset FRAME_SIZE_ERROR"},
		{"RST_STREAM on stream 0", func(c *client) { c.must(c.WriteRSTStream(0, 8)) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"RST_STREAM of 3 bytes", func(c *client) { c.open(1, "/hold", false); raw(c, frameReset, 0, 1, "\x00\x00\x00") }, "GOAWAY 1 FRAME_SIZE_ERROR"},
		{"SETTINGS on a stream", func(c *client) { raw(c, frameSettings, 0, 1, "") }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"SETTINGS of 3 bytes", func(c *client) { raw(c, frameSettings, 0, 0, "\x00\x00\x00") }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"SETTINGS ack with a payload", func(c *client) { raw(c, frameSettings, flagAck, 0, "\x00\x00\x00\x00\x00\x00") }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"ENABLE_PUSH 2", func(c *client) { c.must(c.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2})) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"INITIAL_WINDOW_SIZE too large", func(c *client) {
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
		}, "GOAWAY 0 FLOW_CONTROL_ERROR"},
		{"MAX_FRAME_SIZE too small", func(c *client) {
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1<<14 - 1}))
		}, "GOAWAY 0 PROTOCOL_ERROR"},
		{"MAX_FRAME_SIZE too large", func(c *client) {
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 24}))
		}, "GOAWAY 0 PROTOCOL_ERROR"},
		{"unknown setting", func(c *client) {
			c.must(c.WriteSettings(http2.Setting{ID: 0xff, Val: 1}))
			c.open(1, "/whole", true)
		}, answered},
		{"PUSH_PROMISE", func(c *client) { raw(c, framePushPromise, flagEndHeaders, 1, "\x00\x00\x00\x02") }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"PING on a stream", func(c *client) { raw(c, framePing, 0, 1, "12345678") }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"PING of 6 bytes", func(c *client) { raw(c, framePing, 0, 0, "123456") }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"GOAWAY on a stream", func(c *client) { raw(c, frameGoAway, 0, 1, "12345678") }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"GOAWAY of 7 bytes", func(c *client) { raw(c, frameGoAway, 0, 0, "1234567") }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"GOAWAY", func(c *client) { c.must(c.WriteGoAway(0, 0, nil)); c.open(1, "/whole", true) }, answered},
		{"WINDOW_UPDATE by nothing", func(c *client) { c.must(c.WriteWindowUpdate(0, 0)) }, "GOAWAY 0 PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of a stream by nothing", func(c *client) { c.open(1, "/hold", false); c.must(c.WriteWindowUpdate(1, 0)) }, "1: reset PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of 3 bytes", func(c *client) { raw(c, frameWindowUpdate, 0, 0, "\x00\x00\x01") }, "GOAWAY 0 FRAME_SIZE_ERROR"},
		{"WINDOW_UPDATE beyond the limit", func(c *client) {
			c.must(c.WriteWindowUpdate(0, maxWindow))
		}, "GOAWAY 0 FLOW_CONTROL_ERROR"},
		{"WINDOW_UPDATE of a stream beyond the limit", func(c *client) {
			c.open(1, "/hold", false)
			c.must(c.WriteWindowUpdate(1, maxWindow))
		}, "1: reset FLOW_CONTROL_ERROR"},
		{"INITIAL_WINDOW_SIZE that moves a window beyond the limit", func(c *client) {
			c.open(1, "/hold", false)
			c.must(c.WriteWindowUpdate(1, maxWindow-defaultWindow))
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: defaultWindow + 1}))
		}, "GOAWAY 1 FLOW_CONTROL_ERROR"},
		{"CONTINUATION after a whole block", func(c *client) {
			c.open(1, "/hold", true)
			raw(c, frameContinuation, flagEndHeaders, 1, "")
		}, "GOAWAY 1 PROTOCOL_ERROR"},
		{"CONTINUATION on stream 0", func(c *client) {
			raw(c, frameHeaders, flagEndStream, 1, string(c.request("/whole")))
			raw(c, frameContinuation, flagEndHeaders, 0, "")
		}, "GOAWAY 0 PROTOCOL_ERROR"},
		{"several CONTINUATIONs", func(c *client) {
			b := string(c.request("/whole"))
			raw(c, frameHeaders, flagEndStream, 1, b[:1])
			raw(c, frameContinuation, 0, 1, "")
			raw(c, frameContinuation, 0, 1, b[1:5])
			raw(c, frameContinuation, flagEndHeaders, 1, b[5:])
		}, answered},

		// Messages, section 8.
		{"upper case", header(method, scheme, path, "Name: x"), "1: reset PROTOCOL_ERROR"},
		{"invalid name", header(method, scheme, path, "na me: x"), "1: reset PROTOCOL_ERROR"},
		{"empty name", func(c *client) {
			block(append(c.request("/whole"), 0, 0, 1, 'x')...)(c)
		}, "1: reset PROTOCOL_ERROR"},
		{"newline in a value", header(method, scheme, path, "name: a\nb"), "1: reset PROTOCOL_ERROR"},
		{"unknown pseudo-header field", header(method, scheme, path, ":other: x"), "1: reset PROTOCOL_ERROR"},
		{"pseudo-header field of responses", header(method, scheme, path, ":status: 200"), "1: reset PROTOCOL_ERROR"},
		{"pseudo-header field after others", header(method, scheme, "name: x", path), "1: reset PROTOCOL_ERROR"},
		{"pseudo-header field after the varying one", header(method, scheme, "timeout: 1s", path), "1: reset PROTOCOL_ERROR"},
		{"connection", header(method, scheme, path, "connection: keep-alive"), "1: reset PROTOCOL_ERROR"},
		{"transfer-encoding", header(method, scheme, path, "transfer-encoding: chunked"), "1: reset PROTOCOL_ERROR"},
		{"te: trailers", header(method, scheme, path, "te: trailers"), answered},
		{"te: other", header(method, scheme, path, "te: trailers, deflate"), "1: reset PROTOCOL_ERROR"},
		{"empty path", header(method, scheme, ":path: "), "1: reset PROTOCOL_ERROR"},
		{"no method", header(scheme, path), "1: reset PROTOCOL_ERROR"},
		{"no scheme", header(method, path), "1: reset PROTOCOL_ERROR"},
		{"no path", header(method, scheme), "1: reset PROTOCOL_ERROR"},
		{"method twice", header(method, method, scheme, path), "1: reset PROTOCOL_ERROR"},
		{"path twice", header(method, scheme, path, path), "1: reset PROTOCOL_ERROR"},
		{"CONNECT", header(":method: CONNECT", ":authority: x"), "1: status=404 end"},
		{"CONNECT with a path", header(":method: CONNECT", ":authority: x", path), "1: reset PROTOCOL_ERROR"},
		{"content-length right", func(c *client) { c.call(1, "/whole", "abc", "content-length: 3") }, answered},
		{"content-length too large", func(c *client) { c.call(1, "/whole", "abc", "content-length: 4") }, "1: reset PROTOCOL_ERROR"},
		{"content-length too small", func(c *client) { c.call(1, "/whole", "abc", "content-length: 2") }, "1: reset PROTOCOL_ERROR"},
		{"content-length over several frames", func(c *client) {
			c.open(1, "/whole", false, "content-length: 3")
			c.must(c.WriteData(1, false, []byte("a")))
			c.must(c.WriteData(1, true, []byte("b")))
		}, "1: reset PROTOCOL_ERROR"},
		{"content-length without a body", func(c *client) { c.open(1, "/whole", true, "content-length: 1") }, "1: reset PROTOCOL_ERROR"},
		{"content-length before a trailer", func(c *client) {
			c.open(1, "/whole", false, "content-length: 3")
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode("name: x"), EndStream: true, EndHeaders: true}))
		}, "1: reset PROTOCOL_ERROR"},
		{"content-length not a number", func(c *client) { c.open(1, "/whole", true, "content-length: -1") }, "1: reset PROTOCOL_ERROR"},
		{"content-lengths that differ", func(c *client) { c.open(1, "/whole", true, "content-length: 0", "content-length: 1") }, "1: reset PROTOCOL_ERROR"},
		{"trailer", func(c *client) {
			c.open(1, "/whole", false)
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode("name: x"), EndStream: true, EndHeaders: true}))
		}, answered},
		{"trailer of a body that is read", func(c *client) {
			c.open(1, "/flow", false)
			c.must(c.WriteData(1, false, []byte("abc")))
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode("name: x"), EndStream: true, EndHeaders: true}))
		}, answered},
		{"trailer that is not the end", func(c *client) {
			c.open(1, "/whole", false)
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode("name: x"), EndHeaders: true}))
		}, "1: reset PROTOCOL_ERROR"},
		{"trailer with a pseudo-header field", func(c *client) {
			c.open(1, "/whole", false)
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(path), EndStream: true, EndHeaders: true}))
		}, "1: reset PROTOCOL_ERROR"},
		{"trailer with an invalid field", func(c *client) {
			c.open(1, "/whole", false)
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode("Name: x"), EndStream: true, EndHeaders: true}))
		}, "1: reset PROTOCOL_ERROR"},

		// Compression, RFC 7541.
		{"empty block", block(), "1: reset PROTOCOL_ERROR"},
		{"index 0", block(0x80), "GOAWAY 0 COMPRESSION_ERROR"},
		{"index beyond the tables", block(0xff, 0x7f), "GOAWAY 0 COMPRESSION_ERROR"},
		{"cut integer", block(0xff), "GOAWAY 0 COMPRESSION_ERROR"},
		{"endless integer", block(bytes.Repeat([]byte{0xff}, 20)...), "GOAWAY 0 COMPRESSION_ERROR"},
		{"cut string", block(0x00, 0x05, 'a'), "GOAWAY 0 COMPRESSION_ERROR"},
		{"Huffman padding of more than 7 bits", block(0x00, 0x82, 0x1c, 0xff, 0x81, 0xff), "GOAWAY 0 COMPRESSION_ERROR"},
		{"Huffman padding of zeros", block(0x00, 0x81, 0x00, 0x00), "GOAWAY 0 COMPRESSION_ERROR"},
		{"Huffman EOS", block(0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00), "GOAWAY 0 COMPRESSION_ERROR"},
		{"table size at the end of a block", func(c *client) {
			block(append(c.request("/whole"), 0x20)...)(c)
		}, "GOAWAY 0 COMPRESSION_ERROR"},
		{"table size beyond the limit", block(0x3f, 0xe2, 0x1f), "GOAWAY 0 COMPRESSION_ERROR"},
		{"table size at the beginning", func(c *client) {
			block(append([]byte{0x20}, c.request("/whole")...)...)(c)
		}, answered},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newFixture(t, nil).dial(t)
			tt.send(c)
			if got := c.next(); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if strings.HasPrefix(tt.want, connection) {
				c.expect("closed")
			}
		})
	}
}

// What the client begins with is its preface and SETTINGS; the connection ends otherwise.
func TestHandshake(t *testing.T) {
	for _, tt := range []struct {
		name, send string
		want       []string
	}{
		{"other bytes", "GET / HTTP/1.1\r\n\r\n", []string{"closed"}},
		{"another preface", Preface[:20] + "XXXX", []string{"closed"}},
		{"no SETTINGS", Preface + string(appendPing(nil, 0, [8]byte{})), []string{"GOAWAY 0 PROTOCOL_ERROR the first frame is not SETTINGS", "closed"}},
		{"SETTINGS that acknowledge", Preface + string(appendFrameHeader(nil, 0, frameSettings, flagAck, 0)),
			[]string{"GOAWAY 0 PROTOCOL_ERROR the first frame is not SETTINGS", "closed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newFixture(t, nil).headed(t, nil)
			c.expectSettings()
			c.write([]byte(tt.send))
			c.expect(tt.want...)
			if err := <-c.failed; err == nil {
				t.Error("the connection ended in order")
			}
		})
	}
}

// What has been read before is part of the connection.
func TestHead(t *testing.T) {
	f := newFixture(t, nil)
	all := []byte(Preface)
	all = appendSettings(all)
	for cut := range len(all) {
		c := f.headed(t, all[:cut])
		c.write(all[cut:])
		c.expectSettings()
		c.call(1, "/whole", "abc")
		c.expectAnswer(1, "abc")
	}
}
