package wire

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

func hot() map[string]proto.Message {
	key, value := make([]byte, 24), make([]byte, 256)
	put := &pb.PutRequest{Key: key, Value: value}
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: key, Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 1 << 20}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
	}
	header := &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 1 << 63, Revision: 1 << 30, RaftTerm: 3}
	kv := &mvccpb.KeyValue{Key: key, Value: value, CreateRevision: 1 << 20, ModRevision: 1 << 21, Version: 9}
	page := &pb.RangeResponse{Header: header, Count: 500}
	for range 500 {
		page.Kvs = append(page.Kvs, kv)
	}
	return map[string]proto.Message{
		"put": put, "txn": txn, "range": &pb.RangeRequest{Key: key}, "command": &pb.InternalRaftRequest{Put: put},
		"putresponse": &pb.PutResponse{Header: header}, "rangeresponse": &pb.RangeResponse{Header: header, Kvs: []*mvccpb.KeyValue{kv}, Count: 1},
		"page": page, "watchresponse": &pb.WatchResponse{Header: header, WatchId: 5, Events: []*mvccpb.Event{{Kv: kv}}},
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	for _, name := range []string{"put", "range", "txn", "command"} {
		m := hot()[name]
		encoded := official(b, m)
		for codec, unmarshal := range map[string]func([]byte, proto.Message) error{"wire": Unmarshal, "official": proto.Unmarshal} {
			b.Run(name+"/"+codec, func(b *testing.B) {
				b.ReportAllocs()
				into := fresh(m)
				for b.Loop() {
					if err := unmarshal(encoded, into); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	b.Run("command/decoder", func(b *testing.B) {
		b.ReportAllocs()
		encoded := official(b, hot()["command"])
		var d Decoder
		for b.Loop() {
			if _, err := d.Command(encoded); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, name := range []string{"put", "txn", "command", "putresponse", "rangeresponse", "page", "watchresponse"} {
		m := hot()[name]
		buf := make([]byte, 0, 1<<20)
		for codec, marshal := range map[string]func([]byte, proto.Message) ([]byte, error){"wire": Append, "official": deterministic.MarshalAppend} {
			b.Run(name+"/"+codec, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := marshal(buf, m); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
