//go:build !unix

package rpc

import (
	"errors"
	"syscall"
)

// control refuses options that the platform's sockets do not have.
func (o ListenOptions) control(_, _ string, _ syscall.RawConn) error {
	if o.ReusePort || o.ReuseAddress {
		return errors.New("reusing ports and addresses is not supported on this platform")
	}
	return nil
}
