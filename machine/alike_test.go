package machine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// compactedReads are commands in which transactions read around the compacted
// revision before and after they write, and compactions come in between.
func compactedReads(t *testing.T, rng *rand.Rand) (rs []*pb.InternalRaftRequest) {
	rev := int64(1) // at least
	for range 60 {
		put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: fmt.Append(nil, "k", rng.IntN(3)), Value: fmt.Append(nil, rev)}}}
		get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{
			Key: []byte("k"), RangeEnd: []byte("l"), Revision: max(0, rev-rng.Int64N(6))}}}
		switch rng.IntN(4) {
		case 0:
			rs = append(rs, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: max(1, rev-rng.Int64N(5))}})
		case 1:
			rs = append(rs, &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: []*pb.RequestOp{get, put}}})
		default:
			rs = append(rs, &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: []*pb.RequestOp{put, get}}})
		}
		if rng.IntN(3) > 0 {
			rs = append(rs, &pb.InternalRaftRequest{Put: put.GetRequestPut()})
			rev++
		}
	}
	return rs
}

// outcome is what a client is told.
func outcome(t *testing.T, r Result) string {
	t.Helper()
	if r.Err != nil {
		return r.Err.Error()
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Response)
	must(t, err)
	return string(b)
}

// TestMembersAnswerAlike: whether a member applies entries one by one, with every
// compaction carried out before the next command, or many at once, or again after a
// crash, transactions that read compacted revisions come out the same, and what
// they leave has the same hash at every revision.
func TestMembersAnswerAlike(t *testing.T) {
	compacted := 0
	for seed := range uint64(10) {
		commands := compactedReads(t, rand.New(rand.NewPCG(seed, 9)))
		prompt, lazy, crashed := newHarness(t), newHarness(t), newHarness(t)
		var want, got []string
		for i, c := range commands {
			r := prompt.apply(c)[0]
			if r.Done != nil {
				<-r.Done
			}
			if errors.Is(r.Err, mvcc.ErrCompacted) && c.Txn != nil {
				compacted++
			}
			want = append(want, outcome(t, r))
			crashed.apply(c)
			if i == len(commands)/2 {
				must(t, crashed.engine.Flush())
			}
		}
		for _, r := range lazy.apply(commands...) { // one entry, one batch
			got = append(got, outcome(t, r))
		}
		crashed.crash()
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("seed %d: %v is answered with %q, and with %q when all are applied at once", seed, commands[i], want[i], got[i])
			}
		}
		for rev := int64(0); rev <= prompt.KV.Revision(); rev++ {
			hash := func(h *harness) string {
				sum, at, compact, err := h.KV.HashKV(t.Context(), rev)
				return fmt.Sprintf("%08x at %d, compacted %d, %v", sum, at, compact, err)
			}
			if a, b, c := hash(prompt), hash(lazy), hash(crashed); a != b || a != c {
				t.Fatalf("seed %d, revision %d: the hash is %s; %s with all at once, %s after a crash", seed, rev, a, b, c)
			}
		}
		prompt.close()
		lazy.close()
		crashed.close()
	}
	if compacted < 10 {
		t.Errorf("only %d transactions read compacted revisions", compacted)
	}
}
