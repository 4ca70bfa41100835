package h2

// queue is a list of streams, in the order in which they came.
type queue struct{ first, last *Stream }

// push adds a stream that is in no queue.
func (q *queue) push(s *Stream) {
	s.queued, s.prev, s.next = true, q.last, nil
	if q.last == nil {
		q.first = s
	} else {
		q.last.next = s
	}
	q.last = s
}

// remove takes a stream out that is in the queue.
func (q *queue) remove(s *Stream) {
	if s.prev == nil {
		q.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		q.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.queued, s.prev, s.next = false, nil, nil
}
