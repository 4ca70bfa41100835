// Package sim runs whole clusters, one thing at a time, on a clock, a network and
// disks that are drawn from a seed, and checks what the members promise while
// everything that can go wrong does.
//
// What runs is Coterie's own code: consensus, log, machine, engine, snapshots,
// lease clock, watch hub. A simulation takes the turns of consensus one at a time,
// in an order that the seed draws. What has goroutines of its own below it (the
// engine's flushes, the distributor of events, the clock of leases) runs in a
// testing/synctest bubble until all of it waits, before anything else happens. So
// a seed is a run: see TestASeedIsARun. What a watcher is told in one response may
// come in two the next time; nothing depends on that.
package sim

import (
	"cmp"
	"container/heap"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// world is one run.
type world struct {
	t testing.TB
	course
	draws
	plan   plan
	faults int          // so many have begun
	drawn  []drawnFault // of those that are not left out

	began  time.Time
	events queue
	stamp  uint64 // counts what has happened, to order what happened at one time
	trace  uint64 // a hash of all that has happened
	lines  []string
	calm   bool // no more faults

	lock    sync.Mutex // held where members, their processes and cut links change, and by goroutines that look at them
	members map[uint64]*member
	opening sync.WaitGroup // processes that begin
	ending  sync.WaitGroup // processes that are over
	net     *network
	zap     *zap.Logger
	truth   *truth

	clients      []*client
	watchers     []*watcher
	leases       map[int64]*leaseOwner
	leaseIDs     []int64
	reigns       *reigns
	leaving      map[uint64]int // members whose removal has been proposed, and not refused
	lastOp       uint64
	changesAsked int // of the membership
	lastMember   uint64
	answered     answered
	steady       bool // watchers stay where they are
	finished     bool // clients begin nothing more

	mu     sync.Mutex
	posted []post // Guarded by mu.

	failed   string        // the first promise that was broken
	kind     string        // of that failure
	failedAt time.Duration // when
	tally    tally
	effects  effects
}

// tally counts what a run has seen: a run in which nothing happens proves nothing.
type tally struct {
	crashes, kills, pauses, cuts, snapshots, restarts, changes, flips, rot       int
	acked, unknown, refused, reads, events, progress, expired, gone, compactions int
}

// effects count what faults have done, by what it is. It may be told by any goroutine.
type effects struct {
	mu sync.Mutex
	n  map[string]int // Guarded by mu.
}

func (e *effects) add(what string, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == nil {
		e.n = map[string]int{}
	}
	e.n[what] += n
}

// event is something that will happen.
type event struct {
	at  time.Time
	seq uint64
	do  func()
}

type queue []*event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*event)) }
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// post is what a goroutine has to say. All that is said between two events is
// heard in the order of names.
type post struct {
	name string
	do   func()
}

// after has something happen later.
func (w *world) after(d time.Duration, do func()) {
	w.stamp++
	heap.Push(&w.events, &event{time.Now().Add(d), w.stamp, do})
}

// post has something happen at once, but not on the goroutine that says so.
func (w *world) post(name string, do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.posted = append(w.posted, post{name, do})
}

// run lets the world go on for a while.
func (w *world) run(d time.Duration) {
	end := time.Now().Add(d)
	for w.failed == "" {
		w.settle()
		if len(w.events) == 0 || w.events[0].at.After(end) {
			time.Sleep(time.Until(end))
			w.settle()
			return
		}
		if wait := time.Until(w.events[0].at); wait > 0 {
			// In short steps: a goroutine may have something to say, or a turn fall due, before.
			time.Sleep(min(wait, time.Millisecond))
			continue
		}
		e := heap.Pop(&w.events).(*event)
		if w.plan.Trace {
			w.say("event %d", e.seq)
		}
		e.do()
	}
}

// settle waits until nothing goes on, hears what was said, and plans the turns
// that have fallen due.
func (w *world) settle() {
	for {
		synctest.Wait()
		w.mu.Lock()
		posted := w.posted
		w.posted = nil
		w.mu.Unlock()
		if len(posted) == 0 {
			break
		}
		slices.SortStableFunc(posted, func(a, b post) int { return strings.Compare(a.name, b.name) })
		for _, p := range posted {
			if w.plan.Trace {
				w.say("post %s", p.name)
			}
			p.do()
		}
	}
	for _, m := range w.inOrder() {
		m.planTurns()
	}
}

// inOrder returns the members by their ids.
func (w *world) inOrder() []*member {
	var all []*member
	for _, m := range w.members {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *member) int { return cmp.Compare(a.id, b.id) })
	return all
}

// say notes something in the trace of the run.
func (w *world) say(format string, args ...any) {
	line := fmt.Sprintf("%9.4f ", time.Since(w.began).Seconds()) + fmt.Sprintf(format, args...)
	h := fnv.New64a()
	fmt.Fprintf(h, "%x %s", w.trace, line)
	w.trace = h.Sum64()
	if w.plan.Verbose {
		fmt.Fprintln(os.Stderr, line) // at once: a panic would take it along
	}
	const kept = 400
	if w.lines = append(w.lines, line); len(w.lines) > 2*kept {
		w.lines = slices.Delete(w.lines, 0, kept)
	}
}

// fail says that a promise is broken, and ends the run. Failures of one format are
// of one kind.
func (w *world) fail(format string, args ...any) { w.failAs(format, fmt.Sprintf(format, args...)) }

func (w *world) failAs(kind, text string) {
	if w.failed == "" {
		w.failed, w.kind, w.failedAt = text, kind, time.Since(w.began)
		w.say("BROKEN: %s", w.failed)
	}
}
