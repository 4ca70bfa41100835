package mvcc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counterKeys all get the same value in every revision, which is that revision:
// so any read can tell by itself whether it saw one revision.
const counterKeys = 20

func counterKey(i int) string { return fmt.Sprintf("n%02d", i) }

// TestReadersFinishOnTheirView has readers of all kinds run against writes and
// a compaction that is always right behind them.
func TestReadersFinishOnTheirView(t *testing.T) {
	h := newHarness(t)
	bump(h)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(stop)
		wg.Wait()
	})
	defer end() // also if the test fails half way
	for _, read := range []func(*harness) error{
		readAll, readOne, readPast, readTxn, readStream, readEvents, readHash,
	} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := read(h); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	deadline := time.Now().Add(1500 * time.Millisecond)
	for i := 0; i < 1000 && time.Now().Before(deadline) && !t.Failed(); i++ { // compaction has to come to the end of them
		bump(h)
		if i%3 == 0 {
			h.apply(func() {
				if _, err := h.s.Compact(h.s.PendingRevision()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	end()
	bump(h)
	h.compact(h.s.Revision())
	h.checkSize()
	if n := len(h.get("n", "o", 0).Kvs); n != counterKeys {
		t.Errorf("%d keys are left", n)
	}
}

// bump makes one revision that sets all keys to its number. It deletes and
// recreates one of them before, so that there are tombstones to compact.
func bump(h *harness) {
	h.apply(func() {
		_, _ = h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte(counterKey(int(h.s.PendingRevision() % counterKeys)))})
		txn := &pb.TxnRequest{}
		value := []byte(strconv.FormatInt(h.s.PendingRevision()+1, 10))
		for i := range counterKeys {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: []byte(counterKey(i)), Value: value},
			}})
		}
		if _, err := h.s.Txn(txn); err != nil {
			h.t.Error(err)
		}
	})
}

// oneRevision checks that pairs are those of one revision. With all, none of
// the keys may be missing.
func oneRevision(what string, kvs []*mvccpb.KeyValue, rev int64, all bool) error {
	if all && len(kvs) != counterKeys {
		return fmt.Errorf("%s: %d keys at revision %d", what, len(kvs), rev)
	}
	for _, kv := range kvs {
		if kv.ModRevision != kvs[0].ModRevision || kv.ModRevision > rev ||
			string(kv.Value) != strconv.FormatInt(kv.ModRevision, 10) {
			return fmt.Errorf("%s at revision %d: %v among %v", what, rev, kv, kvs)
		}
	}
	return nil
}

var allCounters = &pb.RangeRequest{Key: []byte("n"), RangeEnd: []byte("o")}

func readAll(h *harness) error {
	resp, err := h.s.Range(context.Background(), allCounters)
	if err != nil {
		return err
	}
	return oneRevision("range", resp.Kvs, resp.Header.Revision, true)
}

func readOne(h *harness) error {
	resp, err := h.s.Range(context.Background(), &pb.RangeRequest{Key: []byte(counterKey(3))})
	if err != nil {
		return err
	}
	if resp.Count != 1 {
		return fmt.Errorf("get: %v", resp)
	}
	return oneRevision("get", resp.Kvs, resp.Header.Revision, false)
}

func readPast(h *harness) error {
	rev := h.s.Revision() - 1
	resp, err := h.s.Range(context.Background(), &pb.RangeRequest{Key: []byte("n"), RangeEnd: []byte("o"), Revision: rev})
	if errors.Is(err, ErrCompacted) {
		return nil
	}
	if err != nil {
		return err
	}
	// The revision before the last is a deletion, and misses one key.
	return oneRevision("range of the past", resp.Kvs, rev, false)
}

func readTxn(h *harness) error {
	op := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: allCounters}}
	resp, err := h.s.ReadTxn(context.Background(), &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("n"), RangeEnd: []byte("o"), Target: pb.Compare_VALUE,
			Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Value{Value: []byte("0")}}},
		Success: []*pb.RequestOp{op, op},
	})
	if err != nil {
		return err
	}
	if !resp.Succeeded {
		return errors.New("transaction: a compare that must hold did not")
	}
	var kvs []*mvccpb.KeyValue
	for _, r := range resp.Responses {
		kvs = append(kvs, r.GetResponseRange().Kvs...)
	}
	if len(kvs) != 2*counterKeys {
		return fmt.Errorf("transaction: %d keys", len(kvs))
	}
	return oneRevision("transaction", kvs, resp.Header.Revision, false)
}

func readStream(h *harness) error {
	var kvs []*mvccpb.KeyValue
	var rev int64
	err := h.s.RangeStream(context.Background(), allCounters, func(r *pb.RangeStreamResponse) error {
		kvs = append(kvs, r.RangeResponse.Kvs...)
		rev = r.RangeResponse.GetHeader().GetRevision()
		return nil
	})
	if err != nil {
		return err
	}
	return oneRevision("stream", kvs, rev, true)
}

func readEvents(h *harness) error {
	from := max(h.s.CompactRevision(), 2)
	evs, next, err := h.s.ReadEvents(from, h.s.Revision(), func([]byte) bool { return true }, 1<<20)
	if errors.Is(err, ErrCompacted) {
		return nil
	}
	if err != nil {
		return err
	}
	for i, r := range evs {
		if r.Revision != from+int64(i) {
			return fmt.Errorf("events: revision %d at %d from %d", r.Revision, i, from)
		}
	}
	if next != from+int64(len(evs)) {
		return fmt.Errorf("events: %d revisions from %d, next is %d", len(evs), from, next)
	}
	return nil
}

func readHash(h *harness) error {
	_, _, _, err := h.s.HashKV(context.Background(), 0)
	return err
}

// TestStreamOutlivesCompaction: a stream that waits for its client goes on with
// the revision it began at, whatever is compacted.
func TestStreamOutlivesCompaction(t *testing.T) {
	h := newHarness(t)
	for i := range 30 {
		h.put(fmt.Sprintf("k%02d", i), "old")
	}
	rev := h.s.Revision()
	n := 0
	err := h.s.RangeStream(context.Background(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}, func(r *pb.RangeStreamResponse) error {
		for _, kv := range r.RangeResponse.Kvs {
			if string(kv.Value) != "old" {
				t.Errorf("%v is not of revision %d", kv, rev)
			}
		}
		n += len(r.RangeResponse.Kvs)
		if h.s.Revision() == rev {
			for i := range 30 {
				h.put(fmt.Sprintf("k%02d", i), "new")
			}
			h.compact(h.s.Revision())
		} else if hdr := r.RangeResponse.Header; hdr == nil || hdr.Revision != rev || r.RangeResponse.Count != 30 {
			t.Errorf("the end of the stream: %v", r.RangeResponse)
		}
		return nil
	})
	if err != nil || n != 30 {
		t.Errorf("%d keys, %v", n, err)
	}
}

// TestStalledStreamHoldsNothing: a stream whose client does not read gives back what it reads from, goes on at its revision when the
// client reads again, and ends if that is compacted.
func TestStalledStreamHoldsNothing(t *testing.T) {
	for _, compacted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := newHarness(t)
			for i := range 30 {
				h.put(fmt.Sprintf("k%02d", i), "old")
			}
			rev := h.s.Revision()
			pieces, keys := 0, 0
			err := h.s.RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}, func(r *pb.RangeStreamResponse) error {
				for _, kv := range r.RangeResponse.Kvs {
					if keys++; string(kv.Value) != "old" {
						t.Errorf("%v is not of revision %d", kv, rev)
					}
				}
				if pieces++; pieces > 1 {
					if hdr := r.RangeResponse.Header; hdr != nil && hdr.Revision != rev {
						t.Errorf("the end of a stream of revision %d: %v", rev, hdr)
					}
					return nil
				}
				for i := range 30 {
					h.put(fmt.Sprintf("k%02d", i), "new")
				}
				time.Sleep(streamHold + time.Second)
				if compacted {
					h.compact(h.s.Revision())
				}
				return nil
			})
			if compacted != errors.Is(err, ErrCompacted) || !compacted && (err != nil || keys != 30) {
				t.Errorf("compacted %v: %d keys, %v", compacted, keys, err)
			}
			h.close()
		})
	}
}

// TestStaleViewIsReloaded: a read whose view compaction has passed before it
// came to read starts over instead of failing.
func TestStaleViewIsReloaded(t *testing.T) {
	h := newHarness(t)
	for i := range 10 {
		h.put(counterKey(i), "1")
	}
	stale := h.s.latest()
	for i := range 10 {
		h.put(counterKey(i), "2")
	}
	h.compact(h.s.Revision())
	for _, r := range []*pb.RangeRequest{{Key: []byte(counterKey(1))}, allCounters, {Key: []byte("n"), RangeEnd: []byte("o"), Revision: stale.rev - 1}} {
		if resp, err := stale.read(context.Background(), r, true); !errors.Is(err, errStale) {
			t.Errorf("%v on a stale view: %v, %v", r, resp, err)
		}
	}
	if stale.hold() {
		t.Error("a snapshot was taken for a view that compaction had passed")
		stale.release()
	}
	if resp := h.get("n", "o", 0); resp.Count != 10 || string(resp.Kvs[9].Value) != "2" {
		t.Errorf("after reload: %v", resp)
	}
}

// TestCancel: long reads end when their caller has gone.
func TestCancel(t *testing.T) {
	h := newHarness(t)
	h.apply(func() {
		for i := range 3000 {
			if _, err := h.s.Put(&pb.PutRequest{Key: fmt.Appendf(nil, "k%05d", i), Value: []byte("v")}); err != nil {
				t.Fatal(err)
			}
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	past := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: 2900, CountOnly: true}
	snap := h.eng.NewSnapshot()
	defer func() {
		if err := snap.Close(); err != nil {
			t.Error(err)
		}
	}()
	for name, read := range map[string]func() error{
		"range":  func() error { _, err := h.s.Range(ctx, all); return err },
		"past":   func() error { _, err := h.s.Range(ctx, past); return err },
		"stream": func() error { return h.s.RangeStream(ctx, all, func(*pb.RangeStreamResponse) error { return nil }) },
		"txn": func() error {
			_, err := h.s.ReadTxn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte{0}, RangeEnd: []byte{0}, Target: pb.Compare_MOD, Result: pb.Compare_GREATER}}})
			return err
		},
		"hashkv": func() error { _, _, _, err := h.s.HashKV(ctx, 0); return err },
		"hash":   func() error { _, err := h.s.Hash(ctx); return err },
		"export": func() error {
			return h.s.ForEachRevision(ctx, snap, func(int64, int64, bool, *mvccpb.KeyValue) error { return nil })
		},
	} {
		if err := read(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCloseDuringCompaction: Close ends a compaction wherever it is, tells those
// who wait, and the next Open finishes it.
func TestCloseDuringCompaction(t *testing.T) {
	h := newHarness(t)
	h.opts.CompactionSleep = time.Hour
	h.reopen()
	for range 100 {
		h.put("a", "x")
	}
	var done <-chan struct{}
	h.apply(func() {
		var err error
		if done, err = h.s.Compact(h.s.Revision()); err != nil {
			t.Fatal(err)
		}
	})
	select {
	case <-done:
		t.Fatal("a compaction of several batches ended in spite of its pauses")
	default:
	}
	if err := h.eng.Flush(); err != nil {
		t.Fatal(err)
	}
	h.close()
	h.wait(done)

	h.opts.CompactionSleep = time.Microsecond
	h.open()
	h.apply(func() {
		var err error
		if done, err = h.s.Compact(h.s.Revision()); !errors.Is(err, ErrCompacted) {
			t.Fatal(err)
		}
	})
	h.wait(done)
	h.checkSize()
	if n := h.versions(); n != 1 {
		t.Errorf("%d versions are left", n)
	}
}

func (h *harness) versions() int {
	h.t.Helper()
	n := 0
	snap := h.eng.NewSnapshot()
	err := h.s.ForEachRevision(context.Background(), snap, func(int64, int64, bool, *mvccpb.KeyValue) error {
		n++
		return nil
	})
	if err := errors.Join(err, snap.Close()); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// A stream gives what a range gives, whatever is written meanwhile and however long its client takes.
func TestStreamIsRange(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			h := newHarness(t)
			h.opts.StreamChunkBytes = 300
			h.reopen()
			write := func(n int) {
				for range n {
					k := fmt.Sprintf("k%03d", rnd.IntN(150))
					h.apply(func() {
						if rnd.IntN(4) == 0 {
							_, err := h.s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte(k)})
							must(t, err)
						} else {
							_, err := h.s.Put(&pb.PutRequest{Key: []byte(k), Value: make([]byte, rnd.IntN(60))})
							must(t, err)
						}
					})
				}
			}
			write(200)
			h.compact(20)
			write(20)
			req := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), KeysOnly: rnd.IntN(3) == 0, CountOnly: rnd.IntN(8) == 0}
			if rnd.IntN(2) == 0 {
				req.Limit = int64(rnd.IntN(120))
			}
			switch rnd.IntN(4) {
			case 0:
				req.Revision = h.s.Revision() - int64(rnd.IntN(30))
			case 1:
				req.Revision = -1
			}
			if rnd.IntN(10) == 0 {
				req.Key, req.RangeEnd = []byte(fmt.Sprintf("k%03d", rnd.IntN(150))), nil
			}
			sent := proto.CloneOf(req)
			want, err := h.s.Range(t.Context(), req)
			must(t, err)
			got := &pb.RangeResponse{}
			err = h.s.RangeStream(t.Context(), req, func(r *pb.RangeStreamResponse) error {
				got.Kvs = append(got.Kvs, r.RangeResponse.Kvs...)
				got.Count, got.More, got.Header = r.RangeResponse.Count, r.RangeResponse.More, r.RangeResponse.Header
				if rnd.IntN(2) == 0 {
					write(5)
					if rnd.IntN(2) == 0 {
						time.Sleep(streamHold + time.Second)
					}
				}
				return nil
			})
			must(t, err)
			if !proto.Equal(got, want) {
				t.Errorf("seed %d %v:\n got %v\nwant %v", seed, req, got, want)
			}
			if !proto.Equal(sent, req) {
				t.Errorf("seed %d: request changed", seed)
			}
			h.close()
		})
	}
}

// What cannot be read is an error, not a pair that was not there.
func TestPreviousPairThatCannotBeRead(t *testing.T) {
	var broken atomic.Bool
	h := newHarnessOn(t, errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, ".sst") {
			return syscall.EIO
		}
		return nil
	})))
	h.readError = syscall.EIO
	h.put("k", "one")
	h.put("k", "two")
	h.apply(func() { // so that the history has blocks of its own
		for i := range 5000 {
			_, err := h.s.Put(&pb.PutRequest{Key: fmt.Appendf(nil, []string{"j%04d", "l%04d"}[i%2], i), Value: make([]byte, 200)})
			must(t, err)
		}
	})
	h.saveImage()
	h.reopen() // by the image: nothing of the history is in the cache
	ev := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 2, ModRevision: 3}}
	broken.Store(true)
	kv, err := h.s.PrevKV(ev)
	broken.Store(false)
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("with a disk that cannot be read: %v, %v", kv, err)
	}
	if kv, err = h.s.PrevKV(ev); err != nil || string(kv.GetValue()) != "one" {
		t.Errorf("then: %v, %v", kv, err)
	}
}
