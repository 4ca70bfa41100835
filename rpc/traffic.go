package rpc

// Traffic is told the size of every message, without framing. Its methods are called for each
// message of each connection and must be cheap.
type Traffic interface {
	Sent(bytes int)
	Received(bytes int)
}
