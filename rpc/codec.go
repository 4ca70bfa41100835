package rpc

import (
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that is wrapped
	"google.golang.org/grpc/mem"
)

// Traffic is told the size of every message, without framing. Its methods are called for each
// message of each connection and must be cheap.
type Traffic interface {
	Sent(bytes int)
	Received(bytes int)
}

// meteredCodec is gRPC's own protobuf codec with the sizes reported.
type meteredCodec struct {
	encoding.CodecV2
	traffic Traffic
}

func newMeteredCodec(t Traffic) encoding.CodecV2 {
	return meteredCodec{encoding.GetCodecV2("proto"), t}
}

// Marshal implements encoding.CodecV2.
func (c meteredCodec) Marshal(v any) (mem.BufferSlice, error) {
	out, err := c.CodecV2.Marshal(v)
	c.traffic.Sent(out.Len())
	return out, err
}

// Unmarshal implements encoding.CodecV2.
func (c meteredCodec) Unmarshal(data mem.BufferSlice, v any) error {
	c.traffic.Received(data.Len())
	return c.CodecV2.Unmarshal(data, v)
}
