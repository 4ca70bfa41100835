package watch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// TestJoinDuringRead: a watcher that comes to lag while the history is read
// for others is not taken for one of them.
func TestJoinDuringRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newFakeSource()
		for range 10 {
			src.write("a=1")
			src.write("b=1")
		}
		h := NewHub(src, Options{}) // knows nothing of all that
		defer h.Close()
		s := h.NewStream()
		defer s.Close()
		create := func(key string) {
			if err := s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte(key), StartRevision: 2}); err != nil {
				t.Error(err)
			}
		}
		create("a")
		joined := false
		src.onRead = func() {
			if !joined {
				joined = true
				create("b")
			}
		}
		seen := map[int64]int{}
		for seen[0]+seen[1] < 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			rs, err := s.Next(ctx)
			cancel()
			if err != nil {
				t.Fatalf("after %v events: %v", seen, err)
			}
			for _, r := range decode(t, rs) {
				seen[r.WatchId] += len(r.Events)
			}
		}
		if seen[0] != 10 || seen[1] != 10 {
			t.Errorf("the watchers got %v events, want 10 each", seen)
		}
	})
}

// TestRequestsWaitForReader: a client that sends requests and reads nothing is
// made to wait, and let go when it reads.
func TestRequestsWaitForReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(newFakeSource(), Options{})
		defer h.Close()
		s := h.NewStream()
		defer s.Close()
		// fill sends requests until they are not taken.
		fill := func(want int) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			n := 0
			for ; n <= maxReplies; n++ {
				if err := s.Create(ctx, &pb.WatchCreateRequest{Key: []byte("a")}); err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Fatal(err)
					}
					break
				}
			}
			if n != want {
				t.Fatalf("%d requests were taken, want %d", n, want)
			}
		}
		fill(maxReplies)
		done := make(chan error)
		go func() { done <- s.Cancel(t.Context(), 0) }()
		synctest.Wait()
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}

		fill(maxReplies - 1) // beside the cancellation
		go func() { done <- s.Refuse(t.Context(), "no") }()
		synctest.Wait()
		s.Close()
		if err := <-done; !errors.Is(err, ErrClosed) {
			t.Errorf("a request on a closed stream returned %v", err)
		}
	})
}

// TestHubClose: closing the hub ends its streams, and new ones are closed.
// TestNobodyWatches: events that nobody watches rouse nobody, and who comes later
// gets what comes then, or what it asks for of before.
func TestNobodyWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newFakeSource()
		h := NewHub(src, Options{})
		defer h.Close()
		synctest.Wait() // the distributor waits for something to do
		for range 3 {
			h.Publish([]mvcc.RevisionEvents{src.write("a=1")})
			if len(h.wake) > 0 {
				t.Error("the distributor is roused for events that nobody watches")
			}
			if got, want := h.distributed.Load(), src.Revision(); got != want {
				t.Errorf("distributed up to %d, want %d", got, want)
			}
		}
		watch := func(from int64) *Stream {
			s := h.NewStream()
			if err := s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: from}); err != nil {
				t.Fatal(err)
			}
			return s
		}
		receive := func(s *Stream, want int) {
			t.Helper()
			got := 0
			for got < want {
				rs, err := s.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range decode(t, rs) {
					got += len(r.Events)
				}
			}
			if got != want {
				t.Errorf("%d events, want %d", got, want)
			}
		}
		s := watch(0)
		h.Publish([]mvcc.RevisionEvents{src.write("a=2")})
		receive(s, 1)
		s.Close()
		h.Publish([]mvcc.RevisionEvents{src.write("a=3")}) // when nobody watches any more
		s = watch(src.Revision() - 1)
		defer s.Close()
		receive(s, 2)
		h.Publish([]mvcc.RevisionEvents{src.write("a=4")})
		receive(s, 1)
	})
}

func TestHubClose(t *testing.T) {
	h := NewHub(newFakeSource(), Options{})
	s := h.NewStream()
	if err := s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := s.Next(context.Background())
		done <- err
	}()
	h.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("Next = %v, want ErrClosed", err)
	}
	s.RequestProgress()
	s.Close()
	late := h.NewStream()
	if _, err := late.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Next of a late stream = %v, want ErrClosed", err)
	}
	late.Close()
}

// TestPublishOutOfOrder: a gap would break every promise.
func TestPublishOutOfOrder(t *testing.T) {
	h := NewHub(newFakeSource(), Options{})
	defer h.Close()
	defer func() {
		if recover() == nil {
			t.Error("a gap in the revisions went unnoticed")
		}
	}()
	h.Publish([]mvcc.RevisionEvents{{Revision: 3}})
}

// TestIdleWatcherMemory bounds what a watcher costs that has nothing to do.
func TestIdleWatcherMemory(t *testing.T) {
	h := NewHub(newFakeSource(), Options{})
	defer h.Close()
	s := h.NewStream()
	defer s.Close()
	const n = 50_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	createIdle(t, s, n)
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n
	t.Logf("%d bytes per watcher", per)
	if per > 400 {
		t.Errorf("an idle watcher takes %d bytes", per)
	}
	runtime.KeepAlive(s)
}

// createIdle adds n watchers of keys and ranges that nobody writes.
func createIdle(t testing.TB, s *Stream, n int) {
	t.Helper()
	for i := range n {
		r := &pb.WatchCreateRequest{Key: fmt.Appendf(nil, "idle/%08d/", i)}
		if i%2 == 0 {
			r.RangeEnd = fmt.Appendf(nil, "idle/%08d0", i)
		}
		if err := s.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkFanOut: one event to 1000 streams that watch its key.
func BenchmarkFanOut(b *testing.B) {
	const n = 1000
	src := newFakeSource()
	h := NewHub(src, Options{})
	defer h.Close()
	var done [n]chan struct{}
	var streams [n]*Stream
	for i := range streams {
		s := h.NewStream()
		defer s.Close()
		streams[i], done[i] = s, make(chan struct{})
		if err := s.Create(b.Context(), &pb.WatchCreateRequest{Key: []byte("k")}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for i, s := range streams {
		// Ended by the last event; the benchmark waits below.
		go func() {
			defer close(done[i])
			var out []byte
			for seen := 0; seen < b.N; {
				rs, err := s.Next(context.Background())
				if err != nil {
					b.Error(err)
					return
				}
				for i := range rs.Len() {
					if out, err = rs.AppendMessage(out[:0], i); err != nil {
						b.Error(err)
					}
					seen += len(rs.bodies[rs.all[i].body].events)
				}
			}
		}()
	}
	b.ResetTimer()
	for range b.N {
		h.Publish([]mvcc.RevisionEvents{src.write("k=v")})
	}
	for _, d := range done {
		<-d
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "deliveries/s")
}

// BenchmarkPublish: what a put costs the distributor and the apply goroutine
// beside 100,000 watchers of other keys and ranges.
func BenchmarkPublish(b *testing.B) {
	for _, idle := range []int{0, 100_000} {
		b.Run(fmt.Sprint("idle=", idle), func(b *testing.B) {
			src := newFakeSource()
			h := NewHub(src, Options{})
			defer h.Close()
			s := h.NewStream()
			defer s.Close()
			createIdle(b, s, idle)
			ev := src.write("other=v").Events
			b.ReportAllocs()
			rev := int64(1)
			b.ResetTimer()
			for range b.N {
				rev++
				h.Publish([]mvcc.RevisionEvents{{Revision: rev, Events: ev}})
				for h.distributed.Load()+100 < rev {
					runtime.Gosched()
				}
			}
		})
	}
}
