package machine

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/etcdfile"
)

// imported is a machine with the contents.
func imported(t *testing.T, c *etcdfile.Contents, o ImportOptions) *harness {
	t.Helper()
	h := &harness{t: t, fs: newHarnessFS()}
	h.openEngine()
	must(t, Import(t.Context(), h.engine, c, o))
	h.open()
	return h
}

// randomHistory does a bit of everything, also what changes a key twice in one
// revision.
func randomHistory(h *harness, r *rand.Rand) {
	keys := []string{"a", "b", "b\x00c", "\x00", "d"}
	key := func() []byte { return []byte(keys[r.IntN(len(keys))]) }
	h.apply(grant(7, 60), grant(-8, 90), &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 7, Remaining_TTL: 30}}}})
	for range 200 {
		switch r.IntN(12) {
		case 0, 1:
			h.apply(&pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: key()}})
		case 2, 3:
			h.apply(&pb.InternalRaftRequest{Txn: &pb.TxnRequest{Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(), Value: []byte("then"), Lease: -8}}},
				{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key(), RangeEnd: []byte{0}}}},
			}}})
		case 4:
			if rev := h.KV.Revision() - r.Int64N(10); rev > 1 {
				for _, res := range h.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: rev}}) {
					if res.Done != nil {
						<-res.Done
					}
				}
			}
		default:
			h.apply(put(string(key()), strings.Repeat("v", r.IntN(20)), []int64{0, 7, -8}[r.IntN(3)]))
		}
	}
	h.apply(alarm(pb.AlarmRequest_ACTIVATE, 5, pb.AlarmType_CORRUPT),
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "u", Options: &authpb.UserAddOptions{NoPassword: true}}})
	must(h.t, h.change(RemoveMember, Member{ID: 6}))
}

func TestImportIsTheInverseOfContents(t *testing.T) {
	for seed := range uint64(10) {
		h := newHarness(t)
		randomHistory(h, rand.New(rand.NewPCG(seed, 0)))
		c, snapshot, err := h.Contents(t.Context())
		must(t, err)
		again := imported(t, &c, ImportOptions{Index: c.Index, Term: c.Term})
		must(t, snapshot.Close())
		if want, got := h.state(), again.state(); got != want {
			t.Errorf("seed %d:\n%s\nwant:\n%s", seed, got, want)
		}
		if want, got := h.Auth.Export(), again.Auth.Export(); len(got.Users) != 1 || got.Revision != want.Revision {
			t.Errorf("seed %d: users %v at revision %d", seed, got.Users, got.Revision)
		}
		// Both go on alike, compactions included.
		for _, m := range []*harness{h, again} {
			m.apply(alarm(pb.AlarmRequest_DEACTIVATE, 5, pb.AlarmType_CORRUPT), put("next", "x", 7))
			for _, res := range m.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: m.KV.Revision()}}) {
				<-res.Done
			}
		}
		if want, got := h.state(), again.state(); got != want {
			t.Errorf("seed %d, after more:\n%s\nwant:\n%s", seed, got, want)
		}
		h.close()
		again.close()
	}
}

// history is contents with nothing but puts of a key at the revisions.
func history(revs ...int64) *etcdfile.Contents {
	return &etcdfile.Contents{ScheduledCompaction: -1, FinishedCompaction: -1, AuthRevision: 1, Revisions: func(fn etcdfile.RevisionFunc) error {
		for _, rev := range revs {
			if err := fn(rev, 0, false, &mvccpb.KeyValue{Key: []byte("k"), CreateRevision: rev, ModRevision: rev, Version: 1}); err != nil {
				return err
			}
		}
		return nil
	}}
}

func TestBump(t *testing.T) {
	h := imported(t, history(2, 3), ImportOptions{Bump: 100})
	defer h.close()
	if h.KV.Revision() != 103 || h.KV.CompactRevision() != 103 {
		t.Errorf("revision %d, compacted %d", h.KV.Revision(), h.KV.CompactRevision())
	}
	if _, err := h.KV.Range(t.Context(), &pb.RangeRequest{Key: []byte("k"), Revision: 50}); !errors.Is(err, mvcc.ErrCompacted) {
		t.Errorf("a read in between: %v", err)
	}
	all, err := h.KV.Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil || all.Count != 1 || all.Kvs[0].ModRevision != 3 {
		t.Errorf("keys %v, %v", all, err)
	}
	h.apply(put("k", "next", 0))
	if h.KV.Revision() != 104 {
		t.Errorf("the next revision is %d", h.KV.Revision())
	}
	// What raised the revision survives a compaction, export and import.
	for _, res := range h.apply(&pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 104}}) {
		<-res.Done
	}
	c, snapshot, err := h.Contents(t.Context())
	must(t, err)
	defer snapshot.Close()
	again := imported(t, &c, ImportOptions{Index: c.Index, Term: c.Term})
	defer again.close()
	if want, got := h.state(), again.state(); got != want {
		t.Errorf("%s\nwant:\n%s", got, want)
	}
}

// TestEverythingWasCompacted: of the newest revision nothing but the compaction
// is left.
func TestEverythingWasCompacted(t *testing.T) {
	c := history(2)
	c.ScheduledCompaction, c.FinishedCompaction = 9, 9
	h := imported(t, c, ImportOptions{})
	defer h.close()
	if h.KV.Revision() != 9 || h.KV.CompactRevision() != 9 {
		t.Errorf("revision %d, compacted %d", h.KV.Revision(), h.KV.CompactRevision())
	}
	plain := imported(t, history(2), ImportOptions{})
	defer plain.close()
	want, _, _, err := plain.KV.HashKV(context.Background(), 0)
	must(t, err)
	if got, _, _, err := h.KV.HashKV(context.Background(), 0); err != nil || got != want {
		t.Errorf("hash %08x, %v, want %08x", got, err, want)
	}
}

func TestImportRefuses(t *testing.T) {
	none := history()
	for name, tt := range map[string]struct {
		contents func(c etcdfile.Contents) etcdfile.Contents
		want     string
	}{
		"revisions out of order": {func(etcdfile.Contents) etcdfile.Contents { return *history(3, 2) }, "follows"},
		"one revision twice":     {func(etcdfile.Contents) etcdfile.Contents { return *history(3, 3) }, "follows"},
		"a lease of id 0": {func(c etcdfile.Contents) etcdfile.Contents {
			c.Leases = []etcdfile.Lease{{}}
			return c
		}, "id 0"},
		"a lease that is too long": {func(c etcdfile.Contents) etcdfile.Contents {
			c.Leases = []etcdfile.Lease{{ID: 1, TTL: 1 << 40}}
			return c
		}, "too large"},
		"a role that does not exist": {func(c etcdfile.Contents) etcdfile.Contents {
			c.Users = []*authpb.User{{Name: []byte("u"), Roles: []string{"r"}}}
			return c
		}, "does not exist"},
		"a name that is too long": {func(c etcdfile.Contents) etcdfile.Contents {
			c.Roles = []*authpb.Role{{Name: make([]byte, 40_000)}}
			return c
		}, "40000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			eng, err := engine.Open(engine.Options{Dir: "engine", Merger: mvcc.Merger, FS: newHarnessFS()})
			must(t, err)
			defer eng.Close()
			c := tt.contents(*none)
			if err := Import(t.Context(), eng, &c, ImportOptions{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// TestImportTidies: etcd may have permissions and roles in another order.
func TestImportTidies(t *testing.T) {
	c := history()
	c.Roles = []*authpb.Role{{Name: []byte("r"), KeyPermission: []*authpb.Permission{{Key: []byte("b")}, {Key: []byte("a")}}}, {Name: []byte("s")}}
	c.Users = []*authpb.User{{Name: []byte("u"), Roles: []string{"s", "r", "s"}}}
	c.Alarms = []*pb.AlarmMember{{MemberID: 3, Alarm: 99}, {MemberID: 3, Alarm: pb.AlarmType_NOSPACE}}
	h := imported(t, c, ImportOptions{})
	defer h.close()
	e := h.Auth.Export()
	if got := strings.Join(e.Users[0].Roles, ","); got != "r,s" {
		t.Errorf("roles %s", got)
	}
	if p := e.Roles[0].KeyPermission; string(p[0].Key) != "a" || string(p[1].Key) != "b" {
		t.Errorf("permissions %v", p)
	}
	if all := h.Alarms.List(0); len(all) != 1 {
		t.Errorf("alarms %v", all)
	}
}

func TestRebaseToAnotherCluster(t *testing.T) {
	h := newHarness(t)
	must(t, h.change(RemoveMember, Member{ID: 6}))
	h.Machine.Close()
	must(t, Rebase(h.engine, 1, 1, []Member{{ID: 6, PeerURLs: []string{"http://new"}}}))
	h.open()
	defer h.close()
	if list := h.Members.List(); h.Applied() != 1 || len(list) != 1 || list[0].ID != 6 || h.Members.Removed(6) {
		t.Errorf("applied %d, members %v, 6 removed %v", h.Applied(), list, h.Members.Removed(6))
	}
}

// The newest revision of a history is not that of its last change if a
// compaction has taken that; a bump is from the revision that there was.
func TestBumpAfterEverythingWasCompacted(t *testing.T) {
	c := history(2)
	c.ScheduledCompaction, c.FinishedCompaction = 9, 9
	plain := imported(t, c, ImportOptions{})
	defer plain.close()
	before := plain.KV.Revision()
	h := imported(t, c, ImportOptions{Bump: 5})
	defer h.close()
	if got := h.KV.Revision(); got != before+5 {
		t.Errorf("revision %d after a bump by 5, and %d without one", got, before)
	}
}
