package lessor

import (
	"container/heap"
	"context"
	"math"
	"time"

	"github.com/coteriedb/coterie/machine/lease"
)

// reign is the state of one unbroken time as leader. It is built by Promote
// and dropped whole at its end. Lessor.mu guards it.
type reign struct {
	o      Options
	table  Leases
	feed   *lease.Feed
	cancel context.CancelFunc
	ended  <-chan struct{}
	// start is the zero of all times of the reign.
	start time.Time
	// terms has every lease of the table, as of the last sync.
	terms map[int64]*term
	// queue orders the terms that are not being revoked by term.next.
	queue queue
	// wake tells the loop that the queue changed behind its back.
	wake chan struct{}
	// failing is set while revocations fail, to log that once.
	failing bool
	changed []int64 // scratch of sync
}

// term is the time of one lease. Times count from reign.start.
type term struct {
	lease.Lease
	deadline time.Duration
	// checkpoint is when the remaining time is to be recorded; 0 for never.
	checkpoint time.Duration
	// retry is when a revocation that failed is tried again; 0 before that.
	retry time.Duration
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
func newReign(table Leases, o Options, cancel context.CancelFunc, ended <-chan struct{}) *reign {
	r := &reign{
		o:      o,
		table:  table,
		feed:   table.Follow(), // before All, so that nothing falls between
		cancel: cancel,
		ended:  ended,
		start:  o.Clock.Now(),
		wake:   make(chan struct{}, 1),
	}
	all := table.All()
	r.terms = make(map[int64]*term, len(all))
	for _, l := range all {
		r.begin(l, o.Extend)
	}
	return r
}

func (r *reign) now() time.Duration { return r.o.Clock.Now().Sub(r.start) }

// begin adds the term of a lease that is new to the reign.
func (r *reign) begin(l lease.Lease, extend time.Duration) {
	t := &term{Lease: l, pos: notQueued}
	r.terms[l.ID] = t
	r.extend(t, extend+seconds(l.Remaining()))
	r.enqueue(t)
}

// renew gives t its granted time from now.
func (r *reign) renew(t *term) { r.extend(t, seconds(t.TTL)) }

// extend moves the deadline to d from now, and the checkpoint with it: the
// time recorded, or the granted time if none is, is good for another interval.
func (r *reign) extend(t *term, d time.Duration) {
	now := r.now()
	t.deadline = now + min(d, math.MaxInt64-now) // centuries may overflow
	t.checkpoint = 0
	if i := r.o.CheckpointInterval; i > 0 && d > i {
		t.checkpoint = now + i
	}
	r.advance(t)
}

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
		t.Lease = l // checkpointed
		return
	}
	if t != nil {
		r.end(t)
	}
	if exists {
		r.begin(l, 0)
	}
}

// collect takes up to limit events that are due out of the queue: the terms
// to revoke, which stay out of it, and those to checkpoint, which do not.
func (r *reign) collect(limit int) (revoke, checkpoint []*term) {
	now := r.now()
	for len(r.queue) > 0 && len(revoke)+len(checkpoint) < limit {
		t := r.queue[0]
		if t.next > now {
			break
		}
		switch {
		case max(t.deadline, t.retry) <= now:
			heap.Pop(&r.queue)
			revoke = append(revoke, t)
			continue
		case t.checkpoint != 0 && t.checkpoint <= now:
			checkpoint = append(checkpoint, t)
			t.checkpoint = 0
			if t.deadline-now > r.o.CheckpointInterval {
				t.checkpoint = now + r.o.CheckpointInterval
			}
		}
		t.next = t.due()
		heap.Fix(&r.queue, 0)
	}
	return revoke, checkpoint
}

// wait is the time until the next event, or none.
func (r *reign) wait() (d time.Duration, ok bool) {
	if len(r.queue) == 0 {
		return 0, false
	}
	return max(0, r.queue[0].next-r.now()), true
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
