package light

import (
	"encoding/binary"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	messagePrefix = 5       // bytes before a message: whether it is compressed, and its length
	maxMessage    = 1 << 30 // bytes of one answer
	maxStreamID   = 1<<31 - 1
)

// Call is a call of one method. The caller fills in the exported fields and begins it; when it has ended it may be begun
// again, on the same connection. The functions run on the goroutine that reads the connection: they must not block, and
// may begin and send.
type Call struct {
	Method string // "/package.Service/Method"
	// Streaming says that Send may follow. Otherwise the request of Begin is the only one.
	Streaming bool
	// Message is given each answer, which is valid until it returns.
	Message func(answer []byte)
	// End is called once for each Begin that returned no error. The error is nil for the status OK, and else one of
	// package status.
	End func(error)

	// Guarded by the connection's mu.
	id      uint32 // 0: not yet open
	open    bool
	window  int64  // bytes that the server lets this stream send
	unsent  []byte // what is to be sent and does not fit into the windows, or waits for a stream
	blocked bool   // it is in the connection's list of those
	pending int    // bytes of requests that have not been answered

	// Used by the reading goroutine alone.
	answered bool   // the first header block has come
	partial  []byte // of a message that has not come completely
	consumed int    // bytes received since the server was last told that it may send more
}

// Begin opens a stream and sends the first request. The bytes are copied.
func (c *Conn) Begin(call *Call, request []byte) error {
	err := c.begin(call, request)
	if err == nil {
		c.written()
	}
	return err
}

func (c *Conn) begin(call *Call, request []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if c.leaving || c.nextID > maxStreamID {
		return status.Error(codes.Unavailable, "the connection takes no further calls")
	}
	call.id, call.open, call.blocked, call.window, call.pending = 0, true, false, 0, 0
	call.unsent, call.partial = call.unsent[:0], call.partial[:0]
	call.answered, call.consumed = false, 0
	c.unanswered(call, len(request))
	if len(c.calls) >= c.peer.maxStreams {
		call.unsent = appendMessage(call.unsent, request)
		c.waiting = append(c.waiting, call)
		return nil
	}
	c.openStream(call)
	c.send(call, request)
	return nil
}

// Send sends a further request of a streaming call. It reports false when the call is over: End says why, or has said it.
func (c *Conn) Send(call *Call, request []byte) bool {
	c.mu.Lock()
	if !call.open || c.err != nil {
		c.mu.Unlock()
		return false
	}
	c.unanswered(call, len(request))
	if call.id == 0 {
		call.unsent = appendMessage(call.unsent, request)
	} else {
		c.send(call, request)
	}
	c.mu.Unlock()
	c.written()
	return true
}

// unanswered counts the bytes of a request, with its frames, until the call is answered. The caller holds c.mu.
func (c *Conn) unanswered(call *Call, request int) {
	const frames = 64 // of the usual call, whose header block is short
	call.pending += frames + request
	c.pending += frames + request
}

// answeredAll is called when a call is answered or over: the server has read its requests. The caller holds c.mu.
func (c *Conn) answeredAll(call *Call) {
	c.pending -= call.pending
	call.pending = 0
}

// openStream writes the headers of a call. The caller holds c.mu.
func (c *Conn) openStream(call *Call) {
	call.id = c.nextID
	c.nextID += 2
	call.window = c.peer.initialWindow
	c.calls[call.id] = call
	block := c.requests.block(call.Method)
	// A block of this client is far smaller than the smallest frame size that a server may ask for.
	c.out = appendFrameHeader(c.out, len(block), http2.FrameHeaders, http2.FlagHeadersEndHeaders, call.id)
	c.out = append(c.out, block...)
}

// send writes a request, as far as the windows let it. The caller holds c.mu.
func (c *Conn) send(call *Call, request []byte) {
	size := int64(messagePrefix + len(request))
	if len(call.unsent) > 0 || size > min(call.window, c.window, c.peer.maxFrame) {
		call.unsent = appendMessage(call.unsent, request)
		c.sendUnsent(call)
		return
	}
	c.out = appendFrameHeader(c.out, int(size), http2.FrameData, endOf(call), call.id)
	c.out = appendMessage(c.out, request)
	call.window -= size
	c.window -= size
}

// sendUnsent writes what the windows let through of what a call has not sent. The caller holds c.mu.
func (c *Conn) sendUnsent(call *Call) {
	rest := call.unsent
	for len(rest) > 0 {
		n := min(int64(len(rest)), call.window, c.window, c.peer.maxFrame)
		if n <= 0 {
			break
		}
		var flags http2.Flags
		if int(n) == len(rest) {
			flags = endOf(call)
		}
		c.out = appendFrameHeader(c.out, int(n), http2.FrameData, flags, call.id)
		c.out = append(c.out, rest[:n]...)
		rest = rest[n:]
		call.window -= n
		c.window -= n
	}
	call.unsent = append(call.unsent[:0], rest...)
	if len(rest) > 0 && !call.blocked {
		call.blocked = true
		c.blocked = append(c.blocked, call)
	}
}

// windowsGrew sends what was held back. The caller holds c.mu.
func (c *Conn) windowsGrew() {
	held := c.blocked
	c.blocked = nil
	for _, call := range held {
		if call.blocked = false; call.open {
			c.sendUnsent(call)
		}
	}
}

// admit opens streams for the calls that waited for one. The caller holds c.mu.
func (c *Conn) admit() {
	for len(c.waiting) > 0 && len(c.calls) < c.peer.maxStreams && !c.leaving && c.nextID <= maxStreamID {
		call := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.openStream(call)
		c.sendUnsent(call)
	}
}

// endOf is the flag that ends the client's side with the only request of a call.
func endOf(call *Call) http2.Flags {
	if call.Streaming {
		return 0
	}
	return http2.FlagDataEndStream
}

func appendMessage(dst, message []byte) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, 0), uint32(len(message)))
	return append(dst, message...)
}

// finish ends a call: it may be begun again from within End.
func (c *Conn) finish(call *Call, err error) {
	c.mu.Lock()
	delete(c.calls, call.id)
	call.open = false
	c.answeredAll(call)
	c.admit()
	c.mu.Unlock()
	call.End(err)
}

// receive takes what came of a call's answers.
func (c *Conn) receive(call *Call, data []byte) error {
	if len(call.partial) > 0 {
		call.partial = append(call.partial, data...)
		data = call.partial
	}
	for len(data) >= messagePrefix {
		size := binary.BigEndian.Uint32(data[1:])
		if data[0] != 0 {
			return status.Error(codes.Internal, "the server compressed an answer")
		}
		if size > maxMessage {
			return status.Errorf(codes.ResourceExhausted, "an answer of %d bytes: at most %d", size, maxMessage)
		}
		end := messagePrefix + int(size)
		if len(data) < end {
			break
		}
		call.Message(data[messagePrefix:end])
		data = data[end:]
	}
	if len(data) > 0 && len(data) == len(call.partial) {
		return nil // it is the same, and there is more to come
	}
	call.partial = append(call.partial[:0], data...)
	return nil
}
