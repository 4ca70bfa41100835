//go:build unix

package h2

import (
	"io"
	"syscall"
)

// useSockets tells that sockets are read and written without package net.
const useSockets = true

// readSocket reads from the socket itself: a connection that waits holds no buffer.
func (c *Conn) readSocket() error {
	var failed error
	err := c.socket.Read(func(fd uintptr) bool {
		for {
			c.prepare()
			n, err := syscall.Read(int(fd), c.in[c.w:])
			switch {
			case err == syscall.EINTR:
				continue
			case err == syscall.EAGAIN:
				c.tidy()
				return false
			case err != nil:
				failed = err
			case n == 0:
				failed = io.EOF
			default:
				failed = c.arrived(n)
			}
			if failed != nil || c.ended() {
				return true
			}
		}
	})
	if failed == nil {
		failed = err
	}
	if failed == nil {
		failed = ErrClosed
	}
	return failed
}

// writeNow writes as much as the socket takes at once.
func (c *Conn) writeNow(b []byte) (int, error) {
	c.try.bytes, c.try.n, c.try.err = b, 0, nil
	err := c.socket.Write(c.try.once)
	if err == nil {
		err = c.try.err
	}
	c.try.bytes = nil
	return c.try.n, err
}

func (c *Conn) writeOnce(fd uintptr) bool {
	for {
		n, err := syscall.Write(int(fd), c.try.bytes)
		switch err {
		case nil:
			c.try.n = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			c.try.err = err
		}
		return true
	}
}
