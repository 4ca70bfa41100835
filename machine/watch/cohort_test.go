package watch

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// crowd is one stream with many watchers of the key k.
type crowd struct {
	t   *testing.T
	src *fakeSource
	h   *Hub
	s   *Stream
}

func newCrowd(t *testing.T, o Options) *crowd {
	src := newFakeSource()
	c := &crowd{t: t, src: src, h: NewHub(src, o)}
	t.Cleanup(c.h.Close)
	c.s = c.h.NewStream()
	t.Cleanup(c.s.Close)
	return c
}

// create adds n watchers and reads what they are told of that.
func (c *crowd) create(n int, o *pb.WatchCreateRequest) {
	c.t.Helper()
	o.Key = []byte("k")
	for range n {
		if err := c.s.Create(c.t.Context(), o); err != nil {
			c.t.Fatal(err)
		}
		if got := c.next(); len(got) != 1 || !got[0].Created {
			c.t.Fatalf("created: %v", got)
		}
	}
}

// put publishes n revisions, and returns when they have been distributed.
func (c *crowd) put(n int) {
	for range n {
		c.h.Publish([]mvcc.RevisionEvents{c.src.write("k=v")})
	}
	synctest.Wait()
}

// next returns what comes next, or nothing if that would be waited for.
func (c *crowd) next() []*pb.WatchResponse {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
	defer cancel()
	rs, err := c.s.Next(ctx)
	if err != nil {
		return nil
	}
	return decode(c.t, rs)
}

// summary tells which watchers got which revisions, batch by batch.
func (c *crowd) summary() (batches []string) {
	for rs := c.next(); rs != nil; rs = c.next() {
		line := ""
		for _, r := range rs {
			line += fmt.Sprintf(" %d:", r.WatchId)
			switch {
			case r.Canceled:
				line += "canceled"
			case r.Created:
				line += "created"
			}
			for i, ev := range r.Events {
				if i > 0 {
					line += ","
				}
				line += fmt.Sprint(ev.Kv.ModRevision)
			}
		}
		batches = append(batches, line[1:])
	}
	return batches
}

// want fails the test unless the batches are these.
func (c *crowd) want(batches ...string) {
	c.t.Helper()
	if got := c.summary(); fmt.Sprint(got) != fmt.Sprint(batches) {
		c.t.Errorf("got  %q\nwant %q", got, batches)
	}
}

// Watchers come and go while events are queued for those who were there before.
func TestCohortChangesWhileEventsAreQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Options{})
		c.create(3, &pb.WatchCreateRequest{})
		c.put(2)
		c.want("0:2,3 1:2,3 2:2,3")

		c.put(1)
		if err := c.s.Cancel(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if err := c.s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
		c.put(1)
		c.want("0:4 2:4 1:canceled 3:created 0:5 2:5 3:5")

		c.put(2)
		c.want("0:6,7 2:6,7 3:6,7")

		for id := range int64(4) {
			if err := c.s.Cancel(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		c.put(1)
		c.want("0:canceled 2:canceled 3:canceled")
		if s := c.h.Stats(); s.Watchers != 0 || s.Pending != 0 || c.h.synced.n != 0 || len(c.h.synced.keys) != 0 {
			t.Errorf("after all have gone: %+v, %d in the index", s, c.h.synced.n)
		}
	})
}

// Watchers that start in the future get nothing of what is before, and cost the
// others nothing.
func TestCohortsWithAFutureStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Options{})
		c.create(1, &pb.WatchCreateRequest{})
		c.create(1, &pb.WatchCreateRequest{StartRevision: 4})
		c.create(1, &pb.WatchCreateRequest{})
		c.create(1, &pb.WatchCreateRequest{StartRevision: 5})
		c.put(5)
		c.want("0:2,3,4,5,6 2:2,3,4,5,6 1:4 1:5,6 3:5,6")
	})
}

// Watchers with other flags of the same key and stream get responses of their own.
func TestCohortsOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Options{})
		c.create(2, &pb.WatchCreateRequest{})
		c.create(2, &pb.WatchCreateRequest{Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
		c.create(2, &pb.WatchCreateRequest{PrevKv: true})
		c.put(1)
		rs := c.next()
		c.put(1)
		rs = append(rs, c.next()...)
		got := ""
		for _, r := range rs {
			got += fmt.Sprint(r.WatchId, " ", r.Events[0].PrevKv.GetModRevision(), " ")
		}
		if want := "0 0 1 0 4 0 5 0 0 0 1 0 4 2 5 2 "; got != want {
			t.Errorf("ids and revisions of previous values are %q, want %q", got, want)
		}
		// The first cohort goes, the others stay, and there may be another first one.
		for id := range int64(2) {
			if err := c.s.Cancel(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		c.want("0:canceled 1:canceled")
		c.put(1)
		c.want("4:4 5:4")
		c.create(1, &pb.WatchCreateRequest{Fragment: true})
		c.put(1)
		c.want("6:5 4:5 5:5")
	})
}

// A cohort that is too large for one batch gets its event in several, and what
// follows comes behind it.
func TestCohortLargerThanABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2*maxResponses + 10
		c := newCrowd(t, Options{StreamBytes: 100 << 20})
		c.create(n, &pb.WatchCreateRequest{})
		c.put(2)
		covered := make([]int64, n)
		batches := 0
		for rs := c.next(); rs != nil; rs = c.next() {
			if batches++; len(rs) > maxResponses {
				t.Fatalf("%d responses at a time", len(rs))
			}
			for _, r := range rs {
				for _, ev := range r.Events {
					if ev.Kv.ModRevision != max(2, covered[r.WatchId]+1) {
						t.Fatalf("watcher %d got revision %d after %d", r.WatchId, ev.Kv.ModRevision, covered[r.WatchId])
					}
					covered[r.WatchId] = ev.Kv.ModRevision
				}
			}
		}
		for id, rev := range covered {
			if rev != 3 {
				t.Fatalf("watcher %d has seen revision %d, want 3", id, rev)
			}
		}
		if s := c.h.Stats(); batches < 3 || s.Pending != 0 || s.Delivered != 2*n {
			t.Errorf("%d batches, %+v", batches, s)
		}
	})
}

// When a stream is full its watchers lag, all of them, and have everything in
// the end: those too that came when some of it was to be distributed.
func TestCohortLagsAsAWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Options{StreamBytes: 6 * eventOverhead})
		c.create(2, &pb.WatchCreateRequest{})
		first := c.src.write("k=v")
		c.create(1, &pb.WatchCreateRequest{})
		c.h.Publish([]mvcc.RevisionEvents{first})
		c.put(2) // which does not fit
		if s := c.h.Stats(); s.Lagging != 3 || c.h.synced.n != 0 {
			t.Fatalf("%+v, %d in the index", s, c.h.synced.n)
		}
		c.put(1)
		seen := map[int64]string{}
		for rs := c.next(); rs != nil; rs = c.next() {
			for _, r := range rs {
				for _, ev := range r.Events {
					seen[r.WatchId] += fmt.Sprint(ev.Kv.ModRevision)
				}
			}
		}
		if seen[0] != "2345" || seen[1] != "2345" || seen[2] != "345" {
			t.Errorf("the watchers got %v", seen)
		}
		if s := c.h.Stats(); s.Lagging != 0 || s.Pending != 0 || c.h.synced.n != 3 {
			t.Errorf("%+v, %d in the index", s, c.h.synced.n)
		}
		c.put(1)
		c.want("0:6 1:6 2:6")
	})
}

// Of those who leave a cohort one by one no more is kept than of those who stay.
func TestCohortForgetsWhoHasLeft(t *testing.T) {
	var x index
	var ws []*watcher
	for i := range 1000 {
		w := &watcher{id: int64(i), key: "k", next: int64(i)}
		x.add(w)
		ws = append(ws, w)
	}
	c := &x.keys["k"].first
	before := c.members
	for len(ws) > 1 {
		x.remove(ws[len(ws)-1])
		ws = ws[:len(ws)-1]
		if len(c.members) > 2*len(ws)+fewGone {
			t.Fatalf("%d are kept of whom %d are in", len(c.members), len(ws))
		}
	}
	if got := c.at(ws[0].next); len(got) == 0 || got[0] != ws[0] || c.horizon > 2*fewGone {
		t.Errorf("%d watchers from revision %d on", len(got), c.horizon)
	}
	for i, w := range before {
		if w == nil || w.id != int64(i) {
			t.Fatal("a list that deliveries share has changed")
		}
	}
}

// Watchers that have left stand in the list of a cohort. A delivery that has only room for one of them is followed by those
// to the others, by themselves.
func TestGoneInFront(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, Options{})
		c.create(2, &pb.WatchCreateRequest{})
		if err := c.s.Cancel(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if got := c.next(); len(got) != 1 || !got[0].Canceled {
			t.Fatalf("canceled: %v", got)
		}
		var got []string
		go func() { // the sender of the stream, which waits when the event comes
			for rs := c.next(); rs != nil; rs = c.next() {
				for _, r := range rs {
					got = append(got, map[bool]string{true: "created", false: "event"}[r.Created])
				}
			}
		}()
		synctest.Wait()
		c.h.Publish([]mvcc.RevisionEvents{c.src.write("k=" + strings.Repeat("x", joinBytes*3/4))})
		synctest.Wait()
		if len(got) != 1 {
			t.Errorf("after a large event: %v, want 1 event", got)
		}
		c.put(1)
		if len(got) != 2 {
			t.Errorf("after a small one: %v, want 2 events", got)
		}
		if err := c.s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("other")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(got) != 3 {
			t.Errorf("after a creation: %v, want 2 events and the answer", got)
		}
		time.Sleep(2 * time.Second) // c.next gives up
		synctest.Wait()
	})
}
