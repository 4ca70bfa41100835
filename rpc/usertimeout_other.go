//go:build !linux

package rpc

import (
	"net"
	"time"
)

// setUserTimeout does nothing: this system bounds only what is not acknowledged, by itself.
func setUserTimeout(net.Conn, time.Duration) {}
