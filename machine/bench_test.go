package machine

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/storage/engine"
)

// Of the standard load: keys of 24 bytes out of so many, values of 256 bytes, and
// as many commands in an entry as come together while the log syncs.
const (
	benchKeys    = 10_000
	benchEntry   = 500
	benchEntries = 64 // prepared, and applied again and again
)

func benchKey(i int) []byte { return fmt.Appendf(nil, "/registry/things/%07d", i%benchKeys) }

// BenchmarkApply measures entries of one kind of command; an operation is one
// command.
func BenchmarkApply(b *testing.B) {
	value := bytes.Repeat([]byte{'v'}, 256)
	put := func(i int) *pb.PutRequest { return &pb.PutRequest{Key: benchKey(i * 7919), Value: value} }
	for name, command := range map[string]func(i int) *pb.InternalRaftRequest{
		"put": func(i int) *pb.InternalRaftRequest { return &pb.InternalRaftRequest{Put: put(i)} },
		"txn": func(i int) *pb.InternalRaftRequest {
			p := put(i)
			return &pb.InternalRaftRequest{Txn: &pb.TxnRequest{
				Compare: []*pb.Compare{{Key: p.Key, Target: pb.Compare_MOD, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_ModRevision{}}},
				Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: p}}},
			}}
		},
		"delete-put": func(i int) *pb.InternalRaftRequest {
			if i%2 == 0 {
				return &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: put(i / 2).Key}}
			}
			return &pb.InternalRaftRequest{Put: put(i / 2)}
		},
	} {
		b.Run(name, func(b *testing.B) { benchApply(b, command) })
	}
	b.Run("grant-revoke", func(b *testing.B) {
		benchApply(b, func(i int) *pb.InternalRaftRequest {
			if i%2 == 0 {
				return &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: int64(i + 1), TTL: 60}}
			}
			return &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: int64(i)}}
		})
	})
}

func benchApply(b *testing.B, command func(i int) *pb.InternalRaftRequest) {
	eng, err := engine.Open(engine.Options{Dir: b.TempDir(), Merger: mvcc.Merger})
	must(b, err)
	must(b, Bootstrap(eng, 1, 1, []Member{{ID: 5, PeerURLs: []string{"http://a"}}}))
	m, err := Open(Options{Engine: eng, Logger: zap.NewNop()})
	must(b, err)
	b.Cleanup(func() {
		m.Close()
		must(b, eng.Close())
	})
	encode := func(r *pb.InternalRaftRequest) []byte {
		r.Header = &pb.RequestHeader{ID: 1}
		enc, err := proto.Marshal(r)
		must(b, err)
		return enc
	}
	index := uint64(1)
	apply := func(commands [][]byte) {
		index++
		results, err := m.Apply([]Entry{{Index: index, Term: 1, Commands: commands}})
		must(b, err)
		for _, r := range results {
			must(b, r.Err)
		}
	}
	fill := make([][]byte, benchKeys)
	for i := range fill {
		fill[i] = encode(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: benchKey(i), Value: []byte{'v'}}})
	}
	apply(fill)
	entries := make([][][]byte, benchEntries)
	for e := range entries {
		for i := range benchEntry {
			entries[e] = append(entries[e], encode(command(e*benchEntry+i)))
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	for i := 0; i < b.N; i += benchEntry {
		apply(entries[i/benchEntry%benchEntries])
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op") // of flushes and compactions, too
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
