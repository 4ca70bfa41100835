package watch

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/mvcc"
)

var modelSeed = flag.Uint64("model.seed", 0, "run the model test with this seed only")

// TestModel lets clients of all kinds, quick, slow and gone for a while, watch
// a key space that is written and compacted under them, with bounds so small
// that every way for an event to take is taken. Each client holds the promises
// of the package against the full history.
func TestModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4}
	if testing.Short() {
		seeds = seeds[:1]
	}
	if *modelSeed != 0 {
		seeds = []uint64{*modelSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			// Fake time: sleeping orders the goroutines and costs nothing.
			synctest.Test(t, func(t *testing.T) { runModel(t, seed) })
		})
	}
}

const (
	modelClients = 30
	modelWrites  = 800
	modelTick    = time.Millisecond
)

type model struct {
	t    *testing.T
	src  *fakeSource
	hub  *Hub
	seed uint64
	// last is closed when all is written; final is the last revision then.
	last  chan struct{}
	final int64
	sum   modelSum
	// broken counts the promises that were broken.
	broken atomic.Int64
}

// errorf reports a broken promise. After a few they say nothing new.
func (m *model) errorf(format string, args ...any) {
	m.t.Helper()
	if m.broken.Add(1) <= 10 {
		m.t.Errorf(format, args...)
	}
}

// modelSum counts what happened, to see that it did.
type modelSum struct {
	mu                                                               sync.Mutex // guards the counts
	events, progress, compactions, reconnects, fragments, maxLagging int
}

func (s *modelSum) add(n *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
}

func runModel(t *testing.T, seed uint64) {
	m := &model{t: t, src: newFakeSource(), seed: seed, last: make(chan struct{})}
	rnd := rand.New(rand.NewPCG(seed, 0))
	m.hub = NewHub(m.src, Options{
		RingEvents:       8 + rnd.IntN(64),
		StreamBytes:      1000 + rnd.IntN(4000),
		FragmentBytes:    40 + rnd.IntN(60),
		ProgressInterval: 20 * modelTick,
	})
	var clients sync.WaitGroup
	for i := range modelClients {
		clients.Add(1)
		go func() {
			defer clients.Done()
			c := &client{m: m, rnd: rand.New(rand.NewPCG(seed, uint64(i+1)))}
			c.run(t.Context())
		}()
	}
	m.write(rnd)
	clients.Wait()
	if s := m.hub.Stats(); s.Streams != 0 || s.Watchers != 0 || s.Lagging != 0 || s.Pending != 0 {
		t.Errorf("after all clients have left: %+v", s)
	}
	m.hub.Close()
	sum := &m.sum
	t.Logf("events=%d progress=%d compactions=%d reconnects=%d fragments=%d history reads=%d most lagging=%d",
		sum.events, sum.progress, sum.compactions, sum.reconnects, sum.fragments, m.src.readCount(), sum.maxLagging)
	for _, n := range []int{sum.events, sum.progress, sum.compactions, sum.reconnects, sum.fragments, m.src.readCount(), sum.maxLagging} {
		if n == 0 {
			t.Error("something that should happen did not")
			break
		}
	}
}

func modelKey(n int) string { return fmt.Sprintf("k%02d", n) }

const modelKeys = 30

// write plays the apply goroutine.
func (m *model) write(rnd *rand.Rand) {
	for n := 0; n < modelWrites; {
		var batch []mvcc.RevisionEvents
		for range 1 + rnd.IntN(4)*rnd.IntN(12) {
			batch = append(batch, m.src.write(modelOps(rnd)...))
			n++
		}
		if rnd.IntN(8) == 0 {
			time.Sleep(modelTick / 10) // readable, not yet published
		}
		m.hub.Publish(batch)
		if rnd.IntN(30) == 0 {
			rev := m.src.Revision()
			m.src.compactTo(rev - int64(rnd.IntN(100)))
		}
		if rnd.IntN(3) != 0 {
			time.Sleep(time.Duration(rnd.Int64N(int64(2 * modelTick))))
		}
		m.sum.mu.Lock()
		m.sum.maxLagging = max(m.sum.maxLagging, m.hub.Stats().Lagging)
		m.sum.mu.Unlock()
	}
	m.final = m.src.Revision()
	close(m.last)
}

func modelOps(rnd *rand.Rand) []string {
	keys := rnd.Perm(modelKeys)[:1+rnd.IntN(2)*rnd.IntN(12)]
	if rnd.IntN(8) == 0 {
		keys = append(keys, keys...) // changed twice
	}
	ops := make([]string, len(keys))
	for i, k := range keys {
		if ops[i] = modelKey(k); rnd.IntN(4) != 0 {
			ops[i] += "=" + strings.Repeat("v", rnd.IntN(60))
		}
	}
	return ops
}

// client has a stream with some watchers at a time. It leaves and comes back,
// and each watcher resumes where it was.
type client struct {
	m       *model
	rnd     *rand.Rand
	watches []*modelWatch
	nap     time.Duration // the longest pause between two responses
	// canceled has the ids on the present stream whose cancellation is not
	// confirmed, and whether a response to them is not whole yet.
	canceled map[int64]bool
}

// modelWatch is one range watched, over any number of streams.
type modelWatch struct {
	req *pb.WatchCreateRequest
	// covered is the revision up to which everything was seen. 0 is unknown,
	// before the first created response.
	covered int64
	id      int64 // on the present stream
	created bool
	// parts are the fragments of a response that is not whole yet.
	parts []*mvccpb.Event
}

func (c *client) run(ctx context.Context) {
	c.nap = []time.Duration{0, 0, modelTick / 2, 4 * modelTick}[c.rnd.IntN(4)]
	for range 1 + c.rnd.IntN(4) {
		w := c.newWatch()
		c.watches = append(c.watches, w)
		for range c.rnd.IntN(3) * c.rnd.IntN(3) { // some that get the same
			c.watches = append(c.watches, &modelWatch{req: w.req})
		}
	}
	for !c.session(ctx) {
		c.m.sum.add(&c.m.sum.reconnects)
		time.Sleep(time.Duration(c.rnd.Int64N(int64(20 * modelTick))))
	}
}

func (c *client) newWatch() *modelWatch {
	lo := c.rnd.IntN(modelKeys)
	r := &pb.WatchCreateRequest{
		Key:            []byte(modelKey(lo)),
		PrevKv:         c.rnd.IntN(3) == 0,
		Fragment:       c.rnd.IntN(3) == 0,
		ProgressNotify: c.rnd.IntN(2) == 0,
	}
	switch c.rnd.IntN(4) {
	case 0:
		r.RangeEnd = []byte{0}
	case 1:
		r.RangeEnd = []byte(modelKey(lo + 1 + c.rnd.IntN(modelKeys)))
	case 2:
		r.Key, r.RangeEnd = []byte("k"), []byte("l")
	}
	switch c.rnd.IntN(6) {
	case 0:
		r.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	case 1:
		r.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}
	}
	return &modelWatch{req: r}
}

// session watches on one stream until it is tired of it, and returns true when
// everything has been seen.
func (c *client) session(ctx context.Context) bool {
	s := c.m.hub.NewStream()
	defer s.Close()
	byID := map[int64]*modelWatch{}
	c.canceled = map[int64]bool{}
	create := func(w *modelWatch, id int64) {
		w.id, w.created, w.parts = id, false, nil
		byID[id] = w
		r := proto.CloneOf(w.req)
		r.WatchId = id
		if w.covered > 0 {
			r.StartRevision = w.covered + 1
		} else if c.rnd.IntN(2) == 0 {
			r.StartRevision = max(2, c.m.src.Revision()+int64(c.rnd.IntN(60))-40)
			w.covered = r.StartRevision - 1
		}
		if err := s.Create(ctx, r); err != nil {
			c.m.errorf("Create: %v", err)
		}
	}
	nextID := int64(100)
	for _, w := range c.watches {
		create(w, nextID)
		nextID++
	}
	for patience := 5 + c.rnd.IntN(300); ; patience-- {
		last := false
		select {
		case <-c.m.last:
			last = true
		default:
			if patience <= 0 {
				return false
			}
		}
		if last && c.complete() {
			return true
		}
		if c.rnd.IntN(10) == 0 || last {
			s.RequestProgress()
		}
		if c.rnd.IntN(60) == 0 && !last {
			w := c.watches[c.rnd.IntN(len(c.watches))]
			c.canceled[w.id] = len(w.parts) > 0
			if err := s.Cancel(ctx, w.id); err != nil {
				c.m.errorf("Cancel: %v", err)
			}
			create(w, nextID)
			nextID++
		}
		if c.nap > 0 {
			time.Sleep(time.Duration(c.rnd.Int64N(int64(c.nap))))
		}
		wait, cancel := context.WithTimeout(ctx, 10*modelTick)
		rs, err := s.Next(wait)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		if err != nil {
			c.m.errorf("Next: %v", err)
			return true
		}
		for _, r := range decode(c.m.t, rs) {
			if again := c.check(r, byID); again != nil {
				create(again, nextID)
				nextID++
			}
		}
	}
}

// complete tells whether all watches have seen all events.
func (c *client) complete() bool {
	for _, w := range c.watches {
		if !w.created || len(w.parts) > 0 || w.covered == 0 {
			return false
		}
		if len(c.m.expected(w.req, w.covered+1, c.m.final)) > 0 {
			return false
		}
	}
	return true
}

// check holds one response against the promises. It returns the watch that is
// to be created again.
func (c *client) check(r *pb.WatchResponse, byID map[int64]*modelWatch) (again *modelWatch) {
	rev := r.Header.Revision
	if r.WatchId == noID {
		c.m.sum.add(&c.m.sum.progress)
		for _, w := range c.watches {
			c.checkProgress(w, rev)
		}
		return nil
	}
	w := byID[r.WatchId]
	if w == nil {
		c.m.errorf("response for unknown watcher: %v", r)
		return nil
	}
	if w.id != r.WatchId {
		c.checkCanceled(r)
		return nil
	}
	switch {
	case r.Created:
		w.created = true
		if w.covered == 0 {
			w.covered = rev
		}
	case !w.created:
		c.m.errorf("response before created: %v", r)
	case r.CompactRevision != 0:
		c.m.sum.add(&c.m.sum.compactions)
		if r.CompactRevision <= w.covered+1 {
			c.m.errorf("watcher at %d canceled for compaction at %d", w.covered+1, r.CompactRevision)
		}
		w.covered = r.CompactRevision - 1
		return w
	case len(r.Events) == 0:
		c.m.sum.add(&c.m.sum.progress)
		c.checkProgress(w, rev)
	default:
		c.checkEvents(w, r)
	}
	return nil
}

// checkCanceled: for a watcher canceled by the client there come what was
// queued without events, the rest of a response it has begun to read, and the
// confirmation; after that nothing.
func (c *client) checkCanceled(r *pb.WatchResponse) {
	begun, known := c.canceled[r.WatchId]
	switch {
	case !known:
		c.m.errorf("response after the cancellation was confirmed: %v", r)
	case r.Canceled && r.CompactRevision == 0:
		delete(c.canceled, r.WatchId)
	case len(r.Events) > 0 && !begun:
		c.m.errorf("events for a canceled watcher: %v", r)
	case len(r.Events) > 0:
		c.canceled[r.WatchId] = r.Fragment
	}
}

// checkProgress: nothing up to rev is missing.
func (c *client) checkProgress(w *modelWatch, rev int64) {
	if w.covered == 0 || !w.created {
		return
	}
	if missing := c.m.expected(w.req, w.covered+1, rev); len(missing) > 0 {
		c.m.errorf("progress at %d, but revision %d was not seen since %d", rev, missing[0].Kv.ModRevision, w.covered)
	}
	w.covered = max(w.covered, rev)
}

// checkEvents: the events are those that follow what was seen, up to the
// header's revision, all of them, once and in order.
func (c *client) checkEvents(w *modelWatch, r *pb.WatchResponse) {
	w.parts = append(w.parts, r.Events...)
	if r.Fragment {
		c.m.sum.add(&c.m.sum.fragments)
		if !w.req.Fragment {
			c.m.errorf("fragment for a watcher that did not ask for it")
		}
		return
	}
	got := w.parts
	w.parts = nil
	want := c.m.expected(w.req, w.covered+1, r.Header.Revision)
	if len(got) != len(want) {
		c.m.errorf("watcher of [%s, %s) at %d got %s, want %s", w.req.Key, w.req.RangeEnd, w.covered, showEvents(got), showEvents(want))
		return
	}
	for i := range got {
		c.m.sum.add(&c.m.sum.events)
		if !proto.Equal(got[i].Kv, want[i].Kv) || got[i].Type != want[i].Type {
			c.m.errorf("got %s, want %s", showEvents(got), showEvents(want))
			return
		}
		c.checkPrev(w, got[i])
	}
	w.covered = r.Header.Revision
}

// checkPrev: the previous value is there if it was asked for, existed and is
// not compacted.
func (c *client) checkPrev(w *modelWatch, ev *mvccpb.Event) {
	want := c.m.src.before(ev)
	switch {
	case !w.req.PrevKv,
		ev.Type == mvccpb.Event_PUT && ev.Kv.CreateRevision == ev.Kv.ModRevision: // after a deletion in the same revision
		want = nil
	case ev.PrevKv == nil && ev.Kv.ModRevision-1 < c.m.src.CompactRevision():
		return
	}
	if !proto.Equal(ev.PrevKv, want) {
		c.m.errorf("event %s, want the previous value %v", showEvent(ev), want)
	}
}

func showEvents(evs []*mvccpb.Event) string {
	var b strings.Builder
	for _, ev := range evs {
		fmt.Fprintf(&b, "%s@%d ", ev.Kv.Key, ev.Kv.ModRevision)
	}
	return "[" + strings.TrimSpace(b.String()) + "]"
}

// expected returns what a watcher of r is to see of the revisions from to to.
func (m *model) expected(r *pb.WatchCreateRequest, from, to int64) []*mvccpb.Event {
	m.src.mu.Lock()
	defer m.src.mu.Unlock()
	var evs []*mvccpb.Event
	for rev := max(2, from); rev <= min(to, int64(len(m.src.history))+1); rev++ {
		for _, ev := range m.src.history[rev-2].Events {
			if modelMatch(r, ev) {
				evs = append(evs, ev)
			}
		}
	}
	return evs
}

func modelMatch(r *pb.WatchCreateRequest, ev *mvccpb.Event) bool {
	key, begin, end := string(ev.Kv.Key), string(r.Key), string(r.RangeEnd)
	switch {
	case end == "" && key != begin,
		end == "\x00" && key < begin,
		end != "" && end != "\x00" && (key < begin || key >= end):
		return false
	}
	for _, f := range r.Filters {
		if f == pb.WatchCreateRequest_NOPUT && ev.Type == mvccpb.Event_PUT ||
			f == pb.WatchCreateRequest_NODELETE && ev.Type == mvccpb.Event_DELETE {
			return false
		}
	}
	return true
}
