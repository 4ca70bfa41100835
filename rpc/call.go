package rpc

import (
	"context"
	"net"
	"time"
)

// Appender is a message that encodes itself. It may be the answer of a Call, and be given to
// grpc.ServerStream.SendMsg: a message that many streams receive is encoded once that way.
type Appender interface {
	// AppendMessage appends the encoded message to dst. It does not keep dst.
	AppendMessage(dst []byte) ([]byte, error)
}

// Handler answers one unary call, exactly once: now or later, from any goroutine. It runs on the
// goroutine that reads the connection, so it must not block; Call.Go is for what does.
//
// Stop does not wait for a call that nobody can receive the answer of any more, unless Call.Go
// runs for it.
//
// Interceptors do not see the calls of a Handler.
type Handler func(c *Call)

// Call is one unary call on its way through a Handler. It is the Handler's until Reply or Fail
// is called, and must not be touched afterwards: the transport reuses it.
type Call struct{ x exchange }

// exchange is the transport's side of a Call.
type exchange interface {
	request() []byte
	reply(Appender)
	fail(error)
	metadata(key string) (string, bool)
	deadline() (time.Time, bool)
	context() context.Context
	remoteAddr() net.Addr
	run(func(context.Context))
	after(func(late func())) bool
}

// Request returns the request's message. The bytes are valid until the handler returns or, if
// it calls Go, until the function given to that returns.
func (c *Call) Request() []byte { return c.x.request() }

// Reply answers with a message, which is encoded before Reply returns; where that fails, or the
// message is larger than Options.MaxSendBytes, the client gets an error instead. An answer to
// a client that has gone, or whose deadline has passed, is dropped.
func (c *Call) Reply(m Appender) { c.x.reply(m) }

// Fail answers with the gRPC status of err, as a service's method does by returning err: an error
// without one becomes Unknown, or Canceled or DeadlineExceeded if it is the context's.
func (c *Call) Fail(err error) { c.x.fail(err) }

// Metadata returns the first value of a request header. The key is in lower case.
func (c *Call) Metadata(key string) (value string, ok bool) { return c.x.metadata(key) }

// Deadline returns when the client stops waiting, if it has said so. The transport itself ends
// calls whose deadline has passed; the handler still has to answer.
func (c *Call) Deadline() (time.Time, bool) { return c.x.deadline() }

// Context returns what a service's method would be given: with deadline, metadata and peer,
// cancelled when the client gives the call up, when its connection ends, and when the call has
// been answered. It is made on first use.
func (c *Call) Context() context.Context { return c.x.context() }

// RemoteAddr returns the client's address.
func (c *Call) RemoteAddr() net.Addr { return c.x.remoteAddr() }

// Go runs f on a goroutine of its own: the rest of a call that would block. It is the last thing
// that the handler does with the call; f answers it.
func (c *Call) Go(f func(ctx context.Context)) { c.x.run(f) }

// After has f called where the handler runs, when the handler has returned, and reports whether it
// will: only if nothing else on the connection has to wait for f. That may wait for what takes as
// long as waking a goroutine; if it takes longer, f has late called, and the connection goes on without it. If After reports
// true it is the last thing that the handler does with the call; f answers it, or has it answered.
func (c *Call) After(f func(late func())) bool { return c.x.after(f) }
