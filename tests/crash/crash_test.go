// Package crash kills the server at random moments under load and checks what
// every client was promised: an acknowledged write is there after the restart,
// once, at the revision that was acknowledged; revisions have no gap; and a
// watch goes on across the restarts without a gap or a repeat.
package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coteriedb/coterie/tests/target"
)

var (
	rounds = flag.Int("crash.rounds", 100, "how often to kill the server")
	seed   = flag.Uint64("crash.seed", 1, "seed of the load and of the moments of the kills")
)

// writers is how many clients write at a time.
const writers = 8

// op is one request that changes keys, recognisable by its value.
type op struct {
	key, value string
	revision   int64 // 0 while the outcome is not known
}

// journal gathers what was asked and what was answered.
type journal struct {
	mu  sync.Mutex
	ops map[string]*op // by value. Guarded by mu.
}

func (j *journal) add(o *op) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ops[o.value] = o
}

func (j *journal) acknowledge(o *op, revision int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	o.revision = revision
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+time.Duration(*rounds)*5*time.Second)
	defer cancel()
	binary, err := target.BuildCoterie(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	server, err := target.StartCoterie(ctx, binary, target.Config{Dir: filepath.Join(dir, "data")})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	cli, err := target.Dial(ctx, server)
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()

	j := &journal{ops: map[string]*op{}}
	w := watchAll(ctx, cli, j)
	r := rand.New(rand.NewPCG(*seed, 0))
	acknowledged := 0
	for round := range *rounds {
		n := load(ctx, t, cli, j, round, r, func() {
			if err := server.Restart(ctx, target.Kill); err != nil {
				t.Fatalf("round %d: the server does not start again: %v", round, err)
			}
		})
		acknowledged += n
		if err := check(ctx, cli, w); err != nil {
			t.Fatalf("seed %d, round %d: %v", *seed, round, err)
		}
	}
	if err := w.finish(j); err != nil {
		t.Fatalf("seed %d: %v", *seed, err)
	}
	if acknowledged < *rounds*10 {
		t.Errorf("only %d writes were acknowledged in %d rounds: the load is too light to prove anything", acknowledged, *rounds)
	}
	t.Logf("%d kills, %d writes acknowledged, %d events watched", *rounds, acknowledged, w.events())
}

// load writes until the server has been killed and is up again. It returns the
// number of writes that were acknowledged.
func load(ctx context.Context, t *testing.T, cli *clientv3.Client, j *journal, round int, r *rand.Rand, killAndRestart func()) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		acked int
	)
	for c := range writers {
		choices := rand.New(rand.NewPCG(r.Uint64(), uint64(c)))
		group.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if write(ctx, cli, j, fmt.Sprintf("%d/%d/%d", round, c, i), c, choices) {
					mu.Lock()
					acked++
					mu.Unlock()
				}
			}
		})
	}
	delay := time.NewTimer(time.Duration(r.Int64N(int64(150 * time.Millisecond))))
	<-delay.C // the moment of the kill is random; nothing is waited for here
	killAndRestart()
	cancel()
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return acked
}

// write does one request and reports whether it was acknowledged.
func write(ctx context.Context, cli *clientv3.Client, j *journal, id string, c int, r *rand.Rand) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	o := &op{key: fmt.Sprintf("%d/%d", c, r.IntN(20)), value: fmt.Sprintf("%s %0*d", id, r.IntN(2000), 0)}
	j.add(o)
	switch r.IntN(3) {
	case 0:
		resp, err := cli.Put(ctx, o.key, o.value)
		if err != nil {
			return false
		}
		j.acknowledge(o, resp.Header.Revision)
	case 1: // two puts in one transaction, both or neither; then a deletion
		gone := fmt.Sprintf("%d/gone", c)
		resp, err := cli.Txn(ctx).Then(clientv3.OpPut(o.key, o.value), clientv3.OpPut(gone, "gone "+id)).Commit()
		if err != nil {
			return false
		}
		j.acknowledge(o, resp.Header.Revision)
		if _, err := cli.Delete(ctx, gone); err != nil {
			return false
		}
	case 2: // a put with a lease, which must exist for as long as its key
		lease, err := cli.Grant(ctx, 3600)
		if err != nil {
			return false
		}
		resp, err := cli.Put(ctx, o.key, o.value, clientv3.WithLease(lease.ID))
		if err != nil {
			return false
		}
		j.acknowledge(o, resp.Header.Revision)
	}
	return true
}

// watcher follows all keys from the first revision on, through all restarts.
type watcher struct {
	j    *journal
	done chan struct{} // closed when the watch has ended, with err set

	mu sync.Mutex
	// Guarded by mu.
	last    int64 // revision of the last event
	count   int
	seen    map[string]int64 // value → revision
	live    map[string]*mvccpb.KeyValue
	err     error
	changed chan struct{} // closed and replaced when any of these changes
}

func watchAll(ctx context.Context, cli *clientv3.Client, j *journal) *watcher {
	w := &watcher{j: j, last: 1, done: make(chan struct{}), seen: map[string]int64{},
		live: map[string]*mvccpb.KeyValue{}, changed: make(chan struct{})}
	responses := cli.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(2))
	go func() { // ends with the client
		defer close(w.done)
		for resp := range responses {
			err := resp.Err()
			if err == nil {
				err = w.take(resp.Events)
			}
			if err != nil {
				w.fail(err)
				return
			}
		}
	}()
	return w
}

func (w *watcher) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *watcher) take(events []*clientv3.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() {
		close(w.changed)
		w.changed = make(chan struct{})
	}()
	for i, ev := range events {
		rev := ev.Kv.ModRevision
		together := i > 0 && rev == w.last // a transaction's events come in one response
		if !together && rev != w.last+1 {
			return fmt.Errorf("the watch gave revision %d after %d", rev, w.last)
		}
		w.last = rev
		w.count++
		key := string(ev.Kv.Key)
		before := w.live[key]
		if ev.Type == clientv3.EventTypeDelete {
			if before == nil {
				return fmt.Errorf("revision %d deletes %s, which does not exist", rev, key)
			}
			delete(w.live, key)
			continue
		}
		version, create := int64(1), rev
		if before != nil {
			version, create = before.Version+1, before.CreateRevision
		}
		if ev.Kv.Version != version || ev.Kv.CreateRevision != create {
			return fmt.Errorf("revision %d: %s has version %d, created at %d; its history says %d and %d",
				rev, key, ev.Kv.Version, ev.Kv.CreateRevision, version, create)
		}
		w.live[key] = ev.Kv
		if at, ok := w.seen[string(ev.Kv.Value)]; ok {
			return fmt.Errorf("write %.40s was applied at %d and again at %d", ev.Kv.Value, at, rev)
		}
		w.seen[string(ev.Kv.Value)] = rev
	}
	return nil
}

// await returns when the watch has come to the revision.
func (w *watcher) await(ctx context.Context, revision int64) error {
	for {
		w.mu.Lock()
		last, err, changed := w.last, w.err, w.changed
		w.mu.Unlock()
		if err != nil {
			return err
		}
		if last >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-w.done:
			return errors.New("the watch has ended")
		case <-ctx.Done():
			return fmt.Errorf("the watch is at revision %d, the store at %d: %w", last, revision, ctx.Err())
		}
	}
}

func (w *watcher) events() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// check compares what the server holds, while nobody writes, with the watch.
func check(ctx context.Context, cli *clientv3.Client, w *watcher) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := settle(ctx, cli, w)
	if err != nil {
		return err
	}
	defer w.mu.Unlock()
	if len(resp.Kvs) != len(w.live) {
		return fmt.Errorf("the store has %d keys, its history %d", len(resp.Kvs), len(w.live))
	}
	leased := 0
	for _, kv := range resp.Kvs {
		if want := w.live[string(kv.Key)]; want == nil || want.String() != kv.String() {
			return fmt.Errorf("the store has %v, its history %v", kv, want)
		}
		if kv.Lease != 0 && leased < 3 { // asking for each would take most of the time
			leased++
			if err := checkLease(ctx, cli, kv); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkLease checks that a key's lease knows the key. A request on its way may
// change the key between the two answers; then there is nothing to compare.
func checkLease(ctx context.Context, cli *clientv3.Client, kv *mvccpb.KeyValue) error {
	l, err := cli.TimeToLive(ctx, clientv3.LeaseID(kv.Lease), clientv3.WithAttachedKeys())
	if err != nil {
		return fmt.Errorf("ask for the lease of %s: %w", kv.Key, err)
	}
	if l.TTL > 0 && len(l.Keys) == 1 && string(l.Keys[0]) == string(kv.Key) {
		return nil
	}
	again, err := cli.Get(ctx, string(kv.Key))
	if err != nil {
		return fmt.Errorf("read %s again: %w", kv.Key, err)
	}
	if len(again.Kvs) != 1 || again.Kvs[0].ModRevision != kv.ModRevision {
		return nil
	}
	return fmt.Errorf("the lease of %s has %d s left and the keys %q", kv.Key, l.TTL, l.Keys)
}

// settle reads all keys and brings the watch to the same revision. It returns
// with w.mu held. Requests that their clients have given up may still be on
// their way, so it may take a few reads.
func settle(ctx context.Context, cli *clientv3.Client, w *watcher) (*clientv3.GetResponse, error) {
	for {
		resp, err := cli.Get(ctx, "", clientv3.WithPrefix())
		if err != nil {
			return nil, fmt.Errorf("read all keys: %w", err)
		}
		if err := w.await(ctx, resp.Header.Revision); err != nil {
			return nil, err
		}
		w.mu.Lock()
		if w.last == resp.Header.Revision {
			return resp, nil
		}
		w.mu.Unlock()
	}
}

// finish checks every acknowledged write against the history.
func (w *watcher) finish(j *journal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	for value, o := range j.ops {
		if o.revision == 0 {
			continue
		}
		if at := w.seen[value]; value == o.value && at != o.revision {
			return fmt.Errorf("write %.40s was acknowledged at revision %d; the history has it at %d", value, o.revision, at)
		}
	}
	return nil
}
