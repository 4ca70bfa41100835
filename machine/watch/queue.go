package watch

import pb "go.etcd.io/etcd/api/v3/etcdserverpb"

// delivery is an element of a stream's queue: events for some watchers of one
// cohort, or a reply.
type delivery struct {
	// to is shared, and not changed. Some of them may have been canceled.
	to []*watcher
	// revision is that up to which they have all their events with this delivery.
	revision int64
	events   []*event // shared, not changed
	bytes    int      // of the events, once
	reply    *pb.WatchResponse
}

// size is what d counts in the queue: events are counted for each watcher.
func (d *delivery) size() int {
	if d.reply != nil {
		return replyBytes
	}
	return d.bytes * len(d.to)
}

// queue is a first-in first-out queue of deliveries.
type queue struct {
	elems []delivery
	head  int
	// replies, events and bytes sum up what is queued.
	replies, events, bytes int
}

func (q *queue) len() int { return len(q.elems) - q.head }

func (q *queue) push(d delivery) {
	if q.head > 0 && len(q.elems) == cap(q.elems) && q.head >= len(q.elems)/2 {
		n := copy(q.elems, q.elems[q.head:])
		clear(q.elems[n:])
		q.elems, q.head = q.elems[:n], 0
	}
	q.elems = append(q.elems, d)
	q.count(&d, 1)
}

// front returns the next delivery, which must exist.
func (q *queue) front() *delivery { return &q.elems[q.head] }

// pop takes the next delivery out.
func (q *queue) pop() {
	q.count(q.front(), -1)
	*q.front() = delivery{}
	q.head++
	if q.len() == 0 {
		q.elems, q.head = q.elems[:0], 0
		if cap(q.elems) > 16 {
			q.elems = nil // idle streams hold next to nothing
		}
	}
}

// popSome takes the first n watchers out of the next delivery, which has more.
func (q *queue) popSome(n int) {
	d := q.front()
	q.count(d, -1)
	d.to = d.to[n:]
	q.count(d, 1)
}

func (q *queue) count(d *delivery, sign int) {
	q.bytes += sign * d.size()
	q.events += sign * len(d.events) * len(d.to)
	if d.reply != nil {
		q.replies += sign
	}
}
