package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/rpc"
	"github.com/coteriedb/coterie/storage/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testCluster = 0xc1
	testMember  = 0xa1
)

// testNode is a Node with a machine and a lessor, and consensus with itself: a proposal is
// applied at once. Tests change what it says.
type testNode struct {
	machine *machine.Machine
	lessor  *lessor.Lessor

	ctx       context.Context // of what nobody waits for any more; ended by cancel
	cancel    context.CancelFunc
	proposals sync.WaitGroup

	mu        sync.Mutex
	index     uint64
	status    Status
	dbSize    int64
	inUse     int64 // if not 0, what KV says instead of the truth
	proposed  []*pb.InternalRaftRequest
	reads     int
	confirm   func(done func(error)) // if set, what ReadIndexAsync does
	readErr   error                  // of ReadIndex
	failure   error                  // of Propose
	hold      chan struct{}
	held      chan struct{} // receives when a proposal is held
	snapshot  []byte
	movedTo   uint64
	defragged int
	members   []*pb.Member
}

func newTestNode(t testing.TB) *testNode {
	t.Helper()
	eng, err := engine.Open(engine.Options{Dir: "data", Merger: mvcc.Merger, FS: vfs.NewMem(), Logger: zap.NewNop(), OnFatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	if err := machine.Bootstrap(eng, 1, 1, []machine.Member{{ID: testMember}}); err != nil {
		t.Fatal(err)
	}
	m, err := machine.Open(machine.Options{Engine: eng, Logger: zap.NewNop(), Watch: watch.Options{FragmentBytes: 100_000}})
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{
		machine: m, index: 1, status: Status{Leader: testMember, Term: 7, Committed: 1, Applied: 1},
		members: []*pb.Member{{ID: testMember, Name: "m"}, {ID: 2, IsLearner: true}, {ID: 3}},
		held:    make(chan struct{}, 16),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.lessor = lessor.New(m.Leases, lessor.Options{})
	n.lessor.Promote(leaseProposer{n})
	t.Cleanup(func() {
		n.cancel()
		n.proposals.Wait()
		n.lessor.Close()
		m.Close()
		if err := eng.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

type leaseProposer struct{ n *testNode }

func (p leaseProposer) Propose(ctx context.Context, r *pb.InternalRaftRequest) error {
	return p.n.Propose(ctx, r).Err
}

func (leaseProposer) Confirm(context.Context) error { return nil }
func (leaseProposer) Confirmed() bool               { return true }

func (n *testNode) Propose(ctx context.Context, r *pb.InternalRaftRequest) machine.Result {
	n.mu.Lock()
	hold, failure := n.hold, n.failure
	n.mu.Unlock()
	if failure != nil {
		return machine.Result{Err: failure}
	}
	if hold != nil {
		n.held <- struct{}{}
		select {
		case <-hold:
		case <-ctx.Done():
			return machine.Result{Err: ctx.Err()}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.proposed = append(n.proposed, r)
	command, err := proto.Marshal(r)
	if err != nil {
		return machine.Result{Err: err}
	}
	n.index++
	results, err := n.machine.Apply([]machine.Entry{{Index: n.index, Term: 7, Commands: [][]byte{command}}})
	if err != nil {
		return machine.Result{Err: err}
	}
	return results[0]
}

func (n *testNode) ProposeCommand(command []byte, done func(machine.Result)) {
	r := &pb.InternalRaftRequest{}
	if err := proto.Unmarshal(command, r); err != nil {
		done(machine.Result{Err: err})
		return
	}
	n.proposals.Go(func() { done(n.Propose(n.ctx, r)) }) // waited for when the test ends
}

func (n *testNode) set(change func(*testNode)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

func (n *testNode) ProposeCommandHere(command []byte, done func(machine.Result), _ func()) {
	n.ProposeCommand(command, done)
}

// lastProposed returns the last command, and how many there were.
func (n *testNode) lastProposed() (*pb.InternalRaftRequest, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.proposed) == 0 {
		return nil, 0
	}
	return n.proposed[len(n.proposed)-1], len(n.proposed)
}

func (n *testNode) ReadIndex(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reads++
	return errors.Join(n.readErr, ctx.Err())
}

func (n *testNode) UpToDate() bool { return false }

func (n *testNode) ReadIndexAsync(done func(error)) {
	n.mu.Lock()
	confirm := n.confirm
	n.mu.Unlock()
	if confirm != nil {
		confirm(done)
		return
	}
	done(n.ReadIndex(n.ctx))
}

func (n *testNode) readIndexes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reads
}

func (n *testNode) Status() Status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status
}

func (n *testNode) DBSize() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dbSize
}

// sizedKV is a store that is as large as a test wants.
type sizedKV struct {
	KV
	size int64
}

func (kv sizedKV) SizeInUse() int64 { return kv.size }

func (n *testNode) KV() KV {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inUse != 0 {
		return sizedKV{n.machine.KV, n.inUse}
	}
	return n.machine.KV
}

func (n *testNode) NewWatchStream() WatchStream { return n.machine.Watch.NewStream() }
func (n *testNode) Lessor() Lessor              { return n.lessor }
func (n *testNode) LeaseKeys(id int64) []string { return n.machine.Leases.Keys(id) }
func (n *testNode) Alarms() []*pb.AlarmMember   { return n.machine.Alarms.List(pb.AlarmType_NONE) }
func (n *testNode) Auth() Auth                  { return n.machine.Auth }
func (n *testNode) Members() []*pb.Member       { return n.members }

func (n *testNode) Defragment(context.Context) error {
	n.set(func(n *testNode) { n.defragged++ })
	return nil
}

func (n *testNode) Snapshot(context.Context) (Snapshot, error) {
	sum := sha256.Sum256(n.snapshot)
	all := append(bytes.Clone(n.snapshot), sum[:]...)
	return Snapshot{io.NopCloser(bytes.NewReader(all)), int64(len(all))}, nil
}

func (n *testNode) MoveLeader(_ context.Context, to uint64) error {
	n.set(func(n *testNode) { n.movedTo = to })
	return nil
}

func (n *testNode) AddMember(_ context.Context, urls []string, learner bool) (*pb.Member, []*pb.Member, error) {
	m := &pb.Member{ID: 4, PeerURLs: urls, IsLearner: learner}
	return m, append(n.members, m), nil
}

func (n *testNode) RemoveMember(context.Context, uint64) ([]*pb.Member, error) {
	return nil, errors.New("not to be removed")
}

func (n *testNode) UpdateMember(_ context.Context, id uint64, urls []string) ([]*pb.Member, error) {
	return []*pb.Member{{ID: id, PeerURLs: urls}}, nil
}

func (n *testNode) PromoteMember(_ context.Context, id uint64) ([]*pb.Member, error) {
	return []*pb.Member{{ID: id}}, nil
}

// testServer is a Server for a testNode, and a connection to it over rpc.
type testServer struct {
	*Server
	node  *testNode
	conn  *grpc.ClientConn
	drain time.Duration // how long the transport waits for requests in the end

	kv    pb.KVClient
	watch pb.WatchClient
	lease pb.LeaseClient
	maint pb.MaintenanceClient
	clus  pb.ClusterClient
	auth  pb.AuthClient
}

func newTestServer(t testing.TB, change func(*Config)) *testServer {
	t.Helper()
	return newTestServerOn(t, change, func(r grpc.ServiceRegistrar) grpc.ServiceRegistrar { return r })
}

// newTestServerOn returns a server that is registered with what wrap makes of its transport.
func newTestServerOn(t testing.TB, change func(*Config), wrap func(grpc.ServiceRegistrar) grpc.ServiceRegistrar) *testServer {
	t.Helper()
	n := newTestNode(t)
	cfg := Config{Node: n, Metrics: NewMetrics(true), ClusterID: testCluster, MemberID: testMember}
	if change != nil {
		change(&cfg)
	}
	s := New(cfg)
	transport := rpc.NewServer(rpc.Options{
		Transport:        rpc.Transport(os.Getenv("COTERIE_TEST_TRANSPORT")), // the default if it is not set
		UnaryInterceptor: s.InterceptUnary, StreamInterceptor: s.InterceptStream, Traffic: s.Traffic(),
		MaxRecvBytes: MaxRecvBytes(cfg.MaxRequestBytes),
	})
	s.Register(wrap(transport))
	transport.Start()
	conn, err := transport.Dial()
	if err != nil {
		t.Fatal(err)
	}
	ts := &testServer{
		Server: s, node: n, conn: conn, drain: 5 * time.Second,
		kv: pb.NewKVClient(conn), watch: pb.NewWatchClient(conn), lease: pb.NewLeaseClient(conn),
		maint: pb.NewMaintenanceClient(conn), clus: pb.NewClusterClient(conn), auth: pb.NewAuthClient(conn),
	}
	t.Cleanup(func() {
		s.Close()
		n.cancel() // as consensus answers everything in the end
		ctx, cancel := context.WithTimeout(context.Background(), ts.drain)
		defer cancel()
		transport.Stop(ctx)
		conn.Close()
		s.Wait()
	})
	return ts
}

// mustPut puts a key and returns the revision.
func (s *testServer) mustPut(t testing.TB, key, value string) int64 {
	t.Helper()
	resp, err := s.kv.Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

func wantHeader(t *testing.T, h *pb.ResponseHeader, rev int64) {
	t.Helper()
	want := &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: 7, Revision: rev}
	if !proto.Equal(h, want) {
		t.Errorf("header is %v, want %v", h, want)
	}
}
