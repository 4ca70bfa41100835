package machine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/lease"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/storage/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// harness is a machine and the entries it has applied, to replay them.
type harness struct {
	*Machine
	t      testing.TB
	fs     *vfs.MemFS
	engine *engine.Engine
	log    []Entry
}

func newHarnessFS() *vfs.MemFS { return vfs.NewCrashableMem() }

func newHarness(t testing.TB) *harness {
	h := &harness{t: t, fs: newHarnessFS()}
	h.openEngine()
	must(t, Bootstrap(h.engine, 1, 1, []Member{{ID: 5, PeerURLs: []string{"http://a"}}, {ID: 6, PeerURLs: []string{"http://b"}, IsLearner: true}}))
	h.open()
	return h
}

func (h *harness) openEngine() {
	h.t.Helper()
	var err error
	h.engine, err = engine.Open(engine.Options{Dir: "engine", Merger: mvcc.Merger, FS: h.fs})
	must(h.t, err)
}

func (h *harness) open() {
	h.t.Helper()
	var err error
	h.Machine, err = Open(Options{Engine: h.engine, Logger: zap.NewNop()})
	must(h.t, err)
}

func (h *harness) close() {
	h.t.Helper()
	h.Machine.Close()
	must(h.t, h.engine.Close())
}

// crash loses what was not synced, and replays the log from where the engine is.
func (h *harness) crash() {
	h.t.Helper()
	fs := h.fs.CrashClone(vfs.CrashCloneCfg{})
	h.close()
	h.fs = fs
	h.openEngine()
	h.open()
	for _, e := range h.log {
		if e.Index > h.Applied() {
			_, err := h.Apply([]Entry{e})
			must(h.t, err)
		}
	}
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	must(t, err)
	return b
}

func command(t testing.TB, r *pb.InternalRaftRequest) []byte {
	t.Helper()
	return encode(t, r)
}

// change applies one entry that changes the membership, as the log holds it.
func (h *harness) change(kind ChangeKind, m Member) error {
	h.t.Helper()
	c, err := DecodeChange((&Change{Kind: kind, Member: m}).Encode())
	must(h.t, err)
	checked := h.Members.Check(c)
	e := Entry{Index: h.Applied() + 1, Term: 2, Change: c}
	h.log = append(h.log, e)
	results, err := h.Apply([]Entry{e})
	must(h.t, err)
	if len(results) != 1 || results[0].Err != checked {
		h.t.Fatalf("%s %x: results %v; checked before: %v", kind, m.ID, results, checked)
	}
	return results[0].Err
}

// apply applies one entry with the commands.
func (h *harness) apply(rs ...*pb.InternalRaftRequest) []Result {
	h.t.Helper()
	e := Entry{Index: h.Applied() + 1, Term: 2}
	for _, r := range rs {
		e.Commands = append(e.Commands, command(h.t, r))
	}
	h.log = append(h.log, e)
	results, err := h.Apply([]Entry{e})
	must(h.t, err)
	if len(results) != len(rs) {
		h.t.Fatalf("%d results for %d commands", len(results), len(rs))
	}
	return results
}

func put(key, value string, leaseID int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: leaseID}}
}

func grant(id, ttl int64) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: ttl}}
}

func alarm(action pb.AlarmRequest_AlarmAction, member uint64, t pb.AlarmType) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{Action: action, MemberID: member, Alarm: t}}
}

// state is everything that a client can see, to compare machines.
func (h *harness) state() string {
	h.t.Helper()
	hash, _, _, err := h.KV.HashKV(context.Background(), 0)
	must(h.t, err)
	r, err := h.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	must(h.t, err)
	s := fmt.Sprintf("applied %d revision %d hash %08x keys %v members %v removed %v alarms %v size %d", h.Applied(), h.KV.Revision(), hash,
		r.Kvs, h.Members.List(), h.Members.now.Load().removed, h.Alarms.List(0), h.KV.SizeInUse())
	for _, l := range h.Leases.All() {
		s += fmt.Sprintf(" lease %d ttl %d remaining %d keys %v", l.ID, l.TTL, l.RemainingTTL, h.Leases.Keys(l.ID))
	}
	return s
}

func TestBatchesReplayToTheSameState(t *testing.T) {
	h := newHarness(t)
	defer func() { h.close() }()
	h.apply(grant(7, 60), put("a", "1", 7), put("b", "2", 0))
	h.apply(put("a", "3", 7), put("c", "4", 7), grant(8, 30))
	must(t, h.engine.Flush())
	before := h.state()
	h.crash()
	if got := h.state(); got != before {
		t.Fatalf("after a crash right after a flush:\n%s\nbefore:\n%s", got, before)
	}
	h.apply(&pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 8, Remaining_TTL: 11}, {ID: 99, Remaining_TTL: 1}}}})
	h.apply(&pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 7}}, put("d", "5", 8))
	h.apply(&pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{Member_ID: 5,
		MemberAttributes: &membershippb.Attributes{Name: "one", ClientUrls: []string{"http://c"}}}})
	h.apply(alarm(pb.AlarmRequest_ACTIVATE, 5, pb.AlarmType_NOSPACE))
	h.apply() // a new leader's entry
	before = h.state()
	h.crash()
	if got := h.state(); got != before {
		t.Fatalf("after a crash with entries to replay:\n%s\nbefore:\n%s", got, before)
	}
	durable, err := h.DurableIndex()
	must(t, err)
	if durable != 3 {
		t.Fatalf("durable is entry %d, the last flush was after entry 3", durable)
	}
	must(t, h.engine.Flush())
	h.crash()
	if got := h.state(); got != before {
		t.Fatalf("after a crash with nothing to replay:\n%s\nbefore:\n%s", got, before)
	}
	if l, _ := h.Leases.Get(8); l.RemainingTTL != 11 {
		t.Fatalf("the checkpoint is lost: %+v", l)
	}
	if m, _ := h.Members.Get(5); m.Name != "one" || len(h.Members.Voters()) != 1 {
		t.Fatalf("members %+v", h.Members.List())
	}
}

func TestResultsStandWithTheirCommands(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	r := h.apply(put("a", "1", 0), put("b", "1", 404), grant(7, 60), grant(7, 60),
		&pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 1}},
		&pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "reader"}}, put("a", "2", 0))
	if rev := r[0].Response.(*pb.PutResponse).Header.Revision; rev != 2 {
		t.Errorf("the first put has revision %d", rev)
	}
	for i, want := range map[int]error{1: lease.ErrNotFound, 3: lease.ErrExists, 4: lease.ErrNotFound} {
		if !errors.Is(r[i].Err, want) {
			t.Errorf("command %d: %v, want %v", i, r[i].Err, want)
		}
	}
	if rev := r[2].Response.(*pb.LeaseGrantResponse).Header.Revision; rev != 2 {
		t.Errorf("the grant has revision %d, a grant makes none", rev)
	}
	if rev := r[5].Response.(*pb.AuthRoleAddResponse).Header.GetRevision(); rev != 2 {
		t.Errorf("the new role has revision %d in its header", rev)
	}
	if rev := r[6].Response.(*pb.PutResponse).Header.Revision; rev != 3 {
		t.Errorf("the second put has revision %d", rev)
	}
}

func TestStatsCountLeases(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	h.apply(grant(7, 60), grant(7, 60), grant(8, 60))
	h.apply(&pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 7}}, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 7}})
	if got := h.Stats(); got != (Stats{LeasesGranted: 2, LeasesRevoked: 1}) {
		t.Errorf("got %+v", got)
	}
}

func TestAlarmsForbidWhatEtcdForbids(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	txn := func(ops ...*pb.RequestOp) *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{Txn: &pb.TxnRequest{Failure: ops}}
	}
	putOp := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("x")}}}
	delOp := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("x")}}}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{putOp}}}}
	all := []struct {
		name               string
		r                  *pb.InternalRaftRequest
		noSpace, corrupted bool
	}{
		{"put", put("a", "1", 0), true, true},
		{"txn with a put", txn(putOp), true, true},
		{"txn with a put in a nested txn", txn(nested), true, true},
		{"txn with a delete", txn(delOp), false, true},
		{"delete", &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("a")}}, false, true},
		{"grant", grant(9, 60), true, true},
		{"revoke", &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 404}}, false, true},
		{"checkpoint", &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{}}, false, false},
		{"alarm list", alarm(pb.AlarmRequest_GET, 0, pb.AlarmType_NONE), false, false},
	}
	check := func(on string, refused error, which func(int) bool) {
		t.Helper()
		for i, c := range all {
			if err := h.apply(c.r)[0].Err; errors.Is(err, refused) != which(i) {
				t.Errorf("%s: %s: %v", on, c.name, err)
			}
		}
	}
	check("no alarm", ErrNoSpace, func(int) bool { return false })
	h.apply(&pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 9}})
	h.apply(alarm(pb.AlarmRequest_ACTIVATE, 5, pb.AlarmType_NOSPACE))
	check("NOSPACE", ErrNoSpace, func(i int) bool { return all[i].noSpace })
	h.apply(alarm(pb.AlarmRequest_ACTIVATE, 6, pb.AlarmType_CORRUPT))
	check("CORRUPT", ErrCorrupt, func(i int) bool { return all[i].corrupted })

	list := h.apply(alarm(pb.AlarmRequest_GET, 0, pb.AlarmType_NONE))[0].Response.(*pb.AlarmResponse).Alarms
	if len(list) != 2 || list[0].Alarm != pb.AlarmType_NOSPACE || list[1].MemberID != 6 {
		t.Errorf("alarms %v", list)
	}
	h.crash()
	if got := h.Alarms.List(pb.AlarmType_CORRUPT); len(got) != 1 {
		t.Errorf("alarms after a restart: %v", got)
	}
	for _, c := range []struct {
		member uint64
		t      pb.AlarmType
		n      int
	}{{5, pb.AlarmType_CORRUPT, 0}, {6, pb.AlarmType_CORRUPT, 1}, {6, pb.AlarmType_CORRUPT, 0}, {5, pb.AlarmType_NOSPACE, 1}} {
		got := h.apply(alarm(pb.AlarmRequest_DEACTIVATE, c.member, c.t))[0].Response.(*pb.AlarmResponse).Alarms
		if len(got) != c.n {
			t.Errorf("disarming %v of %d answers %v", c.t, c.member, got)
		}
	}
	if err := h.apply(put("a", "1", 0))[0].Err; err != nil {
		t.Errorf("after disarming: %v", err)
	}
}

// A client can send any number as the type of an alarm. It must not be kept: a
// record of it could not be told from damage.
func TestAlarmsOfUnknownTypesAreNotRaised(t *testing.T) {
	h := newHarness(t)
	for _, unknown := range []pb.AlarmType{-1, 3, 44, 256 + pb.AlarmType_CORRUPT} {
		got := h.apply(alarm(pb.AlarmRequest_ACTIVATE, 5, unknown))[0].Response.(*pb.AlarmResponse).Alarms
		if len(got) != 0 || len(h.Alarms.List(pb.AlarmType_NONE)) != 0 {
			t.Errorf("alarm type %d was raised: %v", unknown, got)
		}
	}
	h.crash()
	must(t, h.StartFlush())
	h.close()
	h.openEngine() // with what was flushed at the end
	h.open()
	h.close()
}

// What a client's connection has decoded must be decodable in the log too,
// where it stands one level deeper.
func TestDeepestRequestIsACommand(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	r := &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("k")}}} // makes the depth even
	for proto.Unmarshal(encode(t, r), &pb.TxnRequest{}) == nil {
		for range 100 {
			r = &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}}}
		}
	}
	for proto.Unmarshal(encode(t, r), &pb.TxnRequest{}) != nil {
		r = r.Success[0].GetRequestTxn()
	}
	must(t, h.apply(&pb.InternalRaftRequest{Txn: r})[0].Err)
}

func TestUnknownCommandsStopTheMachine(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	for name, encoded := range map[string][]byte{
		"garbage":         []byte("\xff\xff\xff"),
		"nothing":         nil,
		"a later version": command(t, &pb.InternalRaftRequest{DowngradeVersionTest: &pb.DowngradeVersionTestRequest{}}),
	} {
		if _, err := h.Apply([]Entry{{Index: h.Applied() + 1, Term: 2, Commands: [][]byte{encoded}}}); err == nil {
			t.Errorf("%s was applied", name)
		}
	}
	if _, err := h.Apply([]Entry{{Index: h.Applied() + 2, Term: 2}}); err == nil {
		t.Error("a gap in the entries was applied")
	}
}

func TestExportTakesOneMoment(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				// A lease and its key come together: an export has both or neither.
				h.apply(grant(int64(i+1), 60), put(fmt.Sprintf("key%06d", i+1), "v", int64(i+1)))
			}
		}
	}()
	dir := t.TempDir()
	for i := range 5 {
		for start := h.Applied(); h.Applied() < start+50; {
			runtime.Gosched()
		}
		path := filepath.Join(dir, fmt.Sprint(i))
		must(t, h.Export(context.Background(), path))
		leases, keys := countExported(t, path)
		if leases != keys || keys == 0 {
			t.Errorf("export %d has %d leases and %d keys", i, leases, keys)
		}
	}
	close(stop)
	<-stopped
}

// Whoever asks for a compaction again, say because its connection broke, waits for it like the first.
func TestCompactionAskedForTwice(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	for range 3 {
		h.apply(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k")}})
	}
	compact := &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: 3, Physical: true}}
	if res := h.apply(compact)[0]; res.Err != nil || res.Done == nil {
		t.Fatalf("first: %+v", res)
	}
	if res := h.apply(compact)[0]; !errors.Is(res.Err, mvcc.ErrCompacted) || res.Done == nil {
		t.Errorf("again: %+v, want ErrCompacted and something to wait for", res)
	}
}

// Where nobody waits for a response none is kept: what a transaction reads can be a thousand times as long as it is. Errors are.
func TestUnaskedResults(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	read := command(t, &pb.InternalRaftRequest{Txn: &pb.TxnRequest{
		Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("small")}}},
			{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("large")}}},
		},
	}})
	fails := command(t, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 99}})
	for _, unasked := range []bool{false, true} {
		results, err := h.Apply([]Entry{{Index: h.Applied() + 1, Term: 2, Commands: [][]byte{read, fails, read}, Unasked: unasked}})
		must(t, err)
		if len(results) != 3 || results[1].Err == nil || results[0].Err != nil ||
			(results[0].Response == nil) != unasked || (results[2].Response == nil) != unasked {
			t.Errorf("unasked %v: %v", unasked, results)
		}
	}
}

// A transaction that reads at an earlier revision (as who pages at one does) must
// cost as much when many entries are applied at once, as at a restart or by a
// member that catches up, as it does when each is applied by itself.
func TestPastReadsInOneBatch(t *testing.T) {
	const n = 4000
	entries := []Entry{{Index: 2, Term: 2, Commands: [][]byte{command(t, put("k", "v", 0))}}} // revision 2
	for i := range uint64(n) {
		entries = append(entries, Entry{Index: i + 3, Term: 2, Commands: [][]byte{command(t, &pb.InternalRaftRequest{Txn: &pb.TxnRequest{
			Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}}},
				// The revision that the transaction before this one was answered with.
				{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k"), Revision: int64(i) + 2}}},
			},
		}})}})
	}
	run := func(n, atOnce int) time.Duration {
		h := newHarness(t)
		defer h.close()
		start := time.Now()
		for es := entries[:n]; len(es) > 0; {
			k := min(atOnce, len(es))
			rs, err := h.Apply(es[:k])
			must(t, err)
			for _, r := range rs {
				must(t, r.Err)
			}
			es = es[k:]
		}
		return time.Since(start)
	}
	single, half, whole := run(n, 1), run(n/2, n), run(n, n)
	t.Logf("%d entries one by one: %v; in one Apply: %v; half of them in one: %v", n, single, whole, half)
	if whole > 4*single {
		t.Errorf("applying %d entries at once takes %.0f times as long as one by one (%v, %v); half of them take %v",
			n, float64(whole)/float64(single), whole, single, half)
	}
}
