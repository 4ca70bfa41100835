package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/etcdfile"
	"github.com/coteriedb/coterie/storage/etcdlog"
)

// Directories that etcd itself has written are read in the tests module. Here is
// what is hard to bring about with it.

func encoded(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// v2Request is what etcd 3.5 writes when a member says who it is.
func v2Request(method, path string) []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1<<60)
	b = protowire.AppendString(protowire.AppendTag(b, 2, protowire.BytesType), method)
	b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), path)
	return protowire.AppendString(protowire.AppendTag(b, 4, protowire.BytesType), `{"name":"a"}`)
}

func TestCommands(t *testing.T) {
	put := encoded(t, &pb.InternalRaftRequest{ID: 7, Put: &pb.PutRequest{Key: []byte("k")}})
	wrapped := protowire.AppendBytes(protowire.AppendTag(encoded(t, &pb.InternalRaftRequest{ID: 7}), 2, protowire.BytesType), v2Request("PUT", "/0/members/1/attributes"))
	for name, tt := range map[string]struct {
		data []byte
		want []byte // nil: it changes nothing
		bad  bool
	}{
		"put":             {put, put, false},
		"grant":           {encoded(t, &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 1, TTL: 1}}), encoded(t, &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 1, TTL: 2}}), false},
		"checkpoint":      {encoded(t, &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 0, Remaining_TTL: 9}, {ID: 5, Remaining_TTL: 9}}}}), encoded(t, &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 5, Remaining_TTL: 9}}}}), false},
		"range":           {encoded(t, &pb.InternalRaftRequest{Range: &pb.RangeRequest{Key: []byte("k")}}), nil, false},
		"cluster version": {encoded(t, &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: "3.7.0"}}), nil, false},
		"v2":              {v2Request("PUT", "/0/members/1/attributes"), nil, false},
		"v2 version":      {v2Request("PUT", "/0/version"), nil, false},
		"v2 in a command": {wrapped, nil, false},
		"v2 of a user":    {v2Request("PUT", "/2/keys"), nil, true},
		"of the future":   {protowire.AppendVarint(protowire.AppendTag(nil, 5000, protowire.VarintType), 1), nil, true},
		"noise":           {[]byte{0xff, 0xff, 0xff}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeCommand(tt.data)
			if string(got) != string(tt.want) || (err != nil) != tt.bad {
				t.Errorf("got %x, %v, want %x", got, err, tt.want)
			}
		})
	}
}

func TestChanges(t *testing.T) {
	id := uint64(7)
	for name, tt := range map[string]struct {
		kind    raftpb.ConfChangeType
		context string
		want    string // the change as JSON
	}{
		"add":           {raftpb.ConfChangeAddNode, `{"id":7,"peerURLs":["u"],"name":"a"}`, `{"kind":"add","member":{"id":7,"peerURLs":["u"],"name":"a"}}`},
		"add a learner": {raftpb.ConfChangeAddLearnerNode, `{"id":7,"peerURLs":["u"]}`, `{"kind":"add","member":{"id":7,"peerURLs":["u"],"isLearner":true}}`},
		"promote":       {raftpb.ConfChangeAddNode, `{"id":7,"isPromote":true}`, `{"kind":"promote","member":{"id":7,"peerURLs":null}}`},
		"remove":        {raftpb.ConfChangeRemoveNode, ``, `{"kind":"remove","member":{"id":7,"peerURLs":null}}`},
		"update":        {raftpb.ConfChangeUpdateNode, `{"id":7,"peerURLs":["v"],"name":"a"}`, `{"kind":"update","member":{"id":7,"peerURLs":["v"]}}`},
		"of another":    {raftpb.ConfChangeAddNode, `{"id":8}`, ""},
		"noise":         {raftpb.ConfChangeAddNode, `{`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := decodeChange(encoded(t, &raftpb.ConfChange{Type: tt.kind.Enum(), NodeId: &id, Context: []byte(tt.context)}))
			got := ""
			if err == nil {
				got = string(c.Encode())
			}
			if got != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}

// source is a state with so many voters as if member 1 had it, at index 10.
func source(t *testing.T, voters int, uncommitted string) *Source {
	t.Helper()
	s := &Source{MemberID: 1, contents: &etcdfile.Contents{Index: 10, Term: 1}, o: Options{Uncommitted: uncommitted}}
	s.o.Logger = zap.NewNop()
	for i := range voters {
		s.contents.Members = append(s.contents.Members, etcdfile.Member{ID: uint64(i + 1)})
	}
	return s
}

func entryAt(index uint64, data []byte) *raftpb.Entry {
	return &raftpb.Entry{Index: &index, Term: new(uint64(1)), Data: data}
}

func TestUncommittedEntries(t *testing.T) {
	put := encoded(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k")}})
	version := encoded(t, &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{}})
	for name, tt := range map[string]struct {
		voters      int
		uncommitted string
		commit      uint64
		entries     []*raftpb.Entry
		want        int // of the tail; -1 is refused
	}{
		"all known":                   {3, "", 12, []*raftpb.Entry{entryAt(11, put), entryAt(12, put)}, 2},
		"alone":                       {1, "", 0, []*raftpb.Entry{entryAt(11, put), entryAt(12, put)}, 2},
		"one of three":                {3, "", 11, []*raftpb.Entry{entryAt(11, put), entryAt(12, put)}, -1},
		"one of three, keep":          {3, "keep", 11, []*raftpb.Entry{entryAt(11, put), entryAt(12, put)}, 2},
		"one of three, drop":          {3, "drop", 11, []*raftpb.Entry{entryAt(11, put), entryAt(12, put)}, 1},
		"commit was not written down": {3, "drop", 4, []*raftpb.Entry{entryAt(11, put)}, 0},
		"nothing that matters":        {3, "", 0, []*raftpb.Entry{entryAt(11, nil), entryAt(12, version)}, 0},
		"a gap":                       {1, "", 20, []*raftpb.Entry{entryAt(13, put)}, -1},
		"undecodable":                 {1, "", 20, []*raftpb.Entry{entryAt(11, []byte{0xff})}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			s := source(t, tt.voters, tt.uncommitted)
			err := s.takeTail(&etcdlog.Log{HardState: &raftpb.HardState{Commit: &tt.commit}, Entries: tt.entries, LastIndex: 20})
			switch {
			case (err != nil) != (tt.want < 0):
				t.Errorf("error %v, want a tail of %d", err, tt.want)
			case err == nil && len(s.tail) != tt.want:
				t.Errorf("a tail of %d, want %d", len(s.tail), tt.want)
			}
		})
	}
	if err := source(t, 1, "").takeTail(&etcdlog.Log{HardState: &raftpb.HardState{}, LastIndex: 9}); err == nil {
		t.Error("a log that ends before the database is not minded")
	}
}

// TestAlone follows the membership through the tail.
func TestAlone(t *testing.T) {
	s := source(t, 1, "")
	change := func(kind machine.ChangeKind, id uint64, learner bool) machine.Entry {
		return machine.Entry{Change: &machine.Change{Kind: kind, Member: machine.Member{ID: id, IsLearner: learner}}}
	}
	for _, step := range []struct {
		entry machine.Entry
		want  bool
	}{
		{change(machine.AddMember, 2, true), true},
		{change(machine.PromoteMember, 2, false), false},
		{change(machine.RemoveMember, 2, false), true},
		{change(machine.AddMember, 3, false), false},
		{change(machine.RemoveMember, 1, false), false},
	} {
		s.tail = append(s.tail, step.entry)
		if got := s.alone(); got != step.want {
			t.Errorf("after %s of %d: alone %v", step.entry.Change.Kind, step.entry.Change.Member.ID, got)
		}
	}
}

// snapshotWithAuth is a file in which authentication is enabled.
func snapshotWithAuth(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "auth.db")
	if err := etcdfile.Write(t.Context(), path, etcdfile.Contents{
		AuthEnabled: true, AuthRevision: 4, Users: []*authpb.User{{Name: []byte("root")}},
		Revisions: func(etcdfile.RevisionFunc) error { return nil },
	}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAuthentication(t *testing.T) {
	path := snapshotWithAuth(t)
	if s, err := OpenSnapshot(t.Context(), path, Options{}); !errors.Is(err, ErrAuthEnabled) {
		t.Errorf("got %v, %v", s, err)
	}
	s, err := OpenSnapshot(t.Context(), path, Options{DisableAuth: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.contents.AuthEnabled || s.contents.AuthRevision != 5 {
		t.Errorf("enabled %v at revision %d", s.contents.AuthEnabled, s.contents.AuthRevision)
	}
	// What is in the log alone would have to be judged by permissions, whichever came first.
	enable := machine.Entry{Commands: [][]byte{encoded(t, &pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}})}}
	s.tail = []machine.Entry{enable}
	if err := s.judgeAuth("x"); err == nil || !strings.Contains(err.Error(), "log alone") {
		t.Errorf("got %v", err)
	}
	s = source(t, 1, "")
	s.tail = []machine.Entry{enable}
	if err := s.judgeAuth("x"); !errors.Is(err, ErrAuthEnabled) {
		t.Errorf("got %v", err)
	}
}

// TestASnapshotThatWasBeingInstalled: the log already begins at it, the database
// is still the one before.
func TestASnapshotThatWasBeingInstalled(t *testing.T) {
	dir := t.TempDir()
	start := etcdlog.Start{ClusterID: 5, MemberID: 1, Members: []etcdlog.Member{{ID: 1, PeerURLs: []string{"u"}}, {ID: 2, PeerURLs: []string{"v"}}}}
	snapDir, walDir := filepath.Join(dir, "member", "snap"), filepath.Join(dir, "member", "wal")
	for _, d := range []string{snapDir, walDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	database := func(name string, index, auth uint64) {
		t.Helper()
		if err := etcdfile.WriteDatabase(t.Context(), filepath.Join(snapDir, name), etcdfile.Contents{
			Index: index, Term: 1, AuthRevision: auth, Revisions: func(etcdfile.RevisionFunc) error { return nil },
		}); err != nil {
			t.Fatal(err)
		}
	}
	database("db", 1, 3)
	if err := etcdlog.Write(walDir, start); err != nil { // with a snapshot of index 2
		t.Fatal(err)
	}
	if s, err := OpenEtcd(t.Context(), dir, "", Options{}); err == nil || !strings.Contains(err.Error(), "log begins at a snapshot of entry 2") {
		t.Fatalf("got %v, %v", s, err)
	}
	database("0000000000000002.snap.db", 2, 8)
	s, err := OpenEtcd(t.Context(), dir, "", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.contents.AuthRevision != 8 || len(s.tail) != 0 || s.ClusterID != 5 || s.MemberID != 1 {
		t.Errorf("got %+v of %+v", s, s.contents)
	}
}

// syncOfV2 is the request that a leader of etcd 3.5 proposes each half second while
// the v2 store has keys with a time to live: pb.Request{Method: "SYNC", ID, Time},
// of which proto2's generated code writes all fields, also those that are empty.
func syncOfV2() []byte {
	number := func(b []byte, n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
	}
	text := func(b []byte, n protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
	}
	b := number(nil, 1, 1<<60) // ID
	b = text(b, 2, "SYNC")     // Method
	b = text(b, 3, "")         // Path: Range of an InternalRaftRequest
	b = text(b, 4, "")         // Val: Put
	b = number(b, 5, 0)        // Dir: DeleteRange
	b = text(b, 6, "")         // PrevValue: Txn
	b = number(b, 7, 0)        // PrevIndex: Compaction
	for _, n := range []protowire.Number{9, 10, 11, 12, 13, 14} {
		b = number(b, n, 0) // Expiration, Wait, Since, Recursive, Sorted, Quorum
	}
	b = number(b, 15, 1_700_000_000_000_000_000) // Time
	return number(b, 16, 0)                      // Stream
}

func TestSyncOfV2ChangesNothing(t *testing.T) {
	if got, err := decodeCommand(syncOfV2()); got != nil || err != nil {
		t.Errorf("it is taken for the command %x, %v", got, err)
	}
	put := encoded(t, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k")}})
	s := source(t, 1, "")
	s.contents.ScheduledCompaction, s.contents.FinishedCompaction, s.contents.AuthRevision = -1, -1, 1
	s.contents.Revisions = func(etcdfile.RevisionFunc) error { return nil }
	commit := uint64(12)
	if err := s.takeTail(&etcdlog.Log{HardState: &raftpb.HardState{Commit: &commit}, LastIndex: 12,
		Entries: []*raftpb.Entry{entryAt(11, put), entryAt(12, syncOfV2())}}); err != nil {
		t.Fatal(err)
	}
	eng, err := engine.Open(engine.Options{Dir: t.TempDir(), Merger: machine.Merger})
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	if _, err := s.Fill(t.Context(), eng, Target{Index: 1, Term: 1}); err != nil {
		t.Fatal("the migration fails:", err)
	}
	m, err := machine.Open(machine.Options{Engine: eng, KV: mvcc.Options{}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if rev := m.KV.Revision(); rev != 2 {
		t.Errorf("the revision is %d, and one key was put: 2", rev)
	}
}
