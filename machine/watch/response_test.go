package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// encode returns a message as a client gets it. It fails the test if the bytes
// are not those of the official codec.
func encode(t testing.TB, rs *Responses, i int) []byte {
	t.Helper()
	const before = "what is there already"
	b, err := rs.AppendMessage([]byte(before), i)
	if err != nil {
		t.Error(err)
	}
	b, ok := bytes.CutPrefix(b, []byte(before))
	if !ok {
		t.Error("AppendMessage did not append")
	}
	var m pb.WatchResponse
	if err := proto.Unmarshal(b, &m); err != nil {
		t.Error(err)
	}
	if want, err := (proto.MarshalOptions{Deterministic: true}).Marshal(&m); err != nil || !bytes.Equal(b, want) {
		t.Errorf("%v is encoded as\n%x, not as\n%x, %v", &m, b, want, err)
	}
	return b
}

// decode returns what a client makes of responses.
func decode(t testing.TB, rs *Responses) (ms []*pb.WatchResponse) {
	t.Helper()
	for i := range rs.Len() {
		m := &pb.WatchResponse{}
		if err := proto.Unmarshal(encode(t, rs, i), m); err != nil {
			t.Error(err)
		}
		ms = append(ms, m)
	}
	return ms
}

// TestResponseBytes compares with the official encoding of the same message.
func TestResponseBytes(t *testing.T) {
	prev := &mvccpb.KeyValue{Key: []byte("k"), Value: []byte("old"), ModRevision: 3, CreateRevision: 3, Version: 1}
	put := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("k"), Value: make([]byte, 300), CreateRevision: 3, ModRevision: 9, Version: 2, Lease: -7}}
	created := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: make([]byte, 200), CreateRevision: 9, ModRevision: 9, Version: 1}}
	del := &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 9}}
	with := func(ev *mvccpb.Event) *mvccpb.Event {
		return &mvccpb.Event{Type: ev.Type, Kv: ev.Kv, PrevKv: prev}
	}
	identities := []Identity{{}, {ClusterID: 1, MemberID: math.MaxUint64, Term: 300}}
	for _, test := range []struct {
		name         string
		events, sent []*mvccpb.Event
		flags        flags
		id, revision int64
		fragment     bool
	}{
		{name: "a put", events: []*mvccpb.Event{put}, sent: []*mvccpb.Event{put}, revision: 9},
		{name: "several", events: []*mvccpb.Event{put, created, del}, sent: []*mvccpb.Event{put, created, del}, id: 5, revision: math.MaxInt64},
		{name: "previous values", events: []*mvccpb.Event{put, created, del}, sent: []*mvccpb.Event{with(put), created, with(del)}, flags: prevKV, id: math.MaxInt64, revision: 9},
		{name: "a fragment", events: []*mvccpb.Event{del}, sent: []*mvccpb.Event{del}, id: -4, revision: 9, fragment: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var events []*event
			for _, ev := range test.events {
				events = append(events, newEvent(ev))
			}
			for _, identity := range identities {
				rs := getResponses()
				rs.Identity = identity
				w := &watcher{id: test.id, flags: test.flags}
				rs.add(&delivery{to: []*watcher{w}, revision: test.revision, events: events}, 1)
				if err := rs.finish(oneBefore{kv: prev}, 0); err != nil {
					t.Fatal(err)
				}
				rs.bodies[0].fragment = test.fragment
				want := &pb.WatchResponse{
					Header:  &pb.ResponseHeader{ClusterId: identity.ClusterID, MemberId: identity.MemberID, RaftTerm: identity.Term, Revision: test.revision},
					WatchId: test.id, Fragment: test.fragment, Events: test.sent,
				}
				official, err := proto.Marshal(want)
				if err != nil {
					t.Fatal(err)
				}
				if got := encode(t, rs, 0); !bytes.Equal(got, official) {
					t.Errorf("got\n%x, want\n%x", got, official)
				}
			}
		})
	}
}

// oneBefore is a source in which every key had the same state before.
type oneBefore struct {
	Source
	kv *mvccpb.KeyValue
}

func (o oneBefore) CompactRevision() int64                         { return 0 }
func (o oneBefore) PrevKV(*mvccpb.Event) (*mvccpb.KeyValue, error) { return o.kv, nil }

// TestEncodeAtOnce: those who encode an event at the same time get the same.
func TestEncodeAtOnce(t *testing.T) {
	for i := range 200 {
		ev := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: fmt.Append(nil, i), ModRevision: 2}}
		want, err := proto.Marshal(&pb.WatchResponse{Events: []*mvccpb.Event{ev}})
		if err != nil {
			t.Fatal(err)
		}
		e := newEvent(ev)
		var group sync.WaitGroup // ended by their only step
		for range 4 {
			group.Go(func() {
				if got := e.encoded(); !bytes.Equal(got, want) {
					t.Errorf("got %x, want %x", got, want)
				}
			})
		}
		group.Wait()
		if e.message.Load() != nil {
			t.Error("an event that is encoded is kept as a message, too")
		}
	}
}

// prevOf returns the previous value that e is sent with.
func prevOf(t *testing.T, e *event, src Source) *mvccpb.KeyValue {
	t.Helper()
	b, err := e.encodedWithPrev(src)
	if err != nil {
		t.Fatal(err)
	}
	var m pb.WatchResponse
	if err := proto.Unmarshal(b, &m); err != nil || len(m.Events) != 1 {
		t.Fatalf("%d events, %v", len(m.Events), err)
	}
	return m.Events[0].PrevKv
}

// A previous value that one watcher was given before a compaction must not
// reach another after it.
func TestPreviousValueIsNotKeptPastACompaction(t *testing.T) {
	src := newFakeSource()
	src.write("k=1")
	e := newEvent(src.write("k=2").Events[0])
	if got := prevOf(t, e, src); got == nil || string(got.Value) != "1" {
		t.Fatalf("before the compaction: %v", got)
	}
	src.compactTo(2) // the revision before the event can still be read
	if got := prevOf(t, e, src); got == nil {
		t.Fatal("compacted to the revision before the event: no previous value")
	}
	src.compactTo(3)
	if got := prevOf(t, e, src); got != nil {
		t.Fatalf("compacted to the revision of the event: %v", got)
	}
}

// Previous values are read as they are sent, about as many at a time as responses have of events.
func TestManyPreviousValues(t *testing.T) {
	for _, fragments := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const n = 64
			src := newFakeSource()
			large := strings.Repeat("x", joinBytes/2)
			for i := range n {
				src.write(fmt.Sprintf("k%02d=%s", i, large))
			}
			h := NewHub(src, Options{FragmentBytes: joinBytes})
			defer h.Close()
			s := h.NewStream()
			defer s.Close()
			next := func() (*Responses, int) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				rs, err := s.Next(ctx)
				if err != nil {
					t.Fatal(err)
				}
				sum := 0
				for i := range rs.Len() {
					b, err := rs.AppendMessage(nil, i)
					if err != nil {
						t.Fatal(err)
					}
					sum += len(b)
				}
				return rs, sum
			}
			for range 2 { // watchers, of one cohort
				if err := s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), PrevKv: true, Fragment: fragments}); err != nil {
					t.Fatal(err)
				}
				next()
			}
			var all []mvcc.RevisionEvents
			for i := range n {
				all = append(all, src.write(fmt.Sprintf("k%02d", i)), src.write(fmt.Sprintf("new%02d=", i))) // a deletion, and something beside it
			}
			h.Publish(all)
			synctest.Wait()
			seen := map[int64][]string{}
			for len(seen[0]) < n || len(seen[1]) < n {
				rs, sum := next()
				if sum > 2*2*joinBytes {
					t.Errorf("%d responses have %d MiB", rs.Len(), sum>>20)
				}
				for _, r := range decode(t, rs) {
					for _, ev := range r.Events {
						if ev.PrevKv == nil || len(ev.PrevKv.Value) != len(large) {
							t.Errorf("%s comes without what was before", showEvent(ev))
						}
						seen[r.WatchId] = append(seen[r.WatchId], string(ev.Kv.Key))
					}
				}
			}
			for id, keys := range seen {
				if len(keys) != n || !slices.IsSorted(keys) {
					t.Errorf("watcher %d: %v", id, keys)
				}
			}
		})
	}
}

// closingSource closes the hub while it is asked, as where a snapshot replaces the state.
type closingSource struct {
	*fakeSource
	close  func()
	closed bool
}

func (s *closingSource) PrevKV(ev *mvccpb.Event) (*mvccpb.KeyValue, error) {
	if s.closed {
		return nil, mvcc.ErrClosed
	}
	kv, err := s.fakeSource.PrevKV(ev)
	s.closed = true
	s.close()
	return kv, err
}

// brokenSource cannot read what was before.
type brokenSource struct{ *fakeSource }

func (brokenSource) PrevKV(*mvccpb.Event) (*mvccpb.KeyValue, error) { return nil, syscall.EIO }

// What cannot be read is not told to be nothing.
func TestPreviousValuesThatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := brokenSource{newFakeSource()}
		src.write("k=1")
		h := NewHub(src, Options{})
		defer h.Close()
		s := h.NewStream()
		defer s.Close()
		if err := s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("k"), PrevKv: true}); err != nil {
			t.Fatal(err)
		}
		if rs, err := s.Next(t.Context()); err != nil || rs.Len() != 1 {
			t.Fatal(rs, err)
		}
		h.Publish([]mvcc.RevisionEvents{src.write("k=2")})
		if rs, err := s.Next(t.Context()); !errors.Is(err, syscall.EIO) {
			t.Errorf("%v, %v", rs, err)
		}
	})
}

func TestCloseWhilePreviousValuesAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &closingSource{fakeSource: newFakeSource()}
		src.write("k=1")
		h := NewHub(src, Options{})
		src.close = h.Close
		s := h.NewStream()
		defer s.Close()
		if err := s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("k"), PrevKv: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.Publish([]mvcc.RevisionEvents{src.write("k=2"), src.write("k=3")})
		synctest.Wait()
		if rs, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("%v, and %d responses, want %v", err, rs.Len(), ErrClosed)
		}
	})
}
