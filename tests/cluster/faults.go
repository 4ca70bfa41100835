// Package cluster hurts a cluster while clients use it, and has package witness check what every client was promised. Faults
// come from a seed: members are killed, stopped in their tracks, cut off from each other, slowed, and replaced.
//
// The package knows servers by their binary and etcd's API only, so real etcd is held to the same.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/coteriedb/coterie/tests/network"
	"github.com/coteriedb/coterie/tests/target"
)

// killAll is the one fault that the cluster need not serve through.
const killAll = "kill all"

// Fault is one fault of a plan.
type Fault struct {
	Name  string
	Pick  int           // settles which follower it hits, if it hits one
	For   time.Duration // how long it lasts
	After time.Duration // how long there is peace before it
}

func (f Fault) String() string {
	return fmt.Sprintf("after %v, for %v: %s (%d)", f.After.Round(time.Millisecond), f.For.Round(time.Millisecond), f.Name, f.Pick)
}

// faults are all kinds of faults. But for the death of all, each hits a minority, and the others go on serving.
var faults = []struct {
	name string
	size int // how many members it needs
	do   func(ctx context.Context, s *scene) error
}{
	{"kill the leader", 3, func(_ context.Context, s *scene) error { return s.kill(s.leader) }},
	{"kill a follower", 3, func(_ context.Context, s *scene) error { return s.kill(s.follower) }},
	{"pause the leader", 3, func(_ context.Context, s *scene) error { return s.pause(s.leader) }},
	{"pause a follower", 3, func(_ context.Context, s *scene) error { return s.pause(s.follower) }},
	{"isolate the leader", 3, func(_ context.Context, s *scene) error { s.part([]int{s.leader}); return nil }},
	{"isolate a follower", 3, func(_ context.Context, s *scene) error { s.part([]int{s.follower}); return nil }},
	{"isolate the leader with a follower", 5, func(_ context.Context, s *scene) error { s.part([]int{s.leader, s.follower}); return nil }},
	{"isolate two followers", 5, func(_ context.Context, s *scene) error { s.part([]int{s.follower, s.other}); return nil }},
	{"the leader hears nobody", 3, func(_ context.Context, s *scene) error { s.fromAll(s.leader, network.Cut); return nil }},
	{"nobody hears the leader", 3, func(_ context.Context, s *scene) error { s.toAll(s.leader, network.Cut); return nil }},
	{"a follower does not hear the leader", 3, func(_ context.Context, s *scene) error { s.net.Set(s.leader, s.follower, network.Cut); return nil }},
	{"the leader does not hear a follower", 3, func(_ context.Context, s *scene) error { s.net.Set(s.follower, s.leader, network.Cut); return nil }},
	{"two followers do not reach each other", 3, func(_ context.Context, s *scene) error {
		s.net.Set(s.follower, s.other, network.Cut)
		s.net.Set(s.other, s.follower, network.Cut)
		return nil
	}},
	{"a flapping link", 3, func(_ context.Context, s *scene) error { s.flap(); return nil }},
	{"delay and reordering", 3, func(_ context.Context, s *scene) error {
		s.everywhere(network.Rule{Delay: 5 * time.Millisecond, Jitter: 30 * time.Millisecond})
		return nil
	}},
	{"loss and duplicates", 3, func(_ context.Context, s *scene) error {
		s.everywhere(network.Rule{Loss: 0.05, Duplicate: 0.1, Delay: time.Millisecond})
		return nil
	}},
	{"a slow link to a follower", 3, func(_ context.Context, s *scene) error {
		s.net.Set(s.leader, s.follower, network.Rule{Rate: 20_000})
		return nil
	}},
	{killAll, 3, func(_ context.Context, s *scene) error {
		for _, i := range s.cluster.Running() {
			if err := s.kill(i); err != nil {
				return err
			}
		}
		return nil
	}},
	{"kill a follower behind a slow network", 3, func(_ context.Context, s *scene) error {
		s.everywhere(network.Rule{Delay: 2 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.02})
		return s.kill(s.follower)
	}},
	{"isolate the leader and pause a follower", 5, func(_ context.Context, s *scene) error {
		s.part([]int{s.leader})
		return s.pause(s.follower)
	}},
	{"kill the leader and isolate a follower", 5, func(_ context.Context, s *scene) error {
		s.part([]int{s.follower})
		return s.kill(s.leader)
	}},
	{"restart all in turn", 3, func(ctx context.Context, s *scene) error { return s.restartAll(ctx) }},
}

// Plan draws faults from a seed: every kind that the size allows comes once before any comes again. It draws as many as
// take about so long.
func Plan(seed uint64, size int, length time.Duration) []Fault {
	r := rand.New(rand.NewPCG(seed, uint64(size)))
	var (
		plan []Fault
		deck []string
	)
	for took := time.Duration(0); took < length; {
		if len(deck) == 0 {
			for _, f := range faults {
				if f.size <= size {
					deck = append(deck, f.name)
				}
			}
			r.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		f := Fault{
			Name: deck[0], Pick: r.IntN(size - 1),
			For:   1200*time.Millisecond + time.Duration(r.Int64N(int64(800*time.Millisecond))),
			After: 300*time.Millisecond + time.Duration(r.Int64N(int64(700*time.Millisecond))),
		}
		deck = deck[1:]
		plan = append(plan, f)
		took += f.For + f.After
	}
	return plan
}

// Script is a plan as text.
func Script(plan []Fault) string {
	var b strings.Builder
	for _, f := range plan {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}

// scene is a fault on its way: whom it hits, and how it is undone.
type scene struct {
	cluster                 *target.Cluster
	net                     *network.Network
	leader, follower, other int
	undo                    []func() error
}

// Inject takes a cluster through one fault: it begins it, lets it last, undoes it, and waits until all members serve. It
// says who was whom when it began.
func Inject(ctx context.Context, c *target.Cluster, n *network.Network, f Fault) (string, error) {
	s := &scene{cluster: c, net: n}
	if err := s.cast(ctx, f.Pick); err != nil {
		return "", err
	}
	who := fmt.Sprintf("leader %s, follower %s", c.Name(s.leader), c.Name(s.follower))
	err := s.act(ctx, f)
	for i := len(s.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, s.undo[i]())
	}
	n.Heal()
	if err == nil {
		err = c.WaitReady(ctx)
	}
	if err != nil {
		return who, fmt.Errorf("%s, %s: %w", f.Name, who, err)
	}
	return who, nil
}

func (s *scene) act(ctx context.Context, f Fault) error {
	for _, kind := range faults {
		if kind.name == f.Name {
			if err := kind.do(ctx, s); err != nil {
				return err
			}
			return last(ctx, f.For)
		}
	}
	return fmt.Errorf("no such fault: %s", f.Name)
}

// last lets time pass: that a fault lasts is what it is.
func last(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cast finds the leader of the moment, and two followers.
func (s *scene) cast(ctx context.Context, pick int) error {
	leader, err := s.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	var followers []int
	for _, i := range s.cluster.Running() {
		if i != leader {
			followers = append(followers, i)
		}
	}
	s.leader, s.follower, s.other = leader, followers[pick%len(followers)], followers[(pick+1)%len(followers)]
	return nil
}

func (s *scene) kill(i int) error {
	s.undo = append(s.undo, func() error { return s.cluster.Start(i) })
	return s.cluster.Kill(i)
}

func (s *scene) pause(i int) error {
	s.undo = append(s.undo, func() error { return s.cluster.Resume(i) })
	return s.cluster.Pause(i)
}

// part cuts some members off from the rest.
func (s *scene) part(some []int) {
	in := map[int]bool{}
	for _, i := range some {
		in[i] = true
	}
	for a := range s.net.Size() {
		for b := range s.net.Size() {
			if in[a] != in[b] {
				s.net.Set(a, b, network.Cut)
			}
		}
	}
}

func (s *scene) toAll(from int, r network.Rule) {
	for to := range s.net.Size() {
		s.net.Set(from, to, r)
	}
}

func (s *scene) fromAll(to int, r network.Rule) {
	for from := range s.net.Size() {
		s.net.Set(from, to, r)
	}
}

func (s *scene) everywhere(r network.Rule) {
	for from := range s.net.Size() {
		s.toAll(from, r)
	}
}

// flap cuts a link between the leader and a follower and mends it, again and again.
func (s *scene) flap() {
	done := make(chan struct{})
	var worker sync.WaitGroup
	worker.Go(func() { // ends when the fault is undone, which waits
		tick := time.NewTicker(120 * time.Millisecond)
		defer tick.Stop()
		rules := []network.Rule{network.Cut, {}}
		for i := 0; ; i++ {
			s.net.Set(s.leader, s.follower, rules[i%2])
			s.net.Set(s.follower, s.leader, rules[i%2])
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	s.undo = append(s.undo, func() error {
		close(done)
		worker.Wait()
		return nil
	})
}

// restartAll restarts one member after the other in order, each when the one before serves again.
func (s *scene) restartAll(ctx context.Context) error {
	for _, i := range s.cluster.Running() {
		if err := restart(ctx, s.cluster, i); err != nil {
			return err
		}
	}
	return nil
}

// restart stops a member in order, starts it again and waits until it serves.
func restart(ctx context.Context, c *target.Cluster, i int) error {
	if err := c.Stop(i); err != nil {
		return err
	}
	if err := c.Start(i); err != nil {
		return err
	}
	return c.WaitReady(ctx, i)
}
