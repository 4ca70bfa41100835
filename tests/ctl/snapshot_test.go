package ctl

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/tests/target"
)

// TestSnapshotRestoresToEtcd takes a snapshot of Coterie with etcdctl, restores it with etcdutl, starts real etcd on
// the result and compares all that the two serve: every revision above the compacted one, leases, hash.
func TestSnapshotRestoresToEtcd(t *testing.T) {
	dir := t.TempDir()
	coterie, err := target.StartCoterie(t.Context(), bin.coterie, target.Config{Dir: filepath.Join(dir, "coterie")})
	if err != nil {
		t.Fatal(err)
	}
	defer coterie.Close()
	from := dial(t, coterie)
	compacted := fill(t, from)

	file, restored := filepath.Join(dir, "snapshot.db"), filepath.Join(dir, "restored")
	tool(t, "etcdctl", "--endpoints", coterie.Endpoint(), "snapshot", "save", file)
	tool(t, "etcdutl", "snapshot", "status", file, "-w", "json")
	tool(t, "etcdutl", "snapshot", "restore", file, "--data-dir", restored,
		"--initial-cluster", "default=http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380")

	etcd, err := target.StartEtcd(t.Context(), target.Config{Dir: restored, UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	to := dial(t, etcd)

	compareRanges(t, from, to, compacted)
	compareEvents(t, from, to, compacted)
	compareLeases(t, from, to)
	compareHashes(t, from, to)
	compareNextWrite(t, from, to)
}

func dial(t *testing.T, s target.Server) *clientv3.Client {
	t.Helper()
	cli, err := target.Dial(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	return cli
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin.dir, name), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// must ends the test at an error of a call whose answer nobody needs.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// fill makes history of every kind, compacts a part of it, and returns the compacted revision.
func fill(t *testing.T, cli *clientv3.Client) int64 {
	t.Helper()
	ctx := t.Context()
	leases := pb.NewLeaseClient(cli.ActiveConnection())
	for _, id := range []int64{7, 1 << 40, -3} {
		must[*pb.LeaseGrantResponse](t)(leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: 10_000 + id%100}))
	}
	write := func(round int) {
		for i := range 300 {
			key := fmt.Sprintf("k/%03d", i)
			switch {
			case (i+round)%7 == 0:
				must[*clientv3.DeleteResponse](t)(cli.Delete(ctx, key))
			case i%5 == 0:
				must[*clientv3.PutResponse](t)(cli.Put(ctx, key, fmt.Sprint("leased ", round), clientv3.WithLease([]clientv3.LeaseID{7, 1 << 40, -3}[i%3])))
			default:
				must[*clientv3.PutResponse](t)(cli.Put(ctx, key, fmt.Sprint(round)))
			}
		}
		must[*clientv3.TxnResponse](t)(cli.Txn(ctx).Then(
			clientv3.OpPut("\x00", "lowest"), clientv3.OpPut("\xff\xff", fmt.Sprint(round)), clientv3.OpDelete("k/1", clientv3.WithPrefix()),
			clientv3.OpPut("empty", "")).Commit())
	}
	write(0)
	write(1)
	compacted := must[*clientv3.GetResponse](t)(cli.Get(ctx, "x")).Header.Revision - 50
	must[*clientv3.CompactResponse](t)(cli.Compact(ctx, compacted, clientv3.WithCompactPhysical()))
	write(2)
	// The newest revision is a deletion: a restored server must not forget that revision.
	must[*clientv3.DeleteResponse](t)(cli.Delete(ctx, "empty"))
	return compacted
}

// compareRanges compares the whole key space at some revisions of the history, and at the compacted ones.
func compareRanges(t *testing.T, from, to *clientv3.Client, compacted int64) {
	t.Helper()
	last := must[*clientv3.GetResponse](t)(from.Get(t.Context(), "x")).Header.Revision
	for rev := compacted; ; rev = min(rev+23, last) {
		get := func(cli *clientv3.Client) *pb.RangeResponse {
			return (*pb.RangeResponse)(must[*clientv3.GetResponse](t)(cli.Get(t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithRev(rev))))
		}
		same(t, fmt.Sprintf("range at %d", rev), get(from), get(to))
		if rev == last {
			break
		}
	}
	for _, cli := range []*clientv3.Client{from, to} {
		if _, err := cli.Get(t.Context(), "x", clientv3.WithRev(compacted-1)); err == nil {
			t.Errorf("a read below the compacted revision %d succeeds", compacted)
		}
	}
}

// same compares two responses but for the ids and terms in their headers.
func same(t *testing.T, what string, from, to interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}) {
	t.Helper()
	for _, m := range []interface{ GetHeader() *pb.ResponseHeader }{from, to} {
		h := m.GetHeader()
		h.ClusterId, h.MemberId, h.RaftTerm = 0, 0, 0
	}
	if !proto.Equal(from, to) {
		t.Errorf("%s:\ncoterie %s\netcd    %s", what, prototext.Format(from), prototext.Format(to))
	}
}

// compareEvents compares the whole history that is left, in its order.
func compareEvents(t *testing.T, from, to *clientv3.Client, compacted int64) {
	t.Helper()
	a, b := events(t, from, compacted), events(t, to, compacted)
	if !slices.EqualFunc(a, b, func(x, y *mvccpb.Event) bool { return proto.Equal(x, y) }) {
		t.Errorf("the history differs: %d events and %d events", len(a), len(b))
	}
}

func events(t *testing.T, cli *clientv3.Client, from int64) []*mvccpb.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), scriptTimeout)
	defer cancel()
	last := must[*clientv3.GetResponse](t)(cli.Get(ctx, "x")).Header.Revision
	var all []*mvccpb.Event
	for resp := range cli.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from), clientv3.WithPrevKV()) {
		if err := resp.Err(); err != nil {
			t.Fatal(err)
		}
		all = append(all, resp.Events...)
		if n := len(all); n > 0 && all[n-1].Kv.ModRevision == last {
			return all
		}
	}
	t.Fatalf("the watch ended after %d events, before revision %d: %v", len(all), last, ctx.Err())
	return nil
}

func compareLeases(t *testing.T, from, to *clientv3.Client) {
	t.Helper()
	for _, id := range []int64{7, 1 << 40, -3} {
		get := func(cli *clientv3.Client) *pb.LeaseTimeToLiveResponse {
			resp := must[*pb.LeaseTimeToLiveResponse](t)(pb.NewLeaseClient(cli.ActiveConnection()).LeaseTimeToLive(t.Context(),
				&pb.LeaseTimeToLiveRequest{ID: id, Keys: true}))
			slices.SortFunc(resp.Keys, bytes.Compare)
			resp.TTL = min(resp.TTL, 1) // what remains is a matter of time
			return resp
		}
		lease := get(from)
		if len(lease.Keys) == 0 {
			t.Errorf("lease %d has no keys: the test proves little", id)
		}
		same(t, fmt.Sprintf("lease %d", id), lease, get(to))
	}
}

func compareHashes(t *testing.T, from, to *clientv3.Client) {
	t.Helper()
	get := func(cli *clientv3.Client) *pb.HashKVResponse {
		return must[*pb.HashKVResponse](t)(pb.NewMaintenanceClient(cli.ActiveConnection()).HashKV(t.Context(), &pb.HashKVRequest{}))
	}
	same(t, "HashKV", get(from), get(to))
}

// compareNextWrite proves that the restored server goes on where the other one was.
func compareNextWrite(t *testing.T, from, to *clientv3.Client) {
	t.Helper()
	put := func(cli *clientv3.Client) *pb.PutResponse {
		return (*pb.PutResponse)(must[*clientv3.PutResponse](t)(cli.Put(t.Context(), "k/001", "next", clientv3.WithPrevKV())))
	}
	same(t, "the next put", put(from), put(to))
	compareHashes(t, from, to)
}
