// Package rpc carries gRPC and HTTP on one port.
//
// It owns listeners and connections: from the accepted socket until the bytes of a request
// have reached a registered service or the HTTP handler. It knows no service; those register
// themselves through grpc.ServiceRegistrar, so that the transport below (grpc-go today) can be
// replaced without touching them.
//
// # Who gets a connection
//
// A connection is classified once, before any request:
//
//   - Plaintext: the first bytes are compared with the HTTP/2 connection preface. A client that
//     sends it gets gRPC; every other byte sequence is net/http's to answer or refuse. At most
//     the 24 bytes of the preface are read.
//   - TLS: the handshake happens here. A client whose ALPN list is "h2" without "http/1.1" is a
//     gRPC client. One that offers both may be either, so its streams are told apart by their
//     content type, on net/http's HTTP/2 server. All others speak HTTP/1.1.
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
