package bench

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeServer is as much of etcd as the loads need: a map with a revision, watchers of ranges, leases.
type fakeServer struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	pb.UnimplementedLeaseServer

	refuse error // what every put is answered with; nil: puts work
	deaf   int64 // so many watchers of each stream are told nothing

	mu       sync.Mutex // guards what follows
	revision int64
	keys     map[string]*mvccpb.KeyValue
	watchers map[*fakeWatcher]struct{}
	leases   map[int64]struct{}
	calls    map[string]int
}

type fakeWatcher struct {
	id       int64
	key, end string
	out      chan *pb.WatchResponse
	gone     <-chan struct{}
}

// withBothClients runs a test with each client.
func withBothClients(t *testing.T, test func(t *testing.T, light bool)) {
	for _, light := range []bool{false, true} {
		t.Run(map[bool]string{false: "grpc", true: "light"}[light], func(t *testing.T) { test(t, light) })
	}
}

// serve starts the server and returns a pool of connections to it.
func (s *fakeServer) serve(t *testing.T, conns int, light bool) *Pool {
	t.Helper()
	s.revision, s.keys, s.watchers = 1, map[string]*mvccpb.KeyValue{}, map[*fakeWatcher]struct{}{}
	s.leases, s.calls = map[int64]struct{}{}, map[string]int{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	pb.RegisterKVServer(g, s)
	pb.RegisterWatchServer(g, s)
	pb.RegisterLeaseServer(g, s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }() // ended and awaited by the cleanup
	t.Cleanup(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	pool, err := Dial(t.Context(), Target{Endpoints: []string{l.Addr().String()}, Conns: conns, Light: light})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func (s *fakeServer) count(call string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[call]
}

func (s *fakeServer) put(r *pb.PutRequest) *pb.PutResponse {
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, ModRevision: s.revision, Version: 1}
	s.keys[string(r.Key)] = kv
	for w := range s.watchers {
		if w.id < s.deaf {
			continue
		}
		if string(r.Key) == w.key || (string(r.Key) >= w.key && string(r.Key) < w.end) {
			select {
			case w.out <- &pb.WatchResponse{WatchId: w.id, Events: []*mvccpb.Event{{Type: mvccpb.Event_PUT, Kv: kv}}}:
			case <-w.gone:
			}
		}
	}
	return &pb.PutResponse{Header: &pb.ResponseHeader{Revision: s.revision}}
}

func (s *fakeServer) Put(_ context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["put"]++
	if s.refuse != nil {
		return nil, s.refuse
	}
	s.revision++
	return s.put(r), nil
}

func (s *fakeServer) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["range"]++
	resp := &pb.RangeResponse{}
	for key, kv := range s.keys {
		if key == string(r.Key) || (key >= string(r.Key) && key < string(r.RangeEnd)) {
			resp.Count++
			if !r.CountOnly && (r.Limit == 0 || int64(len(resp.Kvs)) < r.Limit) {
				resp.Kvs = append(resp.Kvs, kv)
			}
		}
	}
	return resp, nil
}

func (s *fakeServer) Txn(_ context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["txn"]++
	resp := &pb.TxnResponse{Succeeded: true}
	for _, c := range r.Compare {
		resp.Succeeded = resp.Succeeded && s.keys[string(c.Key)].GetModRevision() > c.GetModRevision()
	}
	if resp.Succeeded {
		s.revision++
		for _, op := range r.Success {
			s.calls["txn put"]++
			s.put(op.GetRequestPut())
		}
	}
	return resp, nil
}

func (s *fakeServer) Watch(stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	out := make(chan *pb.WatchResponse, 64)
	var sender sync.WaitGroup
	defer sender.Wait()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	sender.Go(func() { // ends with ctx
		for {
			select {
			case resp := <-out:
				if stream.Send(resp) != nil {
					cancel()
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for id := int64(0); ; id++ {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		c := req.GetCreateRequest()
		w := &fakeWatcher{id: id, key: string(c.Key), end: string(c.RangeEnd), out: out, gone: ctx.Done()}
		s.mu.Lock()
		s.calls["watch"]++
		s.watchers[w] = struct{}{}
		s.mu.Unlock()
		defer func() {
			cancel() // first: a put that waits for this watcher holds the lock
			s.mu.Lock()
			delete(s.watchers, w)
			s.mu.Unlock()
		}()
		out <- &pb.WatchResponse{WatchId: id, Created: true}
	}
}

func (s *fakeServer) LeaseGrant(_ context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["grant"]++
	id := int64(s.calls["grant"])
	s.leases[id] = struct{}{}
	return &pb.LeaseGrantResponse{ID: id, TTL: r.TTL}, nil
}

func (s *fakeServer) LeaseRevoke(_ context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.leases[r.ID]; !ok {
		return nil, status.Error(codes.NotFound, "etcdserver: requested lease not found")
	}
	delete(s.leases, r.ID)
	return &pb.LeaseRevokeResponse{}, nil
}

func (s *fakeServer) LeaseKeepAlive(stream grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		s.mu.Lock()
		s.calls["keep-alive"]++
		_, ok := s.leases[req.ID]
		s.mu.Unlock()
		if !ok {
			return errors.New("no such lease")
		}
		if err := stream.Send(&pb.LeaseKeepAliveResponse{ID: req.ID, TTL: 60}); err != nil {
			return nil
		}
	}
}
