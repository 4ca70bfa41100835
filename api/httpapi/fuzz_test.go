package httpapi

import (
	"context"
	"net/http"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/api"
	"github.com/coteriedb/coterie/internal/footprint"
)

// asked is a gRPC connection that keeps the last request.
type asked struct{ last proto.Message }

func (a *asked) Invoke(_ context.Context, _ string, args, _ any, _ ...grpc.CallOption) error {
	a.last = args.(proto.Message)
	return status.Error(codes.Unavailable, "nobody answers")
}

func (a *asked) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unavailable, "nobody answers")
}

// FuzzGateway sends bodies to the paths of the JSON gateway. A body that is taken for a request is encoded as JSON and sent
// again, and has to be taken for the same one. A small body does not take much memory.
func FuzzGateway(f *testing.F) {
	paths := []string{
		"kv/put", "kv/range", "kv/deleterange", "kv/txn", "kv/compaction", "watch", "lease/grant", "kv/lease/revoke", "lease/keepalive",
		"cluster/member/add", "cluster/member/list", "maintenance/alarm", "maintenance/status", "auth/user/add", "auth/role/grant",
	}
	conn := &asked{}
	h, err := New(f.Context(), Config{Node: &testNode{}, Metrics: api.NewMetrics(false), Gateway: conn, MaxRequestBytes: 1 << 20})
	if err != nil {
		f.Fatal(err)
	}
	txn, err := protojson.Marshal(&pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("k"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 3}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(0), []byte(`{"key":"Zm9v","value":"YmFy","lease":"7"}`))
	f.Add(uint8(1), []byte(`{"key":"Zm9v","limit":"9223372036854775807","sort_order":"DESCEND","unknown":[{}]}`))
	f.Add(uint8(3), txn)
	f.Add(uint8(5), []byte(`{"create_request":{"key":"Zm9v"}}{"cancel_request":{"watch_id":1}}`))
	f.Add(uint8(10), []byte(``))
	f.Add(uint8(14), []byte(`{"name":"r","perm":{"permType":2,"key":"Zm9v","range_end":"AA=="}}`))
	f.Fuzz(func(t *testing.T, path uint8, body []byte) {
		target := "/v3/" + paths[int(path)%len(paths)]
		first := send(t, h, conn, target, string(body))
		if first == nil {
			return
		}
		encoded, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(first)
		if err != nil {
			return // text that is no UTF-8 in an error of the decoder
		}
		if again := send(t, h, conn, target, string(encoded)); again == nil || !proto.Equal(first, again) {
			t.Errorf("%s %q is taken as %v, and that, encoded, as %v", target, body, first, again)
		}
	})
}

// send returns the request that a body is taken for, or nil.
func send(t *testing.T, h http.Handler, conn *asked, target, body string) proto.Message {
	t.Helper()
	conn.last = nil
	var code int
	if n := footprint.Of(func() { code = do(h, http.MethodPost, target, body, "Content-Type", "application/json").Code }); n > 2<<20+uint64(200*len(body)) {
		t.Errorf("a body of %d bytes took %d", len(body), n)
	}
	if want := http.StatusServiceUnavailable; conn.last != nil && code != want || code == http.StatusInternalServerError || code == http.StatusOK {
		t.Errorf("%s %q is answered with %d", target, body, code)
	}
	if conn.last == nil {
		return nil
	}
	return proto.Clone(conn.last)
}
