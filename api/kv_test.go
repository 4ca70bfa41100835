package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coteriedb/coterie/consensus"
)

func TestKVHeaders(t *testing.T) {
	s := newTestServer(t, nil)
	ctx := t.Context()
	k := []byte("k")

	written, err := s.kv.Put(ctx, &pb.PutRequest{Key: k, Value: k})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, written.Header, 2)
	got, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, got.Header, 2)
	if len(got.Kvs) != 1 || got.Count != 1 {
		t.Errorf("range returned %v", got)
	}
	txn, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(put("a"), rng("a"))})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, txn.Header, 3)
	if h := txn.Responses[0].GetResponsePut().GetHeader(); h.GetClusterId() != 0 || h.GetRaftTerm() != 0 {
		t.Errorf("header of an operation is %v: only revisions belong there", h)
	}
	deleted, err := s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: k})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, deleted.Header, 4)
	deleted, err = s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: k}) // nothing left
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, deleted.Header, 4)
	read, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(rng("a"))})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, read.Header, 4)
	compact, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: 3, Physical: true})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, compact.Header, 4)
}

// What goes through consensus, what is confirmed by it, and what is not.
func TestReadPaths(t *testing.T) {
	s := newTestServer(t, nil)
	serial := func(op *pb.RequestOp) *pb.RequestOp {
		op.GetRequestRange().Serializable = true
		return op
	}
	k := []byte("k")
	tests := []struct {
		name            string
		call            func(context.Context) error
		reads, proposes int
	}{
		{"range", func(ctx context.Context) error { _, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k}); return err }, 1, 0},
		{"serializable range", func(ctx context.Context) error {
			_, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k, Serializable: true})
			return err
		}, 0, 0},
		{"read-only txn", func(ctx context.Context) error {
			_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(rng("k")), Failure: ops(serial(rng("k")))})
			return err
		}, 1, 0},
		{"serializable txn", func(ctx context.Context) error {
			_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(serial(rng("k")))})
			return err
		}, 0, 0},
		{"txn that only compares", func(ctx context.Context) error {
			_, err := s.kv.Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{{Key: k}}})
			return err
		}, 0, 0},
		{"txn with nested reads", func(ctx context.Context) error {
			_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(nest(ops(rng("k")), nil))})
			return err
		}, 0, 1},
		{"txn that may write", func(ctx context.Context) error {
			_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(rng("k")), Failure: ops(put("k"))})
			return err
		}, 0, 1},
		{"put", func(ctx context.Context) error { _, err := s.kv.Put(ctx, &pb.PutRequest{Key: k}); return err }, 0, 1},
		{"member list", func(ctx context.Context) error {
			_, err := s.clus.MemberList(ctx, &pb.MemberListRequest{})
			return err
		}, 0, 0},
		{"linearizable member list", func(ctx context.Context) error {
			_, err := s.clus.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			return err
		}, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reads := s.node.readIndexes()
			_, proposed := s.node.lastProposed()
			if err := tt.call(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, after := s.node.lastProposed()
			if r, p := s.node.readIndexes()-reads, after-proposed; r != tt.reads || p != tt.proposes {
				t.Errorf("%d read indexes and %d proposals, want %d and %d", r, p, tt.reads, tt.proposes)
			}
		})
	}
}

func TestKVErrors(t *testing.T) {
	s := newTestServer(t, nil)
	for range 5 {
		s.mustPut(t, "k", "v")
	}
	ctx := t.Context()
	if _, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: 4}); err != nil {
		t.Fatal(err)
	}
	k := []byte("k")
	tests := []struct {
		name string
		call func() error
		want error
	}{
		{"compacted", func() error { _, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k, Revision: 3}); return err }, rpctypes.ErrGRPCCompacted},
		{"future", func() error { _, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k, Revision: 30}); return err }, rpctypes.ErrGRPCFutureRev},
		{"future in txn", func() error {
			op := rng("k")
			op.GetRequestRange().Revision = 30
			_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(op, put("x"))})
			return err
		}, rpctypes.ErrGRPCFutureRev},
		{"future in read-only txn", func() error {
			op := rng("k")
			op.GetRequestRange().Revision = 30
			_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(op)})
			return err
		}, rpctypes.ErrGRPCFutureRev},
		{"compaction twice", func() error {
			_, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: 4, Physical: true})
			return err
		}, rpctypes.ErrGRPCCompacted},
		{"compaction of the future", func() error { _, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: 40}); return err }, rpctypes.ErrGRPCFutureRev},
		{"unknown lease", func() error { _, err := s.kv.Put(ctx, &pb.PutRequest{Key: k, Lease: 9}); return err }, rpctypes.ErrGRPCLeaseNotFound},
		{"value to keep of no key", func() error {
			_, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("none"), IgnoreValue: true})
			return err
		}, rpctypes.ErrGRPCKeyNotFound},
		{"no key", func() error { _, err := s.kv.Put(ctx, &pb.PutRequest{}); return err }, rpctypes.ErrGRPCEmptyKey},
		{"too many operations", func() error {
			_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: make129()})
			return err
		}, rpctypes.ErrGRPCTooManyOps},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantError(t, tt.call(), tt.want) })
	}
}

func make129() (o []*pb.RequestOp) {
	for i := range 129 {
		o = append(o, put(fmt.Sprint(i)))
	}
	return o
}

func TestRequestSize(t *testing.T) {
	s := newTestServer(t, func(c *Config) { c.MaxRequestBytes = 1000 })
	ctx := t.Context()
	putOf := func(n int) error {
		_, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, n)})
		return err
	}
	wantError(t, putOf(960), nil)
	wantError(t, putOf(1000), rpctypes.ErrGRPCRequestTooLarge)
	op := put("a")
	op.GetRequestPut().Value = make([]byte, 1000)
	_, err := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(op)})
	wantError(t, err, rpctypes.ErrGRPCRequestTooLarge)
	// A transaction that only reads is not replicated, so it may be large.
	read := rng("a")
	read.GetRequestRange().RangeEnd = make([]byte, 1000)
	_, err = s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(read)})
	wantError(t, err, nil)
	// Above the transport's limit the answer is the transport's.
	if err := putOf(MaxRecvBytes(1000)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v, want ResourceExhausted", err)
	}
}

func TestQuota(t *testing.T) {
	s := newTestServer(t, func(c *Config) { c.QuotaBackendBytes = 10_000 })
	ctx := t.Context()
	k := []byte("k")
	lease, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 100})
	if err != nil {
		t.Fatal(err)
	}
	s.mustPut(t, "k", "v")
	noAlarm := func(ctx context.Context) (err error) { // requests that are not charged
		_, e1 := s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: k})
		_, e2 := s.kv.Txn(ctx, &pb.TxnRequest{Success: ops(del("k", ""))})
		_, e3 := s.kv.Range(ctx, &pb.RangeRequest{Key: k})
		return errors.Join(e1, e2, e3)
	}

	// The cost of this put is 256 + 1 + 1.
	s.node.set(func(n *testNode) { n.inUse = 10_000 - 259 })
	s.mustPut(t, "k", "v")
	if len(s.node.Alarms()) != 0 {
		t.Fatal("alarm before the quota was reached")
	}
	s.node.set(func(n *testNode) { n.inUse = 10_000 - 258 })
	wantError(t, noAlarm(ctx), nil)
	_, err = s.kv.Put(ctx, &pb.PutRequest{Key: k, Value: k})
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	alarms := s.node.Alarms()
	if len(alarms) != 1 || alarms[0].Alarm != pb.AlarmType_NOSPACE || alarms[0].MemberID != testMember {
		t.Fatalf("alarms are %v", alarms)
	}
	// It is raised once, whatever follows.
	s.node.set(func(n *testNode) { n.inUse = 10_000 })
	_, before := s.node.lastProposed()
	_, err = s.kv.Put(ctx, &pb.PutRequest{}) // space is asked for before the request is checked
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	if _, after := s.node.lastProposed(); after != before {
		t.Error("the alarm was proposed again")
	}

	// While it is on the machine refuses what grows, also where there is room again.
	s.node.set(func(n *testNode) { n.inUse = 0 })
	_, err = s.kv.Put(ctx, &pb.PutRequest{Key: k})
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	_, err = s.kv.Txn(ctx, &pb.TxnRequest{Failure: ops(put("k"))})
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	_, err = s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 10})
	wantError(t, err, rpctypes.ErrGRPCNoSpace)
	wantError(t, noAlarm(ctx), nil)
	_, err = s.kv.Compact(ctx, &pb.CompactionRequest{Revision: 2})
	wantError(t, err, nil)
	_, err = s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: lease.ID})
	wantError(t, err, nil)

	// Disarmed, writes go on.
	_, err = s.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: testMember})
	wantError(t, err, nil)
	s.mustPut(t, "k", "v")
}

func TestNoQuota(t *testing.T) {
	s := newTestServer(t, func(c *Config) { c.QuotaBackendBytes = -1 })
	s.node.set(func(n *testNode) { n.inUse = 1 << 60 })
	s.mustPut(t, "k", "v")
}

func TestTxnCost(t *testing.T) {
	big := put("key")
	big.GetRequestPut().Value = make([]byte, 100)
	for _, tt := range []struct {
		txn  *pb.TxnRequest
		want int
	}{
		{&pb.TxnRequest{}, 0},
		{&pb.TxnRequest{Success: ops(del("a", ""), rng("a"))}, 0},
		{&pb.TxnRequest{Success: ops(put("a")), Failure: ops(big)}, 359},
		{&pb.TxnRequest{Success: ops(put("a"), nest(ops(put("b")), ops(big)))}, 257 + 359},
	} {
		if got := txnCost(tt.txn); got != tt.want {
			t.Errorf("%v costs %d, want %d", tt.txn, got, tt.want)
		}
	}
}

func TestConsensusErrors(t *testing.T) {
	s := newTestServer(t, nil)
	ctx := t.Context()
	for _, tt := range []struct{ err, want error }{
		{consensus.ErrTimeout, rpctypes.ErrGRPCTimeout},
		{fmt.Errorf("x: %w", consensus.ErrStopped), rpctypes.ErrGRPCStopped},
		{consensus.ErrTooManyRequests, status.Error(codes.Unknown, "etcdserver: too many requests")},
	} {
		s.node.set(func(n *testNode) { n.failure, n.readErr = tt.err, tt.err })
		_, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
		wantError(t, err, tt.want)
		_, err = s.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")})
		wantError(t, err, tt.want)
	}
}

// A client that gives up is not waited for, on either side.
func TestClientGivesUp(t *testing.T) {
	s := newTestServer(t, nil)
	s.node.set(func(n *testNode) { n.hold = make(chan struct{}) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
		done <- err
	}()
	<-s.node.held
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
}

func TestRangeStream(t *testing.T) {
	s := newTestServer(t, nil)
	value := bytes.Repeat([]byte("v"), 1000)
	const n = 3000
	for i := range n {
		s.mustPut(t, fmt.Sprintf("k%05d", i), string(value))
	}
	stream, err := s.kv.RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")})
	if err != nil {
		t.Fatal(err)
	}
	parts, keys := 0, 0
	var last *pb.RangeResponse
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && last.Header != nil {
			t.Error("a part that is not the last has a header")
		}
		for _, kv := range resp.RangeResponse.Kvs {
			if want := fmt.Sprintf("k%05d", keys); string(kv.Key) != want {
				t.Fatalf("got key %s, want %s", kv.Key, want)
			}
			keys++
		}
		last = resp.RangeResponse
		parts++
	}
	if keys != n || parts < 2 || last.Count != n {
		t.Errorf("%d keys in %d parts, count %d", keys, parts, last.Count)
	}
	wantHeader(t, last.Header, n+1)

	bad, err := s.kv.RangeStream(t.Context(), &pb.RangeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = bad.Recv()
	wantError(t, err, rpctypes.ErrGRPCEmptyKey)
}
