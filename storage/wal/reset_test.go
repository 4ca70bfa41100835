package wal

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

func TestResetBeginsAnew(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	fill(t, l, 200)
	must(t, l.Reset(hardState(5, 9, 1200), 1000, 4)) // what it commits beyond is not in the log yet
	const want = "hs=5/9/1000 mark=1000/4"
	if got := state(t, l); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	if _, err := l.Entries(150, 151, 1); !errors.Is(err, raft.ErrCompacted) {
		t.Fatalf("an entry of before: %v", err)
	}
	purge(t, l)
	names, err := segmentNames(fs, dir)
	must(t, err)
	if len(names) != 1 || l.Size() > segmentHeaderLen+100 {
		t.Fatalf("%d segments and %d bytes are left", len(names), l.Size())
	}
	if err := l.Append(nil, []*pb.Entry{entry(201, 5, "x")}); err == nil {
		t.Fatal("an entry was taken that does not follow the state")
	}
	must(t, l.Close())

	l, err = Open(options(fs))
	must(t, err)
	if got := state(t, l); got != want {
		t.Fatalf("after reopening %s, want %s", got, want)
	}
	must(t, l.Append(hardState(5, 9, 1001), []*pb.Entry{entry(1001, 4, "a"), entry(1002, 5, "b")}))
	must(t, l.Reset(hardState(5, 9, 1500), 1500, 5)) // and again
	fill(t, l, 100)
	must(t, l.Compact(1550))
	after := state(t, l)
	must(t, l.Close())
	l, err = Open(options(fs))
	must(t, err)
	must(t, l.Compact(1550))
	if got := state(t, l); got != after {
		t.Fatalf("after more entries:\n%s\nwant:\n%s", got, after)
	}
	must(t, l.Close())
}

// A joiner's log begins before the first entry and is reset by its snapshot.
func TestResetOfAJoinersLog(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if got := state(t, l); first != 1 || last != 0 || got != "hs=0/0/0 mark=0/0" {
		t.Fatalf("it begins with %d and ends with %d: %s", first, last, got)
	}
	must(t, l.Append(hardState(3, 0, 0), nil))
	must(t, l.Reset(hardState(3, 0, 17), 17, 2))
	must(t, l.Close())
	l, err = Open(options(fs))
	must(t, err)
	if got := state(t, l); got != "hs=3/0/17 mark=17/2" {
		t.Fatalf("got %s", got)
	}
	must(t, l.Close())
}

// at returns a file system that passes everything on to fs, and asks do before
// its write, sync, rename or removal number stop, and before all after it.
func at(fs vfs.FS, stop int, do func() error) vfs.FS {
	n := 0
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			if n++; n >= stop {
				return do()
			}
		}
		return nil
	}))
}

// A process ends, or the power fails, before each operation of a reset; and the
// power fails again before each of the start that follows. The log is then as
// before, or as after, and never refused.
func TestCrashAmidAReset(t *testing.T) {
	begun := newFS(t) // all is synced in it
	l, err := Create(options(begun), 0, 0)
	must(t, err)
	fill(t, l, 40)
	must(t, l.Close())
	kept := []int{0, 50, 50, 100} // of what was not synced, in percent
	if testing.Short() {
		kept = kept[1:2]
	}
	for seed, percent := range kept {
		r := rand.New(rand.NewPCG(uint64(seed), 0))
		powerFails := func(fs *vfs.MemFS) *vfs.MemFS {
			return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: r})
		}
		for stop, done := 1, false; !done; stop++ {
			var allowed []string
			ended := func() *vfs.MemFS { // a process, with what it left in the page cache
				fs := begun.CrashClone(vfs.CrashCloneCfg{})
				gone := errors.New("the process has ended")
				l, err := Open(options(at(fs, stop, func() error { return gone })))
				must(t, err)
				allowed = []string{state(t, l), "hs=7/9/500 mark=500/6"}
				if err := l.Reset(hardState(7, 9, 500), 500, 6); err == nil {
					done, allowed = true, allowed[1:]
				} else if !errors.Is(err, gone) {
					t.Fatal(err)
				}
				must(t, l.Close())
				return fs
			}
			what := fmt.Sprintf("seed %d, operation %d", seed, stop)
			crashed := powerFails(ended())
			crashAmidAStart(t, what+", power failed", func() *vfs.MemFS { return powerFails(crashed) }, powerFails, allowed)
			crashAmidAStart(t, what+", process ended", ended, powerFails, allowed)
		}
	}
}

func crashAmidAStart(t *testing.T, what string, left func() *vfs.MemFS, powerFails func(*vfs.MemFS) *vfs.MemFS, allowed []string) {
	t.Helper()
	for stop, done := 1, false; !done; stop++ {
		fs := left()
		var crashed *vfs.MemFS
		l, err := Open(options(at(fs, stop, func() error {
			if crashed == nil {
				crashed = powerFails(fs)
			}
			return nil
		})))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		found := state(t, l)
		if !slices.Contains(allowed, found) {
			t.Fatalf("%s: found\n%s\nallowed\n%s", what, found, allowed)
		}
		must(t, l.Settle())
		settled := crashed == nil
		if settled {
			done = true
			crashed = powerFails(fs)
			names, err := fs.List(dir)
			must(t, err)
			if len(names) != len(l.mu.segments) {
				t.Fatalf("%s: %d segments are in use and %v left", what, len(l.mu.segments), names)
			}
		}
		must(t, l.Close())
		l, err = Open(options(crashed))
		if err != nil {
			t.Fatalf("%s, start %d: %v", what, stop, err)
		}
		// What was found became sure by settling.
		if got := state(t, l); settled && got != found || !slices.Contains(allowed, got) {
			t.Fatalf("%s, start %d: found\n%s\nand then\n%s", what, stop, found, got)
		}
		fill(t, l, 1)
		want := state(t, l)
		must(t, l.Close())
		l, err = Open(options(crashed))
		must(t, err)
		if got := state(t, l); got != want {
			t.Fatalf("%s, start %d: appended to:\n%s\nwant:\n%s", what, stop, got, want)
		}
		must(t, l.Close())
	}
}

// What stands before a reset is gone even where a removal was not durable; what
// stands in it and behind it is not less checked for that.
func TestDamageAroundAReset(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	fill(t, l, 100)
	old, err := segmentNames(fs, dir)
	must(t, err)
	var before [][]byte
	for _, name := range old {
		before = append(before, readAll(t, fs, name))
	}
	must(t, l.Reset(hardState(7, 9, 500), 500, 6))
	fill(t, l, 100)
	want := state(t, l)
	must(t, l.Close())
	writeAll(t, fs, old[0], before[0])
	writeAll(t, fs, old[2], before[2][:10]) // 1 is missing, 2 is cut short

	l, err = Open(options(fs))
	must(t, err)
	if got := state(t, l); got != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
	must(t, l.Close())
	names, err := segmentNames(fs, dir)
	must(t, err)
	if !slices.Contains(names, old[0]) || !slices.Contains(names, old[2]) {
		t.Fatal("opening has removed what is superseded")
	}
	names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(old, name) })
	for _, name := range names[:2] {
		whole := readAll(t, fs, name)
		for _, at := range []int{20, 56, segmentHeaderLen + 4} {
			damaged := slices.Clone(whole)
			damaged[at] ^= 1
			writeAll(t, fs, name, damaged)
			if l, err := Open(options(fs)); err == nil {
				l.Close()
				t.Errorf("%s with byte %d changed was opened", name, at)
			}
		}
		writeAll(t, fs, name, whole)
	}
}

func TestReadersFinishWhileTheLogIsReset(t *testing.T) {
	l, err := Create(options(newFS(t)), 0, 0)
	must(t, err)
	fill(t, l, 100)
	stop, failed := make(chan struct{}), make(chan error, 1)
	reading := make(chan struct{}, 1)
	go func() { // ended by stop, awaited by failed
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			case reading <- struct{}{}:
			default:
			}
			first, _ := l.FirstIndex()
			es, err := l.Entries(first, first+50, math.MaxUint64)
			if errors.Is(err, raft.ErrCompacted) || errors.Is(err, raft.ErrUnavailable) {
				continue
			}
			if err != nil || len(es) == 0 || es[0].GetIndex() != first {
				failed <- fmt.Errorf("%d entries from %d: %w", len(es), first, err)
				return
			}
		}
	}()
	for i := range uint64(20) {
		select {
		case <-reading:
		case err := <-failed:
			t.Fatal(err)
		}
		must(t, l.Reset(hardState(1, 0, 0), 1000*(i+1), 1))
		fill(t, l, 60)
	}
	close(stop)
	must(t, <-failed)
	must(t, l.Close())
}

func TestWithin(t *testing.T) {
	l, err := Create(options(newFS(t)), 0, 0)
	must(t, err)
	fill(t, l, 300) // in segments of 4 KiB
	if got := l.Within(math.MaxInt64); got != 0 {
		t.Errorf("all of the log is within any bound, it begins after entry %d", got)
	}
	if got := l.Within(0); got != 300 {
		t.Errorf("in no bytes there is room for the entries after %d", got)
	}
	var before uint64 = 300
	for bytes := int64(8 << 10); bytes < 32<<10; bytes += 1 << 10 {
		i := l.Within(bytes)
		// An entry takes a little more than 100 bytes.
		if kept := int64(300-i) * 100; kept > bytes || kept < bytes/2-4<<10 {
			t.Errorf("within %d bytes there are %d entries", bytes, 300-i)
		}
		if i > before {
			t.Errorf("more bytes hold fewer entries: those after %d, not %d", i, before)
		}
		before = i
	}
	must(t, l.Compact(290))
	if got := l.Within(math.MaxInt64); got != 290 {
		t.Errorf("after compaction to 290 all begins after %d", got)
	}
	must(t, l.Close())
}

func TestTermsOfEntries(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0))
	var (
		ts   terms
		want = map[uint64]uint64{}
		mark uint64
		last uint64
	)
	for term := uint64(1); term < 500; term++ {
		at := mark + 1 + r.Uint64N(last-mark+1) // replaces some
		for last = at; last < at+r.Uint64N(5); last++ {
			ts, want[last] = ts.place(last, term), term
		}
		ts, want[last] = ts.place(last, term), term
		if r.IntN(4) == 0 {
			mark += r.Uint64N(last - mark + 1)
			ts = ts.dropTo(mark)
			if len(ts) > 1 && ts[1].index <= mark+1 {
				t.Fatalf("after entry %d terms are kept for nothing: %v", mark, ts)
			}
		}
		for i := mark + 1; i <= last; i++ {
			if got := ts.of(i); got != want[i] {
				t.Fatalf("entry %d has term %d, want %d; %v", i, got, want[i], ts)
			}
		}
	}
}
