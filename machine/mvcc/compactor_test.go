package mvcc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// TestCompactionPace: however batches are divided, compaction pauses as much as it
// is told to.
func TestCompactionPace(t *testing.T) {
	for _, c := range []struct {
		limit, wantLimit int
		sleep, wantSleep time.Duration
	}{
		{1000, 100, 10 * time.Millisecond, time.Millisecond},
		{100, 100, time.Second, time.Second},
		{7, 7, time.Second, time.Second},
		{1 << 40, 100, time.Hour, 327 * time.Nanosecond},
	} {
		got := newCompactor(nil, Options{CompactionBatchLimit: c.limit, CompactionSleep: c.sleep}, 0, 0)
		if got.limit != c.wantLimit || got.sleep != c.wantSleep {
			t.Errorf("%d revisions and %v: %d and %v, want %d and %v", c.limit, c.sleep, got.limit, got.sleep, c.wantLimit, c.wantSleep)
		}
	}
}

// A key that comes and goes again and again, a lock's say, is compacted about as fast as so many keys that come and go once: what
// is gone of it already is not looked through for each of its lives.
func TestCompactionOfManyLives(t *testing.T) {
	if testing.Short() {
		t.Skip("it compares times of the processor, which the race detector distorts")
	}
	const lives, batch = 12_000, 500
	took := func(keys int) time.Duration {
		h := newHarness(t)
		h.opts.CompactionSleep = time.Nanosecond
		h.reopen()
		for i := 0; i < lives; i += batch {
			h.apply(func() {
				for j := i; j < i+batch; j++ {
					key := fmt.Appendf(nil, "%06d", j%keys)
					_, err := h.s.Put(&pb.PutRequest{Key: key})
					must(t, err)
					_, err = h.s.DeleteRange(&pb.DeleteRangeRequest{Key: key})
					must(t, err)
				}
			})
		}
		began := cpuTime(t)
		h.compact(h.s.Revision())
		return cpuTime(t) - began
	}
	one, many := time.Hour, time.Hour
	for range 2 {
		one, many = min(one, took(1)), min(many, took(lives))
	}
	if one > 2*many {
		t.Errorf("%d lives of a key took %v, those of as many keys %v", lives, one, many)
	}
}

// cpuTime is what the process has used of processors, which is the same beside other ones.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A revision that deletes a key and puts it again is one with two changes of it; what was before goes also when a batch ends between
// them, or a crash does.
func TestCompactionBetweenChangesOfARevision(t *testing.T) {
	h := newHarness(t)
	h.opts.CompactionBatchLimit = 1
	h.reopen()
	h.put("k", "old") // revision 2
	h.put("l", "other")
	h.apply(func() {
		_, err := h.s.Txn(&pb.TxnRequest{Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte{0}}}},
			{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Value: []byte("new")}}},
		}})
		must(t, err)
	})
	h.put("m", "later")
	h.compact(5)
	snap := h.eng.NewSnapshot()
	defer snap.Close()
	var kept []string
	must(t, h.s.ForEachRevision(t.Context(), snap, func(main, sub int64, _ bool, kv *mvccpb.KeyValue) error {
		kept = append(kept, fmt.Sprintf("%s=%s at %d/%d", kv.Key, kv.Value, main, sub))
		return nil
	}))
	if want := "[k=new at 4/2 m=later at 5/0]"; fmt.Sprint(kept) != want {
		t.Errorf("kept are %v, want %s", kept, want)
	}
}

// One read of the disk that fails does not end compaction for the life of the process
// while everything else goes on.
func TestCompactionAfterAReadError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, ".sst") && broken.CompareAndSwap(true, false) {
				return errors.New("input/output error") // once
			}
			return nil
		}))
		h := newHarnessOn(t, fs)
		fill := func() {
			h.apply(func() {
				for i := range 3000 {
					if _, err := h.s.Put(&pb.PutRequest{Key: fmt.Appendf(nil, "k%04d", i), Value: make([]byte, 200)}); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
		fill()
		fill()
		h.saveImage()
		h.reopen()
		for try := range 2 {
			fill()
			broken.Store(try == 0) // not before: fill reads too, and a change that cannot be made is fatal
			var done <-chan struct{}
			h.apply(func() {
				var err error
				if done, err = h.s.Compact(h.s.w.rev); err != nil {
					t.Fatal(err)
				}
			})
			select {
			case <-done:
				return
			case <-time.After(5 * time.Second):
				t.Logf("compaction %d does not end; read error still to come: %v; in use %d bytes; the engine says %v",
					try+1, broken.Load(), h.s.SizeInUse(), h.eng.Flush())
			}
		}
		t.Error("after one read error no compaction is ever finished, and the engine's owner was not told")
	})
}

// revVersion is one change.
type revVersion struct {
	main, sub int64
	key       string
	del       bool
}

// What a compaction keeps is what it must, however it was interrupted, by batches of a few revisions that change a key several times.
func TestCompactionInterrupted(t *testing.T) {
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			h := newHarness(t)
			h.smallRecords(seed)
			h.opts.CompactionBatchLimit = 1 + rnd.IntN(3)
			h.opts.CompactionSleep = 200 * time.Microsecond
			h.reopen()
			var all []revVersion
			var compacted int64 = -1
			keys := []string{"a", "ab", "b", "c\x00", "c"}
			var last <-chan struct{}
			for range 150 {
				evs := h.apply(func() {
					for range 1 + rnd.IntN(4) {
						var ops []*pb.RequestOp
						put := func(k string) {
							ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k), Value: []byte(fmt.Sprint(rnd.IntN(1000)))}}})
						}
						del := func(k, e string) {
							ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(k), RangeEnd: []byte(e)}}})
						}
						for range 1 + rnd.IntN(5) {
							k := keys[rnd.IntN(len(keys))]
							switch rnd.IntN(4) {
							case 0:
								del(k, "\x00")
							case 1:
								del(k, "")
							default:
								put(k)
							}
						}
						_, err := h.s.Txn(&pb.TxnRequest{Success: ops})
						must(t, err)
					}
				})
				for _, r := range evs {
					for sub, ev := range r.Events {
						all = append(all, revVersion{r.Revision, int64(sub), string(ev.Kv.Key), ev.Type == mvccpb.Event_DELETE})
					}
				}
				if rnd.IntN(6) == 0 && h.s.Revision() > compacted+1 {
					lo := max(compacted+1, 1)
					compacted = lo + rnd.Int64N(h.s.Revision()-lo+1)
					h.apply(func() {
						var err error
						last, err = h.s.Compact(compacted)
						must(t, err)
					})
					switch rnd.IntN(3) {
					case 0:
						h.wait(last)
					case 1:
						time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
						h.reopen()
						last = nil
					}
				}
			}
			if compacted < h.s.Revision() {
				compacted++
				h.compact(compacted)
			}
			snap := h.eng.NewSnapshot()
			var got, want []string
			must(t, h.s.ForEachRevision(t.Context(), snap, func(main, sub int64, del bool, kv *mvccpb.KeyValue) error {
				got = append(got, fmt.Sprintf("%s %d/%d %v", kv.Key, main, sub, del))
				return nil
			}))
			snap.Close()
			for i, v := range all {
				keep := v.main >= compacted
				if !keep && !v.del {
					keep = !slices.ContainsFunc(all[i+1:], func(o revVersion) bool { return o.key == v.key && o.main <= compacted })
				}
				if keep {
					want = append(want, fmt.Sprintf("%s %d/%d %v", v.key, v.main, v.sub, v.del))
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("seed %d compacted %d:\n got %v\nwant %v", seed, compacted, got, want)
			}
			h.checkSize()
			h.close()
		})
	}
}
