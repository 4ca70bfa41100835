package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// connectTimeout bounds making a TCP connection. A SYN that was lost is sent
// again after a second: a new attempt is no later than that.
const connectTimeout = time.Second

// endpoint is where a member listens.
type endpoint struct {
	network, address string
	secure           bool
}

// parseEndpoint reads a peer URL: http, https, unix or unixs. Of the latter,
// host and path together name the file.
func parseEndpoint(raw string) (endpoint, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return endpoint{}, fmt.Errorf("peer URL: %w", err)
	}
	e := endpoint{network: "tcp", address: u.Host}
	switch u.Scheme {
	case "http":
	case "https":
		e.secure = true
	case "unix", "unixs":
		e = endpoint{network: "unix", address: u.Host + u.Path, secure: u.Scheme == "unixs"}
	default:
		return endpoint{}, fmt.Errorf("peer URL %q: the scheme is not http, https, unix or unixs", raw)
	}
	if e.address == "" || e.network == "tcp" && u.Port() == "" {
		return endpoint{}, fmt.Errorf("peer URL %q: give host and port", raw)
	}
	return e, nil
}

func parseEndpoints(urls []string) ([]endpoint, error) {
	var list []endpoint
	var errs []error
	for _, raw := range urls {
		e, err := parseEndpoint(raw)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, e)
	}
	return list, errors.Join(errs...)
}

func (e endpoint) String() string {
	switch {
	case e.network == "unix" && e.secure:
		return "unixs://" + e.address
	case e.network == "unix":
		return "unix://" + e.address
	case e.secure:
		return "https://" + e.address
	}
	return "http://" + e.address
}

// serverName is what the certificate of the member is for.
func (e endpoint) serverName() string {
	name := e.address
	if e.network == "unix" {
		if i := strings.IndexAny(name, ":/"); i >= 0 {
			name = name[:i]
		}
	} else if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	if name == "" {
		return "localhost"
	}
	return name
}

// url is the endpoint's for net/http, which knows no unix sockets: their path
// becomes a host name, which dialHTTP takes apart again.
func (e endpoint) url(path string) *url.URL {
	u := &url.URL{Scheme: "http", Host: e.address, Path: path}
	if e.secure {
		u.Scheme = "https"
	}
	if e.network == "unix" {
		u.Host = hex.EncodeToString([]byte(e.address)) + unixSuffix
	}
	return u
}

const unixSuffix = ".unix"

// dialer makes connections to members.
type dialer struct {
	tls         func() (*tls.Config, error)
	connect     time.Duration // to make a TCP connection
	read, write time.Duration // see timedConn
}

func (d dialer) dial(ctx context.Context, e endpoint) (net.Conn, error) {
	nd := net.Dialer{Timeout: d.connect, KeepAliveConfig: net.KeepAliveConfig{Enable: true}}
	c, err := nd.DialContext(ctx, e.network, e.address)
	if err != nil || !e.secure {
		return c, err
	}
	t, err := d.secure(ctx, c, e)
	if err != nil {
		c.Close()
		return nil, err
	}
	return t, nil
}

// secure speaks TLS on a new connection. The configuration is asked for each
// time, so that certificates can be replaced.
func (d dialer) secure(ctx context.Context, c net.Conn, e endpoint) (net.Conn, error) {
	if d.tls == nil {
		return nil, fmt.Errorf("%s asks for TLS, and this member has no TLS for peers", e)
	}
	cfg, err := d.tls()
	if err != nil {
		return nil, fmt.Errorf("load the certificates for peers: %w", err)
	}
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"http/1.1"} // HTTP/2 has no connections to take over
	if cfg.ServerName == "" {
		cfg.ServerName = e.serverName()
	}
	ctx, cancel := context.WithTimeout(ctx, d.read)
	defer cancel()
	t := tls.Client(c, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS with %s: %w", e, err)
	}
	return t, nil
}

// client makes an HTTP client that dials as members do, until life ends: net/http
// itself goes on dialling for a request that was given up. Its owner closes its
// idle connections.
func (d dialer) client(life context.Context) *http.Transport {
	dial := func(secure bool) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, address string) (net.Conn, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(life, cancel)()
			return d.dialHTTP(ctx, address, secure)
		}
	}
	return &http.Transport{
		DialContext:         dial(false),
		DialTLSContext:      dial(true),
		MaxConnsPerHost:     maxCallConns,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,

		MaxResponseHeaderBytes: maxAnswer,
	}
}

func (d dialer) dialHTTP(ctx context.Context, address string, secure bool) (net.Conn, error) {
	e := endpoint{network: "tcp", address: address, secure: secure}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if name, ok := strings.CutSuffix(host, unixSuffix); ok {
		path, err := hex.DecodeString(name)
		if err != nil {
			return nil, err
		}
		e.network, e.address = "unix", string(path)
	}
	return d.dial(ctx, e)
}

// opened is a connection on which a request was made by hand, and its answer.
type opened struct {
	timedConn
	limit    io.LimitedReader // of the timedConn: what may still come
	reader   *bufio.Reader    // of limit
	response *http.Response
	endpoint endpoint
}

// cut ends the connection without a word. Taking leave, as Close does with TLS, may wait
// until the other end reads.
func (o *opened) cut() {
	if c, ok := o.Conn.(interface{ NetConn() net.Conn }); ok {
		c.NetConn().Close()
		return
	}
	o.Close()
}

// maxAnswer bounds an answer to a request made by hand, and its header.
const maxAnswer = 64 << 10

// open dials e and makes a request whose body, if it has one, is the caller's
// to write. The first answer is read.
func (d dialer) open(ctx context.Context, e endpoint, method, path string, h http.Header) (*opened, error) {
	// Of all parts together: each piece of an answer renews the timedConn's.
	ctx, cancel := context.WithTimeout(ctx, d.connect+d.read+d.write+d.read)
	defer cancel()
	c, err := d.dial(ctx, e)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	o := &opened{timedConn: timedConn{c, d.read, d.write}, endpoint: e}
	err = o.request(method, path, h)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return o, nil
}

func (o *opened) request(method, path string, h http.Header) error {
	host := o.endpoint.address
	if o.endpoint.network == "unix" {
		host = "localhost"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	if err := h.Write(&b); err != nil {
		return err
	}
	b.WriteString("\r\n")
	if _, err := o.Write(b.Bytes()); err != nil {
		return err
	}
	o.limit.R = o
	o.reader = bufio.NewReader(&o.limit)
	return o.answer(method)
}

// answer reads the next answer to the request.
func (o *opened) answer(method string) (err error) {
	o.limit.N = maxAnswer
	o.response, err = http.ReadResponse(o.reader, &http.Request{Method: method})
	return err
}

// unconnected tells whether err is that of making a connection, so that nothing
// was sent on it.
func unconnected(err error) (*net.OpError, bool) {
	var op *net.OpError
	return op, errors.As(err, &op) && op.Op == "dial"
}

// gone tells whether err says that nobody listens: the host is there and the
// process is not.
func gone(err error) bool {
	op, ok := unconnected(err)
	return ok && (errors.Is(op, syscall.ECONNREFUSED) || op.Net == "unix" && errors.Is(op, syscall.ENOENT))
}

// timedConn gives each read and each piece of a write its time. What makes
// progress, however slow, goes on.
type timedConn struct {
	net.Conn
	read, write time.Duration
}

// writePiece is what must be written in one timeout.
const writePiece = 256 << 10

func (c timedConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.read)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c timedConn) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		if err := c.SetWriteDeadline(time.Now().Add(c.write)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:min(len(p), written+writePiece)])
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}
