package rpc

import (
	"crypto/tls"
	"math"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Defaults of Options.
const (
	DefaultHandshakeTimeout  = 20 * time.Second
	DefaultReadHeaderTimeout = time.Minute
	DefaultIdleTimeout       = 5 * time.Minute
)

// Transport is what speaks HTTP/2.
type Transport string

const (
	// Coterie is this package's own transport.
	Coterie Transport = "coterie"
	// GRPCGo is grpc-go's, and net/http's for clients that may speak HTTP/1.1 too.
	GRPCGo Transport = "grpc-go"
)

// Options configure a Server. The zero value of a field means its default.
type Options struct {
	Logger *zap.Logger
	// Refused, if set, is told of each connection that ended before it was known what it speaks,
	// say in its TLS handshake. It must be quick, and is called by several goroutines.
	Refused func(remote net.Addr, err error)
	// Transport is what speaks HTTP/2 where gRPC is served. Peers see no difference.
	// Default: Coterie.
	Transport Transport
	// HTTP answers whatever is not gRPC. Nil: such requests get 404.
	HTTP http.Handler

	UnaryInterceptor  grpc.UnaryServerInterceptor
	StreamInterceptor grpc.StreamServerInterceptor
	Traffic           Traffic

	// MaxRecvBytes bounds one received message; gRPC's own error answers a larger one.
	// Default: gRPC's 4 MiB.
	MaxRecvBytes int
	// MaxSendBytes bounds one sent message. Default: math.MaxInt32.
	MaxSendBytes int
	// MaxConcurrentStreams bounds the requests and streams in flight on one connection; the own transport has 65,536 at most.
	// Default: no bound.
	MaxConcurrentStreams uint32

	// KeepaliveMinTime is the shortest interval between pings that a client may choose; one that
	// pings faster is disconnected. Zero: gRPC's default (five minutes).
	KeepaliveMinTime time.Duration
	// KeepaliveInterval and KeepaliveTimeout: a silent client is pinged after the one and
	// disconnected after the other. If either is zero gRPC's defaults (2h, 20s) apply.
	KeepaliveInterval time.Duration
	KeepaliveTimeout  time.Duration

	// HandshakeTimeout bounds the time from accepting a connection to knowing what it speaks,
	// TLS handshake included, and again from there to the end of the HTTP/2 handshake.
	HandshakeTimeout time.Duration
	// ReadHeaderTimeout bounds reading the header of an HTTP request.
	ReadHeaderTimeout time.Duration
	// IdleTimeout closes HTTP connections that are kept alive without a request.
	IdleTimeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Transport == "" {
		o.Transport = Coterie
	}
	if o.HTTP == nil {
		o.HTTP = http.NotFoundHandler()
	}
	if o.MaxRecvBytes <= 0 {
		o.MaxRecvBytes = 4 << 20
	}
	if o.MaxSendBytes <= 0 {
		o.MaxSendBytes = math.MaxInt32
	}
	if o.MaxConcurrentStreams == 0 {
		o.MaxConcurrentStreams = math.MaxUint32
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.ReadHeaderTimeout <= 0 {
		o.ReadHeaderTimeout = DefaultReadHeaderTimeout
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = DefaultIdleTimeout
	}
	return o
}

// Protocols says what a listener serves.
type Protocols uint8

const (
	GRPCAndHTTP Protocols = iota // told apart connection by connection
	GRPCOnly
	HTTPOnly
)

// Listener is a socket and how to serve it.
type Listener struct {
	net.Listener
	Protocols Protocols
	// TLS, if set, is required of clients, unless Plaintext allows both on the port.
	TLS       *tls.Config
	Plaintext bool
	// MaxConns bounds open connections; further ones wait in the kernel's backlog. Zero: no bound.
	MaxConns int
}
