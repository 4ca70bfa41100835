package oracle

import (
	"context"
	"fmt"
	"math"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// board is what the receivers of both servers' watch responses write and the runner reads.
type board struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change. Guarded by mu.
}

func newBoard() *board { return &board{changed: make(chan struct{})} }

func (b *board) update(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	close(b.changed)
	b.changed = make(chan struct{})
}

// await returns when the condition, which is evaluated under the lock, holds.
func (b *board) await(ctx context.Context, condition func() bool) error {
	for {
		b.mu.Lock()
		holds, changed := condition(), b.changed
		b.mu.Unlock()
		if holds {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// entry is one thing that a watcher was told: an event, or a note on its own state.
type entry struct {
	event *mvccpb.Event
	note  string
}

func (e entry) equal(o entry) bool { return e.note == o.note && proto.Equal(e.event, o.event) }

func (e entry) String() string {
	if e.event == nil {
		return e.note
	}
	return show(e.event)
}

// watchLog is what one watcher was told that has not been compared yet. Guarded by board.mu.
type watchLog struct {
	entries  []entry
	lastRev  int64 // of the events so far
	partial  bool  // the last response said that a fragment follows
	synced   bool  // has been seen to have read all history, so that progress speaks for it too
	progress int64 // highest revision that a progress notification has named since
}

// note takes a response and returns what is wrong with it by itself.
func (l *watchLog) note(events []*mvccpb.Event, headerRev int64, fragment bool) string {
	for i, ev := range events {
		rev := ev.Kv.ModRevision
		switch {
		case rev < l.lastRev:
			return fmt.Sprintf("revision %d after %d", rev, l.lastRev)
		case rev == l.lastRev && i == 0 && !l.partial:
			return fmt.Sprintf("revision %d is spread over two responses", rev)
		case rev <= l.progress:
			return fmt.Sprintf("an event at %d after progress was notified to %d", rev, l.progress)
		case rev > headerRev:
			return fmt.Sprintf("an event at %d under a header of %d", rev, headerRev)
		}
		l.lastRev = rev
		l.entries = append(l.entries, entry{event: ev})
	}
	l.partial = fragment
	return ""
}

// watchStream is one Watch call on one server. Its receiver runs until the call ends.
type watchStream struct {
	board  *board
	call   pb.Watch_WatchClient
	cancel context.CancelFunc
	done   chan struct{} // closed by the receiver at its end
	etcd   bool          // the server is etcd, which at times notifies one watcher unasked

	// Guarded by board.mu.
	control []*pb.WatchResponse // created and canceled responses not compared yet
	logs    []*watchLog         // in order of creation; index is the watcher's ordinal
	byID    map[int64]*watchLog // live watchers
	reached int64               // highest revision of a progress notification for the whole stream
	notices int                 // number of progress notifications that were asked for
	broken  string              // a promise that the server has broken by itself
	ended   string              // how the call ended; empty while it runs
}

// openStream starts a Watch call and its receiver, which close stops and waits for.
func openStream(s *side, b *board) (*watchStream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	call, err := s.watch.Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watchStream{board: b, call: call, cancel: cancel, done: make(chan struct{}), byID: map[int64]*watchLog{},
		etcd: s.server.Name() == "etcd"}
	go w.receive()
	return w, nil
}

func (w *watchStream) close() {
	w.cancel()
	<-w.done
}

func (w *watchStream) receive() {
	defer close(w.done)
	for {
		resp, err := w.call.Recv()
		if err != nil {
			w.board.update(func() { w.ended = describe(err) })
			return
		}
		w.board.update(func() { w.take(resp) })
	}
}

// take files one response. The caller holds board.mu.
func (w *watchStream) take(resp *pb.WatchResponse) {
	rev := resp.Header.GetRevision()
	log := w.byID[resp.WatchId]
	switch {
	case resp.CompactRevision != 0:
		if log == nil {
			w.broken = "compaction canceled an unknown watcher: " + show(resp)
			return
		}
		normalise(resp)
		log.entries = append(log.entries, entry{note: show(resp)})
	case resp.Created || resp.Canceled:
		normalise(resp)
		w.control = append(w.control, resp)
		if resp.Created && !resp.Canceled {
			log = &watchLog{}
			w.byID[resp.WatchId] = log
			w.logs = append(w.logs, log)
		} else if !resp.Created {
			delete(w.byID, resp.WatchId)
		}
	case len(resp.Events) == 0:
		if resp.WatchId != clientv3.InvalidWatchID {
			if w.etcd {
				return // seen on a loaded machine; it says nothing that the next notification does not
			}
			w.broken = "a progress notification that nobody asked for: " + show(resp)
			return
		}
		w.notices++
		w.reached = max(w.reached, rev)
		for _, l := range w.byID {
			// A notification from before the watcher was created may arrive after its creation.
			if l.synced {
				l.progress = max(l.progress, rev)
			}
		}
	case log == nil:
		w.broken = "events for an unknown watcher: " + show(resp)
	default:
		if wrong := log.note(resp.Events, rev, resp.Fragment); wrong != "" {
			w.broken = wrong + ": " + show(resp)
		}
	}
}

// watcher is what the runner knows of a watcher on both servers.
type watcher struct {
	ordinal int
	id      int64
	start   int64
	key     []byte
	certain bool // is told of every put of its key
	doomed  bool // starts before the last compaction
}

// streamPair is the same Watch call on both servers.
type streamPair struct {
	ref, sub *watchStream
	member   *side      // of the subject, that serves it
	watchers []*watcher // live
	created  int        // watchers made so far, live or not
	lagging  bool       // a watcher may still be reading history
}

func (p *streamPair) close() {
	p.ref.close()
	p.sub.close()
}

func (p *streamPair) send(req *pb.WatchRequest) error {
	if err := p.ref.call.Send(req); err != nil {
		return fmt.Errorf("reference: send %s: %w", show(req), err)
	}
	if err := p.sub.call.Send(req); err != nil {
		return fmt.Errorf("subject: send %s: %w", show(req), err)
	}
	return nil
}

// holdsBack is whether etcd keeps progress to itself: it does while a watcher waits for a future revision.
func (p *streamPair) holdsBack(rev int64) bool {
	for _, w := range p.watchers {
		if w.start > rev {
			return true
		}
	}
	return false
}

// find gives the index of the live watcher with the id, or -1.
func (p *streamPair) find(id int64) int {
	for i, w := range p.watchers {
		if w.id == id {
			return i
		}
	}
	return -1
}

// watchRequest makes a request for a new watcher. The id -1 is left out: etcd accepts it but uses it itself to
// mean the whole stream.
func (g *generator) watchRequest() *pb.WatchCreateRequest {
	r := &pb.WatchCreateRequest{Key: g.key(), PrevKv: g.chance(400), Fragment: g.chance(200), ProgressNotify: g.chance(100)}
	r.RangeEnd = g.rangeEnd(r.Key)
	switch n := g.IntN(100); {
	case n < 50:
	case n < 65:
		r.StartRevision = max(g.compacted, 1) + g.Int64N(max(1, g.rev-max(g.compacted, 1)+1))
	case n < 70:
		r.StartRevision = g.compacted
	case n < 74:
		r.StartRevision = g.compacted - 1
	case n < 80:
		r.StartRevision = g.rev
	case n < 85:
		r.StartRevision = g.rev + 1
	case n < 92:
		r.StartRevision = g.rev + 2 + g.Int64N(30)
	default:
		r.StartRevision = pick(g, []int64{1, 2, -1, math.MinInt64, math.MaxInt64})
	}
	for g.chance(200) {
		r.Filters = append(r.Filters, pick(g, []pb.WatchCreateRequest_FilterType{
			pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE, pb.WatchCreateRequest_NODELETE, 2, -1}))
	}
	if g.chance(300) {
		r.WatchId = pick(g, []int64{1, 2, 3, 4, -7, math.MinInt64, math.MaxInt64})
	}
	return r
}
