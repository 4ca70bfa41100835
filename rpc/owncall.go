package rpc

import (
	"context"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc/status"

	"github.com/coteriedb/coterie/rpc/h2"
)

// ownCall is a Call on the own transport. It belongs to an h2.Stream, and is reused with it.
type ownCall struct {
	call Call
	t    *own
	s    *h2.Stream

	r    *route
	in   []byte
	wait bool            // Go was called: Reply may wait for room
	ctx  context.Context //nolint:containedctx // it is the call's
	out  outgoing
}

func newOwnCall(t *own, s *h2.Stream) *ownCall {
	c := &ownCall{t: t, s: s}
	c.call.x = c
	return c
}

// answer has the Handler answer a request.
func (c *ownCall) answer(r *route, msg []byte) {
	c.r, c.in, c.wait, c.ctx = r, msg, false, nil
	r.method.handler(&c.call)
}

func (c *ownCall) request() []byte { return c.in }

func (c *ownCall) reply(m Appender) {
	c.out = outgoing{t: c.t, m: m, tooLarge: unaryTooLarge}
	if c.wait { // else it is a goroutine with more to do that answers: it sends the message as it is
		c.out.compressor = c.r.compressor
	}
	err := c.out.prepare()
	if err == nil {
		err = c.s.AnswerAndRelease(c.r.head, &c.out, trailerOK, c.wait, true)
	}
	if err != nil {
		c.fail(err)
	}
}

func (c *ownCall) fail(err error) {
	if err == nil {
		err = errors.New("rpc: a call failed without an error")
	}
	s := c.s
	_ = s.Finish(c.r.head, statusFields(errorStatus(err)))
	s.Release(true)
}

func (c *ownCall) metadata(key string) (string, bool) {
	if key == ":authority" {
		return c.r.header.Authority, c.r.header.Authority != ""
	}
	value, ok := c.r.header.Get(key)
	if !ok {
		return "", false
	}
	value, _ = decodeMetadata(key, value) // route has found no error
	return value, true
}

func (c *ownCall) deadline() (time.Time, bool) {
	at := c.s.Deadline()
	return at, !at.IsZero()
}

func (c *ownCall) context() context.Context {
	if c.ctx == nil {
		var cancel context.CancelFunc
		c.ctx, cancel = c.t.context(c.s, c.r)
		c.s.OnEnd(func(error) { cancel() })
	}
	return c.ctx
}

func (c *ownCall) remoteAddr() net.Addr { return c.s.RemoteAddr() }

func (c *ownCall) after(f func(late func())) bool { return c.s.After(f) }

func (c *ownCall) run(f func(context.Context)) {
	c.in = append([]byte(nil), c.in...) // the buffer is read into again
	c.wait = true
	c.s.Hold()
	go f(c.context()) // ends when it has answered; Stop waits
}

// errorStatus is the status of what a method returns.
func errorStatus(err error) *status.Status {
	if st, ok := status.FromError(err); ok {
		return st
	}
	return status.FromContextError(err)
}
