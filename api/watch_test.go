package api

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func create(key string, start int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte(key), StartRevision: start}}}
}

func mustSend(t *testing.T, w pb.Watch_WatchClient, r *pb.WatchRequest) {
	t.Helper()
	if err := w.Send(r); err != nil {
		t.Fatal(err)
	}
}

func mustRecv(t *testing.T, w pb.Watch_WatchClient) *pb.WatchResponse {
	t.Helper()
	resp, err := w.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestWatch(t *testing.T) {
	s := newTestServer(t, nil)
	w, err := s.watch.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.mustPut(t, "k", "1")
	mustSend(t, w, create("k", 2))
	r := mustRecv(t, w)
	if !r.Created || r.Canceled || r.WatchId != 0 {
		t.Errorf("got %v", r)
	}
	wantHeader(t, r.Header, 2)
	r = mustRecv(t, w)
	if len(r.Events) != 1 || string(r.Events[0].Kv.Value) != "1" {
		t.Errorf("got %v", r)
	}
	s.mustPut(t, "k", "2")
	r = mustRecv(t, w)
	if len(r.Events) != 1 || r.Events[0].Kv.ModRevision != 3 {
		t.Errorf("got %v", r)
	}
	wantHeader(t, r.Header, 3)

	mustSend(t, w, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	if r = mustRecv(t, w); r.WatchId != -1 || len(r.Events) != 0 {
		t.Errorf("progress is %v", r)
	}
	wantHeader(t, r.Header, 3)

	mustSend(t, w, &pb.WatchRequest{}) // nothing asked: nothing happens
	mustSend(t, w, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 7}}})
	mustSend(t, w, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 0}}})
	if r = mustRecv(t, w); !r.Canceled || r.WatchId != 0 {
		t.Errorf("got %v", r)
	}

	// A client may have nothing more to ask and still listen.
	mustSend(t, w, create("k", 0))
	if r = mustRecv(t, w); !r.Created {
		t.Errorf("got %v", r)
	}
	if err := w.CloseSend(); err != nil {
		t.Fatal(err)
	}
	s.mustPut(t, "k", "3")
	if r = mustRecv(t, w); len(r.Events) != 1 {
		t.Errorf("got %v", r)
	}
}

func TestWatchFragments(t *testing.T) {
	s := newTestServer(t, nil)
	var all []*pb.RequestOp
	for i := range 30 {
		op := put(fmt.Sprintf("k%02d", i))
		op.GetRequestPut().Value = make([]byte, 40_000)
		all = append(all, op)
	}
	if _, err := s.kv.Txn(t.Context(), &pb.TxnRequest{Success: all}); err != nil {
		t.Fatal(err)
	}
	w, err := s.watch.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := create("k", 2)
	r.GetCreateRequest().RangeEnd = []byte("l")
	r.GetCreateRequest().Fragment = true
	mustSend(t, w, r)
	mustRecv(t, w)
	events, fragments := 0, 0
	for events < len(all) {
		r := mustRecv(t, w)
		wantHeader(t, r.Header, 2)
		events += len(r.Events)
		if r.Fragment {
			fragments++
		}
	}
	if fragments != 14 { // two events of 40 kB are in each of 15 responses, and more follows 14
		t.Errorf("%d fragments", fragments)
	}
}

func TestWatchErrors(t *testing.T) {
	s := newTestServer(t, nil)
	for range 5 {
		s.mustPut(t, "k", "v")
	}
	if _, err := s.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 4}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.watch.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mustSend(t, w, create("k", -1))
	if r := mustRecv(t, w); !r.Canceled || !r.Created || r.WatchId != -1 || r.CancelReason != rpctypes.ErrCompacted.Error() {
		t.Errorf("negative revision: %v", r)
	}
	mustSend(t, w, create("k", 2))
	if r := mustRecv(t, w); !r.Created {
		t.Errorf("got %v", r)
	}
	if r := mustRecv(t, w); !r.Canceled || r.CompactRevision != 4 {
		t.Errorf("compacted: %v", r)
	}
	cancel()
	if _, err := w.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("after the client gave up: %v", err)
	}
}

func requireLeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
}

func TestRequireLeader(t *testing.T) {
	s := newTestServer(t, func(c *Config) { c.ElectionTimeout = 5 * time.Millisecond })
	careful, err := s.watch.Watch(requireLeader(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	keepAlive, err := s.lease.LeaseKeepAlive(requireLeader(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	patient, err := s.watch.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []pb.Watch_WatchClient{careful, patient} {
		mustSend(t, w, create("k", 0))
		mustRecv(t, w)
	}
	if err := keepAlive.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil { // the stream is known to have begun
		t.Fatal(err)
	}
	if _, err := keepAlive.Recv(); err != nil {
		t.Fatal(err)
	}

	s.node.set(func(n *testNode) { n.status.Leader = 0 })
	_, err = careful.Recv()
	wantError(t, err, rpctypes.ErrGRPCNoLeader)
	_, err = keepAlive.Recv()
	wantError(t, err, rpctypes.ErrGRPCNoLeader)
	_, err = s.kv.Range(requireLeader(t.Context()), &pb.RangeRequest{Key: []byte("k"), Serializable: true})
	wantError(t, err, rpctypes.ErrGRPCNoLeader)
	refused, err := s.watch.Watch(requireLeader(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	_, err = refused.Recv()
	wantError(t, err, rpctypes.ErrGRPCNoLeader)

	// Others go on.
	s.mustPut(t, "k", "v")
	if r := mustRecv(t, patient); len(r.Events) != 1 {
		t.Errorf("got %v", r)
	}
}

func TestCloseEndsStreams(t *testing.T) {
	s := newTestServer(t, nil)
	w, err := s.watch.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustSend(t, w, create("k", 0))
	mustRecv(t, w)
	keepAlive, err := s.lease.LeaseKeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	_, err = w.Recv()
	wantError(t, err, rpctypes.ErrGRPCStopped)
	_, err = keepAlive.Recv()
	wantError(t, err, rpctypes.ErrGRPCStopped)
	late, err := s.watch.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = late.Recv()
	wantError(t, err, rpctypes.ErrGRPCStopped)
	s.mustPut(t, "k", "v") // requests still work
}

// A client that reads nothing holds up neither Close nor, beyond its deadline, the transport.
func TestCloseDoesNotWaitForSlowClients(t *testing.T) {
	s := newTestServer(t, nil)
	s.drain = 50 * time.Millisecond
	w, err := s.watch.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustSend(t, w, create("k", 0))
	mustRecv(t, w)
	value := string(make([]byte, 200_000)) // more than flow control lets through
	for range 10 {
		s.mustPut(t, "k", value)
	}
	sent := func() float64 { return counted(t, s.metrics.rpc.of(pb.Watch_Watch_FullMethodName).sent) }
	for before := -1.0; sent() != before; time.Sleep(time.Millisecond) {
		before = sent() // until the server is stuck
	}
	s.Close()
}
