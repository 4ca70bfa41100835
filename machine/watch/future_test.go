package watch

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// Watchers of revisions that this member has yet to come to: their client has seen
// them on another member, or in the answer to a write.

// future is a hub that has come to revision 2, and a stream of it.
func future(t *testing.T, o Options, f func(src *fakeSource, h *Hub, s *Stream, read func() []*pb.WatchResponse)) {
	t.Helper()
	o.Jitter = func(int64) int64 { return 0 }
	synctest.Test(t, func(t *testing.T) {
		src := newFakeSource()
		src.write("a=1")
		h := NewHub(src, o)
		defer h.Close()
		s := h.NewStream()
		f(src, h, s, func() []*pb.WatchResponse {
			return readAll(t, s)
		})
	})
}

func create(t *testing.T, s *Stream, r *pb.WatchCreateRequest) {
	t.Helper()
	if err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// readAll returns what Next has to say until it has to wait.
func readAll(t *testing.T, s *Stream) (all []*pb.WatchResponse) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // ended and waited for below
		defer close(done)
		for {
			rs, err := s.Next(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			all = append(all, decode(t, rs)...)
		}
	}()
	synctest.Wait()
	cancel()
	<-done
	return all
}

// TestNothingBeforeTheStart: neither events nor notifications tell of revisions
// below the one that a watcher starts with, by whichever way they come.
func TestNothingBeforeTheStart(t *testing.T) {
	for name, o := range map[string]Options{
		"in time":         {},
		"overrun":         {RingEvents: 1},
		"without room":    {StreamBytes: 300},
		"late everywhere": {RingEvents: 1, StreamBytes: 300},
	} {
		t.Run(name, func(t *testing.T) {
			o.ProgressInterval = time.Minute
			future(t, o, func(src *fakeSource, h *Hub, s *Stream, read func() []*pb.WatchResponse) {
				const start = 6
				create(t, s, &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: start, ProgressNotify: true})
				create(t, s, &pb.WatchCreateRequest{Key: []byte("a"), WatchId: 9}) // of now, on the same stream
				for rev := int64(2); rev < start; rev++ {
					s.RequestProgress()
					told := read() // and so there is room
					time.Sleep(2 * time.Minute)
					for _, r := range append(told, read()...) {
						if !r.Created && r.WatchId != 9 {
							t.Errorf("at revision %d the watcher of %d is told of %d", rev, start, r.Header.Revision)
						}
					}
					if rev < start-1 {
						h.Publish([]mvcc.RevisionEvents{src.write("a=x")})
					}
				}
				var rest []mvcc.RevisionEvents
				for range 7 {
					rest = append(rest, src.write("a=x"))
				}
				h.Publish(rest)
				var events []int64
				for _, r := range read() {
					for _, ev := range r.Events {
						if r.WatchId == 0 {
							events = append(events, ev.Kv.ModRevision)
						}
					}
				}
				if len(events) != 7 || events[0] != start || events[6] != 12 {
					t.Errorf("events of revisions %v, want 6 to 12", events)
				}
			})
		})
	}
}

// TestProgressAfterAFutureStart: a watcher whose start has come, and that fell
// behind and caught up since, keeps no request for progress from being answered.
func TestProgressAfterAFutureStart(t *testing.T) {
	future(t, Options{StreamBytes: 300}, func(src *fakeSource, h *Hub, s *Stream, read func() []*pb.WatchResponse) {
		create(t, s, &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 4})
		read()
		for range 6 {
			h.Publish([]mvcc.RevisionEvents{src.write("a=x")}) // to revision 8
		}
		synctest.Wait()
		if n := h.Stats().Lagging; n != 1 {
			t.Fatalf("%d watchers lag, want one", n)
		}
		read()
		s.RequestProgress()
		got := read()
		if len(got) != 1 || got[0].WatchId != noID || got[0].Header.Revision != 8 {
			t.Errorf("answered with %v, want revision 8", got)
		}
	})
}
