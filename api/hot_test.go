package api

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/consensus"
)

// withoutHandlers hides that a transport takes handlers: all requests go through the generated methods.
type withoutHandlers struct{ grpc.ServiceRegistrar }

// rawCodec sends and receives bytes as they are.
type rawCodec struct{ encoding.Codec }

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}

// answer is all that a client sees of an answer, and what it did.
type answer struct {
	Message  string
	Err      string
	Proposed string
	Reads    int
}

// sameRequests are requests good and bad, to the same store one after the other.
func sameRequests(t *testing.T) (all []struct {
	method string
	ctx    context.Context
	raw    []byte
}) {
	add := func(method string, raw []byte, md ...string) {
		all = append(all, struct {
			method string
			ctx    context.Context
			raw    []byte
		}{method, metadata.AppendToOutgoingContext(t.Context(), md...), raw})
	}
	send := func(method string, m proto.Message, md ...string) {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		add(method, raw, md...)
	}
	const get, put_, del_, txn = pb.KV_Range_FullMethodName, pb.KV_Put_FullMethodName, pb.KV_DeleteRange_FullMethodName, pb.KV_Txn_FullMethodName
	k, long := []byte("k"), bytes.Repeat([]byte("x"), 200_000)
	for i := range 40 {
		send(put_, &pb.PutRequest{Key: fmt.Appendf(nil, "k%02d", i), Value: k})
	}
	send(put_, &pb.PutRequest{Key: k, Value: []byte("v"), PrevKv: true})
	send(put_, &pb.PutRequest{Key: k, PrevKv: true})
	send(put_, &pb.PutRequest{})
	send(put_, &pb.PutRequest{Key: k, Lease: 99})
	send(put_, &pb.PutRequest{Key: k, Value: k, IgnoreValue: true})
	send(put_, &pb.PutRequest{Key: []byte("none"), IgnoreValue: true})
	send(put_, &pb.PutRequest{Key: k, Value: long}) // within the limit on messages, above that on requests
	add(put_, []byte("\x0a\x01k\x9a\x06\x03new"))   // a field that is not known yet
	add(put_, []byte("\x0a\x02k"))                  // cut
	add(put_, []byte("\x0a\x01a\x0a\x01b"))         // a field twice: the last one counts
	add(put_, nil)
	for _, serializable := range []bool{false, true} {
		r := func(r *pb.RangeRequest) *pb.RangeRequest { r.Serializable = serializable; return r }
		send(get, r(&pb.RangeRequest{Key: k}))
		send(get, r(&pb.RangeRequest{Key: []byte("none")}))
		send(get, r(&pb.RangeRequest{Key: k, Revision: 3}))
		send(get, r(&pb.RangeRequest{Key: k, Revision: 1000}))
		send(get, r(&pb.RangeRequest{Key: k, RangeEnd: []byte("l")}))
		send(get, r(&pb.RangeRequest{Key: k, RangeEnd: []byte("l"), Limit: 3}))
		send(get, r(&pb.RangeRequest{Key: k, RangeEnd: []byte("l"), Limit: 3, SortOrder: pb.RangeRequest_DESCEND}))
		send(get, r(&pb.RangeRequest{Key: k, RangeEnd: []byte("l"), CountOnly: true}))
		send(get, r(&pb.RangeRequest{Key: k, SortOrder: 12}))
		send(get, r(&pb.RangeRequest{}))
		send(txn, &pb.TxnRequest{Compare: []*pb.Compare{{Key: k}}, Success: ops(&pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r(&pb.RangeRequest{Key: k})}})})
		send(txn, &pb.TxnRequest{Success: ops(&pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r(&pb.RangeRequest{Key: k, RangeEnd: []byte("l")})}})})
		send(txn, &pb.TxnRequest{Success: ops(&pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r(&pb.RangeRequest{Key: k, Revision: 1000})}})})
	}
	add(get, []byte("\xff"))
	add(get, []byte("\x0a\x01k\x38\x02"))
	send(txn, &pb.TxnRequest{})
	send(txn, &pb.TxnRequest{Success: ops(put("a"), rng("a"), del("k01", ""), nest(ops(put("b")), ops(put("b"))))})
	send(txn, &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("no")}}, Success: ops(put("a")), Failure: ops(rng("a"))})
	send(txn, &pb.TxnRequest{Success: ops(put("a"), put("a"))})
	send(txn, &pb.TxnRequest{Success: ops(put(""))})
	send(txn, &pb.TxnRequest{Success: ops(put("a"), &pb.RequestOp{})})
	send(txn, &pb.TxnRequest{Compare: []*pb.Compare{{}}})
	send(txn, &pb.TxnRequest{Success: slices.Repeat(ops(rng("a")), 200)})
	send(txn, &pb.TxnRequest{Success: ops(put(string(long)))})
	send(del_, &pb.DeleteRangeRequest{Key: []byte("k02"), PrevKv: true})
	send(del_, &pb.DeleteRangeRequest{Key: []byte("k03"), RangeEnd: []byte("k05")})
	send(del_, &pb.DeleteRangeRequest{})
	send(pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{ID: 7, TTL: 60})
	send(pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{ID: 7, TTL: 60})
	send(pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{ID: 8, TTL: -5})
	send(pb.Lease_LeaseGrant_FullMethodName, &pb.LeaseGrantRequest{ID: 9, TTL: 1 << 60})
	send(put_, &pb.PutRequest{Key: k, Lease: 7})
	send(pb.Lease_LeaseRevoke_FullMethodName, &pb.LeaseRevokeRequest{ID: 7})
	send(pb.Lease_LeaseRevoke_FullMethodName, &pb.LeaseRevokeRequest{ID: 7})
	send(get, &pb.RangeRequest{Key: k}, rpctypes.MetadataClientAPIVersionKey, "3.7.3", rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	return all
}

// answers sends the requests to a server and returns what came back, and what was counted.
func answers(t *testing.T, s *testServer) (all []answer, counted map[string]float64) {
	for _, r := range sameRequests(t) {
		_, before := s.node.lastProposed()
		reads := s.node.readIndexes()
		var got []byte
		err := s.conn.Invoke(r.ctx, r.method, r.raw, &got, grpc.ForceCodec(rawCodec{}))
		a := answer{Message: fmt.Sprintf("%x", got), Err: fmt.Sprint(status.Code(err), status.Convert(err).Message(), status.Convert(err).Details())}
		if p, n := s.node.lastProposed(); n > before {
			b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(p)
			a.Proposed = fmt.Sprintf("%x", b)
		}
		a.Reads = s.node.readIndexes() - reads
		all = append(all, a)
	}
	counted = gathered(t, s.metrics)
	return all, counted
}

// TestBothWays sends the same requests to a server whose transport takes handlers and to one whose does not. Answers,
// effects and metrics must be the same.
func TestBothWays(t *testing.T) {
	small := func(c *Config) { c.MaxRequestBytes = 100_000 }
	hot, counted := answers(t, newTestServer(t, small))
	plain, wantCounted := answers(t, newTestServerOn(t, small, func(r grpc.ServiceRegistrar) grpc.ServiceRegistrar { return withoutHandlers{r} }))
	requests := sameRequests(t)
	ok := 0
	for i, want := range plain {
		if hot[i] != want {
			t.Errorf("%s %.100x:\n with a handler %+v\nby the service %+v", requests[i].method, requests[i].raw, hot[i], want)
		}
		if want.Err == "OK[]" {
			ok++
		}
	}
	if ok < 60 || ok > len(plain)-20 {
		t.Errorf("%d of %d requests are answered: the table tests less than it should", ok, len(plain))
	}
	for name, want := range wantCounted {
		if strings.HasPrefix(name, "grpc_server_") || strings.HasPrefix(name, "etcd_server_client_requests") {
			if got := counted[name]; got != want && !strings.Contains(name, "seconds") {
				t.Errorf("%s is %v with handlers, %v without", name, got, want)
			}
		}
	}
}

// TestNoRoomBothWays compares what happens when the quota is used up.
func TestNoRoomBothWays(t *testing.T) {
	for _, wrap := range []func(grpc.ServiceRegistrar) grpc.ServiceRegistrar{
		func(r grpc.ServiceRegistrar) grpc.ServiceRegistrar { return r },
		func(r grpc.ServiceRegistrar) grpc.ServiceRegistrar { return withoutHandlers{r} },
	} {
		s := newTestServerOn(t, func(c *Config) { c.QuotaBackendBytes = 10 }, wrap)
		_, err := s.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k")})
		wantError(t, err, rpctypes.ErrGRPCNoSpace)
		if !s.alarmRaised(pb.AlarmType_NOSPACE) {
			t.Error("the client was answered before the alarm was raised")
		}
		_, err = s.kv.Put(t.Context(), &pb.PutRequest{}) // room is asked for first
		wantError(t, err, rpctypes.ErrGRPCNoSpace)
		_, err = s.kv.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("k")})
		wantError(t, err, nil)
	}
}

func TestIsLight(t *testing.T) {
	k, end := []byte("a"), []byte("b")
	rangeOf := func(r *pb.RangeRequest) *pb.InternalRaftRequest { return &pb.InternalRaftRequest{Range: r} }
	txnOf := func(r *pb.TxnRequest) *pb.InternalRaftRequest { return &pb.InternalRaftRequest{Txn: r} }
	for name, tt := range map[string]struct {
		r    *pb.InternalRaftRequest
		want bool
	}{
		"one key":                   {rangeOf(&pb.RangeRequest{Key: k}), true},
		"one key of the past":       {rangeOf(&pb.RangeRequest{Key: k, Revision: 5}), true},
		"few keys":                  {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, Limit: maxLightKeys}), true},
		"few keys, ascending":       {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, Limit: 1, SortOrder: pb.RangeRequest_ASCEND}), true},
		"few keys, descending":      {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, Limit: 1, SortOrder: pb.RangeRequest_DESCEND}), false},
		"few keys, by value":        {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, Limit: 1, SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_VALUE}), false},
		"few keys of many":          {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, Limit: 1, MinModRevision: 5}), false},
		"few keys of the past":      {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, Limit: 1, Revision: 5}), false},
		"many keys":                 {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, Limit: maxLightKeys + 1}), false},
		"all keys":                  {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end}), false},
		"a limit below all":         {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, Limit: -1}), false},
		"a count":                   {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, CountOnly: true}), true},
		"a count of the past":       {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, CountOnly: true, Revision: 5}), false},
		"a count of some":           {rangeOf(&pb.RangeRequest{Key: k, RangeEnd: end, CountOnly: true, MaxCreateRevision: 5}), false},
		"a transaction":             {txnOf(&pb.TxnRequest{Compare: []*pb.Compare{{Key: k}}, Success: ops(rng("a"), rng("b")), Failure: ops(rng("c"))}), true},
		"a transaction of many":     {txnOf(&pb.TxnRequest{Success: slices.Repeat(ops(rng("a")), maxLightKeys+1)}), false},
		"a transaction of a range":  {txnOf(&pb.TxnRequest{Success: ops(&pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: k, RangeEnd: end}}})}), false},
		"a comparison of a range":   {txnOf(&pb.TxnRequest{Compare: []*pb.Compare{{Key: k, RangeEnd: end}}}), false},
		"comparisons, and too many": {txnOf(&pb.TxnRequest{Compare: slices.Repeat([]*pb.Compare{{Key: k}}, maxLightKeys+1)}), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := isLight(tt.r); got != tt.want {
				t.Errorf("got %t", got)
			}
		})
	}
}

// TestConfirmedReads confirms many reads from one goroutine, as consensus does, which must not execute them.
func TestConfirmedReads(t *testing.T) {
	s := newTestServer(t, nil)
	s.mustPut(t, "k", "v")
	const n = 500
	confirm := make(chan func(error), n)
	s.node.set(func(n *testNode) { n.confirm = func(done func(error)) { confirm <- done } })
	var clients sync.WaitGroup
	for range n {
		clients.Go(func() {
			resp, err := s.kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("k")})
			if err != nil || len(resp.Kvs) != 1 {
				t.Errorf("got %v, %v", resp, err)
			}
		})
	}
	var waiting []func(error)
	for range n {
		waiting = append(waiting, <-confirm)
	}
	for _, done := range waiting {
		done(nil)
	}
	clients.Wait()
}

func TestReadIsNotConfirmed(t *testing.T) {
	s := newTestServer(t, nil)
	s.node.set(func(n *testNode) { n.confirm = func(done func(error)) { done(consensus.ErrTimeout) } })
	_, err := s.kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("k")})
	wantError(t, err, rpctypes.ErrGRPCTimeout)
}

// TestReadersEnd holds that what is confirmed after the end is refused, and not kept.
func TestReadersEnd(t *testing.T) {
	var rs readers
	rs.init()
	rs.close()
	if err := rs.add(&request{}); err != consensus.ErrStopped { //nolint:errorlint // it is this one
		t.Errorf("got %v", err)
	}
}

func TestReadersAreBounded(t *testing.T) {
	var rs readers
	rs.init()
	rs.running = runtime.GOMAXPROCS(0) // and busy
	rs.waiting = make([]*request, maxConfirmed)
	if err := rs.add(&request{}); err != consensus.ErrTooManyRequests { //nolint:errorlint // it is this one
		t.Errorf("got %v", err)
	}
}
