// Package rpc carries gRPC and HTTP on one port.
//
// It owns listeners and connections: from the accepted socket until the bytes of a request
// have reached a registered service or the HTTP handler. It knows no service; those register
// themselves through grpc.ServiceRegistrar, so that the transport below can be replaced without
// touching them: package h2 with the gRPC of this package on it, or grpc-go (Options.Transport).
//
// # Who gets a connection
//
// A connection is classified once, before any request:
//
//   - Plaintext: the first bytes are compared with the HTTP/2 connection preface. A client that
//     sends it speaks HTTP/2; every other byte sequence is net/http's to answer or refuse. At most
//     the 24 bytes of the preface are read.
//   - TLS: the handshake happens here. A client that agrees on h2 speaks HTTP/2, all others
//     HTTP/1.1.
//
// On an HTTP/2 connection gRPC is told from other requests by its content type, request by
// request, and those others are given to the HTTP handler. grpc-go cannot do that: there,
// HTTP/2 in plaintext is gRPC alone, and a TLS client that offers both h2 and http/1.1 is given to
// net/http's HTTP/2 server, with grpc-go behind it.
//
// Until it is classified a connection is held by Options.HandshakeTimeout; afterwards the header
// and idle deadlines of net/http and the connection timeout and keepalive of gRPC apply. Nothing
// that a peer does on one connection touches another.
//
// # Stopping
//
// Stop closes in the order in which work can still be refused without being lost: listeners
// first (clients go elsewhere), then connections that have not said anything yet, then HTTP
// (its gateway calls gRPC in process, so gRPC must outlive it), then gRPC. Requests in flight
// are waited for until the context ends; then connections are cut, and handlers, whose contexts
// are cancelled by that, are waited for without limit: when Stop returns no goroutine of this
// package and no handler runs.
package rpc
