package api

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine/lease"
)

func TestLeaseGrant(t *testing.T) {
	s := newTestServer(t, nil)
	ctx := t.Context()
	drawn, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
	if err != nil {
		t.Fatal(err)
	}
	if drawn.ID <= 0 || drawn.TTL != 60 {
		t.Errorf("granted %v", drawn)
	}
	wantHeader(t, drawn.Header, 1)
	// One and a half election timeouts, in whole seconds.
	for _, ttl := range []int64{-5, 0, 1} {
		short, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 100 + ttl, TTL: ttl})
		if err != nil || short.TTL != 2 || short.ID != 100+ttl {
			t.Errorf("TTL %d: granted %v, %v", ttl, short, err)
		}
	}
	_, err = s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: drawn.ID, TTL: 60})
	wantError(t, err, rpctypes.ErrGRPCLeaseExist)
	_, err = s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: lease.MaxTTL + 1})
	wantError(t, err, rpctypes.ErrGRPCLeaseTTLTooLarge)
}

func TestLeaseTimeToLive(t *testing.T) {
	s := newTestServer(t, nil)
	ctx := t.Context()
	if _, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: 1000}); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"b", "a"} {
		if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte(k), Lease: 5}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 5})
	if err != nil || got.GrantedTTL != 1000 || got.TTL < 900 || got.TTL > 1000 || got.Keys != nil {
		t.Errorf("got %v, %v", got, err)
	}
	wantHeader(t, got.Header, 3)
	got, err = s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 5, Keys: true})
	if err != nil || len(got.Keys) != 2 || string(got.Keys[0]) != "a" || string(got.Keys[1]) != "b" {
		t.Errorf("got %v, %v", got, err)
	}
	got, err = s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 6, Keys: true})
	if err != nil || got.TTL != -1 || got.GrantedTTL != 0 || got.ID != 6 || got.Keys != nil {
		t.Errorf("unknown lease: got %v, %v", got, err)
	}
	wantHeader(t, got.Header, 3)
}

func TestLeaseLeases(t *testing.T) {
	s := newTestServer(t, nil)
	ctx := t.Context()
	for id, ttl := range map[int64]int64{1: 300, 2: 100, 3: 200} {
		if _, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, got.Header, 1)
	if len(got.Leases) != 3 || got.Leases[0].ID != 2 || got.Leases[1].ID != 3 || got.Leases[2].ID != 1 {
		t.Errorf("leases by expiry are %v", got.Leases)
	}
}

func TestLeaseRevoke(t *testing.T) {
	s := newTestServer(t, nil)
	ctx := t.Context()
	if _, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: 1000}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: 5}); err != nil {
		t.Fatal(err)
	}
	got, err := s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 5})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, got.Header, 3) // the deletion of the key
	_, err = s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 5})
	wantError(t, err, rpctypes.ErrGRPCLeaseNotFound)
}

func TestLeaseKeepAlive(t *testing.T) {
	s := newTestServer(t, nil)
	ctx := t.Context()
	if _, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: 1000}); err != nil {
		t.Fatal(err)
	}
	stream, err := s.lease.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ id, ttl int64 }{{5, 1000}, {6, 0}, {5, 1000}} {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: tt.id}); err != nil {
			t.Fatal(err)
		}
		got, err := stream.Recv()
		if err != nil || got.ID != tt.id || got.TTL != tt.ttl {
			t.Errorf("got %v, %v; want TTL %d", got, err, tt.ttl)
		}
		wantHeader(t, got.GetHeader(), 1)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the client was done: %v", err)
	}
	counts := gathered(t, s.metrics)
	for _, name := range []string{"received", "sent"} {
		if got := counts["grpc_server_msg_"+name+"_total LeaseKeepAlive bidi_stream etcdserverpb.Lease"]; got != 3 {
			t.Errorf("%v messages %s", got, name)
		}
	}
}

// Many keep-alives at once, of leases that can be renewed at once and others.
func TestLeaseKeepAlivesInARow(t *testing.T) {
	s := newTestServer(t, nil)
	if _, err := s.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 5, TTL: 1000}); err != nil {
		t.Fatal(err)
	}
	stream, err := s.lease.LeaseKeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	lease := func(i int) (id, ttl int64) {
		if i/10%2 == 0 {
			return 5, 1000
		}
		return 6, 0
	}
	for i := range n {
		id, _ := lease(i)
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		id, ttl := lease(i)
		if got, err := stream.Recv(); err != nil || got.ID != id || got.TTL != ttl {
			t.Fatalf("answer %d is %v, %v", i, got, err)
		}
	}
	s.Close()
	_, err = stream.Recv()
	wantError(t, err, rpctypes.ErrGRPCStopped)
}

func TestLeaseQuestionsWithoutLeader(t *testing.T) {
	s := newTestServer(t, nil)
	s.node.lessor.Demote()
	_, err := s.lease.LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 5})
	wantError(t, err, rpctypes.ErrGRPCLeaderChanged)
	stream, err := s.lease.LeaseKeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 5}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantError(t, err, rpctypes.ErrGRPCLeaderChanged)
}

// A question that comes just before this member leads is asked again.
func TestLeaseQuestionWaitsForPromotion(t *testing.T) {
	s := newTestServer(t, nil)
	if _, err := s.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 5, TTL: 1000}); err != nil {
		t.Fatal(err)
	}
	asked := 0
	err := s.onLeader(t.Context(), func() error {
		if asked++; asked == 1 {
			return lessor.ErrNotPrimary
		}
		return nil
	})
	if err != nil || asked != 2 || s.node.readIndexes() != 1 {
		t.Errorf("err %v, asked %d times, %d read indexes", err, asked, s.node.readIndexes())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	err = s.onLeader(ctx, func() error { return lessor.ErrNotPrimary })
	if !errors.Is(statusError(context.DeadlineExceeded), err) {
		t.Errorf("at the client's deadline: %v", err)
	}
}
