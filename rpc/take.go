package rpc

import (
	"encoding/binary"

	"google.golang.org/grpc"
)

// TakeMessages has take called with the messages that come, where the connection is read, for as
// long as take takes them. It returns when there is something for RecvMsg: a message that was not
// taken, or the end of the stream. Until then nobody else may use the stream.
//
// take must not wait. It may send, and is not made to wait by that: it is not called while the
// client has much left to read. The message is valid until it returns.
//
// This spares a goroutine's waking for each message. On transports that cannot do it, and for
// messages that are compressed or come in parts, TakeMessages returns without having called take.
func TakeMessages(from grpc.ServerStream, take func(message []byte) bool) {
	ss, ok := from.(*serverStream)
	if !ok {
		return
	}
	ss.s.Take(func(body []byte) (taken int) {
		for {
			msg, ok := ss.whole(body[taken:])
			if !ok || !take(msg) {
				return taken
			}
			taken += prefixLen + len(msg)
			if t := ss.t.o.Traffic; t != nil {
				t.Received(len(msg))
			}
		}
	})
}

// whole returns the message that a part of a body begins with, if it is complete and plain.
func (ss *serverStream) whole(body []byte) (msg []byte, ok bool) {
	if len(body) < prefixLen || body[0] != 0 {
		return nil, false
	}
	n := clampInt(binary.BigEndian.Uint32(body[1:]))
	body = body[prefixLen:]
	if n > len(body) || n > ss.t.o.MaxRecvBytes {
		return nil, false
	}
	return body[:n], true
}
