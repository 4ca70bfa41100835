package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"syscall"
	"time"
)

// ListenOptions are socket options.
type ListenOptions struct {
	// ReusePort lets several processes listen on one port; ReuseAddress lets one listen on a
	// port whose old connections are still in TIME_WAIT.
	ReusePort, ReuseAddress bool
}

// Secure tells whether a listen URL's scheme asks for TLS.
func Secure(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// Listen opens the socket of a listen URL: http, https, unix or unixs.
func Listen(ctx context.Context, u url.URL, o ListenOptions) (net.Listener, error) {
	switch u.Scheme {
	case "http", "https":
		lc := net.ListenConfig{Control: o.control, KeepAliveConfig: net.KeepAliveConfig{Enable: true}}
		return lc.Listen(ctx, "tcp", u.Host)
	case "unix", "unixs":
		// As etcd has it, host and path together name the file: unix://localhost:m0 is "localhost:m0".
		return listenUnix(ctx, u.Host+u.Path)
	}
	return nil, fmt.Errorf("cannot listen on %s: scheme is not http, https, unix or unixs", u.String())
}

// listenUnix replaces the socket file that a dead process has left, but not one that is in use.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case fi.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("cannot listen on %s: a file that is not a socket has this name", path)
	default:
		d := net.Dialer{Timeout: time.Second}
		c, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			c.Close()
			return nil, fmt.Errorf("listen unix %s: %w", path, syscall.EADDRINUSE)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, "unix", path)
}
