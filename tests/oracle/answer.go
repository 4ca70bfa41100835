package oracle

import (
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// answer is what one server said to one operation: a message or an error, without what may differ.
type answer struct {
	msg proto.Message
	err string // code and text; empty when msg is set
}

func newAnswer(msg proto.Message, err error) answer {
	if err != nil {
		return answer{err: describe(err)}
	}
	normalise(msg)
	return answer{msg: msg}
}

func (a answer) equal(b answer) bool {
	if a.err != "" || b.err != "" {
		return a.err == b.err
	}
	return proto.Equal(a.msg, b.msg)
}

func (a answer) String() string {
	if a.err != "" {
		return "error " + a.err
	}
	return show(a.msg)
}

// show prints a message on one line.
func show(m proto.Message) string {
	text, err := prototext.MarshalOptions{AllowPartial: true}.Marshal(m)
	if err != nil {
		return fmt.Sprintf("%v", m)
	}
	// prototext puts a second space at random so that nobody depends on its output; here two texts are read
	// side by side.
	return string(m.ProtoReflect().Descriptor().Name()) + "{" + strings.ReplaceAll(string(text), "  ", " ") + "}"
}

// describe turns an error of either client into its code and text.
func describe(err error) string {
	if e, ok := err.(rpctypes.EtcdError); ok {
		return fmt.Sprintf("%s: %s", e.Code(), e.Error())
	}
	if s, ok := status.FromError(err); ok {
		text := fmt.Sprintf("%s: %s", s.Code(), s.Message())
		for _, detail := range s.Details() {
			text += fmt.Sprintf(" %v", detail)
		}
		return text
	}
	return err.Error()
}

// normalise removes from a response what may differ between servers. Ids and terms stay visible as set or
// not set.
func normalise(m proto.Message) {
	switch m := m.(type) {
	case *pb.TxnResponse:
		header(m.Header)
		for _, op := range m.Responses {
			switch r := op.Response.(type) {
			case *pb.ResponseOp_ResponseRange:
				header(r.ResponseRange.GetHeader())
			case *pb.ResponseOp_ResponsePut:
				header(r.ResponsePut.GetHeader())
			case *pb.ResponseOp_ResponseDeleteRange:
				header(r.ResponseDeleteRange.GetHeader())
			case *pb.ResponseOp_ResponseTxn:
				normalise(r.ResponseTxn)
			}
		}
	case interface{ GetHeader() *pb.ResponseHeader }:
		header(m.GetHeader())
	}
}

func header(h *pb.ResponseHeader) {
	if h == nil {
		return
	}
	h.ClusterId = min(h.ClusterId, 1)
	h.MemberId = min(h.MemberId, 1)
	h.RaftTerm = min(h.RaftTerm, 1)
}
