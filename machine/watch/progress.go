package watch

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A progress notification says that a watcher has every event up to a
// revision. That revision is Hub.distributed, read with Hub.mu held: what it
// covers is in the queues of the synced watchers, ahead of the notification.

// RequestProgress asks for one notification, with the watch id -1, that holds
// for all watchers of the stream. It comes once the distributor has dealt with
// what is published by now and none of the watchers lags; never, as in etcd, if
// there are no watchers or one of them starts in the future. Requests that
// wait share an answer.
func (s *Stream) RequestProgress() {
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	_, published := h.ring.bounds()
	s.mu.Lock()
	s.told = max(s.told, published)
	s.mu.Unlock()
	h.ask(s)
	h.answer()
}

// ask queues a progress request of s. h.mu is held.
func (h *Hub) ask(s *Stream) {
	if !s.asking {
		s.asking = true
		h.asking = append(h.asking, s)
	}
}

// answerAsking answers the waiting requests.
func (h *Hub) answerAsking() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer()
}

// answer is answerAsking with h.mu held.
func (h *Hub) answer() {
	rest := h.asking[:0]
	for _, s := range h.asking {
		if h.answerOne(s) {
			s.asking = false
		} else {
			rest = append(rest, s)
		}
	}
	clear(h.asking[len(rest):])
	h.asking = rest
}

// answerOne answers the request of s, or decides how else it ends. It returns
// false to be called again after the next events: some are published and not
// distributed, or readable and about to be published. h.mu is held.
func (h *Hub) answerOne(s *Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	rev := h.distributed.Load()
	switch {
	case s.closed || len(s.watchers) == s.dead:
	case rev < s.told:
		return false
	case s.lag.n > 0:
		s.owed = true
	case s.startsAfter(rev):
	default:
		s.notify(noID, rev)
	}
	return true
}

// startsAfter tells whether a watcher starts after rev. s.mu is held.
func (s *Stream) startsAfter(rev int64) bool {
	for w, start := range s.ahead {
		if start > rev {
			return true
		}
		delete(s.ahead, w)
	}
	return false
}

// notify queues a progress notification unless the queue is full: then the
// client has other things to read. s.mu is held.
func (s *Stream) notify(id, rev int64) {
	if s.queue.bytes+replyBytes <= s.h.o.StreamBytes {
		s.told = max(s.told, rev)
		s.reply(&pb.WatchResponse{Header: header(rev), WatchId: id})
	}
}

// notifyAll queues notifications for the watchers that want them regularly and
// had no events since the last time. It returns false if there are no such
// watchers. h.mu is held.
func (h *Hub) notifyAll(s *Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	rev := h.distributed.Load()
	var wanting []*watcher
	for _, w := range s.watchers {
		if w.is(notify) {
			wanting = append(wanting, w)
		}
	}
	slices.SortFunc(wanting, func(a, b *watcher) int { return cmp.Compare(a.id, b.id) })
	for _, w := range wanting {
		if w.state == synced && w.next <= rev+1 && s.ahead[w] <= rev && !w.elide {
			s.notify(w.id, rev)
		}
		w.elide = false
	}
	return len(wanting) > 0
}

// alarm is when a stream's regular notifications are due.
type alarm struct {
	at     time.Time
	period time.Duration
}

const noAlarm = -1

// setAlarm starts the regular notifications of s. h.mu is held.
func (h *Hub) setAlarm(s *Stream) {
	if s.alarmPos != noAlarm {
		return
	}
	if s.alarm.period == 0 {
		// Spread, for clients tend to come back all at once.
		i := int64(h.o.ProgressInterval)
		s.alarm.period = time.Duration(i + h.o.Jitter(max(1, i/10)))
	}
	s.alarm.at = h.o.Clock.Now().Add(s.alarm.period)
	heap.Push(&h.alarms, s)
	if h.alarms[0] == s {
		h.rouse()
	}
}

// clearAlarm ends the regular notifications of s. h.mu is held.
func (h *Hub) clearAlarm(s *Stream) {
	if s.alarmPos != noAlarm {
		heap.Remove(&h.alarms, s.alarmPos)
	}
}

// ringAlarms sends the notifications that are due and returns when the next
// ones are.
func (h *Hub) ringAlarms() (next time.Time, any bool) {
	now := h.o.Clock.Now()
	for {
		h.mu.Lock()
		if len(h.alarms) == 0 {
			h.mu.Unlock()
			return time.Time{}, false
		}
		s := h.alarms[0]
		if s.alarm.at.After(now) {
			next = s.alarm.at
			h.mu.Unlock()
			return next, true
		}
		if h.notifyAll(s) {
			s.alarm.at = now.Add(s.alarm.period)
			heap.Fix(&h.alarms, 0)
		} else {
			heap.Remove(&h.alarms, 0)
		}
		h.mu.Unlock()
	}
}

// alarms is a container/heap of streams by the time of their alarm.
type alarms []*Stream

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].alarm.at.Before(a[j].alarm.at) }
func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].alarmPos, a[j].alarmPos = i, j
}

func (a *alarms) Push(x any) {
	s := x.(*Stream)
	s.alarmPos = len(*a)
	*a = append(*a, s)
}

func (a *alarms) Pop() any {
	old := *a
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*a = old[:len(old)-1]
	s.alarmPos = noAlarm
	return s
}
