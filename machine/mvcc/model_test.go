package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// model is the key space as simple as can be: all events ever, and a scan of
// them for every question.
type model struct {
	events  []*mvccpb.Event // ModRevision set in all
	rev     int64
	compact int64
}

// at returns the pairs alive at rev in key order.
func (m *model) at(rev int64) []*mvccpb.KeyValue {
	live := map[string]*mvccpb.KeyValue{}
	for _, e := range m.events {
		switch {
		case e.Kv.ModRevision > rev:
		case e.Type == mvccpb.Event_DELETE:
			delete(live, string(e.Kv.Key))
		default:
			live[string(e.Kv.Key)] = e.Kv
		}
	}
	kvs := make([]*mvccpb.KeyValue, 0, len(live))
	for _, kv := range live {
		kvs = append(kvs, kv)
	}
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return kvs
}

func inRange(key, from, end []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(key, from)
	case bytes.Equal(end, []byte{0}):
		return bytes.Compare(key, from) >= 0
	}
	return bytes.Compare(key, from) >= 0 && bytes.Compare(key, end) < 0
}

// read is what Range promises, for requests without the odd corners that the
// scripts cover: sorts have a direction.
func (m *model) read(r *pb.RangeRequest) (*pb.RangeResponse, error) {
	rev := r.Revision
	switch {
	case rev > m.rev:
		return nil, ErrFutureRev
	case rev <= 0:
		rev = m.rev
	}
	if rev < m.compact {
		return nil, ErrCompacted
	}
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: m.rev}}
	for _, kv := range m.at(rev) {
		if !inRange(kv.Key, r.Key, r.RangeEnd) {
			continue
		}
		resp.Count++
		if r.CountOnly ||
			r.MinModRevision != 0 && kv.ModRevision < r.MinModRevision ||
			r.MaxModRevision != 0 && kv.ModRevision > r.MaxModRevision ||
			r.MinCreateRevision != 0 && kv.CreateRevision < r.MinCreateRevision ||
			r.MaxCreateRevision != 0 && kv.CreateRevision > r.MaxCreateRevision {
			continue
		}
		kv = proto.CloneOf(kv)
		if r.KeysOnly {
			kv.Value, kv.Lease = nil, 0
		}
		resp.Kvs = append(resp.Kvs, kv)
	}
	field := func(kv *mvccpb.KeyValue) int64 {
		return map[pb.RangeRequest_SortTarget]int64{
			pb.RangeRequest_VERSION: kv.Version, pb.RangeRequest_CREATE: kv.CreateRevision, pb.RangeRequest_MOD: kv.ModRevision,
		}[r.SortTarget]
	}
	less := func(i, j int) bool {
		if r.SortTarget == pb.RangeRequest_KEY {
			return bytes.Compare(resp.Kvs[i].Key, resp.Kvs[j].Key) < 0
		}
		return field(resp.Kvs[i]) < field(resp.Kvs[j])
	}
	switch r.SortOrder {
	case pb.RangeRequest_ASCEND:
		sort.SliceStable(resp.Kvs, less)
	case pb.RangeRequest_DESCEND:
		sort.SliceStable(resp.Kvs, func(i, j int) bool { return less(j, i) })
	}
	if r.Limit > 0 && int64(len(resp.Kvs)) > r.Limit {
		resp.Kvs, resp.More = resp.Kvs[:r.Limit], true
	}
	return resp, nil
}

// modelRun drives a store and the model with the same commands.
type modelRun struct {
	*harness
	rng *rand.Rand
	m   model
	// keys is the key space: small, so that keys are overwritten often.
	keys int
	ops  int
}

func (r *modelRun) key() []byte {
	if r.rng.IntN(20) == 0 {
		return []byte{'k', 0, byte(r.rng.IntN(3))}
	}
	return fmt.Appendf(nil, "k%03d", r.rng.IntN(r.keys))
}

func (r *modelRun) end() []byte {
	switch r.rng.IntN(4) {
	case 0:
		return nil
	case 1:
		return []byte{0}
	}
	return r.key()
}

// batch applies a few commands to both and compares answers and events.
func (r *modelRun) batch() {
	r.t.Helper()
	first := len(r.m.events)
	evs := r.apply(func() {
		for range 1 + r.rng.IntN(8) {
			r.ops++
			switch r.rng.IntN(10) {
			case 0, 1:
				r.remove()
			case 2:
				r.write(2 + r.rng.IntN(30))
			default:
				r.write(1)
			}
		}
	})
	var flat []*mvccpb.Event
	for i, re := range evs {
		if i > 0 && re.Revision != evs[i-1].Revision+1 {
			r.t.Fatalf("revision %d follows %d", re.Revision, evs[i-1].Revision)
		}
		flat = append(flat, re.Events...)
	}
	r.sameEvents(flat, r.m.events[first:])
}

// write puts n different keys in one revision.
func (r *modelRun) write(n int) {
	r.t.Helper()
	txn := &pb.TxnRequest{}
	live := r.m.at(r.m.rev)
	used := map[string]bool{}
	for range n {
		put := &pb.PutRequest{Key: r.key(), Value: bytes.Repeat([]byte{'v'}, r.rng.IntN(40))}
		if used[string(put.Key)] {
			continue
		}
		used[string(put.Key)] = true
		kv := &mvccpb.KeyValue{Key: put.Key, Value: put.Value, CreateRevision: r.m.rev + 1, ModRevision: r.m.rev + 1, Version: 1}
		if i, ok := slices.BinarySearchFunc(live, put.Key, func(kv *mvccpb.KeyValue, k []byte) int { return bytes.Compare(kv.Key, k) }); ok {
			kv.CreateRevision, kv.Version = live[i].CreateRevision, live[i].Version+1
		}
		r.m.events = append(r.m.events, &mvccpb.Event{Kv: kv})
		txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
	}
	r.m.rev++
	var rev int64
	if n == 1 {
		resp, err := r.s.Put(txn.Success[0].GetRequestPut())
		r.must(err)
		rev = resp.Header.Revision
	} else {
		resp, err := r.s.Txn(txn)
		r.must(err)
		rev = resp.Header.Revision
	}
	if rev != r.m.rev {
		r.t.Fatalf("a put made revision %d, want %d", rev, r.m.rev)
	}
}

func (r *modelRun) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// remove deletes a range.
func (r *modelRun) remove() {
	r.t.Helper()
	del := &pb.DeleteRangeRequest{Key: r.key(), PrevKv: true}
	if r.rng.IntN(4) == 0 {
		del.RangeEnd = r.key()
	}
	var gone []*mvccpb.KeyValue
	for _, kv := range r.m.at(r.m.rev) {
		if inRange(kv.Key, del.Key, del.RangeEnd) {
			gone = append(gone, kv)
		}
	}
	if len(gone) > 0 {
		r.m.rev++
	}
	for _, kv := range gone {
		r.m.events = append(r.m.events, &mvccpb.Event{
			Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: kv.Key, ModRevision: r.m.rev},
		})
	}
	resp, err := r.s.DeleteRange(del)
	r.must(err)
	want := &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{Revision: r.m.rev}, Deleted: int64(len(gone)), PrevKvs: gone}
	r.same(del, resp, want)
}

func (r *modelRun) same(req, got, want proto.Message) {
	r.t.Helper()
	a, err := proto.Marshal(got)
	r.must(err)
	b, err := proto.Marshal(want)
	r.must(err)
	if !bytes.Equal(a, b) {
		r.t.Fatalf("%v\n got %v\nwant %v", req, got, want)
	}
}

func (r *modelRun) sameEvents(got, want []*mvccpb.Event) {
	r.t.Helper()
	if len(got) != len(want) {
		r.t.Fatalf("%d events, want %d", len(got), len(want))
	}
	for i := range got {
		r.same(nil, got[i], want[i])
	}
}

// query asks both the same.
func (r *modelRun) query() {
	r.t.Helper()
	q := &pb.RangeRequest{
		Key: r.key(), RangeEnd: r.end(), KeysOnly: r.rng.IntN(4) == 0, CountOnly: r.rng.IntN(6) == 0,
	}
	if r.rng.IntN(2) == 0 {
		q.Revision = max(0, r.m.compact-1+r.rng.Int64N(r.m.rev-max(r.m.compact, 0)+3))
	}
	if r.rng.IntN(2) == 0 {
		q.Limit = r.rng.Int64N(12)
	}
	if r.rng.IntN(4) == 0 {
		// Unstable sorts of few rows are stable; more may differ from the model.
		q.SortOrder = pb.RangeRequest_SortOrder(1 + r.rng.IntN(2))
		q.SortTarget = pb.RangeRequest_KEY
		if r.keys <= 10 {
			q.SortTarget = pb.RangeRequest_SortTarget(r.rng.IntN(4))
		}
	}
	if r.rng.IntN(4) == 0 {
		q.MinModRevision = r.rng.Int64N(r.m.rev)
		q.MaxCreateRevision = r.rng.Int64N(r.m.rev)
	}
	got, err := r.s.Range(context.Background(), q)
	want, wantErr := r.m.read(q)
	if !errors.Is(err, wantErr) {
		r.t.Fatalf("%v: error %v, want %v", q, err, wantErr)
	}
	if err == nil {
		r.same(q, got, want)
	}
}

// replay reads the events of a stretch of revisions, with pauses.
func (r *modelRun) replay() {
	r.t.Helper()
	from := max(r.m.compact, 1) + r.rng.Int64N(r.m.rev-max(r.m.compact, 1)+1)
	var want []*mvccpb.Event
	for _, e := range r.m.events {
		if e.Kv.ModRevision >= from && e.Kv.Key[len(e.Kv.Key)-1] != '3' {
			want = append(want, e)
		}
	}
	var got []*mvccpb.Event
	for next := from; next <= r.m.rev; {
		evs, n, err := r.s.ReadEvents(next, r.m.rev, func(k []byte) bool { return k[len(k)-1] != '3' }, 1+r.rng.IntN(2000))
		r.must(err)
		if n <= next {
			r.t.Fatalf("no progress from revision %d", next)
		}
		for _, e := range evs {
			got = append(got, e.Events...)
		}
		next = n
	}
	r.sameEvents(got, want)
	if _, _, err := r.s.ReadEvents(r.m.compact-1, r.m.rev, nil, 1); r.m.compact > 0 && !errors.Is(err, ErrCompacted) {
		r.t.Fatalf("events below the compacted revision: %v", err)
	}
	if len(got) > 0 {
		r.previous(got[r.rng.IntN(len(got))])
	}
}

// previous compares the value before an event.
func (r *modelRun) previous(ev *mvccpb.Event) {
	r.t.Helper()
	var want *mvccpb.KeyValue
	if rev := ev.Kv.ModRevision - 1; rev >= r.m.compact {
		for _, kv := range r.m.at(rev) {
			if bytes.Equal(kv.Key, ev.Kv.Key) {
				want = kv
			}
		}
	}
	if got, err := r.s.PrevKV(ev); err != nil || !proto.Equal(got, want) {
		r.t.Fatalf("before %v: %v, %v, want %v", ev, got, err, want)
	}
}

// compaction compacts both somewhere, and waits for the end of it or does not.
func (r *modelRun) compaction() {
	r.t.Helper()
	rev := r.m.compact + r.rng.Int64N(r.m.rev-r.m.compact+2)
	var done <-chan struct{}
	var err error
	r.apply(func() { done, err = r.s.Compact(rev) })
	switch {
	case rev <= r.m.compact:
		if !errors.Is(err, ErrCompacted) {
			r.t.Fatalf("compaction to %d, at %d: %v", rev, r.m.compact, err)
		}
	case rev > r.m.rev:
		if !errors.Is(err, ErrFutureRev) {
			r.t.Fatalf("compaction to %d, of %d: %v", rev, r.m.rev, err)
		}
		return
	default:
		r.must(err)
		r.m.compact = rev
	}
	if r.rng.IntN(2) == 0 {
		r.wait(done)
		r.retained()
	}
}

// retained compares what is in the engine after a compaction with what must be:
// what is alive at the compacted revision, and all that is not below it.
func (r *modelRun) retained() {
	r.t.Helper()
	want := map[string]bool{}
	for _, kv := range r.m.at(r.m.compact) {
		want[fmt.Sprintf("%d %s", kv.ModRevision, kv.Key)] = true
	}
	for _, e := range r.m.events {
		if e.Kv.ModRevision >= r.m.compact {
			want[fmt.Sprintf("%d %s", e.Kv.ModRevision, e.Kv.Key)] = true
		}
	}
	snap := r.eng.NewSnapshot()
	n := 0
	err := r.s.ForEachRevision(context.Background(), snap, func(main, _ int64, _ bool, kv *mvccpb.KeyValue) error {
		if n++; !want[fmt.Sprintf("%d %s", main, kv.Key)] {
			return fmt.Errorf("key %s at %d is still there", kv.Key, main)
		}
		return nil
	})
	r.must(errors.Join(err, snap.Close()))
	if n != len(want) {
		r.t.Fatalf("%d versions are there after compaction, want %d", n, len(want))
	}
	r.checkSize()
}

func TestModel(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := &modelRun{
				harness: newHarness(t), rng: rand.New(rand.NewPCG(seed, 3)),
				m: model{rev: 1, compact: noCompaction}, keys: []int{8, 40, 300}[seed%3],
			}
			r.smallRecords(seed)
			for r.ops < 1200 {
				r.batch()
				for range r.rng.IntN(4) {
					r.query()
				}
				switch r.rng.IntN(40) {
				case 0, 1:
					r.compaction()
				case 2:
					r.reopen()
				case 3, 4, 5:
					r.replay()
				}
				if got := r.s.Revision(); got != r.m.rev {
					t.Fatalf("revision %d, want %d", got, r.m.rev)
				}
			}
			v := r.s.view.Load()
			v.index.check(t)
		})
	}
}

// TestCrash crashes the engine, which loses what was not flushed, and checks
// that what is left is the state after some batch: the model's state at that
// revision, with the size in use exact, and a compaction that goes on to its
// end.
func TestCrash(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			r := &modelRun{
				harness: newHarnessOn(t, fs), rng: rand.New(rand.NewPCG(seed, 4)),
				m: model{rev: 1, compact: noCompaction}, keys: 30,
			}
			r.smallRecords(seed)
			for range 5 {
				for range 10 + r.rng.IntN(40) {
					r.batch()
					switch r.rng.IntN(20) {
					case 0, 1:
						r.compaction()
					case 2:
						r.must(r.eng.Flush())
					}
				}
				r.crash(fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0}))
				fs = r.fs.(*vfs.MemFS)
			}
		})
	}
}

// crash goes on with the state in fs, and rewinds the model to it.
func (r *modelRun) crash(fs *vfs.MemFS) {
	r.t.Helper()
	r.close()
	r.fs = fs
	r.open()
	rev := r.s.Revision()
	if rev > r.m.rev || r.s.CompactRevision() > r.m.compact {
		r.t.Fatalf("revision %d of %d, compacted %d of %d", rev, r.m.rev, r.s.CompactRevision(), r.m.compact)
	}
	r.m.rev, r.m.compact = rev, r.s.CompactRevision()
	r.m.events = slices.DeleteFunc(r.m.events, func(e *mvccpb.Event) bool { return e.Kv.ModRevision > rev })
	for range 20 {
		r.query()
	}
	var done <-chan struct{}
	r.apply(func() { done, _ = r.s.Compact(r.m.compact) })
	r.wait(done)
	r.retained()
}
