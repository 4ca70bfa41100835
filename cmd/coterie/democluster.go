package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie"
)

const (
	// How often a demo looks who leads: seldom, and often while a member stops or starts.
	demoGlance, demoStare = 50 * time.Millisecond, 2 * time.Millisecond
	// demoPatience bounds how long a member may take to tell its state.
	demoPatience = time.Second
)

// demo is a cluster in this process, and what is said about it. It belongs to one goroutine; members start and stop on
// others, which report by changed and are waited for by close.
type demo struct {
	plan    *demoPlan
	dir     string
	out     io.Writer
	members []*demoMember
	changed chan demoChange

	leader *demoMember // who was last seen to lead
	seen   time.Time   // when
}

// demoMember is one of the members.
type demoMember struct {
	number int
	config coterie.Config
	node   *coterie.Node      // nil if it does not run
	id     uint64             // 0 until it has run
	cancel context.CancelFunc // of the start; nil unless the member is starting
	busy   bool               // it is starting or stopping
	began  time.Time          // when that began
	gone   bool               // somebody has removed it from the cluster
}

// demoChange is the end of a start or a stop.
type demoChange struct {
	member *demoMember
	node   *coterie.Node // nil after a stop, or a start that failed
	err    error
}

func newDemo(plan *demoPlan, dir string, log *zap.Logger, out io.Writer) *demo {
	d := &demo{plan: plan, dir: dir, out: out, changed: make(chan demoChange)}
	for i, c := range plan.configs(dir, log) {
		d.members = append(d.members, &demoMember{number: i + 1, config: c})
	}
	return d
}

// start starts all members, and returns when they serve, one of them has failed, or ctx ends.
func (d *demo) start(ctx context.Context) error {
	d.sayf("Starting %s in %s.", plural(len(d.members), "member"), d.dir)
	for _, m := range d.members {
		d.startMember(ctx, m)
	}
	for d.busy() {
		select {
		case c := <-d.changed:
			switch d.settle(c); {
			case c.err == nil:
				d.sayf("  member %d serves clients after %v", c.member.number, round(time.Since(c.member.began)))
			case c.member.gone:
				d.sayf("  member %d has been removed from the cluster", c.member.number)
			case ctx.Err() == nil:
				return fmt.Errorf("start member %d: %w", c.member.number, c.err)
			}
		case <-ctx.Done():
			return nil
		}
	}
	d.look(ctx)
	return nil
}

// startMember begins to start a member that does not run.
func (d *demo) startMember(ctx context.Context, m *demoMember) {
	ctx, m.cancel = context.WithCancel(ctx)
	m.busy, m.began = true, time.Now()
	go func() { // ends when the member serves, or m.cancel is called; settle or close waits
		n, err := coterie.Open(ctx, m.config)
		d.changed <- demoChange{m, n, err}
	}()
}

// stopMember begins to stop a member that runs.
func (d *demo) stopMember(m *demoMember) {
	m.busy, m.began = true, time.Now()
	node := m.node
	go func() { // ends when the member has stopped; settle or close waits
		d.changed <- demoChange{m, nil, node.Close()}
	}()
}

// settle takes the end of a start or a stop.
func (d *demo) settle(c demoChange) {
	m := c.member
	m.busy, m.node = false, c.node
	m.gone = m.gone || errors.Is(c.err, coterie.ErrRemoved)
	if m.cancel != nil {
		m.cancel()
		m.cancel = nil
	}
}

func (d *demo) busy() bool {
	return slices.ContainsFunc(d.members, func(m *demoMember) bool { return m.busy })
}

// run watches over the cluster and does what is typed, until ctx ends.
func (d *demo) run(ctx context.Context, keys <-chan string) {
	ticker := time.NewTicker(demoGlance)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case line, ok := <-keys:
			if !ok {
				keys = nil // the terminal has ended its input; signals still end the demo
				continue
			}
			d.obey(ctx, strings.TrimSpace(line))
		case c := <-d.changed:
			d.settle(c)
			d.report(c)
		case <-ticker.C:
		}
		d.look(ctx)
		if d.busy() {
			ticker.Reset(demoStare)
		} else {
			ticker.Reset(demoGlance)
		}
	}
}

// obey does what somebody has typed.
func (d *demo) obey(ctx context.Context, line string) {
	if line == "" {
		d.table(ctx)
		return
	}
	number, err := strconv.Atoi(line)
	if err != nil || number < 1 || number > len(d.members) {
		d.sayf("Type a number from 1 to %d to stop or start that member, nothing to see the members, Ctrl-C to end.", len(d.members))
		return
	}
	switch m := d.members[number-1]; {
	case m.busy:
		d.sayf("Member %d is still busy.", number)
	case m.gone:
		d.sayf("Member %d has been removed from the cluster; its id never returns.", number)
	case m.node == nil:
		d.sayf("Member %d starts.", number)
		d.startMember(ctx, m)
	default:
		d.sayf("Member %d stops.", number)
		d.stopMember(m)
	}
}

// report tells of a member that has started or stopped.
func (d *demo) report(c demoChange) {
	m := c.member
	did := "has stopped"
	if c.node != nil {
		did = "serves again"
	}
	if c.err != nil {
		d.sayf("Member %d: %v", m.number, c.err)
		return
	}
	d.sayf("Member %d %s after %v. %s", m.number, did, round(time.Since(m.began)), d.strength())
}

// strength says whether the cluster works.
func (d *demo) strength() string {
	running, all := 0, 0
	for _, m := range d.members {
		if !m.gone {
			all++
		}
		if m.node != nil {
			running++
		}
	}
	if majority := all/2 + 1; running < majority {
		return fmt.Sprintf("%d of %d run, and a majority is %d: nothing can be written until another starts.", running, all, majority)
	}
	return fmt.Sprintf("%d of %d run: the cluster works.", running, all)
}

// look notices who leads, and members that have stopped by themselves.
func (d *demo) look(ctx context.Context) {
	var leader *demoMember
	var term uint64
	for _, m := range d.members {
		if m.node == nil {
			continue
		}
		if !m.busy && ended(m.node) {
			err := m.node.Err()
			d.sayf("Member %d has stopped by itself: %v", m.number, err)
			m.gone = errors.Is(err, coterie.ErrRemoved)
			d.stopMember(m)
			continue
		}
		if st, err := m.status(ctx); err == nil && st.Leader == m.id && st.RaftTerm > term {
			leader, term = m, st.RaftTerm
		}
	}
	if leader == nil {
		return
	}
	if now := time.Now(); leader != d.leader && d.leader != nil {
		d.sayf("Member %d leads now, in term %d. There was no leader for at most %v.", leader.number, term, round(now.Sub(d.seen)))
	}
	d.leader, d.seen = leader, time.Now()
}

func ended(n *coterie.Node) bool {
	select {
	case <-n.Done():
		return true
	default:
		return false
	}
}

// status asks a member that runs how it is.
func (m *demoMember) status(ctx context.Context) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, demoPatience)
	defer cancel()
	st, err := m.node.Client().Status(ctx, "")
	if err == nil {
		m.id = st.Header.MemberId
	}
	return st, err
}

// close stops all members and waits for what was begun.
func (d *demo) close() error {
	d.sayf("Stopping.")
	for _, m := range d.members {
		switch {
		case m.cancel != nil:
			m.cancel()
		case m.node != nil && !m.busy:
			d.stopMember(m)
		}
	}
	var errs []error
	for d.busy() {
		c := <-d.changed
		d.settle(c)
		switch {
		case c.node != nil: // its start could no longer be cancelled
			d.stopMember(c.member)
		case c.err != nil && !errors.Is(c.err, context.Canceled):
			errs = append(errs, fmt.Errorf("stop member %d: %w", c.member.number, c.err))
		}
	}
	return errors.Join(errs...)
}

func (d *demo) sayf(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// round leaves as much of a duration as people read.
func round(t time.Duration) time.Duration {
	switch {
	case t < 10*time.Millisecond:
		return t.Round(100 * time.Microsecond)
	case t < time.Second:
		return t.Round(time.Millisecond)
	}
	return t.Round(100 * time.Millisecond)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
