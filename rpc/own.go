package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/coteriedb/coterie/rpc/h2"
)

// Bounds of the own transport; rpc/DESIGN.md has them in one table.
const (
	maxHeaderBytes = 128 << 10
	maxHeldBytes   = 64 << 20
	maxUnsentBytes = 256 << 20
	maxAbandoned   = 4096
	maxStreams     = 1 << 16
	streamWindow   = 1 << 20
	connWindow     = 16 << 20

	defaultPingMinTime       = 5 * time.Minute
	defaultKeepaliveInterval = 2 * time.Hour
	defaultKeepaliveTimeout  = 20 * time.Second
)

// own is Coterie's transport: what is registered, on connections of package h2.
type own struct {
	o       *Options
	server  *h2.Server
	methods map[string]*method // by full name
	known   map[string]bool    // services
}

// method is what answers a method. One of handler, unary and stream is set.
type method struct {
	name    string
	handler Handler
	unary   *grpc.MethodDesc
	stream  *grpc.StreamDesc
	impl    any
}

// connLocal is what requests share with others on the same connection.
type connLocal struct {
	ctx      context.Context //nolint:containedctx // the beginning of each request's
	grpcOnly bool
}

func newOwn(o *Options, services []service, handlers map[string]Handler) *own {
	t := &own{o: o, methods: map[string]*method{}, known: map[string]bool{}}
	for _, s := range services {
		t.known[s.desc.ServiceName] = true
		prefix := "/" + s.desc.ServiceName + "/"
		for i := range s.desc.Methods {
			d := &s.desc.Methods[i]
			m := &method{name: prefix + d.MethodName, impl: s.impl}
			if m.handler = handlers[m.name]; m.handler == nil {
				m.unary = d
			}
			t.methods[m.name] = m
		}
		for i := range s.desc.Streams {
			d := &s.desc.Streams[i]
			t.methods[prefix+d.StreamName] = &method{name: prefix + d.StreamName, stream: d, impl: s.impl}
		}
	}
	c := h2.Config{
		Handler:        t,
		MaxHeaderBytes: maxHeaderBytes,
		MaxBodyBytes:   prefixLen + o.MaxRecvBytes,
		MaxStreams:     min(o.MaxConcurrentStreams, maxStreams),
		MaxHeldBytes:   max(maxHeldBytes, 2*o.MaxRecvBytes),
		MaxUnsentBytes: maxUnsentBytes,
		MaxAbandoned:   maxAbandoned,
		StreamWindow:   streamWindow, ConnWindow: connWindow,
		HandshakeTimeout:  o.HandshakeTimeout,
		PingMinTime:       defaultPingMinTime,
		KeepaliveInterval: defaultKeepaliveInterval, KeepaliveTimeout: defaultKeepaliveTimeout,
		Varying:        "grpc-timeout",
		ExpiredHead:    headOK,
		ExpiredTrailer: statusFields(status.New(codes.DeadlineExceeded, context.DeadlineExceeded.Error())),
	}
	if o.KeepaliveMinTime > 0 {
		c.PingMinTime = o.KeepaliveMinTime
	}
	if o.KeepaliveInterval > 0 && o.KeepaliveTimeout > 0 {
		c.KeepaliveInterval, c.KeepaliveTimeout = o.KeepaliveInterval, o.KeepaliveTimeout
	}
	t.server = h2.NewServer(c)
	return t
}

// serve serves a connection until it ends.
func (t *own) serve(c net.Conn, grpcOnly bool) {
	p := &peer.Peer{Addr: c.RemoteAddr(), LocalAddr: c.LocalAddr()}
	var o h2.ConnOptions
	switch c := c.(type) {
	case *tls.Conn:
		if p, ok := c.NetConn().(*peeked); ok {
			setUserTimeout(p.Conn, t.keepaliveTimeout())
		}
		state := c.ConnectionState()
		o.TLS = &state
		p.AuthInfo = credentials.TLSInfo{
			State:          state,
			CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		}
	case *peeked:
		o.Head = c.head
		o.Socket, _ = c.Conn.(syscall.Conn)
		setUserTimeout(c.Conn, t.keepaliveTimeout())
	}
	o.Local = &connLocal{peer.NewContext(context.Background(), p), grpcOnly}
	if err := t.server.ServeConn(c, o); err != nil {
		t.o.Logger.Debug("connection ended", zap.Stringer("remote", p.Addr), zap.Error(err))
	}
}

func (t *own) keepaliveTimeout() time.Duration {
	if t.o.KeepaliveInterval > 0 && t.o.KeepaliveTimeout > 0 {
		return t.o.KeepaliveTimeout
	}
	return defaultKeepaliveTimeout
}

// drain returns when all connections have ended.
func (t *own) drain() {
	t.server.Drain()
	t.server.Wait()
}

// route is what is known of the requests that have one header.
type route struct {
	header *h2.Header
	web    bool // not gRPC

	refusal *refusal // else, if it is one

	method     *method
	head       []h2.Field // of answers
	recvCoding string     // grpc-encoding
	compressor encoding.Compressor
	md         metadataOnce
}

// Request implements h2.Handler.
func (t *own) Request(s *h2.Stream) h2.Body {
	h := s.Header()
	r, _ := h.Route.(*route)
	if r == nil {
		r = t.route(h)
		h.Route = r
	}
	if r.web {
		if s.ConnLocal().(*connLocal).grpcOnly {
			value, _ := h.Get("content-type")
			return refused(415, codes.InvalidArgument, "invalid gRPC request content-type %.*q", maxEcho, value).of(s)
		}
		s.Hold()
		go t.serveWeb(s) // Stop waits for it
		return h2.Flow
	}
	if r.refusal != nil {
		return r.refusal.of(s)
	}
	if v := s.Varying(); v != "" {
		timeout, err := parseTimeout(v)
		if err != nil {
			return refused(400, codes.Internal, "malformed grpc-timeout: %v", err).of(s)
		}
		if timeout <= 0 {
			return tooLate.of(s)
		}
		s.SetDeadline(time.Now().Add(timeout))
	}
	if r.method.stream != nil {
		s.Hold()
		go t.serveStream(s, r) // Stop waits for it
		return h2.Flow
	}
	return h2.Collect
}

// refusal is an answer that does not depend on the request's body.
type refusal struct{ head, trailer []h2.Field }

// maxEcho bounds what a refusal repeats of a request, which may be small on the wire and large here.
const maxEcho = 1 << 10

// tooLate refuses a request whose deadline has passed when it comes.
var tooLate = refused(200, codes.DeadlineExceeded, "%s", context.DeadlineExceeded.Error())

// refused makes a refusal of an HTTP status and gRPC's.
func refused(http int, code codes.Code, format string, args ...any) *refusal {
	r := &refusal{headOK, statusFields(status.Newf(code, format, args...))}
	if http != 200 {
		r.head = []h2.Field{{Name: ":status", Value: strconv.Itoa(http)}, contentType}
	}
	return r
}

// of answers a request.
func (r *refusal) of(s *h2.Stream) h2.Body {
	_ = s.Finish(r.head, r.trailer)
	return h2.Discard
}

// route finds out what requests with a header are.
func (t *own) route(h *h2.Header) *route {
	r := &route{header: h, head: headOK}
	kind, _ := h.Get("content-type")
	subtype, ok := strings.CutPrefix(kind, "application/grpc")
	if !ok || subtype != "" && subtype[0] != '+' && subtype[0] != ';' {
		r.web = true
		return r
	}
	refuse := func(http int, code codes.Code, format string, args ...any) *route {
		r.refusal = refused(http, code, format, args...)
		return r
	}
	hosts := 0
	for _, f := range h.Fields {
		if f.Name == "host" {
			hosts++
		}
	}
	switch {
	case hosts > 1:
		return refuse(400, codes.Internal, "num values of :authority: %d, num values of host: %d, both must only have 1 value as per HTTP/2 spec", min(len(h.Authority), 1), hosts)
	case h.Authority == "" && hosts == 0:
		return refuse(400, codes.Internal, "no host or :authority header present")
	case h.Method != "POST":
		return refuse(405, codes.Internal, "Received a HEADERS frame with :method %.*q which should be POST", maxEcho, h.Method)
	}
	if err := r.md.check(h); err != nil {
		return refuse(400, codes.Internal, "%v", err)
	}
	if r.method = t.methods[h.Path]; r.method == nil {
		return refuse(200, codes.Unimplemented, "%s", t.unknown(h.Path))
	}
	r.recvCoding, _ = h.Get("grpc-encoding")
	if r.recvCoding == encoding.Identity {
		r.recvCoding = ""
	}
	if r.recvCoding != "" {
		if r.compressor = encoding.GetCompressor(r.recvCoding); r.compressor == nil {
			return refuse(200, codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %.*q", maxEcho, r.recvCoding)
		}
	}
	r.head = answerHead(subtype, r.compressor)
	return r
}

// unknown says of a path without a method what grpc-go says.
func (t *own) unknown(path string) string {
	path = path[:min(len(path), maxEcho)]
	full, ok := strings.CutPrefix(path, "/")
	at := strings.LastIndexByte(full, '/')
	switch {
	case !ok || at < 0:
		return fmt.Sprintf("malformed method name: %q", path)
	case !t.known[full[:at]]:
		return "unknown service " + full[:at]
	}
	return fmt.Sprintf("unknown method %s for service %s", full[at+1:], full[:at])
}

// context is what the context of a request begins with, and how it ends.
func (t *own) context(s *h2.Stream, r *route) (context.Context, context.CancelFunc) {
	ctx := r.md.incoming(s.ConnLocal().(*connLocal).ctx, r.header)
	var cancel context.CancelFunc
	if at := s.Deadline(); !at.IsZero() {
		ctx, cancel = context.WithDeadline(ctx, at)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	return ctx, cancel
}

// Whole implements h2.Handler.
func (t *own) Whole(s *h2.Stream, body []byte, _ bool) {
	r := s.Header().Route.(*route)
	msg, err := t.message(r, body)
	switch {
	case err != nil:
		_ = s.Finish(r.head, statusFields(status.Convert(err)))
		s.Release(false)
	case r.method.handler != nil:
		c, _ := s.Local.(*ownCall)
		if c == nil {
			c = newOwnCall(t, s)
			s.Local = c
		}
		c.answer(r, msg)
	default:
		// The goroutine decodes it, after the bytes have been overwritten.
		msg = append([]byte(nil), msg...)
		s.Hold()
		go t.serveUnary(s, r, msg) // Stop waits for it
	}
}

// sent reports a message.
func (t *own) sent(n int) {
	if t.o.Traffic != nil {
		t.o.Traffic.Sent(n)
	}
}

func clampInt(n uint32) int { return int(min(uint64(n), math.MaxInt)) }
