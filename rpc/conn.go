package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// preface opens every HTTP/2 connection (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// peeked is a connection some of whose first bytes have been read to classify it. It returns
// them again, and reports its close once.
type peeked struct {
	net.Conn
	buf  [len(preface)]byte
	head []byte // of buf: read from Conn, not yet returned by Read
	once sync.Once
	// closed is called by the first Close. May be nil.
	closed func()
	// alsoHTTP1 is set during a TLS handshake: the client offers HTTP/1.1 too.
	alsoHTTP1 bool
}

// Read implements net.Conn.
func (c *peeked) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite ends the sending half of a connection that has one.
func (c *peeked) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close implements net.Conn.
func (c *peeked) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		if c.closed != nil {
			c.closed()
		}
	})
	return err
}

// peek reads until head holds n bytes or is no longer the beginning of want.
func (c *peeked) peek(n int, want string) error {
	for len(c.head) < n && strings.HasPrefix(want, string(c.head)) {
		have := len(c.head)
		m, err := c.Conn.Read(c.buf[have:n])
		c.head = c.buf[:have+m]
		if err != nil {
			if len(c.head) > 0 && errors.Is(err, io.EOF) {
				return nil // what came before the end may still be a request
			}
			return err
		}
	}
	return nil
}

// isHTTP2 reads as far as needed to tell whether the client opens with the HTTP/2 preface.
func (c *peeked) isHTTP2() (bool, error) {
	err := c.peek(len(preface), preface)
	return string(c.head) == preface, err
}

// handshakeRecord is the first byte of a client that speaks TLS.
const handshakeRecord = 0x16

// isTLS tells whether the client opens with a TLS handshake record.
func (c *peeked) isTLS() (bool, error) {
	if err := c.peek(1, preface); err != nil {
		return false, err
	}
	return c.head[0] == handshakeRecord, nil
}

// alpn prepares a server's TLS configuration: both protocols are on offer, and what the client
// offered is noted on its connection.
func alpn(base *tls.Config) *tls.Config {
	cfg := base.Clone()
	cfg.NextProtos = []string{"h2", "http/1.1"}
	next := base.GetConfigForClient
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if c, ok := hello.Conn.(*peeked); ok {
			c.alsoHTTP1 = slices.Contains(hello.SupportedProtos, "http/1.1")
		}
		if next == nil {
			return nil, nil
		}
		chosen, err := next(hello)
		if chosen != nil && len(chosen.NextProtos) == 0 {
			chosen = chosen.Clone()
			chosen.NextProtos = cfg.NextProtos
		}
		return chosen, err
	}
	return cfg
}

// handshaken are the transport credentials of the gRPC server: connections arrive with their
// handshake done, so all that is left is to tell handlers about the peer's certificate.
type handshaken struct {
	credentials.TransportCredentials
}

func newHandshaken() credentials.TransportCredentials {
	return handshaken{insecure.NewCredentials()}
}

// ServerHandshake implements credentials.TransportCredentials.
func (h handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return h.TransportCredentials.ServerHandshake(c)
	}
	return t, credentials.TLSInfo{
		State:          t.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (h handshaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("rpc: server credentials used by a client")
}

// Clone implements credentials.TransportCredentials.
func (h handshaken) Clone() credentials.TransportCredentials { return newHandshaken() }
