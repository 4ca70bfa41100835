//go:build unix

package rpc

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// control sets the options on a socket before it is bound.
func (o ListenOptions) control(_, _ string, c syscall.RawConn) error {
	var opts []int
	if o.ReusePort {
		opts = append(opts, unix.SO_REUSEPORT)
	}
	if o.ReuseAddress {
		opts = append(opts, unix.SO_REUSEADDR)
	}
	for _, opt := range opts {
		var setErr error
		err := c.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, opt, 1) })
		if err != nil {
			return err
		}
		if setErr != nil {
			return setErr
		}
	}
	return nil
}
