package coterie

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/guard"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/replica"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

// testCluster returns the configurations of a new cluster's members, on unix
// sockets.
func testCluster(t testing.TB, size int) []Config {
	t.Helper()
	configs := make([]Config, size)
	var listed []string
	for i := range configs {
		c := testConfig(t)
		c.Name = fmt.Sprintf("m%d", i+1)
		c.InitialAdvertisePeerURLs = c.ListenPeerURLs
		c.HeartbeatInterval, c.ElectionTimeout = 20*time.Millisecond, 200*time.Millisecond
		c.patience, c.healthInterval = time.Second, 100*time.Millisecond
		listed = append(listed, c.Name+"="+c.ListenPeerURLs[0])
		configs[i] = c
	}
	for i := range configs {
		configs[i].InitialCluster = strings.Join(listed, ",")
	}
	return configs
}

// openAll starts members at the same time, as a new cluster must be.
func openAll(t testing.TB, configs []Config) []*Node {
	t.Helper()
	nodes := make([]*Node, len(configs))
	errs := make([]error, len(configs))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var group sync.WaitGroup
	for i := range configs {
		group.Go(func() { nodes[i], errs[i] = Open(ctx, configs[i]) })
	}
	group.Wait()
	must(t, errors.Join(errs...))
	return nodes
}

func closeAll(t testing.TB, nodes []*Node) {
	t.Helper()
	for _, n := range nodes {
		must(t, n.Close())
	}
}

// eventually polls until f returns nothing to complain about.
func eventually(t testing.TB, f func() string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		complaint := f()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(complaint)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// onceHealthy makes a change of the membership, which is refused as long as members
// have not been connected for a while.
func onceHealthy[T any](t testing.TB, change func() (T, error)) (resp T) {
	t.Helper()
	eventually(t, func() string {
		var err error
		if resp, err = change(); errors.Is(err, rpctypes.ErrUnhealthy) {
			return err.Error()
		}
		must(t, err)
		return ""
	})
	return resp
}

func leaderOf(t testing.TB, nodes []*Node) *Node {
	t.Helper()
	var leader *Node
	eventually(t, func() string {
		for _, n := range nodes {
			if n.leads() {
				leader = n
				return ""
			}
		}
		return "no leader"
	})
	return leader
}

func others(nodes []*Node, n *Node) []*Node {
	return slices.DeleteFunc(slices.Clone(nodes), func(o *Node) bool { return o == n })
}

// wantSame waits until all members have the same data at the same revision.
func wantSame(t testing.TB, nodes []*Node) {
	t.Helper()
	eventually(t, func() string {
		got := map[string]bool{}
		for _, n := range nodes {
			sum, rev, compacted, err := n.machine().KV.HashKV(t.Context(), 0)
			if err != nil {
				return err.Error()
			}
			got[fmt.Sprintf("hash %x, revision %d, compacted %d", sum, rev, compacted)] = true
		}
		if len(got) > 1 {
			return fmt.Sprintf("the members differ: %v", slices.Collect(maps.Keys(got)))
		}
		return ""
	})
}

func TestClusterServesThroughEveryMember(t *testing.T) {
	defer goleak.VerifyNone(t)
	nodes := openAll(t, testCluster(t, 3))
	defer closeAll(t, nodes)
	ctx := t.Context()
	for i := range 12 {
		key := fmt.Sprintf("k%d", i)
		_, err := nodes[i%3].Client().Put(ctx, key, "v")
		must(t, err)
		got, err := nodes[(i+1)%3].Client().Get(ctx, key)
		must(t, err)
		if len(got.Kvs) != 1 {
			t.Fatalf("member %d does not see what member %d has acknowledged", (i+1)%3, i%3)
		}
	}
	list, err := nodes[0].Client().MemberList(ctx)
	must(t, err)
	for _, m := range list.Members {
		if m.Name == "" || len(m.ClientURLs) == 0 {
			t.Errorf("a member that has started is listed without its name or URLs: %v", m)
		}
	}
	// A lease lives by keep-alives to any member.
	for _, n := range nodes {
		lease, err := n.Client().Grant(ctx, 60)
		must(t, err)
		if _, err := n.Client().KeepAliveOnce(ctx, lease.ID); err != nil {
			t.Errorf("keep-alive: %v", err)
		}
		if ttl, err := n.Client().TimeToLive(ctx, lease.ID); err != nil || ttl.TTL < 58 {
			t.Errorf("time to live %v, %v", ttl, err)
		}
	}
	wantSame(t, nodes)
}

// A leader that stops passes its leadership on, and the member catches up when it
// comes back.
func TestRestartOfTheLeader(t *testing.T) {
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	defer func() { closeAll(t, nodes) }()
	ctx := t.Context()
	for range 3 {
		l := leaderOf(t, nodes)
		i := slices.Index(nodes, l)
		must(t, l.Close())
		rest := others(nodes, l)
		if _, err := rest[0].Client().Put(ctx, "k", fmt.Sprint(i)); err != nil {
			t.Fatalf("put while one member is away: %v", err)
		}
		nodes[i] = openNode(t, configs[i])
		got, err := nodes[i].Client().Get(ctx, "k")
		must(t, err)
		if string(got.Kvs[0].Value) != fmt.Sprint(i) {
			t.Fatalf("after its restart member %d says %q", i, got.Kvs[0].Value)
		}
	}
	wantSame(t, nodes)
}

// fill writes so much that a member that was away has to be sent a snapshot.
func fill(t testing.TB, n *Node, tag string) {
	t.Helper()
	value := strings.Repeat("x", 64<<10)
	for i := range 60 {
		_, err := n.Client().Put(t.Context(), fmt.Sprintf("%s%02d", tag, i%20), value)
		must(t, err)
	}
}

// lagConfigs make members that cut their logs early.
func lagConfigs(t testing.TB, size int) []Config {
	configs := testCluster(t, size)
	for i := range configs {
		configs[i].SnapshotCount, configs[i].SnapshotCatchUpEntries = 10, 5
		configs[i].keepLogBytes = 64 << 10
	}
	return configs
}

func awaitCut(t testing.TB, n *Node, above uint64) {
	t.Helper()
	eventually(t, func() string {
		first, err := n.data.Log.FirstIndex()
		must(t, err)
		if first <= above {
			return fmt.Sprintf("the log still begins with entry %d", first)
		}
		return ""
	})
}

// engineOf returns the directory of the engine that a member uses.
func engineOf(n *Node) string {
	g, err := n.replica.Acquire()
	if err != nil {
		return ""
	}
	defer g.Release()
	return g.Dir
}

func TestSnapshotReplacesTheStateOfALaggingMember(t *testing.T) {
	defer goleak.VerifyNone(t)
	configs := lagConfigs(t, 3)
	nodes := openAll(t, configs)
	defer func() { closeAll(t, nodes) }()
	ctx := t.Context()
	lease, err := nodes[0].Client().Grant(ctx, 600)
	must(t, err)
	_, err = nodes[0].Client().Put(ctx, "leased", "v", clientv3.WithLease(lease.ID))
	must(t, err)
	for round := range 2 { // the second replaces an engine that came with a snapshot
		l := leaderOf(t, nodes)
		lagging := others(nodes, l)[0]
		i := slices.Index(nodes, lagging)
		behind := lagging.machine().Applied()
		must(t, lagging.Close())
		fill(t, l, fmt.Sprint("round", round))
		awaitCut(t, l, behind+5)
		nodes[i] = openNode(t, configs[i])
		wantSame(t, nodes)
		if engineOf(nodes[i]) == replica.EngineDir {
			t.Fatal("it caught up without a snapshot")
		}
		// The new machine serves in full: reads, watches, leases, writes.
		got, err := nodes[i].Client().Get(ctx, "leased")
		must(t, err)
		if len(got.Kvs) != 1 || got.Kvs[0].Lease != int64(lease.ID) {
			t.Fatalf("got %v", got)
		}
		if ttl, err := nodes[i].Client().TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()); err != nil || len(ttl.Keys) != 1 {
			t.Fatalf("the lease: %v, %v", ttl, err)
		}
		watch := nodes[i].Client().Watch(ctx, "watched")
		_, err = nodes[i].Client().Put(ctx, "watched", fmt.Sprint(round))
		must(t, err)
		if resp := <-watch; resp.Err() != nil || string(resp.Events[0].Kv.Value) != fmt.Sprint(round) {
			t.Fatalf("watched %v, %v", resp, resp.Err())
		}
	}
	for i := range nodes { // and the installed state is what a restart finds
		must(t, nodes[i].Close())
		nodes[i] = openNode(t, configs[i])
		left, err := filepath.Glob(filepath.Join(configs[i].DataDir, replica.EngineDir+"*"))
		must(t, err)
		if len(left) != 1 {
			t.Errorf("engines left behind: %v", left)
		}
	}
	wantSame(t, nodes)
}

// A snapshot is installed by the write that begins the log anew. A crash after it
// finishes the installation at the next start, one before it forgets the snapshot.
func TestCrashWhileASnapshotIsInstalled(t *testing.T) {
	for _, committed := range []bool{false, true} {
		configs := lagConfigs(t, 3)
		nodes := openAll(t, configs)
		ctx := t.Context()
		l := leaderOf(t, nodes)
		lagging := others(nodes, l)[0]
		i := slices.Index(nodes, lagging)
		must(t, lagging.Close())
		fill(t, l, "k")

		// What the transport and consensus do up to the crash.
		snapshot, err := (snapshots{l}).Take(ctx)
		must(t, err)
		index := snapshot.Metadata.GetIndex()
		dir := filepath.Join(configs[i].DataDir, replica.SnapshotDir(index))
		must(t, os.Rename(snapshot.Dir, dir))
		snapshot.Release()
		if committed {
			log, err := wal.Open(wal.Options{Dir: filepath.Join(configs[i].DataDir, replica.LogDir), ClusterID: lagging.data.ClusterID, MemberID: lagging.data.MemberID})
			must(t, err)
			hs := &pb.HardState{Term: new(snapshot.Metadata.GetTerm()), Commit: &index}
			must(t, errors.Join(log.Reset(hs, index, snapshot.Metadata.GetTerm()), log.Close()))
		}
		_, err = l.Client().Put(ctx, "after", "v")
		must(t, err)
		nodes[i] = openNode(t, configs[i])
		if installed := nodes[i].data.EngineName != replica.EngineDir; installed != committed {
			t.Errorf("committed %v: opened the engine %s", committed, nodes[i].data.EngineName)
		}
		wantSame(t, nodes)
		closeAll(t, nodes)
	}
}

func TestMembersJoinAndLeave(t *testing.T) {
	defer goleak.VerifyNone(t)
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	defer func() { closeAll(t, nodes) }()
	ctx := t.Context()
	fill(t, nodes[0], "k")

	joining := testCluster(t, 1)[0]
	joining.Name, joining.InitialClusterState = "m4", ClusterStateExisting
	joining.InitialCluster = configs[0].InitialCluster + ",m4=" + joining.ListenPeerURLs[0]
	refused(t, joining, "member count is unequal")
	added := onceHealthy(t, func() (*clientv3.MemberAddResponse, error) {
		return nodes[1].Client().MemberAddAsLearner(ctx, joining.ListenPeerURLs)
	})
	wrong := joining
	wrong.InitialCluster = configs[0].InitialCluster + ",m4=http://127.0.0.1:1"
	refused(t, wrong, "unmatched member")

	if _, err := nodes[0].Client().MemberPromote(ctx, added.Member.ID); err == nil || !strings.Contains(err.Error(), "in sync with leader") {
		t.Errorf("promoting a learner that has nothing: %v", err)
	}
	n := openNode(t, joining)
	nodes = append(nodes, n)
	if n.data.MemberID != added.Member.ID || !slices.Contains(n.machine().Members.Learners(), added.Member.ID) {
		t.Errorf("joined as %x, not as the learner %x", n.data.MemberID, added.Member.ID)
	}
	eventually(t, func() string {
		if _, err := others(nodes[:3], leaderOf(t, nodes))[0].Client().MemberPromote(ctx, added.Member.ID); err != nil {
			return err.Error()
		}
		return ""
	})
	eventually(t, func() string { // it hears of its promotion a little later
		if _, err := n.Client().Put(ctx, "through the new member", "v"); err != nil {
			return err.Error()
		}
		return ""
	})
	wantSame(t, nodes)

	// The leader is removed: it hears of that, and the others go on.
	l := leaderOf(t, nodes)
	onceHealthy(t, func() (*clientv3.MemberRemoveResponse, error) {
		return others(nodes, l)[0].Client().MemberRemove(ctx, l.data.MemberID)
	})
	<-l.Done()
	if !errors.Is(l.Err(), ErrRemoved) {
		t.Errorf("a removed member ended with %v", l.Err())
	}
	i := slices.Index(nodes, l)
	nodes = others(nodes, l)
	must(t, l.Close())
	_, err := nodes[0].Client().Put(ctx, "after the removal", "v")
	must(t, err)
	wantSame(t, nodes)

	// Its old data is of no use any more, and neither is an empty directory.
	if i < len(configs) {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if again, err := Open(ctx, configs[i]); err == nil {
			<-again.Done()
			if !errors.Is(again.Err(), ErrRemoved) {
				t.Errorf("a removed member that starts again ends with %v", again.Err())
			}
			must(t, again.Close())
		} else if !errors.Is(err, ErrRemoved) {
			t.Errorf("a removed member starts again: %v", err)
		}
		empty := configs[i]
		empty.DataDir += "-new"
		refused(t, empty, "has been removed from the cluster")
	}
}

// A member that has lost its data must not come back as if it had never voted.
func TestMemberWithoutItsDataIsRefused(t *testing.T) {
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	defer func() { closeAll(t, nodes[:2]) }()
	must(t, nodes[2].Close())
	lost := configs[2]
	lost.DataDir += "-new"
	refused(t, lost, "has already been bootstrapped")
}

func TestForceNewCluster(t *testing.T) {
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	ctx := t.Context()
	_, err := nodes[0].Client().Put(ctx, "k", "v")
	must(t, err)
	wantSame(t, nodes)
	closeAll(t, nodes)

	configs[1].ForceNewCluster = true
	n := openNode(t, configs[1])
	defer n.Close()
	got, err := n.Client().Get(ctx, "k")
	must(t, err)
	if len(got.Kvs) != 1 {
		t.Fatal("the data is gone")
	}
	list, err := n.Client().MemberList(ctx)
	must(t, err)
	if len(list.Members) != 1 || list.Members[0].ID != n.data.MemberID {
		t.Fatalf("members %v", list.Members)
	}
}

// Without a majority nothing is written or read linearizably, and serializable
// reads go on; also on a member that starts then.
func TestWithoutAMajority(t *testing.T) {
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	ctx := t.Context()
	_, err := nodes[0].Client().Put(ctx, "k", "v")
	must(t, err)
	wantSame(t, nodes)
	must(t, nodes[1].Close())
	must(t, nodes[2].Close())
	check := func(n *Node) {
		t.Helper()
		got, err := n.Client().Get(ctx, "k", clientv3.WithSerializable())
		must(t, err)
		if len(got.Kvs) != 1 {
			t.Fatal("a serializable read found nothing")
		}
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		if _, err := n.Client().Get(short, "k"); err == nil {
			t.Fatal("a linearizable read was answered without a majority")
		}
		if _, err := n.Client().Put(short, "k", "w"); err == nil {
			t.Fatal("a write was acknowledged without a majority")
		}
	}
	check(nodes[0])
	must(t, nodes[0].Close())
	n := openNode(t, configs[0])
	check(n)
	// The others come back, and all goes on.
	rest := openAll(t, configs[1:])
	_, err = n.Client().Put(ctx, "k", "x")
	must(t, err)
	wantSame(t, append(rest, n))
	closeAll(t, append(rest, n))
}

func TestMembersOfDifferentClustersDoNotMix(t *testing.T) {
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	defer closeAll(t, nodes)
	// It lists the same members, but under another token.
	foreign := configs[0]
	foreign.DataDir += "-foreign"
	foreign.InitialClusterToken = "another"
	foreign.patience = time.Minute // or it serves what it can without a leader
	foreign.ListenPeerURLs = testConfig(t).ListenPeerURLs
	foreign.ListenClientURLs = testConfig(t).ListenClientURLs
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if n, err := Open(ctx, foreign); err == nil {
		st := n.consensus.Status()
		n.Close()
		t.Fatalf("a member of another cluster serves: %+v", st)
	} else if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, consensus.ErrTimeout) {
		t.Fatalf("a member of another cluster: %v", err)
	}
	_, err := nodes[0].Client().Put(t.Context(), "k", "v")
	must(t, err)
	wantSame(t, nodes)
}

// A member whose data differs is found, by name, and refuses to start again.
func TestCorruptMemberIsNamed(t *testing.T) {
	configs := testCluster(t, 3)
	for i := range configs {
		configs[i].CorruptCheckTime = 20 * time.Millisecond
		configs[i].InitialCorruptCheck = true
	}
	nodes := openAll(t, configs)
	ctx := t.Context()
	_, err := nodes[0].Client().Put(ctx, "k", "v")
	must(t, err)
	wantSame(t, nodes)
	bad := others(nodes, leaderOf(t, nodes))[0]
	i := slices.Index(nodes, bad)
	must(t, bad.Close())
	corrupt(t, configs[i])
	configs[i].InitialCorruptCheck = false
	nodes[i] = openNode(t, configs[i])
	eventually(t, func() string {
		alarms, err := nodes[0].Client().AlarmList(ctx)
		must(t, err)
		if len(alarms.Alarms) == 1 && alarms.Alarms[0].MemberID == bad.data.MemberID {
			return ""
		}
		return fmt.Sprintf("alarms %v, want one of member %x", alarms.Alarms, bad.data.MemberID)
	})
	if _, err := nodes[0].Client().Put(ctx, "k", "w"); !errors.Is(err, rpctypes.ErrCorrupt) {
		t.Errorf("a write to a corrupt cluster: %v", err)
	}
	must(t, nodes[i].Close())
	configs[i].InitialCorruptCheck = true
	open, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if n, err := Open(open, configs[i]); err == nil {
		n.Close()
		t.Error("a corrupt member has started")
	} else if different := (*guard.DifferentError)(nil); !errors.As(err, &different) {
		t.Errorf("a corrupt member: %v", err)
	}
	closeAll(t, others(nodes, nodes[i]))
}

// corrupt changes a value in a member's engine behind its back.
func corrupt(t *testing.T, cfg Config) {
	t.Helper()
	id, err := replica.ReadIdentity(vfs.Default, cfg.DataDir)
	must(t, err)
	eng, err := engine.Open(engine.Options{Dir: filepath.Join(cfg.DataDir, cmp.Or(id.Engine, replica.EngineDir)), Merger: mvcc.Merger, MustExist: true})
	must(t, err)
	it, err := eng.NewIter([]byte("h"), []byte("i"))
	must(t, err)
	b := eng.NewBatch()
	changed := 0
	for it.First(); it.Valid(); it.Next() {
		v := slices.Clone(it.Value())
		if n := len(v); n > 0 && v[n-1] == 'v' {
			v[n-1] = 'X'
			must(t, b.Set(it.Key(), v, nil))
			changed++
		}
	}
	if changed != 1 {
		t.Fatalf("changed %d values", changed)
	}
	must(t, errors.Join(it.Close(), eng.Commit(b), b.Close(), eng.Flush(), eng.Close()))
}

// A member that has lost its data comes back and, with another that missed an acknowledged write, outvotes the
// one that has it. It must be refused: the member that it asks knows that it has started, by its name alone where the
// configuration has no client URLs, as it may, and also with --initial-cluster-state=existing, which who has joined
// keeps in his flags.
func TestLostDataIsRefused(t *testing.T) {
	for name, change := range map[string]struct{ before, after func(*Config) }{
		"no client URLs": {func(c *Config) { c.AdvertiseClientURLs = nil }, func(*Config) {}},
		"existing":       {func(*Config) {}, func(c *Config) { c.InitialClusterState = ClusterStateExisting }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			configs := testCluster(t, 3)
			for i := range configs {
				change.before(&configs[i])
			}
			nodes := openAll(t, configs)
			for _, n := range nodes { // all have started, and the cluster knows it
				eventually(t, func() string {
					for _, m := range n.machine().Members.List() {
						if m.Name == "" {
							return "not all have told their names"
						}
					}
					return ""
				})
			}
			must(t, nodes[1].Close())
			_, err := nodes[0].Client().Put(t.Context(), "acknowledged", "v") // on the disks of m1 and m3
			must(t, err)
			must(t, nodes[2].Close())
			must(t, nodes[0].Close())

			knows := openNode(t, configs[1])
			defer func() { must(t, knows.Close()) }()
			lost := configs[2]
			lost.DataDir += "-new"
			change.after(&lost)
			refused(t, lost, "has already been bootstrapped")
		})
	}
}

// The same, with client URLs, where the first of the others hangs (a process that is stopped, a host that
// is off) and the second one would tell.
func TestLostDataBesideAHungMember(t *testing.T) {
	t.Parallel() // it mostly waits
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	must(t, nodes[2].Close())
	// Where URLs are asked one after another, this one is the first.
	first, second := 0, 1
	if configs[1].ListenPeerURLs[0] < configs[0].ListenPeerURLs[0] {
		first, second = 1, 0
	}
	must(t, nodes[first].Close())
	defer func() { must(t, nodes[second].Close()) }()
	hung, err := net.Listen("unix", strings.TrimPrefix(configs[first].ListenPeerURLs[0], "unix://"))
	must(t, err)
	defer hung.Close() // it accepts, and answers nothing

	lost := configs[2]
	lost.DataDir += "-new"
	refused(t, lost, "has already been bootstrapped")
}

// A leader that hangs holds up who asks another member to promote for ever.
func TestPromoteIsBounded(t *testing.T) {
	t.Parallel() // it mostly waits
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	defer closeAll(t, nodes)
	l := leaderOf(t, nodes)
	l.peers.Handle(callPromote, func(ctx context.Context, _ []byte) ([]byte, error) { // as if the process were stopped
		<-ctx.Done()
		return nil, ctx.Err()
	})
	limit := requestTimeout(&configs[0]) + 5*time.Second
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err := others(nodes, l)[0].Client().MemberPromote(ctx, 1)
	if ctx.Err() != nil {
		t.Errorf("not answered for %v: %v", limit, err)
	}
}

// The bound on learners is to hold whoever adds them at the same time.
func TestMaxLearners(t *testing.T) {
	cfg := testConfig(t)
	n := openNode(t, cfg)
	defer n.Close()
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			_, _ = n.Client().MemberAddAsLearner(t.Context(), []string{fmt.Sprintf("http://127.0.0.1:%d", 1000+i)})
		})
	}
	group.Wait()
	if got := len(n.machine().Members.Learners()); got > cfg.MaxLearners {
		t.Errorf("%d learners, though there may be %d", got, cfg.MaxLearners)
	}
}

// knowing is a member that tells what it knows of its cluster.
type knowing struct {
	*httptest.Server
	body string
}

func membersServer(t *testing.T) *knowing {
	k := &knowing{}
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Etcd-Cluster-ID", "abc")
		fmt.Fprint(w, k.body)
	}))
	t.Cleanup(k.Server.Close)
	return k
}

// tells has it know the first two members, which have started, and others.
func (k *knowing) tells(m1, m2 *knowing, others ...string) {
	k.body = "[" + strings.Join(append([]string{listedMember(1, "m1", m1.URL), listedMember(2, "m2", m2.URL)}, others...), ",") + "]"
}

func listedMember(id int, name, url string) string {
	return fmt.Sprintf(`{"id":%d,"peerURLs":[%q],"name":%q,"clientURLs":[]}`, id, url, name)
}

// The documented way to replace a lost member (docs/clustering.md, "Replace a member"): it is removed and added again with
// the same peer URLs, and gets another id. One of the others has not applied that yet (it lags, or is cut off): it
// still tells of the old member, which had started.
func TestReplacedMemberBesideOneThatLags(t *testing.T) {
	const self = "http://127.0.0.1:1"
	m1, m2 := membersServer(t), membersServer(t)
	m1.tells(m1, m2, listedMember(99, "", self))  // removed and added again
	m2.tells(m1, m2, listedMember(3, "m3", self)) // as it was before
	c := testConfig(t)
	c.Name = "m3"
	f, err := c.join(t.Context(), map[string][]string{"m1": {m1.URL}, "m2": {m2.URL}, "m3": {self}})
	if err != nil {
		t.Fatalf("the member that was added anew is refused for what the old one was: %v", err)
	}
	if f.MemberID != 99 {
		t.Errorf("it joins as %d, and was added as 99", f.MemberID)
	}
}

// The other way round: a member that has started, and voted, has lost its data and comes back with the flags that it joined with.
// One member knows that it has started, and that the cluster has grown since; another one lags behind both, as one
// that has just been started again tells what its engine has. Any that knows is to be believed (docs/design.md).
func TestStartedMemberOfAClusterThatHasGrown(t *testing.T) {
	const self = "http://127.0.0.1:1"
	m1, m2 := membersServer(t), membersServer(t)
	m1.tells(m1, m2, listedMember(3, "m3", self), listedMember(4, "m4", "http://127.0.0.1:2"))
	m2.tells(m1, m2, listedMember(3, "", self))
	c := testConfig(t)
	c.Name = "m3"
	f, err := c.join(t.Context(), map[string][]string{"m1": {m1.URL}, "m2": {m2.URL}, "m3": {self}})
	if err == nil {
		t.Errorf("member %d is let in as if it had never voted, though one of the others knows that it has started", f.MemberID)
	}
}
