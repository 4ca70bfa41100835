package watch

import (
	"context"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	// noID is the watch id of responses that are not about one watcher.
	noID = -1
	// maxReplies bounds the unsent responses to requests. A client that does
	// not read them has to wait with its next request.
	maxReplies = 256
	// replyBytes is what a response without events counts in the queue.
	replyBytes = 128
	// closeBatch is how many watchers Close removes at a time.
	closeBatch = 1024
)

// Stream is one client's watchers and the queue of what they are to be sent.
// One goroutine calls Next; the other methods may be called from any.
type Stream struct {
	h *Hub
	// ready tells Next that there is something to do, or that the stream is
	// closed.
	ready chan struct{}
	// done is closed when the stream is, for those who wait for room.
	done chan struct{}

	// mu guards the fields below.
	mu       sync.Mutex
	closed   bool
	watchers map[int64]*watcher
	nextID   int64
	queue    queue
	// room is closed when there is room for replies again; nil if nobody waits.
	room chan struct{}
	// lag has the watchers that Next reads the history for.
	lag index
	// round counts the rounds of catchUp.
	round uint32
	// dead counts the watchers that are compacted.
	dead int
	// ahead has the watchers whose start revision was in the future, and the
	// revision: they are told of none before it.
	ahead map[*watcher]int64
	// told is the revision from which on the next answer to a progress request
	// may be: the client has seen it in a response, or it was published when
	// the request came.
	told int64
	// owed is a progress request to be answered when nobody lags any more.
	owed bool

	// The fields below are guarded by Hub.mu.

	// asking is set while the stream is in Hub.asking.
	asking bool
	// alarm is the time of the next progress notifications.
	alarm    alarm
	alarmPos int

	// The fields below belong to Next.

	// batch has the responses that were returned last; nil while Next waits.
	batch *Responses
	// taken counts deliveries since the last round of catchUp.
	taken int
}

// Create adds a watcher and queues the response to it: created, or created and
// canceled if the request cannot be met. It waits while the client leaves too
// many responses unread.
func (s *Stream) Create(ctx context.Context, r *pb.WatchCreateRequest) error {
	if r.StartRevision < 0 {
		return s.Refuse(ctx, rpctypes.ErrCompacted.Error())
	}
	w, refusal := newWatcher(s, r)
	if w == nil {
		return s.Refuse(ctx, refusal)
	}
	if err := s.awaitRoom(ctx); err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	rev := s.h.src.Revision()
	if !s.assignID(w) {
		s.reply(refused(rev, reasonDuplicateID))
		return nil
	}
	s.watchers[w.id] = w
	s.h.counts.watchers.Add(1)
	s.told = max(s.told, rev)
	s.reply(&pb.WatchResponse{Header: header(rev), WatchId: w.id, Created: true})
	s.place(w, r.StartRevision, rev)
	if w.is(notify) {
		s.h.setAlarm(s)
	}
	return nil
}

// place starts w at its start revision; rev is the current one. Both locks are
// held.
func (s *Stream) place(w *watcher, start, rev int64) {
	switch {
	case start == 0:
		w.next = rev + 1
		s.h.synced.add(w)
	case start > rev:
		w.next = start
		w.flags |= ahead
		s.h.synced.add(w)
		if s.ahead == nil {
			s.ahead = map[*watcher]int64{}
		}
		s.ahead[w] = start
	default:
		w.next = start
		w.state = lagging
		s.fallBehind(w)
		if c := s.h.src.CompactRevision(); start < c {
			s.compact(w, c)
		}
	}
}

// fallBehind adds w to those that lag. s.mu is held.
func (s *Stream) fallBehind(w *watcher) {
	w.state = lagging
	s.lag.add(w)
	s.h.counts.lagging.Add(1)
	s.signal()
}

// compact ends w, which lags and needs what is compacted at revision c. s.mu is
// held.
func (s *Stream) compact(w *watcher, c int64) {
	s.lag.remove(w)
	s.h.counts.lagging.Add(-1)
	w.state = compacted
	s.dead++
	// etcd leaves the revision of this header 0.
	s.reply(&pb.WatchResponse{Header: header(0), WatchId: w.id, Canceled: true, CompactRevision: c})
}

// assignID gives w the id asked for, or one that is free if none was.
func (s *Stream) assignID(w *watcher) bool {
	if w.id != 0 {
		return s.watchers[w.id] == nil
	}
	for s.watchers[s.nextID] != nil {
		s.nextID++
	}
	w.id = s.nextID
	s.nextID++
	return true
}

// Refuse queues the response to a creation that is not to be: one that the
// caller does not permit, for instance.
func (s *Stream) Refuse(ctx context.Context, reason string) error {
	if err := s.awaitRoom(ctx); err != nil {
		return err
	}
	rev := s.h.src.Revision()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.reply(refused(rev, reason))
	return nil
}

func refused(rev int64, reason string) *pb.WatchResponse {
	return &pb.WatchResponse{Header: header(rev), WatchId: noID, Created: true, Canceled: true, CancelReason: reason}
}

// Cancel removes the watcher id and queues the response. There is none if no
// such watcher exists, as in etcd. It waits as Create does.
func (s *Stream) Cancel(ctx context.Context, id int64) error {
	if err := s.awaitRoom(ctx); err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	w := s.watchers[id]
	if w == nil {
		return nil
	}
	s.remove(w)
	s.reply(&pb.WatchResponse{Header: header(s.h.src.Revision()), WatchId: id, Canceled: true})
	return nil
}

// remove ends w. Both locks are held.
func (s *Stream) remove(w *watcher) {
	switch w.state {
	case synced:
		s.h.synced.remove(w)
	case lagging:
		s.lag.remove(w)
		s.h.counts.lagging.Add(-1)
	case compacted:
		s.dead--
	}
	w.state = canceled
	delete(s.ahead, w)
	delete(s.watchers, w.id)
	s.h.counts.watchers.Add(-1)
}

// Close ends the stream: nothing more is queued and Next returns ErrClosed.
func (s *Stream) Close() {
	s.mu.Lock()
	s.shut()
	s.mu.Unlock()

	// A few watchers at a time, for others wait for the hub.
	for more := true; more; {
		s.h.mu.Lock()
		s.h.clearAlarm(s)
		delete(s.h.streams, s)
		s.h.open.Store(int64(len(s.h.streams)))
		s.mu.Lock()
		n := 0
		for _, w := range s.watchers {
			if n++; n > closeBatch {
				break
			}
			s.remove(w)
		}
		more = len(s.watchers) > 0
		s.mu.Unlock()
		s.h.mu.Unlock()
	}
}

// shut drops the queue and refuses all that follows. s.mu is held.
func (s *Stream) shut() {
	if s.closed {
		return
	}
	s.closed = true
	s.h.counts.pending.Add(-int64(s.queue.events))
	s.queue = queue{}
	close(s.done)
	s.signal()
}

// reply queues a response without events. s.mu is held.
func (s *Stream) reply(r *pb.WatchResponse) {
	s.queue.push(delivery{reply: r})
	if s.queue.len() == 1 {
		s.signal()
	}
}

// signal makes Next look again.
func (s *Stream) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// awaitRoom waits until there are fewer than maxReplies unsent replies.
func (s *Stream) awaitRoom(ctx context.Context) error {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return ErrClosed
		}
		if s.queue.replies < maxReplies {
			s.mu.Unlock()
			return nil
		}
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.mu.Unlock()
		select {
		case <-room:
		case <-s.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func header(rev int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: rev} }
