package sim

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/watch"
)

// watcher is a client that watches a range, on one member after another, and
// checks what it is told.
type watcher struct {
	draws
	w        *world
	id       int
	key, end []byte
	prevKV   bool
	slow     bool // it leaves much unread at times

	next   int64 // the first revision that it has not been told of
	p      *process
	stream *watch.Stream
	reader *reader
	turn   int // of streams
}

func newWatcher(w *world, id int) *watcher {
	x := &watcher{draws: drawsOf(w.seed, numbered(aWatcher, id)), w: w, id: id}
	x.prevKV, x.slow = x.chance(50), x.chance(20)
	x.key, x.end = w.span(x.draws)
	return x
}

// reader passes on what comes from a stream.
type reader struct {
	stream *watch.Stream
	cancel context.CancelFunc
}

// begin opens a stream on some member.
func (x *watcher) begin() {
	p := x.w.someone(x.draws)
	if p == nil {
		x.w.after(50*time.Millisecond, x.begin)
		return
	}
	if x.next == 0 {
		if x.next = x.w.truth.revision() + 1; x.chance(30) {
			x.next += int64(x.draw(20)) // of the future
		}
	}
	x.turn++
	x.p = p
	x.stream = p.replica.Machine().Watch.NewStream()
	ctx, cancel := context.WithCancel(context.Background())
	x.reader = &reader{stream: x.stream, cancel: cancel}
	r, turn := x.reader, x.turn
	req := &pb.WatchCreateRequest{Key: x.key, RangeEnd: x.end, StartRevision: x.next, PrevKv: x.prevKV, ProgressNotify: true}
	name := fmt.Sprintf("watcher %d", x.id)
	x.w.ending.Go(func() { // until the stream is closed
		defer cancel()
		if err := r.stream.Create(ctx, req); err != nil {
			x.w.post(name, func() { x.lost(turn, err) })
			return
		}
		for {
			began := time.Now()
			rs, err := r.stream.Next(ctx)
			if x.w.canary == deafStream && time.Since(began) > progressInterval/2 {
				<-ctx.Done()
			}
			if err != nil {
				x.w.post(name, func() { x.lost(turn, err) })
				return
			}
			for i := range rs.Len() {
				b, err := rs.AppendMessage(nil, i)
				m := &pb.WatchResponse{}
				if err == nil {
					err = proto.Unmarshal(b, m)
				}
				x.w.post(name, func() { x.told(turn, m, err) })
			}
			if x.slow {
				time.Sleep(30 * time.Millisecond)
			}
		}
	})
	// A connection does not last.
	x.w.after(x.between(100*time.Millisecond, 4*time.Second), func() {
		if x.turn == turn && !x.w.steady {
			x.leave(nil)
		}
	})
	if x.chance(50) {
		x.w.after(x.between(0, time.Second), func() {
			if x.turn == turn && x.p.alive() {
				x.stream.RequestProgress()
			}
		})
	}
}

// leave ends a stream and begins another.
func (x *watcher) leave(err error) {
	if x.reader == nil {
		return // it is between two streams
	}
	x.turn++
	x.reader.cancel()
	stream := x.stream
	x.p, x.reader = nil, nil
	if x.w.canary != openStream {
		x.w.ending.Go(stream.Close)
	}
	x.w.after(x.between(0, 30*time.Millisecond), x.begin)
}

func (x *watcher) lost(turn int, err error) {
	if turn != x.turn {
		return
	}
	if !errors.Is(err, watch.ErrClosed) && x.p.alive() {
		x.w.fail("watcher %d: its stream fails with %v", x.id, err)
	}
	x.leave(err)
}

// told checks a response.
func (x *watcher) told(turn int, m *pb.WatchResponse, err error) {
	if turn != x.turn || !x.p.alive() {
		return
	}
	bad := func(format string, args ...any) {
		x.w.failAs(format, fmt.Sprintf("watcher %d of [%s, %s) on member %d, which has all before revision %d: ", x.id, x.key, x.end, x.p.m.id, x.next)+fmt.Sprintf(format, args...))
	}
	if err != nil {
		bad("its response cannot be decoded: %v", err)
		return
	}
	if x.w.canary == lostEvent && !x.w.forget(m) {
		return
	}
	rev := m.GetHeader().GetRevision()
	if x.w.canary == hastyBookmark && len(m.Events) == 0 && !m.Created && !m.Canceled {
		rev++
	}
	switch {
	case m.Created && m.CompactRevision == 0:
		return
	case m.CompactRevision != 0:
		if x.next >= m.CompactRevision || m.CompactRevision > x.w.truth.compacted() {
			bad("it is canceled for a compaction to %d; that of the cluster is to %d", m.CompactRevision, x.w.truth.compacted())
		}
		// As a client does, it begins anew with the state of the compaction.
		x.next = m.CompactRevision
		x.leave(nil)
		return
	case m.Canceled:
		bad("it is canceled: %s", m.CancelReason)
		return
	case len(m.Events) == 0: // all up to here has been told
		if rev > x.w.truth.revision() {
			bad("its bookmark is of revision %d, and nobody has applied more than %d", rev, x.w.truth.revision())
		}
		if missed := x.w.truth.eventsOf(x.key, x.end, x.next, rev); len(missed) > 0 {
			bad("its bookmark of revision %d comes before %v", rev, missed[0])
		}
		x.next = max(x.next, rev+1)
		x.w.tally.progress++
		return
	}
	last := m.Events[len(m.Events)-1].Kv.ModRevision
	if rev < last {
		bad("a response of revision %d has an event of %d", rev, last)
	}
	var want []*mvccpb.Event
	for _, evs := range x.w.truth.eventsOf(x.key, x.end, x.next, last) {
		want = append(want, evs...)
	}
	if len(want) != len(m.Events) {
		bad("it gets %d events up to revision %d, not %d: %v, not %v", len(m.Events), last, len(want), m.Events, want)
		return
	}
	for i, e := range m.Events {
		w := proto.CloneOf(want[i])
		if x.prevKV {
			kv, forgotten := x.w.truth.before(e)
			// What was deleted before in the same revision has, as with etcd, no value before.
			if created := w.Type == mvccpb.Event_PUT && w.Kv.CreateRevision == w.Kv.ModRevision; !created && (e.PrevKv != nil || !forgotten) {
				w.PrevKv = kv
			}
		}
		if !proto.Equal(e, w) {
			bad("it gets the event %v, not %v", e, w)
			return
		}
	}
	x.w.tally.events += len(m.Events)
	x.next = last + 1
}

// missing is how much the watcher has not been told of up to a revision.
func (x *watcher) missing(rev int64) int {
	return len(x.w.truth.eventsOf(x.key, x.end, x.next, rev))
}
