package watch

import pb "go.etcd.io/etcd/api/v3/etcdserverpb"

// delivery is an element of a stream's queue: events of one watcher, or a
// reply.
type delivery struct {
	w *watcher
	// revision is that up to which w has all its events with this delivery.
	revision int64
	events   []*event // shared, not changed
	bytes    int
	reply    *pb.WatchResponse
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
	q.count(d, 1)
}

// front returns the next delivery, which must exist.
func (q *queue) front() *delivery { return &q.elems[q.head] }

func (q *queue) pop() delivery {
	d := *q.front()
	*q.front() = delivery{}
	q.head++
	q.count(d, -1)
	if q.len() == 0 {
		q.elems, q.head = q.elems[:0], 0
		if cap(q.elems) > 16 {
			q.elems = nil // idle streams hold next to nothing
		}
	}
	return d
}

func (q *queue) count(d delivery, sign int) {
	q.bytes += sign * d.bytes
	q.events += sign * len(d.events)
	if d.reply != nil {
		q.replies += sign
	}
}
