package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/coteriedb/coterie/tests/target"
	"github.com/coteriedb/coterie/tests/witness"
)

// veteran is the member that is never killed: what a process gathers in the whole time of a run, only an old one shows.
const veteran = 0

// oldest is its name.
const oldest = "m0"

// backTime bounds how long a member takes until it serves again.
const backTime = time.Minute

// trouble is what happens to the members of a cluster.
type trouble struct {
	cluster *target.Cluster
	random  *rand.Rand
	counts  map[string]int
}

// kinds are all that happens, each as often as its weight says.
var kinds = []struct {
	name   string
	weight int
	do     func(*trouble, context.Context, *witness.Traffic) error
}{
	{"kill", 5, func(t *trouble, ctx context.Context, _ *witness.Traffic) error { return t.kill(ctx, t.mortal()) }},
	{"kill all but one", 1, func(t *trouble, ctx context.Context, _ *witness.Traffic) error { return t.kill(ctx, t.mortals()...) }},
	{"restart", 1, (*trouble).restart},
	{"move the leader", 2, (*trouble).moveLeader},
	{"defragment", 3, (*trouble).defragment},
}

// until makes trouble for so long, and leaves all members serving.
func (t *trouble) until(ctx context.Context, end time.Time, traffic *witness.Traffic) error {
	for {
		if err := pass(ctx, 300*time.Millisecond+time.Duration(t.random.Int64N(int64(2*time.Second)))); err != nil {
			return err
		}
		if !time.Now().Before(end) {
			return nil
		}
		var deck []int
		for i, k := range kinds {
			for range k.weight {
				deck = append(deck, i)
			}
		}
		k := kinds[deck[t.random.IntN(len(deck))]]
		t.counts[k.name]++
		if err := errors.Join(k.do(t, ctx, traffic), t.cluster.Failed()); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
}

// mortals are the members that may be killed.
func (t *trouble) mortals() []int {
	var all []int
	for i := range t.cluster.Size() {
		if i != veteran {
			all = append(all, i)
		}
	}
	return all
}

func (t *trouble) mortal() int {
	all := t.mortals()
	return all[t.random.IntN(len(all))]
}

// kill kills members without warning, starts them after a moment, and waits until they serve.
func (t *trouble) kill(ctx context.Context, members ...int) error {
	for _, i := range members {
		if err := t.cluster.Kill(i); err != nil {
			return err
		}
	}
	if err := pass(ctx, time.Duration(t.random.Int64N(int64(1500*time.Millisecond)))); err != nil {
		return err
	}
	return t.start(ctx, members...)
}

func (t *trouble) start(ctx context.Context, members ...int) error {
	for _, i := range members {
		if err := t.cluster.Start(i); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, backTime)
	defer cancel()
	return t.cluster.WaitReady(ctx, members...)
}

// restart stops a member in order, and starts it again.
func (t *trouble) restart(ctx context.Context, _ *witness.Traffic) error {
	i := t.mortal()
	if err := t.cluster.Stop(i); err != nil {
		return err
	}
	return t.start(ctx, i)
}

// moveLeader asks the leader to pass leadership on to a member that is drawn, so that the veteran leads and follows in turn.
func (t *trouble) moveLeader(ctx context.Context, traffic *witness.Traffic) error {
	ctx, cancel := context.WithTimeout(ctx, backTime)
	defer cancel()
	leader, err := t.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	to := t.random.IntN(t.cluster.Size())
	id, err := t.cluster.ID(ctx, to)
	if err != nil {
		return err
	}
	_, _ = traffic.Client(leader).MoveLeader(ctx, id) // the leader may be another by now
	return nil
}

// defragment has a member rewrite its files.
func (t *trouble) defragment(ctx context.Context, _ *witness.Traffic) error {
	ctx, cancel := context.WithTimeout(ctx, backTime)
	defer cancel()
	i := t.random.IntN(t.cluster.Size())
	cli, err := t.cluster.Client(i)
	if err != nil {
		return err
	}
	defer cli.Close()
	_, err = cli.Defragment(ctx, t.cluster.Endpoint(i))
	return err
}

// pass lets time pass: that is what a soak is for.
func pass(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
