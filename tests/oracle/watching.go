package oracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// askAgain is after how long progress is requested again: etcd ignores the request while a watcher is still
// reading history.
const askAgain = 20 * time.Millisecond

// someStream picks an open stream, or opens one.
func (r *runner) someStream() (*streamPair, error) {
	if len(r.streams) == maxStreams || len(r.streams) > 0 && r.gen.chance(700) {
		return pick(r.gen, r.streams), nil
	}
	ref, err := openStream(r.ref, r.board)
	if err != nil {
		return nil, fmt.Errorf("reference: %w", err)
	}
	m := r.turn()
	sub, err := openStream(m, r.board)
	if err != nil {
		ref.close()
		return nil, fmt.Errorf("subject: %w", err)
	}
	p := &streamPair{ref: ref, sub: sub, member: m}
	r.streams = append(r.streams, p)
	return p, nil
}

// createWatcher asks for a new watcher and compares the announcement.
func (r *runner) createWatcher(ctx context.Context) error {
	p, err := r.someStream()
	if err != nil || len(p.watchers) == maxWatchers {
		return err
	}
	req := r.gen.watchRequest()
	// A watcher that reads history can be waited for only where none waits for the future.
	switch {
	case req.StartRevision > r.gen.rev:
		if err := r.awaitStream(ctx, p); err != nil {
			return err
		}
	case req.StartRevision > 0 && p.holdsBack(r.gen.rev):
		req.StartRevision = 0
	}
	resp, err := r.control(ctx, p, "Watch create", &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
	if err != nil || resp.Canceled {
		return err
	}
	w := &watcher{ordinal: p.created, id: resp.WatchId, start: req.StartRevision, key: req.Key}
	w.certain = len(req.Filters) == 0 && len(req.Key) > 0
	w.doomed = w.start > 0 && w.start < r.gen.compacted
	p.created++
	p.watchers = append(p.watchers, w)
	if w.start > 0 && w.start <= r.gen.rev {
		p.lagging = true
		if w.doomed || r.gen.chance(500) {
			return r.awaitStream(ctx, p)
		}
	}
	return nil
}

// cancelWatcher cancels a watcher, mostly one that exists.
func (r *runner) cancelWatcher(ctx context.Context) error {
	if len(r.streams) == 0 {
		return nil
	}
	p := pick(r.gen, r.streams)
	if len(p.watchers) == 0 || r.gen.chance(50) {
		return r.cancelUnknown(p)
	}
	// Events that are on their way when the cancellation arrives may be dropped.
	if err := r.awaitStream(ctx, p); err != nil || len(p.watchers) == 0 {
		return err
	}
	return r.cancel(ctx, p, pick(r.gen, p.watchers))
}

func (r *runner) cancel(ctx context.Context, p *streamPair, w *watcher) error {
	_, err := r.control(ctx, p, "Watch cancel", cancelRequest(w.id))
	p.watchers = slices.DeleteFunc(p.watchers, func(o *watcher) bool { return o == w })
	return err
}

// cancelUnknown cancels a watcher that does not exist, which no server answers: an answer would be found in
// place of the next one.
func (r *runner) cancelUnknown(p *streamPair) error {
	id := pick(r.gen, []int64{99, -99, 0, 7})
	if p.find(id) >= 0 {
		return nil
	}
	r.stats.Ops++
	r.stats.ByName["Watch cancel unknown"]++
	return p.send(cancelRequest(id))
}

func cancelRequest(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

// control sends a request that is answered at once and compares the answers.
func (r *runner) control(ctx context.Context, p *streamPair, name string, req *pb.WatchRequest) (*pb.WatchResponse, error) {
	r.stats.Ops++
	r.stats.ByName[name]++
	if err := r.catchUp(ctx, p.member); err != nil {
		return nil, err
	}
	if err := p.send(req); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.opts.WatchTimeout)
	defer cancel()
	var ref, sub *pb.WatchResponse
	err := r.board.await(ctx, func() bool {
		return (len(p.ref.control) > 0 || p.ref.ended != "") && (len(p.sub.control) > 0 || p.sub.ended != "")
	})
	r.board.update(func() { ref, sub = p.ref.takeControl(), p.sub.takeControl() })
	if r.opts.Trace != nil {
		r.opts.Trace(r.step, name+" "+show(req), p.ref.describe(ref))
	}
	if err != nil || ref == nil || sub == nil || !proto.Equal(ref, sub) {
		return nil, r.difference(name+" "+show(req)+r.through(p.member), p.ref.describe(ref), p.sub.describe(sub))
	}
	return ref, nil
}

// takeControl removes the first control response. The caller holds board.mu.
func (w *watchStream) takeControl() *pb.WatchResponse {
	if len(w.control) == 0 {
		return nil
	}
	first := w.control[0]
	w.control = w.control[1:]
	return first
}

// describe names a control response or says why there is none.
func (w *watchStream) describe(resp *pb.WatchResponse) string {
	if resp != nil {
		return show(resp)
	}
	w.board.mu.Lock()
	defer w.board.mu.Unlock()
	if w.ended != "" {
		return "the stream ended: " + w.ended
	}
	return "no answer"
}

// requestProgress compares how the servers answer a progress request. While a watcher waits for a future
// revision etcd gives no answer; a request that is refused marks the place by which one would have come.
func (r *runner) requestProgress(ctx context.Context) error {
	if len(r.streams) == 0 {
		return nil
	}
	p := pick(r.gen, r.streams)
	if err := r.awaitStream(ctx, p); err != nil || !p.holdsBack(r.gen.rev) {
		return err
	}
	r.board.mu.Lock()
	before := [2]int{p.ref.notices, p.sub.notices}
	r.board.mu.Unlock()
	if err := p.send(progressRequest()); err != nil {
		return err
	}
	refused := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{StartRevision: -1}}}
	if _, err := r.control(ctx, p, "Watch progress while a watcher waits for the future", refused); err != nil {
		return err
	}
	r.board.mu.Lock()
	ref, sub := p.ref.notices-before[0], p.sub.notices-before[1]
	r.board.mu.Unlock()
	if ref != sub {
		return r.difference("Watch progress request while a watcher waits for a future revision",
			fmt.Sprintf("%d notifications", ref), fmt.Sprintf("%d notifications", sub))
	}
	return nil
}

func progressRequest() *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
}

// endStream ends the client's half of a stream, after which etcd goes on serving its watchers, and then the
// whole of it.
func (r *runner) endStream(ctx context.Context) error {
	if len(r.streams) == 0 {
		return nil
	}
	i := r.gen.IntN(len(r.streams))
	p := r.streams[i]
	if err := r.awaitStream(ctx, p); err != nil {
		return err
	}
	r.streams = slices.Delete(r.streams, i, i+1)
	defer p.close()
	if err := errors.Join(p.ref.call.CloseSend(), p.sub.call.CloseSend()); err != nil {
		return err
	}
	for _, w := range p.watchers {
		if !w.certain || w.start > r.gen.rev {
			continue
		}
		o := putCall(&pb.PutRequest{Key: w.key})
		o.name = "Put (to a watcher of a half-closed stream)"
		if err := r.send(ctx, o); err != nil {
			return err
		}
		if err := r.awaitEntry(ctx, p, w); err != nil {
			return err
		}
	}
	return r.compareStream(ctx, p)
}

// awaitEntry returns when both servers have told a watcher something, or when one cannot any more.
func (r *runner) awaitEntry(ctx context.Context, p *streamPair, w *watcher) error {
	ctx, cancel := context.WithTimeout(ctx, r.opts.WatchTimeout)
	defer cancel()
	told := func(s *watchStream) bool { return len(s.logs[w.ordinal].entries) > 0 }
	err := r.board.await(ctx, func() bool {
		return told(p.ref) && told(p.sub) || p.ref.stuck() || p.sub.stuck()
	})
	if err == nil {
		return nil
	}
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	return r.difference(fmt.Sprintf("waiting for something to reach the watcher of %q", w.key),
		fmt.Sprintf("told: %v; %s", told(p.ref), p.ref.state()), fmt.Sprintf("told: %v; %s", told(p.sub), p.sub.state()))
}

// openClientWatcher opens a watcher through clientv3. It starts now or in the past.
func (r *runner) openClientWatcher(ctx context.Context) error {
	if len(r.clients) == maxClientWatchers {
		return nil
	}
	req := r.gen.watchRequest()
	if req.StartRevision > r.gen.rev+1 {
		req.StartRevision = 0
	}
	if len(req.Key) == 0 {
		req.Key = []byte{0}
	}
	if len(req.RangeEnd) > 0 && string(req.RangeEnd) != "\x00" && bytes.Compare(req.Key, req.RangeEnd) >= 0 {
		req.RangeEnd = nil // refused by the server; clientv3 then tries again for ever
	}
	announce := r.gen.chance(500)
	r.stats.Ops++
	r.stats.ByName["Watch through clientv3"]++
	m := r.turn()
	if err := r.catchUp(ctx, m); err != nil {
		return err
	}
	p := &clientWatchPair{
		ref:    openClientWatch(r.ref, r.board, req, announce),
		sub:    openClientWatch(m, r.board, req, announce),
		member: m,
	}
	r.clients = append(r.clients, p)
	r.clientsLag = true
	// A watcher that starts now must have started before the next write.
	return r.awaitClients(ctx)
}

func (r *runner) closeClientWatcher(ctx context.Context) error {
	if len(r.clients) == 0 {
		return nil
	}
	i := r.gen.IntN(len(r.clients))
	if err := r.awaitClients(ctx); err != nil {
		return err
	}
	r.clients[i].close()
	r.clients = slices.Delete(r.clients, i, i+1)
	return nil
}

// awaitWatchers compares what all watchers have been told up to now.
func (r *runner) awaitWatchers(ctx context.Context) error {
	for _, p := range r.streams {
		if err := r.awaitStream(ctx, p); err != nil {
			return err
		}
	}
	return r.awaitClients(ctx)
}

// awaitStream waits until the servers have told a stream's watchers everything, and compares it.
func (r *runner) awaitStream(ctx context.Context, p *streamPair) error {
	if err := r.awaitDoomed(ctx, p); err != nil {
		return err
	}
	if len(p.watchers) > 0 && !p.holdsBack(r.gen.rev) {
		if p.lagging {
			// Progress to a revision after the request proves that it is not an older notification.
			if err := r.send(ctx, putCall(&pb.PutRequest{Key: []byte("sentinel"), Value: []byte("watch")})); err != nil {
				return err
			}
		}
		if err := r.barrier(ctx, p); err != nil {
			return err
		}
		p.lagging = false
	}
	return r.compareStream(ctx, p)
}

// awaitDoomed waits for the end of watchers that began before the compacted revision, and confirms it, as
// clientv3 does; until then etcd gives the stream no progress.
func (r *runner) awaitDoomed(ctx context.Context, p *streamPair) error {
	for _, w := range slices.Clone(p.watchers) {
		if !w.doomed {
			continue
		}
		if err := r.awaitEntry(ctx, p, w); err != nil {
			return err
		}
		if err := r.compareStream(ctx, p); err != nil {
			return err
		}
		if err := r.cancel(ctx, p, w); err != nil {
			return err
		}
	}
	return nil
}

// barrier returns when both servers have notified progress to the current revision.
func (r *runner) barrier(ctx context.Context, p *streamPair) error {
	r.stats.Ops++
	r.stats.ByName["Watch progress"]++
	goal := r.gen.rev
	err := r.insist(ctx,
		func(context.Context) error { return p.send(progressRequest()) },
		func() bool {
			reached := p.ref.reached >= goal && p.sub.reached >= goal
			return reached || p.ref.stuck() || p.sub.stuck()
		})
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	if err != nil || p.ref.stuck() || p.sub.stuck() || p.ref.reached != p.sub.reached {
		return r.difference(fmt.Sprintf("Watch progress request at revision %d", goal), p.ref.state(), p.sub.state())
	}
	for _, w := range p.watchers {
		p.ref.logs[w.ordinal].synced = true
		p.sub.logs[w.ordinal].synced = true
	}
	return nil
}

// insist repeats a request until the condition holds, whose evaluation board.mu guards.
func (r *runner) insist(ctx context.Context, ask func(context.Context) error, condition func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, r.opts.WatchTimeout)
	defer cancel()
	for {
		if err := ask(ctx); err != nil {
			return err
		}
		waiting, stop := context.WithTimeout(ctx, askAgain)
		err := r.board.await(waiting, condition)
		stop()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// stuck is whether there is nothing to wait for. The caller holds board.mu.
func (w *watchStream) stuck() bool { return w.broken != "" || w.ended != "" }

// state tells how far a stream is. The caller holds board.mu.
func (w *watchStream) state() string {
	return strings.Join([]string{
		fmt.Sprintf("progress to %d", w.reached),
		"broken promise: " + orNone(w.broken),
		"end: " + orNone(w.ended),
	}, "; ")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// compareStream compares what the watchers of a stream have been told since the last time. A server that has
// told less than the other may still be about to, and is given time.
func (r *runner) compareStream(ctx context.Context, p *streamPair) error {
	ctx, cancel := context.WithTimeout(ctx, r.opts.WatchTimeout)
	defer cancel()
	equal := func() bool {
		for i := range p.ref.logs {
			if !equalLogs(p.ref.logs[i], p.sub.logs[i]) {
				return false
			}
		}
		return true
	}
	err := r.board.await(ctx, func() bool { return equal() || p.ref.stuck() || p.sub.stuck() })
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	if err != nil || p.ref.stuck() || p.sub.stuck() {
		for i := range p.ref.logs {
			if ref, sub := p.ref.logs[i], p.sub.logs[i]; !equalLogs(ref, sub) {
				return r.logDifference(fmt.Sprintf("events of watcher %d of a stream", i), ref, sub)
			}
		}
		return r.difference("events of a watch stream", p.ref.state(), p.sub.state())
	}
	for i := range p.ref.logs {
		r.stats.Events += len(p.ref.logs[i].entries)
		p.ref.logs[i].entries, p.sub.logs[i].entries = nil, nil
	}
	return nil
}

func equalLogs(a, b *watchLog) bool { return slices.EqualFunc(a.entries, b.entries, entry.equal) }

// logDifference shows the first entry that differs. The caller holds board.mu.
func (r *runner) logDifference(what string, ref, sub *watchLog) error {
	at := 0
	for at < len(ref.entries) && at < len(sub.entries) && ref.entries[at].equal(sub.entries[at]) {
		at++
	}
	nth := func(l *watchLog) string {
		if at == len(l.entries) {
			return fmt.Sprintf("nothing after %d entries", at)
		}
		return l.entries[at].String()
	}
	return r.difference(what, nth(ref), nth(sub))
}

// awaitClients waits until clientv3's watchers have been told everything, and compares it.
func (r *runner) awaitClients(ctx context.Context) error {
	if len(r.clients) == 0 {
		return nil
	}
	if r.clientsLag {
		if err := r.clientBarrier(ctx); err != nil {
			return err
		}
		r.clientsLag = false
	}
	waiting, cancel := context.WithTimeout(ctx, r.opts.WatchTimeout)
	defer cancel()
	err := r.board.await(waiting, func() bool {
		for _, p := range r.clients {
			if !equalLogs(&p.ref.log, &p.sub.log) || p.ref.ended != p.sub.ended {
				return false
			}
		}
		return true
	})
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	for _, p := range r.clients {
		if err != nil && (!equalLogs(&p.ref.log, &p.sub.log) || p.ref.ended != p.sub.ended) {
			return r.logDifference("events of a watcher of clientv3's", &p.ref.log, &p.sub.log)
		}
		if p.ref.broken != p.sub.broken {
			return r.difference("events of a watcher of clientv3's", orNone(p.ref.broken), orNone(p.sub.broken))
		}
		r.stats.Events += len(p.ref.log.entries)
		p.ref.log.entries, p.sub.log.entries = nil, nil
	}
	return nil
}

// clientBarrier returns when all watchers of clientv3's are known to have started and to have read history.
func (r *runner) clientBarrier(ctx context.Context) error {
	if err := r.send(ctx, putCall(&pb.PutRequest{Key: []byte("sentinel"), Value: []byte("clientv3")})); err != nil {
		return err
	}
	goal := r.gen.rev
	r.stats.Ops++
	r.stats.ByName["Watch progress through clientv3"]++
	err := r.insist(ctx,
		func(ctx context.Context) error {
			err := r.ref.cli.RequestProgress(ctx)
			for _, m := range r.present() {
				if slices.ContainsFunc(r.clients, func(p *clientWatchPair) bool { return p.member == m }) {
					err = errors.Join(err, m.cli.RequestProgress(ctx))
				}
			}
			return err
		},
		func() bool {
			for _, p := range r.clients {
				if !p.ref.arrived(goal) || !p.sub.arrived(goal) {
					return false
				}
			}
			return true
		})
	if err == nil {
		return nil
	}
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	for _, p := range r.clients {
		if !p.ref.arrived(goal) || !p.sub.arrived(goal) {
			return r.difference(fmt.Sprintf("progress of a watcher of clientv3's to %d", goal),
				fmt.Sprintf("%d, ended: %v", p.ref.reached, p.ref.ended), fmt.Sprintf("%d, ended: %v", p.sub.reached, p.sub.ended))
		}
	}
	return err
}

// arrived is whether the watcher has reached the revision or its end. The caller holds board.mu.
func (w *clientWatch) arrived(rev int64) bool { return w.reached >= rev || w.ended }

// fragments makes more history than one watch response may hold and reads it in fragments.
func (r *runner) fragments(ctx context.Context) error {
	start := r.gen.rev + 1
	key := r.gen.ordinaryKey()
	const each = maxRequestBytes / 2
	for range 2*(maxRequestBytes+512<<10)/each + 3 {
		o := putCall(&pb.PutRequest{Key: key, Value: bytes.Repeat([]byte{byte(r.gen.IntN(256))}, each)})
		o.name = "Put (for fragments)"
		if err := r.send(ctx, o); err != nil {
			return err
		}
	}
	p, err := r.someStream()
	if err != nil || p.holdsBack(r.gen.rev) {
		return err // see createWatcher
	}
	req := &pb.WatchCreateRequest{Key: key, StartRevision: start, Fragment: true, PrevKv: r.gen.chance(300)}
	resp, err := r.control(ctx, p, "Watch create", &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
	if err != nil {
		return err
	}
	p.watchers = append(p.watchers, &watcher{ordinal: p.created, id: resp.WatchId, start: start})
	p.created++
	p.lagging = true
	return r.awaitStream(ctx, p)
}
