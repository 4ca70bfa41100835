package rpc

import (
	"google.golang.org/grpc"

	"github.com/coteriedb/coterie/rpc/h2"
)

// Messages are several messages that a stream is to be sent, in order.
type Messages interface {
	Len() int
	// AppendMessage appends the i-th, encoded, to dst. It does not keep dst, and may be called for
	// the same message again.
	AppendMessage(dst []byte, i int) ([]byte, error)
}

// SendMessages does as SendMsg with one after the other. Coterie's own transport sends what fits
// into a frame at a time. It returns why not all could be sent.
func SendMessages(to grpc.ServerStream, all Messages) error {
	if ss, ok := to.(*serverStream); ok {
		return ss.sendAll(all)
	}
	return sendEach(to, all)
}

func sendEach(to grpc.ServerStream, all Messages) error {
	for i := range all.Len() {
		if err := to.SendMsg(&oneOf{all, i}); err != nil {
			return err
		}
	}
	return nil
}

// oneOf is an Appender: one of several messages.
type oneOf struct {
	all Messages
	i   int
}

func (m *oneOf) AppendMessage(dst []byte) ([]byte, error) { return m.all.AppendMessage(dst, m.i) }

func (ss *serverStream) sendAll(all Messages) error {
	if ss.r.compressor != nil {
		return sendEach(ss, all)
	}
	out := &ss.several
	out.at = oneOf{all: all}
	out.one = outgoing{t: ss.t, m: &out.at, tooLarge: streamTooLarge}
	defer func() { out.at.all = nil }()
	for out.at.i < all.Len() {
		if err := ss.send(out); err != nil {
			return err
		}
	}
	return nil
}

// frameBytes is how much is sent at a time: what one frame of every client takes.
const frameBytes = 16 << 10

// outgoingAll are messages as they are encoded into the buffer of a connection, some at a time.
type outgoingAll struct {
	at  oneOf    // the next message
	one outgoing // is at
}

var _ h2.Appender = (*outgoingAll)(nil)

// AppendBody implements h2.Appender: the next message, and those that fit behind it.
func (m *outgoingAll) AppendBody(dst []byte) ([]byte, error) {
	start, first, sent := len(dst), m.at.i, 0
	for ; m.at.i < m.at.all.Len(); m.at.i++ {
		out, plain, err := m.one.encode(dst)
		if m.at.i > first && (err != nil || len(out)-start > frameBytes) {
			break // it comes next, or its error does
		}
		if err != nil {
			return nil, err
		}
		sent += plain
		dst = out
	}
	m.one.t.sent(sent)
	return dst, nil
}
