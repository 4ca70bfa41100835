package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/tests/target"
	"github.com/coteriedb/coterie/tests/witness"
)

// TestRollingRestart restarts all members in turn, in order, while clients use the cluster as programs do: through all
// endpoints, with clientv3 as it comes. It sends reads that fail again, and writes that a server has not seen; no other
// request may fail, on Coterie: none is told that the server is stopping, that there is no leader, or that it took too long.
// On etcd a write can fail when its member stops.
func TestRollingRestart(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := startCluster(ctx, t, 3, nil)
	u := startUsers(ctx, t, c)
	turns := 2
	if target.Kind(*kind) == target.KindEtcd {
		turns = 1 // it takes some seconds for each member to stop
	}
	for range turns {
		for _, i := range c.Running() {
			if err := restart(ctx, c, i); err != nil {
				t.Fatal(err)
			}
			// A client dials a member again a second after it was refused. Members that are all restarted within that
			// time are up before any client asks them again.
			if err := last(ctx, 1500*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
	}
	u.finish()
	if err := u.check(ctx, c); err != nil {
		t.Error(err)
	}
	t.Logf("%d requests during %d restarts, %d failed", len(u.notes.Ops), 3*turns, len(u.failed))
	for i, o := range u.failed {
		if i == 10 {
			break
		}
		t.Logf("failed: %v", &o)
	}
	if len(u.failed) > 0 && target.Kind(*kind) == target.KindCoterie {
		t.Errorf("%d requests failed", len(u.failed))
	}
	if len(u.notes.Ops) < 500 {
		t.Errorf("only %d requests were sent: too few to prove anything", len(u.notes.Ops))
	}
}

// users are programs that use a cluster through all its endpoints.
type users struct {
	cli   *clientv3.Client
	began time.Time
	stop  chan struct{}
	all   sync.WaitGroup

	mu     sync.Mutex
	notes  witness.Notes // Guarded by mu.
	failed []witness.Op  // Guarded by mu.
}

func startUsers(ctx context.Context, t *testing.T, c *target.Cluster) *users {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	u := &users{notes: witness.Notes{Base: 1}, cli: cli, began: time.Now(), stop: make(chan struct{})}
	for i := range 8 {
		u.all.Go(func() { u.use(ctx, i) })
	}
	t.Cleanup(func() {
		u.finish()
		cli.Close()
	})
	return u
}

// finish ends the users. It may be called more than once.
func (u *users) finish() {
	u.mu.Lock()
	select {
	case <-u.stop:
	default:
		close(u.stop)
	}
	u.mu.Unlock()
	u.all.Wait()
}

// use sends one request after the other: half of the users write, half read.
func (u *users) use(ctx context.Context, number int) {
	r := rand.New(rand.NewPCG(*seed, uint64(number)))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-tick.C:
		case <-u.stop:
			return
		}
		o := &witness.Op{Client: number, Member: -1, Kind: witness.Get, Keys: []string{fmt.Sprint(witness.Prefix, r.IntN(20))}}
		switch {
		case number%2 == 0:
		case r.IntN(4) == 0:
			o.Kind = witness.Delete
		default:
			o.Kind, o.Value = witness.Put, fmt.Sprintf("%d.%d", number, i)
		}
		u.send(ctx, o)
	}
}

func (u *users) send(ctx context.Context, o *witness.Op) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	o.Call = time.Since(u.began)
	err := o.Send(ctx, u.cli)
	o.Return = time.Since(u.began)
	u.mu.Lock()
	defer u.mu.Unlock()
	if err != nil {
		o.Return, o.Err = witness.Never, err.Error()
		u.failed = append(u.failed, *o)
	}
	u.notes.Ops = append(u.notes.Ops, *o)
}

// check compares what the users noted with what the members hold.
func (u *users) check(ctx context.Context, c *target.Cluster) error {
	last := &witness.Op{Kind: witness.Put, Keys: []string{witness.Prefix + "last"}, Value: "last"}
	if u.send(ctx, last); last.Return == witness.Never {
		return fmt.Errorf("the last write: %s", last.Err)
	}
	histories, err := witness.ReadHistories(ctx, c, 1, last.Revision)
	if err != nil {
		return err
	}
	if err := witness.CompareHashes(ctx, c, last.Revision); err != nil {
		return err
	}
	return witness.Check(&u.notes, histories)
}
