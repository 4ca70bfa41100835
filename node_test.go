package coterie

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/compactor"
	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/guard"
	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/lease"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/replica"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testConfig is a member on unix sockets in its own directory, so that tests
// need no ports. COTERIE_TEST_TRANSPORT, in the environment, is its transport.
func testConfig(t testing.TB) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "coterie") // short, for a socket's path must be
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(dir, "data")
	cfg.ListenClientURLs = []string{"unix://" + filepath.Join(dir, "c")}
	cfg.AdvertiseClientURLs = cfg.ListenClientURLs
	cfg.ListenPeerURLs = []string{"unix://" + filepath.Join(dir, "p")}
	cfg.Transport = cmp.Or(os.Getenv("COTERIE_TEST_TRANSPORT"), cfg.Transport)
	return cfg
}

func openNode(t testing.TB, cfg Config) *Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	n, err := Open(ctx, cfg)
	must(t, err)
	return n
}

// refused opens what must be refused and checks the message, and that nothing
// in the directory has changed.
func refused(t *testing.T, cfg Config, want string) {
	t.Helper()
	before := tree(t, cfg.DataDir)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	n, err := Open(ctx, cfg)
	if err == nil {
		n.Close()
		t.Fatalf("opened; want an error with %q", want)
	}
	if !strings.Contains(err.Error(), want) {
		t.Fatalf("got %q, want an error with %q", err, want)
	}
	if after := tree(t, cfg.DataDir); !slices.Equal(before, after) {
		t.Fatalf("refused, but changed the directory from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// tree lists what is in a directory, with the contents' sums.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == replica.LockFile {
			return err
		}
		b, err := os.ReadFile(path)
		out = append(out, fmt.Sprintf("%s %d %x", path, len(b), fnv(b)))
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

func fnv(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

func TestOpenCloseAndOpenAgain(t *testing.T) {
	defer goleak.VerifyNone(t)
	cfg := testConfig(t)
	ctx := context.Background()
	for i := range 3 {
		n := openNode(t, cfg)
		resp, err := n.Client().Put(ctx, "key", fmt.Sprint(i))
		must(t, err)
		if resp.Header.Revision != int64(i)+2 {
			t.Errorf("start %d: revision %d", i, resp.Header.Revision)
		}
		got, err := n.Client().Get(ctx, "key")
		must(t, err)
		if kv := got.Kvs[0]; string(kv.Value) != fmt.Sprint(i) || kv.Version != int64(i)+1 {
			t.Errorf("start %d: %v", i, kv)
		}
		must(t, n.Close())
		must(t, n.Close())
		select {
		case <-n.Done():
			must(t, n.Err())
		default:
			t.Error("closed, but not done")
		}
	}
}

// Members in one process share nothing.
func TestThreeMembersInOneProcess(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx := context.Background()
	var nodes []*Node
	for i := range 3 {
		n := openNode(t, testConfig(t))
		nodes = append(nodes, n)
		_, err := n.Client().Put(ctx, "who", fmt.Sprint(i))
		must(t, err)
	}
	for i, n := range nodes {
		got, err := n.Client().Get(ctx, "who")
		must(t, err)
		if string(got.Kvs[0].Value) != fmt.Sprint(i) || got.Header.Revision != 2 {
			t.Errorf("member %d holds %s at revision %d", i, got.Kvs[0].Value, got.Header.Revision)
		}
		must(t, n.Close())
	}
}

// A client outside the process, over the socket, with a watch that Close ends.
func TestCloseEndsStreams(t *testing.T) {
	defer goleak.VerifyNone(t)
	cfg := testConfig(t)
	n := openNode(t, cfg)
	cli, err := clientv3.New(clientv3.Config{Endpoints: cfg.ListenClientURLs, DialTimeout: 10 * time.Second})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := cli.Watch(ctx, "k", clientv3.WithCreatedNotify())
	<-events
	_, err = cli.Put(ctx, "k", "v")
	must(t, err)
	if w := <-events; len(w.Events) != 1 {
		t.Fatalf("got %v", w)
	}
	began := time.Now()
	must(t, n.Close())
	if took := time.Since(began); took > drainTimeout {
		t.Errorf("closing with an open watch took %v", took)
	}
	cancel()
	cli.Close()
}

// What fails before there is a consensus to stop is not forgotten.
func TestEarlyFailuresAreHandedOn(t *testing.T) {
	var f failures
	early, late := errors.New("early"), errors.New("late")
	f.report(early)
	var got []error
	f.handTo(func(err error) { got = append(got, err) })
	f.report(late)
	if !slices.Equal(got, []error{early, late}) {
		t.Fatalf("got %v", got)
	}
}

// idle is a machine for which nothing ever happens.
type idle struct{ applied atomic.Uint64 }

func (m *idle) Apply(entries []machine.Entry) ([]machine.Result, error) {
	m.applied.Store(entries[len(entries)-1].Index)
	return nil, nil
}
func (m *idle) Applied() uint64               { return m.applied.Load() }
func (m *idle) DurableIndex() (uint64, error) { return 0, nil }
func (m *idle) Flushed() <-chan struct{}      { return nil }
func (m *idle) StartFlush() error             { return nil }
func (m *idle) Install(_, _ uint64) error     { return errors.New("nobody sends a snapshot") }

// A leader whose disk hangs at first leads in full as soon as it can.
func TestLeaderOnASlowDiskLeadsLater(t *testing.T) {
	defer goleak.VerifyNone(t)
	gate := make(chan struct{})
	var syncs atomic.Int64
	disk := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && syncs.Add(1) == 2 {
			<-gate // the first made it the leader, this one begins its term
		}
		return nil
	}))
	must(t, disk.MkdirAll("wal", 0o700))
	log, err := wal.Create(wal.Options{Dir: "wal", FS: disk, MemberID: 5}, replica.FirstIndex, replica.FirstTerm)
	must(t, err)
	eng, err := engine.Open(engine.Options{Dir: "engine", Merger: mvcc.Merger, FS: disk})
	must(t, err)
	leases, err := lease.Open(eng)
	must(t, err)
	m := &idle{}
	m.applied.Store(replica.FirstIndex)
	n := &Node{cfg: Config{ElectionTimeout: 10 * time.Millisecond}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.lessor = lessor.New(leases, lessor.Options{})
	n.compactor = compactor.New(compactor.Policy{}, compactionStore{n}, compactor.Options{})
	n.guardian = guard.New(hashes{n}, guard.Options{})
	n.consensus, err = consensus.Start(consensus.Config{
		ID: 5, Log: log, Machine: m, Voters: []uint64{5}, Tick: time.Millisecond, ElectionTicks: 10,
		RequestTimeout: 20 * time.Millisecond, FlushEntries: 100, KeepEntries: 100, Logger: zap.NewNop(),
	})
	must(t, err)
	n.group.Go(n.lead)
	for range 5 {
		if err := n.readIndex(n.ctx); !errors.Is(err, consensus.ErrTimeout) {
			t.Fatalf("a read while the disk hangs: %v", err)
		}
	}
	close(gate)
	for deadline := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		if _, _, err := n.lessor.TimeToLive(t.Context(), 1); !errors.Is(err, lessor.ErrNotPrimary) {
			break
		}
		if time.Now().After(deadline) {
			t.Error("the leader's lease clock does not run")
			break
		}
	}
	n.cancel()
	n.lessor.Close()
	n.group.Wait()
	n.consensus.Close()
	must(t, errors.Join(log.Close(), eng.Close()))
}

func TestDirectoryInUse(t *testing.T) {
	cfg := testConfig(t)
	n := openNode(t, cfg)
	second := testConfig(t)
	second.DataDir = cfg.DataDir
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if other, err := Open(ctx, second); err == nil {
		other.Close()
		t.Error("a directory in use was opened")
	} else if !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("got %v", err)
	}
	must(t, n.Close())
}

func TestPortInUseLeavesNoDirectory(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenClientURLs = []string{"http://127.0.0.1:0"}
	n := openNode(t, cfg)
	second := testConfig(t)
	second.ListenClientURLs = []string{"http://" + n.ClientAddrs()[0].String()}
	refused(t, second, "address already in use")
	if _, err := os.Stat(second.DataDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a data directory was made: %v", err)
	}
	must(t, n.Close())
}

// The certificate of auto-tls is made in the data directory, and only when that
// is known to be this member's.
func TestAutoTLS(t *testing.T) {
	secured := func(cfg *Config) {
		cfg.ListenClientURLs = []string{"https://127.0.0.1:0"}
		cfg.ClientTLS.Auto = true
	}
	cfg := testConfig(t)
	secured(&cfg)
	must(t, os.MkdirAll(filepath.Join(cfg.DataDir, "member", "snap"), 0o700))
	refused(t, cfg, "a data directory of etcd")

	cfg = testConfig(t)
	secured(&cfg)
	n := openNode(t, cfg)
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{"https://" + n.ClientAddrs()[0].String()},
		DialTimeout: 10 * time.Second,
		TLS:         &tls.Config{InsecureSkipVerify: true}, // it signs itself
	})
	must(t, err)
	_, err = cli.Put(context.Background(), "k", "v")
	must(t, err)
	must(t, cli.Close())
	must(t, n.Close())
}

func TestForeignDirectories(t *testing.T) {
	made := func(t *testing.T) Config {
		cfg := testConfig(t)
		must(t, openNode(t, cfg).Close())
		return cfg
	}
	edit := func(t *testing.T, cfg Config, change func(*replica.Identity)) {
		path := filepath.Join(cfg.DataDir, replica.IdentityFile)
		b, err := os.ReadFile(path)
		must(t, err)
		var id replica.Identity
		must(t, json.Unmarshal(b, &id))
		change(&id)
		b, err = json.Marshal(id)
		must(t, err)
		must(t, os.WriteFile(path, b, 0o600))
	}
	t.Run("etcd's", func(t *testing.T) {
		cfg := testConfig(t)
		must(t, os.MkdirAll(filepath.Join(cfg.DataDir, "member", "snap"), 0o700))
		must(t, os.WriteFile(filepath.Join(cfg.DataDir, "member", "snap", "db"), []byte("bolt"), 0o600))
		refused(t, cfg, "a data directory of etcd")
	})
	t.Run("newer format", func(t *testing.T) {
		cfg := made(t)
		edit(t, cfg, func(id *replica.Identity) { id.Format = replica.Format + 1 })
		refused(t, cfg, "newer version of Coterie")
	})
	t.Run("older format", func(t *testing.T) {
		cfg := made(t)
		edit(t, cfg, func(id *replica.Identity) { id.Format = replica.Format - 1 })
		refused(t, cfg, "data format 1, of a version before the first release")
	})
	t.Run("another cluster's", func(t *testing.T) {
		cfg := made(t)
		edit(t, cfg, func(id *replica.Identity) { id.ClusterID = "77" })
		refused(t, cfg, "of cluster 77")
	})
	t.Run("identity lost", func(t *testing.T) {
		cfg := made(t)
		must(t, os.Remove(filepath.Join(cfg.DataDir, replica.IdentityFile)))
		refused(t, cfg, "no identity.json")
	})
	t.Run("identity damaged", func(t *testing.T) {
		cfg := made(t)
		must(t, os.WriteFile(filepath.Join(cfg.DataDir, replica.IdentityFile), []byte("{"), 0o600))
		refused(t, cfg, "is damaged")
	})
	t.Run("log lost", func(t *testing.T) {
		cfg := made(t)
		segments, err := filepath.Glob(filepath.Join(cfg.DataDir, replica.LogDir, "*.wal"))
		must(t, err)
		must(t, os.Remove(segments[0]))
		refused(t, cfg, "holds no log")
	})
	t.Run("engine of another time", func(t *testing.T) {
		// The log of a member that has just been made, the engine of one that has lived.
		young, old := made(t), testConfig(t)
		n := openNode(t, old)
		for i := range 10 {
			_, err := n.Client().Put(context.Background(), "k", fmt.Sprint(i))
			must(t, err)
		}
		must(t, n.Close())
		must(t, os.RemoveAll(filepath.Join(old.DataDir, replica.LogDir)))
		must(t, os.Rename(filepath.Join(young.DataDir, replica.LogDir), filepath.Join(old.DataDir, replica.LogDir)))
		refused(t, old, "the log has lost entries")
	})
	t.Run("engine damaged", func(t *testing.T) {
		cfg := made(t)
		n := openNode(t, cfg)
		for i := range 100 {
			_, err := n.Client().Put(context.Background(), fmt.Sprint(i), strings.Repeat("value", 100))
			must(t, err)
		}
		must(t, n.Close())
		tables, err := filepath.Glob(filepath.Join(cfg.DataDir, replica.EngineDir, "*.sst"))
		must(t, err)
		newest := slices.MaxFunc(tables, func(x, y string) int { return len(readFile(t, x)) - len(readFile(t, y)) })
		b := readFile(t, newest)
		b[len(b)/4] ^= 0x55 // in a block of data; all else is whole
		must(t, os.WriteFile(newest, b, 0o600))
		refused(t, cfg, "restore this member from a snapshot")
	})
	t.Run("engine without its manifest", func(t *testing.T) {
		cfg := made(t)
		markers, err := filepath.Glob(filepath.Join(cfg.DataDir, replica.EngineDir, "marker.manifest*"))
		must(t, err)
		must(t, os.Remove(markers[0]))
		refused(t, cfg, "restore this member from a snapshot")
	})
	t.Run("log cut short", func(t *testing.T) {
		cfg := made(t)
		n := openNode(t, cfg)
		for i := range 100 {
			_, err := n.Client().Put(context.Background(), "k", fmt.Sprint(i))
			must(t, err)
		}
		must(t, n.Close())
		segments, err := filepath.Glob(filepath.Join(cfg.DataDir, replica.LogDir, "*.wal"))
		must(t, err)
		must(t, os.Truncate(segments[0], 2048))
		refused(t, cfg, "the log has lost entries")
	})
}

// What a restoration leaves that was interrupted is not an empty directory.
func TestInterruptedRestorationIsRefused(t *testing.T) {
	cfg := testConfig(t)
	must(t, os.MkdirAll(filepath.Join(cfg.DataDir, replica.StagingDir), 0o700))
	refused(t, cfg, "interrupted restoration")
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// The first start may end at any point; the next one makes the directory anew.
func TestInterruptedFirstStart(t *testing.T) {
	ctx := context.Background()
	interrupted := func(t *testing.T) Config {
		cfg := testConfig(t)
		resolved := cfg.resolved()
		must(t, os.MkdirAll(filepath.Join(cfg.DataDir, replica.LogDir), 0o700))
		f, err := resolved.plan(ctx)
		must(t, err)
		d, err := replica.Open(replica.Options{Path: cfg.DataDir, Logger: zap.NewNop()}, func() (*replica.Founding, error) { return f, nil })
		must(t, err)
		must(t, errors.Join(d.Engine.Close(), d.Close()))
		id, err := replica.ReadIdentity(vfs.Default, cfg.DataDir)
		must(t, err)
		id.Complete = false
		must(t, replica.WriteIdentity(vfs.Default, cfg.DataDir, id))
		return cfg
	}
	for _, missing := range []string{"", replica.LogDir, replica.EngineDir} {
		cfg := interrupted(t)
		if missing != "" {
			must(t, os.RemoveAll(filepath.Join(cfg.DataDir, missing)))
		}
		cfg.InitialClusterToken = "other" // it may have been a mistake in the configuration
		n := openNode(t, cfg)
		got, err := n.Client().Get(ctx, "k")
		must(t, err)
		if len(got.Kvs) != 0 || got.Header.Revision != 1 {
			t.Fatalf("an unfinished directory was used: %v", got)
		}
		must(t, n.Close())
	}

	// What is found where the log is to be may be another's.
	other := testConfig(t)
	n := openNode(t, other)
	_, err := n.Client().Put(ctx, "k", "v")
	must(t, err)
	must(t, n.Close())
	files := t.TempDir()
	must(t, os.WriteFile(filepath.Join(files, "precious"), []byte("x"), 0o600))
	for _, dir := range []string{filepath.Join(other.DataDir, replica.LogDir), files} {
		before := tree(t, dir)
		cfg := interrupted(t)
		cfg.WALDir = dir
		refused(t, cfg, "check --wal-dir")
		if after := tree(t, dir); !slices.Equal(before, after) {
			t.Fatalf("%s was changed", dir)
		}
	}
}

// The id of a member that is started without flags is the one that every etcd
// started without flags has.
func TestIDsAreEtcds(t *testing.T) {
	if id := memberID([]string{"http://localhost:2380"}, "etcd-cluster"); id != 0x8e9e05c52164694d {
		t.Errorf("the default member has the id %x", id)
	}
	if memberID([]string{"http://b", "http://a"}, "t") != memberID([]string{"http://a", "http://b"}, "t") {
		t.Error("the order of URLs matters")
	}
}

// A watcher that has left is nothing to the others of its stream: clientv3 has all of a context's on one.
func TestWatcherThatHasLeft(t *testing.T) {
	cfg := testConfig(t)
	n := openNode(t, cfg)
	defer n.Close()
	cli, err := clientv3.New(clientv3.Config{Endpoints: cfg.ListenClientURLs})
	must(t, err)
	defer cli.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	first, leave := context.WithCancel(ctx)
	gone := cli.Watch(first, "k", clientv3.WithCreatedNotify())
	<-gone
	watchers := map[string]clientv3.WatchChan{}
	for _, key := range []string{"k", "other"} {
		watchers[key] = cli.Watch(ctx, key, clientv3.WithCreatedNotify())
		<-watchers[key]
	}
	leave()
	for range gone {
	}
	// The server has the cancellation when it has answered a creation that came behind it.
	<-cli.Watch(ctx, "later", clientv3.WithCreatedNotify())
	for key, value := range map[string]string{"k": strings.Repeat("x", 700<<10), "other": "v"} {
		_, err = cli.Put(ctx, key, value)
		must(t, err)
	}
	for key, c := range watchers {
		select {
		case <-c:
		case <-time.After(10 * time.Second):
			t.Errorf("the watcher of %q has not been told", key)
		}
	}
}

// compactor.Store: "A revision that is compacted already is no error."
func TestCompactionOfWhatIsCompacted(t *testing.T) {
	n := openNode(t, testConfig(t))
	defer n.Close()
	for range 3 {
		_, err := n.Client().Put(t.Context(), "k", "v")
		must(t, err)
	}
	must(t, compactionStore{n}.Compact(t.Context(), 3))
	if err := (compactionStore{n}).Compact(t.Context(), 3); err != nil {
		t.Errorf("compaction to what is compacted already: %v", err)
	}
}

// A password that comes with "no password" is not used, and goes to the disk of every member all the same.
func TestUnusedPasswordStaysOutOfTheLog(t *testing.T) {
	cfg := testConfig(t)
	n := openNode(t, cfg)
	const secret = "correct horse battery staple"
	_, err := pb.NewAuthClient(n.front.conn).UserAdd(t.Context(), &pb.AuthUserAddRequest{
		Name: "u", Password: secret, Options: &authpb.UserAddOptions{NoPassword: true},
	})
	must(t, err)
	must(t, n.Close())
	must(t, filepath.WalkDir(cfg.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s has the password", filepath.Base(path))
		}
		return err
	}))
}

// A disk that hangs holds a write of a member that has failed. Close gives up, and the directory stays locked until the disk answers: what it then
// writes must not come between what the next start has acknowledged.
func TestCloseWhileTheDiskHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, held := make(chan struct{}), make(chan struct{}, 1)
		var hang atomic.Bool
		disk := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, ".wal") && hang.Load() {
				held <- struct{}{}
				<-release
			}
			return nil
		}))
		open := func() (*replica.Dir, error) {
			d, err := replica.Open(replica.Options{Path: "data", FS: disk, Logger: zap.NewNop()}, func() (*replica.Founding, error) {
				return &replica.Founding{ClusterID: 1, MemberID: 5, Members: []machine.Member{{ID: 5}}}, nil
			})
			if err == nil {
				err = d.MakeWritable()
			}
			return d, err
		}
		n := &Node{log: zap.NewNop(), done: make(chan struct{})}
		n.ctx, n.cancel = context.WithCancel(context.Background())
		var err error
		n.data, err = open()
		must(t, err)
		load := func(eng *engine.Engine) (*machine.Machine, error) {
			return machine.Open(machine.Options{Engine: eng, Logger: zap.NewNop()})
		}
		m, err := load(n.data.Engine)
		must(t, err)
		n.replica = replica.New(n.data, m, replica.Config{Logger: zap.NewNop(), Open: load, Switched: func(*machine.Machine) {}, Changed: func([]machine.Change) {}})
		n.consensus, err = consensus.Start(consensus.Config{
			ID: 5, Log: n.data.Log, Machine: n.replica, Voters: []uint64{5}, Tick: 100 * time.Millisecond, ElectionTicks: 10,
			RequestTimeout: 5 * time.Second, FlushEntries: 100, KeepEntries: 100, Logger: zap.NewNop(),
		})
		must(t, err)
		put := func() error {
			return n.Propose(n.ctx, &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k")}}).Err
		}
		must(t, put())
		hang.Store(true)
		var group sync.WaitGroup
		group.Go(func() { _ = put() }) // until Close
		<-held
		n.consensus.Fail(errors.New("the engine is broken"))
		if err := n.Close(); err == nil || !strings.Contains(err.Error(), "data stays locked") {
			t.Errorf("Close beside a write that the disk holds: %v", err)
		}
		group.Wait()
		if _, err := open(); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Fatalf("a start beside a write that the disk holds: %v", err)
		}
		hang.Store(false)
		close(release)
		synctest.Wait()
		again, err := open()
		must(t, err)
		must(t, errors.Join(again.Engine.Close(), again.Close()))
	})
}
