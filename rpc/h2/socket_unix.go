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
	c.reading.err = nil
	err := c.socket.Read(c.reading.once)
	switch {
	case c.reading.err != nil:
		return c.reading.err
	case err != nil || c.after != nil:
		return err
	}
	return ErrClosed
}

// readOnce reads and handles until the socket has no more, or c.after is set.
func (c *Conn) readOnce(fd uintptr) bool {
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
			c.reading.err = err
		case n == 0:
			c.reading.err = io.EOF
		default:
			c.reading.err = c.arrived(n)
		}
		if c.reading.err != nil || c.after != nil || c.ended() {
			return true
		}
	}
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
