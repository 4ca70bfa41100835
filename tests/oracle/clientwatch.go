package oracle

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// clientWatch is one watcher of clientv3's on one server. Its receiver runs until the channel closes.
type clientWatch struct {
	board  *board
	cancel context.CancelFunc
	done   chan struct{} // closed by the receiver at its end

	// Guarded by board.mu.
	log     watchLog
	reached int64 // highest revision of a progress notification
	broken  string
	ended   bool
}

// clientWatchPair is the same watcher on both servers.
type clientWatchPair struct {
	ref, sub *clientWatch
	member   *side // of the subject, that serves it
}

func (p *clientWatchPair) close() {
	p.ref.close()
	p.sub.close()
}

// openClientWatch starts a watcher and its receiver, which close stops and waits for.
func openClientWatch(s *side, b *board, req *pb.WatchCreateRequest, announce bool) *clientWatch {
	opts := append(rangeEndOption(req.RangeEnd), clientv3.WithRev(req.StartRevision))
	opts = appendIf(opts, req.PrevKv, clientv3.WithPrevKV())
	opts = appendIf(opts, req.Fragment, clientv3.WithFragment())
	opts = appendIf(opts, announce, clientv3.WithCreatedNotify())
	for _, f := range req.Filters {
		opts = appendIf(opts, f == pb.WatchCreateRequest_NOPUT, clientv3.WithFilterPut())
		opts = appendIf(opts, f == pb.WatchCreateRequest_NODELETE, clientv3.WithFilterDelete())
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &clientWatch{board: b, cancel: cancel, done: make(chan struct{})}
	responses := s.cli.Watch(ctx, string(req.Key), opts...)
	go w.receive(responses)
	return w
}

// close ends the watcher. The wait for its receiver is bounded: clientv3 forgets a watcher, and never closes its
// channel, when a server announces another one under the same id.
func (w *clientWatch) close() {
	w.cancel()
	late := time.NewTimer(5 * time.Second)
	defer late.Stop()
	select {
	case <-w.done:
	case <-late.C:
	}
}

func (w *clientWatch) receive(responses clientv3.WatchChan) {
	defer close(w.done)
	for resp := range responses {
		w.board.update(func() { w.take(resp) })
	}
	w.board.update(func() { w.ended = true })
}

// take files one response. The caller holds board.mu.
func (w *clientWatch) take(resp clientv3.WatchResponse) {
	rev := resp.Header.GetRevision()
	switch {
	case resp.Canceled:
		w.log.entries = append(w.log.entries, entry{note: fmt.Sprintf("canceled, compacted at %d: %v", resp.CompactRevision, resp.Err())})
	case resp.Created:
		w.log.entries = append(w.log.entries, entry{note: fmt.Sprintf("created at %d", rev)})
	case resp.IsProgressNotify():
		w.reached = max(w.reached, rev)
	}
	if wrong := w.log.note(resp.Events, rev, false); wrong != "" {
		w.broken = wrong
	}
}
