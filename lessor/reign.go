package lessor

import (
	"container/heap"
	"context"
	"math"
	"time"

	"github.com/coteriedb/coterie/machine/lease"
)

// tick is how often the table's clock is moved on while leases with checkpoints
// live by it, and how soon a new leader checkpoints those without.
const tick = time.Second

// maxFailures is how many revocations may fail without one that succeeds before
// the fault is taken to be everybody's.
const maxFailures = 32

// reign is the state of one unbroken time as leader. It is built by Promote
// and dropped whole at its end. Lessor.mu guards what changes in it.
type reign struct {
	o        Options
	table    Leases
	proposer Proposer
	feed     *lease.Feed
	cancel   context.CancelFunc
	ended    <-chan struct{}
	// start is the zero of all times of the reign.
	start time.Time
	// led is what the table's clock said then.
	led time.Duration
	// terms has every lease of the table, as of the last sync.
	terms map[int64]*term
	// queue orders the terms that are not being revoked by term.next.
	queue queue
	// wake tells the loop that the queue changed behind its back.
	wake chan struct{}
	// stored is the number of terms with a checkpoint in the table.
	stored int
	// pending are the terms whose checkpoint has fallen due, and recording is
	// set while a proposal of some is under way.
	pending   []*term
	recording bool
	// ticking is when the table's clock is to be moved on, if stored.
	ticking time.Duration
	// failures is the number of leases whose revocation failed since one last
	// succeeded, which streak counts. From maxFailures on they are tried one by
	// one, the next one at the time probe, lest all who wait fail again and
	// again. A few may always fail, for what their keys take, and hold up nobody.
	failures int
	streak   uint64
	probe    time.Duration
	// mute is set while checkpoints fail, to log that once.
	mute    bool
	changed []int64 // scratch of sync
}

// term is the time of one lease. Times count from reign.start.
type term struct {
	lease.Lease
	deadline time.Duration
	// grace is what the deadline has in it beyond the time to live. It is not
	// recorded, for the next leader gives its own.
	grace time.Duration
	// checkpoint is when the remaining time is to be recorded; 0 for never.
	checkpoint time.Duration
	// uncertain is set when a checkpoint failed, which may yet be applied.
	uncertain bool
	// retry is when a revocation that failed is tried again; 0 before that.
	retry time.Duration
	// failed is the streak in which its revocation failed last, from 1.
	failed uint64
	// next orders the queue. Invariant: it is not after the next event of the
	// term. Renewals leave it alone, so that a keep-alive costs no reordering;
	// a term that comes to the front too early is put back.
	next time.Duration
	// pos is the term's index in the queue, or notQueued.
	pos int
	// recording is closed when the checkpoint that is under way has been
	// decided; nil while none is.
	recording <-chan struct{}
	// gone is closed when the lease no longer exists. Nil until someone waits.
	gone chan struct{}
}

const notQueued = -1

// newReign starts every lease of the table with its remaining time and the
// extension.
func newReign(table Leases, p Proposer, o Options, cancel context.CancelFunc, ended <-chan struct{}) *reign {
	r := &reign{
		o:        o,
		table:    table,
		proposer: p,
		feed:     table.Follow(), // before All, so that nothing falls between
		cancel:   cancel,
		ended:    ended,
		start:    o.Clock.Now(),
		led:      table.Clock(),
		wake:     make(chan struct{}, 1),
		ticking:  tick,
		streak:   1,
	}
	all := table.All()
	r.terms = make(map[int64]*term, len(all))
	for _, l := range all {
		r.inherit(l)
	}
	return r
}

func (r *reign) now() time.Duration { return r.o.Clock.Now().Sub(r.start) }

// inherit adds the term of a lease that earlier leaders granted. When it was
// last renewed is unknown. Unless it has a checkpoint, it gets one soon, so that
// no number of leaders can forget more of its life than the last one that
// renewed it.
func (r *reign) inherit(l lease.Lease) {
	t := r.add(l)
	t.grace = r.o.Extend
	soon := min(tick, r.patience(t))
	if l.RemainingTTL > 0 {
		soon = 0
	}
	r.schedule(t, seconds(l.Remaining()), soon)
	r.enqueue(t)
}

// grant adds the term of a lease that was granted in this reign.
func (r *reign) grant(l lease.Lease) {
	t := r.add(l)
	r.renew(t)
	r.enqueue(t)
}

func (r *reign) add(l lease.Lease) *term {
	t := &term{pos: notQueued}
	r.terms[l.ID] = t
	r.learn(t, l)
	return t
}

// learn takes in what the table says of the lease of t.
func (r *reign) learn(t *term, l lease.Lease) {
	if t.RemainingTTL > 0 {
		r.stored--
	}
	if l.RemainingTTL > 0 {
		r.stored++
	}
	t.Lease = l
}

// renew gives t its granted time from now.
func (r *reign) renew(t *term) {
	t.grace = 0
	r.schedule(t, seconds(t.TTL), r.patience(t))
}

// patience is how long a lease may go without being renewed before it gets a
// checkpoint. Who keeps a lease alive does so more often.
func (r *reign) patience(t *term) time.Duration {
	return min(seconds(t.TTL)/2, r.o.CheckpointInterval)
}

// schedule moves the deadline to d and the grace from now, and the checkpoint,
// if there is to be one, to a moment from now.
func (r *reign) schedule(t *term, d, checkpoint time.Duration) {
	now := r.now()
	t.deadline = now + min(d, math.MaxInt64-now-t.grace) + t.grace // centuries may overflow
	t.checkpoint = 0
	if r.o.CheckpointInterval > 0 && checkpoint > 0 {
		t.checkpoint = now + checkpoint
	}
	r.advance(t)
}

// marked reports whether later leaders may know of a checkpoint of t.
func (t *term) marked() bool { return t.RemainingTTL > 0 || t.uncertain }

// advance moves t forward in the queue if its next event has become earlier.
func (r *reign) advance(t *term) {
	if t.pos != notQueued && t.due() < t.next {
		t.next = t.due()
		heap.Fix(&r.queue, t.pos)
		r.rouse()
	}
}

// rouse makes the loop look at the queue again.
func (r *reign) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// due is the time of the next event of t.
func (t *term) due() time.Duration {
	d := max(t.deadline, t.retry)
	if t.checkpoint != 0 {
		d = min(d, t.checkpoint)
	}
	return d
}

func (t *term) whenGone() <-chan struct{} {
	if t.gone == nil {
		t.gone = make(chan struct{})
	}
	return t.gone
}

func (r *reign) enqueue(t *term) {
	t.next = t.due()
	heap.Push(&r.queue, t)
}

// end removes t, whose lease no longer exists.
func (r *reign) end(t *term) {
	delete(r.terms, t.ID)
	r.learn(t, lease.Lease{ID: t.ID})
	if t.pos != notQueued {
		heap.Remove(&r.queue, t.pos)
	}
	if t.gone != nil {
		close(t.gone)
	}
}

// sync takes in what has changed in the table.
func (r *reign) sync() {
	ids, all := r.feed.Take(r.changed[:0])
	if all {
		ids = r.everyID(ids[:0])
	}
	for _, id := range ids {
		r.update(id)
	}
	if r.changed = ids; cap(ids) > 1<<10 {
		r.changed = nil // a burst is over
	}
}

// everyID lists the leases of the table and of the reign.
func (r *reign) everyID(ids []int64) []int64 {
	for id := range r.terms {
		ids = append(ids, id)
	}
	for _, l := range r.table.All() {
		ids = append(ids, l.ID)
	}
	return ids
}

func (r *reign) update(id int64) {
	l, exists := r.table.Get(id)
	t := r.terms[id]
	if t != nil && exists && t.Incarnation == l.Incarnation {
		r.learn(t, l) // checkpointed
		return
	}
	if t != nil {
		r.end(t)
	}
	if exists {
		r.grant(l)
	}
}

// collect takes up to limit events that are due out of the queue: the terms
// to revoke, which it returns and which stay out of it, and those to checkpoint,
// which become pending. There may be more.
func (r *reign) collect(limit int) (revoke []*term, more bool) {
	now := r.now()
	for n := 0; len(r.queue) > 0 && r.queue[0].next <= now; n++ {
		if n == limit {
			return revoke, true
		}
		t := r.queue[0]
		switch {
		case max(t.deadline, t.retry) <= now:
			if !r.held(t, now) {
				heap.Pop(&r.queue)
				revoke = append(revoke, t)
				continue
			}
		case t.checkpoint != 0 && t.checkpoint <= now:
			t.checkpoint = 0
			r.pending = append(r.pending, t)
		}
		t.next = t.due()
		heap.Fix(&r.queue, 0)
	}
	return revoke, false
}

// held puts the revocation of t off if another one is to find out first whether
// revocations succeed again.
func (r *reign) held(t *term, now time.Duration) bool {
	if r.failures < maxFailures {
		return false
	}
	if now < r.probe {
		t.retry = r.probe
		return true
	}
	r.probe = now + r.o.RetryInterval
	return false
}

// wait is the time until the next event, or none.
func (r *reign) wait() (d time.Duration, ok bool) {
	d = math.MaxInt64
	if len(r.queue) > 0 {
		d = r.queue[0].next
	}
	if r.stored > 0 && !r.recording {
		d = min(d, r.ticking)
	}
	if d == math.MaxInt64 {
		return 0, false
	}
	return max(0, d-r.now()), true
}

func seconds(s int64) time.Duration { return time.Duration(s) * time.Second }

// queue is a container/heap of terms.
type queue []*term

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next < q[j].next }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = i, j
}

func (q *queue) Push(x any) {
	t := x.(*term)
	t.pos = len(*q)
	*q = append(*q, t)
}

func (q *queue) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	t.pos = notQueued
	return t
}
