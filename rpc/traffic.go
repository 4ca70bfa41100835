package rpc

// Traffic is told how many bytes of messages are sent and received, without framing: of each
// message by itself, or of several that are sent together. Its methods are called from all
// connections and must be cheap.
type Traffic interface {
	Sent(bytes int)
	Received(bytes int)
}
