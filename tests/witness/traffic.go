package witness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coteriedb/coterie/tests/target"
)

// Prefix is what all keys of the traffic begin with.
const Prefix = "k/"

// TrafficConfig is how clients use a cluster.
type TrafficConfig struct {
	Seed    uint64
	Keys    int           // how many keys there are; few make conflicts
	Pace    time.Duration // between two requests of one client
	Timeout time.Duration // of a request; after it, its outcome is not known
	Value   int           // bytes added to values
	Compact int64         // how many revisions are kept when older ones are compacted; 0 is all
	Holders int           // clients of each member that hold leases

	// Base and Late say what there was before, where the traffic is not a cluster's first: the revision in which all keys
	// were deleted, and writes from before it whose outcome is not known.
	Base int64
	Late []Op

	// Apart gives watches that begin in the past another stream than those for which bookmarks are asked. Etcd can give
	// a watch that has just begun a bookmark that was asked for before, on the same stream, and that is not true for it.
	Apart bool
}

// Traffic is clients that use a cluster and note what they are told. Each member has one client that writes, one that reads
// the newest state, one that reads any state, two watches, and holders of leases; beside them there are watches that go from
// member to member, watches that begin in the past, and a prober that writes through all members in turn, however long the
// others wait.
type Traffic struct {
	cfg     TrafficConfig
	cluster *target.Cluster
	began   time.Time

	ctx      context.Context // of the watches and of every request; ends with Close
	cancel   context.CancelFunc
	stop     chan struct{} // closed when no more requests begin
	fenced   chan struct{} // closed when fence is set
	fence    int64         // the last revision. Guarded by fenced.
	requests sync.WaitGroup
	watches  sync.WaitGroup

	mu      sync.Mutex
	notes   Notes            // Guarded by mu.
	newest  map[string]int64 // revision of a key's last known change. Guarded by mu.
	last    int64            // newest revision known. Guarded by mu.
	clients map[int]*joined  // by member. Guarded by mu.
	serial  int              // number of the next client. Guarded by mu.
	values  int              // number of the next value. Guarded by mu.
	changes int              // acknowledged. Guarded by mu.
}

// joined is the clients of one member.
type joined struct {
	cli   *clientv3.Client
	ctx   context.Context // of this member's watches and requests
	leave context.CancelFunc
}

// StartTraffic begins with the members that run.
func StartTraffic(ctx context.Context, c *target.Cluster, cfg TrafficConfig) (*Traffic, error) {
	t := &Traffic{
		cfg: cfg, cluster: c, began: time.Now(),
		stop: make(chan struct{}), fenced: make(chan struct{}),
		newest: map[string]int64{}, last: max(1, cfg.Base), clients: map[int]*joined{},
	}
	t.notes.Base, t.notes.Ops = t.last, slices.Clone(cfg.Late)
	t.ctx, t.cancel = context.WithCancel(ctx)
	for _, i := range c.Running() {
		if err := t.Join(i); err != nil {
			return nil, errors.Join(err, t.Close())
		}
	}
	t.requests.Go(t.probe)
	for i := range 2 {
		t.watches.Go(func() { t.wander(i) })
	}
	t.watches.Go(t.lookBack)
	if cfg.Compact > 0 {
		t.requests.Go(t.compact)
	}
	return t, nil
}

// Join begins to use one more member. Its clients stay when it goes down; their requests fail then, or find it again.
func (t *Traffic) Join(member int) error {
	cli, err := t.cluster.Client(member)
	if err != nil {
		return err
	}
	j := &joined{cli: cli}
	j.ctx, j.leave = context.WithCancel(t.ctx)
	t.mu.Lock()
	t.clients[member] = j
	first := t.serial
	t.serial += 3 + t.cfg.Holders
	t.mu.Unlock()
	for i, choose := range []func(*rand.Rand, *Op){t.chooseWrite, chooseRead, chooseAnyRead} {
		r := rand.New(rand.NewPCG(t.cfg.Seed, uint64(first+i)))
		t.requests.Go(func() { t.client(j, first+i, member, r, choose) })
	}
	for i := range t.cfg.Holders {
		number := first + 3 + i
		r := rand.New(rand.NewPCG(t.cfg.Seed, uint64(number)))
		t.requests.Go(func() { t.hold(j, number, member, r) })
	}
	t.watches.Go(func() {
		t.watch(j, Watch{Name: fmt.Sprintf("everything at %d", member), Key: Prefix, Prefix: true, Prev: true}, member)
	})
	t.watches.Go(func() {
		t.watch(j, Watch{Name: fmt.Sprintf("one key at %d", member), Key: t.key(member)}, member)
	})
	t.requests.Go(func() { t.askProgress(j) })
	return nil
}

// Leave ends the clients of a member that is going to be removed.
func (t *Traffic) Leave(member int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j := t.clients[member]; j != nil {
		j.leave()
	}
}

func (t *Traffic) key(i int) string { return fmt.Sprintf("%s%02d", Prefix, i%t.cfg.Keys) }

// client sends one request after the other.
func (t *Traffic) client(j *joined, number, member int, r *rand.Rand, choose func(*rand.Rand, *Op)) {
	t.every(j.ctx, t.cfg.Pace, func() {
		o := &Op{Client: number, Member: member, Keys: []string{t.key(r.IntN(t.cfg.Keys))}}
		choose(r, o)
		t.do(j.cli, o)
	})
}

// every calls f again and again until requests stop.
func (t *Traffic) every(ctx context.Context, pace time.Duration, f func()) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// maxProbes bounds the probes that wait for an answer; at the bound none is sent.
const maxProbes = 64

// probe writes through all members in turn without waiting for answers, so that the time without service is seen as it is.
func (t *Traffic) probe() {
	var (
		flying sync.WaitGroup
		slots  = make(chan struct{}, maxProbes)
		turn   int
	)
	defer flying.Wait()
	t.every(t.ctx, 25*time.Millisecond, func() {
		members := t.cluster.Running()
		if len(members) == 0 {
			return
		}
		member := members[turn%len(members)]
		turn++
		cli := t.Client(member)
		if cli == nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			return
		}
		o := &Op{Client: -turn, Member: member, Kind: Put, Keys: []string{Prefix + "probe"}, Value: t.value(0)}
		flying.Go(func() {
			t.do(cli, o)
			<-slots
		})
	})
}

// Client is what speaks to a member for the clients of that member, and nil when they have left.
func (t *Traffic) Client(member int) *clientv3.Client {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j := t.clients[member]; j != nil && j.ctx.Err() == nil {
		return j.cli
	}
	return nil
}

// value makes a value that no other request has, nor one of a traffic with another seed.
func (t *Traffic) value(size int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.values++
	return fmt.Sprintf("%d.%d%s", t.cfg.Seed, t.values, strings.Repeat(".", size))
}

func (t *Traffic) chooseWrite(r *rand.Rand, o *Op) {
	switch n := r.IntN(10); {
	case n < 4:
		o.Kind = Put
	case n < 5:
		o.Kind = Put
		first := r.IntN(t.cfg.Keys)
		o.Keys = []string{t.key(first), t.key(first + 1)}
	case n < 8:
		o.Kind = CAS
		t.mu.Lock()
		o.Expect = t.newest[o.Keys[0]]
		t.mu.Unlock()
	default:
		o.Kind = Delete
		return
	}
	size := 0
	if t.cfg.Value > 0 {
		size = r.IntN(t.cfg.Value)
	}
	o.Value = t.value(size)
}

func chooseRead(r *rand.Rand, o *Op) {
	o.Kind = Get
	if r.IntN(5) == 0 {
		o.Kind, o.Keys = Range, []string{Prefix}
	}
}

func chooseAnyRead(r *rand.Rand, o *Op) {
	chooseRead(r, o)
	o.Serializable = true
}

// do sends a request and notes what became of it. Reads without an answer say nothing and are not noted.
func (t *Traffic) do(cli *clientv3.Client, o *Op) {
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.Timeout)
	defer cancel()
	o.Call = time.Since(t.began)
	err := o.Send(ctx, cli)
	o.Return = time.Since(t.began)
	if err != nil {
		o.Return, o.Err = Never, err.Error()
		if o.Reads() {
			return
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notes.Ops = append(t.notes.Ops, *o)
	t.last = max(t.last, o.Revision)
	if o.Changed() {
		t.changes++
	}
	switch {
	case o.Changed() && o.Kind != Delete:
		for _, key := range o.Keys {
			t.newest[key] = max(t.newest[key], o.Revision)
		}
	case o.Kind == Get && len(o.Pairs) == 0 && err == nil:
		t.newest[o.Keys[0]] = 0
	case len(o.Pairs) > 0:
		for _, p := range o.Pairs {
			t.newest[p.Key] = p.Mod
		}
	}
}

// Send does the request and puts the answer in it.
func (o *Op) Send(ctx context.Context, cli *clientv3.Client) error {
	key := o.Keys[0]
	switch o.Kind {
	case Get, Range:
		return o.read(ctx, cli)
	case Delete:
		resp, err := cli.Delete(ctx, key)
		if err == nil {
			o.Revision, o.Succeeded = resp.Header.Revision, resp.Deleted > 0
		}
		return err
	case Put:
		if len(o.Keys) == 1 {
			resp, err := cli.Put(ctx, key, o.Value, clientv3.WithLease(clientv3.LeaseID(o.Lease)))
			if err == nil {
				o.Revision = resp.Header.Revision
			}
			return err
		}
	}
	txn := cli.Txn(ctx)
	if o.Kind == CAS {
		txn = txn.If(clientv3.Compare(clientv3.ModRevision(key), "=", o.Expect))
	}
	var puts []clientv3.Op
	for _, k := range o.Keys {
		puts = append(puts, clientv3.OpPut(k, o.Value))
	}
	resp, err := txn.Then(puts...).Commit()
	if err == nil {
		o.Revision, o.Succeeded = resp.Header.Revision, resp.Succeeded
	}
	return err
}

func (o *Op) read(ctx context.Context, cli *clientv3.Client) error {
	var opts []clientv3.OpOption
	if o.Serializable {
		opts = append(opts, clientv3.WithSerializable())
	}
	if o.Kind == Range {
		opts = append(opts, clientv3.WithPrefix())
	}
	resp, err := cli.Get(ctx, o.Keys[0], opts...)
	if err != nil {
		return err
	}
	o.Revision = resp.Header.Revision
	for _, kv := range resp.Kvs {
		o.Pairs = append(o.Pairs, pair(kv))
	}
	return nil
}

func pair(kv *mvccpb.KeyValue) Pair {
	return Pair{Key: string(kv.Key), Value: string(kv.Value), Create: kv.CreateRevision, Mod: kv.ModRevision, Version: kv.Version}
}

// AwaitChanges lets the clients go on until they have been acknowledged so many changes more.
func (t *Traffic) AwaitChanges(ctx context.Context, more int) error {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for until := t.changed() + more; t.changed() < until; {
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d changes are missing: %w", until-t.changed(), more, ctx.Err())
		}
	}
	return nil
}

func (t *Traffic) changed() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changes
}

// Mark is the time since the beginning, as in the notes.
func (t *Traffic) Mark() time.Duration { return time.Since(t.began) }

// Settle ends all requests, lets all leases end, writes the last revision through any member that takes it, and waits until
// every watch has been told everything. It returns that revision.
func (t *Traffic) Settle(ctx context.Context) (int64, error) {
	close(t.stop)
	t.requests.Wait()
	if t.cfg.Holders > 0 {
		if err := t.awaitNoLease(ctx); err != nil {
			return 0, err
		}
	}
	revision, err := t.writeLast(ctx)
	if err != nil {
		return 0, err
	}
	t.fence = revision
	close(t.fenced)
	told := make(chan struct{})
	go func() { // ends when the watches do, which Close brings about
		t.watches.Wait()
		close(told)
	}()
	select {
	case <-told:
	case <-ctx.Done(): // the notes say what was not told
		t.cancel()
		<-told
	}
	return revision, nil
}

// writeLast changes every key, so that every watch has something to wait for.
func (t *Traffic) writeLast(ctx context.Context) (int64, error) {
	cli, err := t.cluster.Client()
	if err != nil {
		return 0, err
	}
	defer cli.Close()
	for ctx.Err() == nil {
		o := &Op{Client: -1, Kind: Put, Keys: []string{Prefix + "probe"}, Value: t.value(0)}
		for i := range t.cfg.Keys {
			o.Keys = append(o.Keys, t.key(i))
		}
		if t.do(cli, o); o.Return != Never {
			return o.Revision, nil
		}
		err = errors.New(o.Err)
	}
	return 0, fmt.Errorf("the last write: %w: %w", ctx.Err(), err)
}

// Notes are complete after Close.
func (t *Traffic) Notes() *Notes { return &t.notes }

// Close ends all clients. It may be called more than once.
func (t *Traffic) Close() error {
	t.cancel()
	t.requests.Wait()
	t.watches.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, j := range t.clients {
		j.leave()
		if err := j.cli.Close(); err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
	}
	clear(t.clients)
	return errors.Join(errs...)
}
