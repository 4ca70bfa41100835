package witness

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// outcome is why an attempt to watch ended.
type outcome int

const (
	interrupted outcome = iota // by the server, or by the end of its time
	complete                   // the last revision has been told
	over                       // the traffic is closed
)

// watch watches through one member from the first revision on, until everything has been told. The client itself goes on
// after a lost connection; what it is not able to hide begins another attempt.
func (t *Traffic) watch(j *joined, w Watch, member int) {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	defer func() { t.keep(&w, j.ctx.Err() != nil && t.ctx.Err() == nil) }()
	for from := t.notes.Base + 1; ; from = w.next(from) {
		if t.attempt(j.ctx, j.cli, &w, member, from) != interrupted {
			return
		}
		select {
		case <-again.C:
		case <-j.ctx.Done():
			return
		}
	}
}

// wander watches everything through one member after the other, each time for a while, and begins each time behind the
// last event or bookmark that it was told. It wants to be told when its member has no leader.
func (t *Traffic) wander(number int) {
	r := rand.New(rand.NewPCG(t.cfg.Seed, uint64(1000+number)))
	w := Watch{Name: fmt.Sprintf("wandering %d", number), Key: Prefix, Prefix: true, Prev: number == 0}
	defer func() { t.keep(&w, false) }()
	for from := t.notes.Base + 1; t.ctx.Err() == nil; from = w.next(from) {
		ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(t.ctx), 300*time.Millisecond+time.Duration(r.Int64N(int64(time.Second))))
		result := t.attemptAnywhere(ctx, r, &w, from)
		cancel()
		if result != interrupted {
			return
		}
	}
}

// lookBack begins watches in the past, one after the other.
func (t *Traffic) lookBack() {
	r := rand.New(rand.NewPCG(t.cfg.Seed, 2000))
	t.every(t.ctx, 200*time.Millisecond, func() {
		t.mu.Lock()
		last := t.last
		t.mu.Unlock()
		w := Watch{Name: fmt.Sprintf("from the past, at %v", t.Mark()), Key: Prefix, Prefix: r.IntN(2) == 0, Prev: r.IntN(2) == 0}
		if !w.Prefix {
			w.Key = t.key(r.IntN(t.cfg.Keys))
		}
		ctx, cancel := context.WithTimeout(t.ctx, 300*time.Millisecond)
		defer cancel()
		if t.cfg.Apart {
			ctx = clientv3.WithRequireLeader(ctx) // streams are told apart by what is required of them
		}
		t.attemptAnywhere(ctx, r, &w, t.notes.Base+1+r.Int64N(last-t.notes.Base+1))
		t.mu.Lock()
		defer t.mu.Unlock()
		t.notes.Watches = append(t.notes.Watches, w)
	})
}

// attemptAnywhere watches through a member that is drawn, until the context ends.
func (t *Traffic) attemptAnywhere(ctx context.Context, r *rand.Rand, w *Watch, from int64) outcome {
	if running := t.cluster.Running(); len(running) > 0 {
		member := running[r.IntN(len(running))]
		if cli := t.Client(member); cli != nil {
			return t.attempt(ctx, cli, w, member, from)
		}
	}
	<-ctx.Done()
	return interrupted
}

// attempt watches until the member ends it, the context does, or everything has been told.
func (t *Traffic) attempt(ctx context.Context, cli *clientv3.Client, w *Watch, member int, from int64) outcome {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opts := []clientv3.OpOption{clientv3.WithRev(from), clientv3.WithProgressNotify()}
	if w.Prefix {
		opts = append(opts, clientv3.WithPrefix())
	}
	if w.Prev {
		opts = append(opts, clientv3.WithPrevKV())
	}
	w.Attempts = append(w.Attempts, Attempt{Member: member, From: from})
	a := &w.Attempts[len(w.Attempts)-1]
	responses, fenced := cli.Watch(ctx, w.Key, opts...), t.fenced
	for {
		select {
		case <-ctx.Done():
			if t.ctx.Err() != nil {
				return over
			}
			return interrupted
		case <-fenced:
			fenced = nil
		case r, ok := <-responses:
			if !ok || r.Canceled {
				a.Compacted = r.CompactRevision
				return interrupted
			}
			a.Responses = append(a.Responses, response(r))
		}
		if fenced == nil && w.next(from) > t.fence {
			return complete
		}
	}
}

func response(r clientv3.WatchResponse) Response {
	noted := Response{Revision: r.Header.Revision, Progress: r.IsProgressNotify()}
	for _, e := range r.Events {
		noted.Events = append(noted.Events, event(e))
	}
	return noted
}

func event(e *clientv3.Event) Event {
	noted := Event{Pair: pair(e.Kv), Delete: e.Type == clientv3.EventTypeDelete}
	if e.PrevKv != nil {
		prev := pair(e.PrevKv)
		noted.Prev = &prev
	}
	return noted
}

// keep notes a watch that was to be told everything, unless it left before.
func (t *Traffic) keep(w *Watch, left bool) {
	select {
	case <-t.fenced:
		if !left {
			w.Until = t.fence
		}
	default: // the traffic was given up before its end
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notes.Watches = append(t.notes.Watches, *w)
}

// askProgress asks for bookmarks beyond those that come by themselves.
func (t *Traffic) askProgress(j *joined) {
	t.every(j.ctx, 150*time.Millisecond, func() {
		ctx, cancel := context.WithTimeout(j.ctx, t.cfg.Timeout)
		defer cancel()
		_ = j.cli.RequestProgress(ctx) // a member that is down has no bookmarks
	})
}

// compact compacts what is some seconds old, so that watches that lag or begin in the past may lose it.
func (t *Traffic) compact() {
	r := rand.New(rand.NewPCG(t.cfg.Seed, 3000))
	t.every(t.ctx, time.Second, func() {
		running := t.cluster.Running()
		if len(running) == 0 {
			return
		}
		cli := t.Client(running[r.IntN(len(running))])
		t.mu.Lock()
		revision := t.last - t.cfg.Compact
		if cli == nil || revision <= max(t.notes.Base, t.notes.Compacted) {
			t.mu.Unlock()
			return
		}
		t.notes.Compacted = revision
		t.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.ctx, t.cfg.Timeout)
		defer cancel()
		_, _ = cli.Compact(ctx, revision) // whether it came to pass is of no importance
	})
}
