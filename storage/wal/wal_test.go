package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

const dir = "log"

func options(fs vfs.FS) Options {
	return Options{Dir: dir, FS: fs, ClusterID: 7, MemberID: 9, SegmentBytes: 4 << 10, CacheBytes: 1 << 10}
}

func newFS(t testing.TB) *vfs.MemFS {
	fs := vfs.NewCrashableMem()
	must(t, fs.MkdirAll(dir, 0o755))
	must(t, syncDir(fs, "/"))
	return fs
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func entry(index, term uint64, data string) *pb.Entry {
	return &pb.Entry{Index: &index, Term: &term, Type: pb.EntryNormal.Enum(), Data: []byte(data)}
}

func hardState(term, vote, commit uint64) *pb.HardState {
	return &pb.HardState{Term: &term, Vote: &vote, Commit: &commit}
}

// state is what a reader can learn of a log, in a form to compare.
func state(t testing.TB, l *Log) string {
	t.Helper()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	hs, _, _ := l.InitialState()
	var b bytes.Buffer
	fmt.Fprintf(&b, "hs=%d/%d/%d", hs.GetTerm(), hs.GetVote(), hs.GetCommit())
	term, err := l.Term(first - 1)
	must(t, err)
	fmt.Fprintf(&b, " mark=%d/%d", first-1, term)
	if last < first {
		return b.String()
	}
	es, err := l.Entries(first, last+1, math.MaxUint64)
	must(t, err)
	for i, e := range es {
		if e.GetIndex() != first+uint64(i) {
			t.Fatalf("entry %d stands at %d", e.GetIndex(), first+uint64(i))
		}
		if term, err := l.Term(e.GetIndex()); err != nil || term != e.GetTerm() {
			t.Fatalf("term of %d is %d, %v; the entry says %d", e.GetIndex(), term, err, e.GetTerm())
		}
		fmt.Fprintf(&b, " %d/%d=%.12s", e.GetIndex(), e.GetTerm(), e.Data)
	}
	return b.String()
}

func TestReopenFindsWhatWasAppended(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 1, 1)
	must(t, err)
	if got := state(t, l); got != "hs=1/0/1 mark=1/1" {
		t.Fatalf("a new log: %s", got)
	}
	must(t, l.Append(hardState(2, 9, 1), []*pb.Entry{entry(2, 2, "a"), entry(3, 2, "b")}))
	must(t, l.Append(nil, []*pb.Entry{entry(4, 2, "c")}))
	must(t, l.Append(hardState(3, 0, 3), []*pb.Entry{entry(4, 3, "C"), entry(5, 3, "")})) // replaces 4
	const want = "hs=3/0/3 mark=1/1 2/2=a 3/2=b 4/3=C 5/3="
	if got := state(t, l); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	must(t, l.Close())
	if err := l.Append(nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after close: %v", err)
	}
	l, err = Open(options(fs))
	must(t, err)
	if got := state(t, l); got != want {
		t.Fatalf("after reopening %s, want %s", got, want)
	}
	must(t, l.Append(nil, []*pb.Entry{entry(6, 3, "d")}))
	must(t, l.Close())
	l, err = Open(options(fs))
	must(t, err)
	if got := state(t, l); got != want+" 6/3=d" {
		t.Fatalf("after the second reopening: %s", got)
	}
	must(t, l.Close())
}

func TestEntriesThatDoNotFollow(t *testing.T) {
	for _, index := range []uint64{0, 1, 3} {
		fs := newFS(t)
		l, err := Create(options(fs), 1, 1)
		must(t, err)
		if err := l.Append(nil, []*pb.Entry{entry(index, 1, "x")}); err == nil {
			t.Fatalf("entry %d was taken after entry 1, which begins the log", index)
		}
		must(t, l.Close())
		l, err = Open(options(fs))
		must(t, err) // it was not written either
		must(t, l.Close())
	}
}

// fill appends n entries of about 100 bytes each, one at a time.
func fill(t testing.TB, l *Log, n int) {
	t.Helper()
	last, _ := l.LastIndex()
	for i := range uint64(n) {
		must(t, l.Append(nil, []*pb.Entry{entry(last+1+i, 1, string(appended(last+1+i)))}))
	}
}

// appended is the data of the entries that fill appends.
func appended(index uint64) []byte { return fmt.Appendf(nil, "%08d%092d", index, 0) }

func TestSegmentsRotateAndCompact(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	fill(t, l, 500)
	names, err := segmentNames(fs, dir)
	must(t, err)
	if len(names) < 10 {
		t.Fatalf("500 entries of 100 bytes made %d segments of 4 KiB", len(names))
	}
	before := l.Size()
	must(t, l.Compact(300))
	select {
	case <-l.ToPurge():
	default:
		t.Fatal("nothing is to be purged")
	}
	if _, err := l.Entries(300, 301, 1); !errors.Is(err, raft.ErrCompacted) {
		t.Fatalf("a compacted entry: %v", err)
	}
	if _, err := l.Term(299); !errors.Is(err, raft.ErrCompacted) {
		t.Fatalf("the term of a compacted entry: %v", err)
	}
	if _, err := l.Entries(500, 502, 1); !errors.Is(err, raft.ErrUnavailable) {
		t.Fatalf("an entry not yet written: %v", err)
	}
	want := state(t, l)
	// Until files are removed they are a part of the log that a start finds; the first is removed first.
	for removed := 0; ; removed++ {
		left, err := segmentNames(fs, dir)
		must(t, err)
		if !slices.Equal(left, names[removed:]) {
			t.Fatalf("after %d removed files there are %v of %v", removed, left, names)
		}
		done, err := l.Purge()
		must(t, err)
		if !done {
			break
		}
		again, err := Open(options(fs))
		must(t, err)
		must(t, again.Compact(300))
		if got := state(t, again); got != want {
			t.Fatalf("after %d removed files:\n%s\nwant:\n%s", removed+1, got, want)
		}
		must(t, again.Close())
	}
	left, err := segmentNames(fs, dir)
	must(t, err)
	if len(left) >= len(names)/2+1 || l.Size() > before/2 {
		t.Fatalf("compacting 300 of 500 entries left %d of %d segments, %d of %d bytes", len(left), len(names), l.Size(), before)
	}
	must(t, l.Close())
	l, err = Open(options(fs))
	must(t, err)
	must(t, l.Compact(300)) // whole segments were removed; the rest of the cut is not stored
	if got := state(t, l); got != want {
		t.Fatalf("after reopening:\n%s\nwant:\n%s", got, want)
	}
	must(t, l.Close())
}

func TestReadersFinishWhileSegmentsGo(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	fill(t, l, 200)
	stop := make(chan struct{})
	failed := make(chan error, 1)
	var reads atomic.Int64
	go func() {
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			first, _ := l.FirstIndex()
			es, err := l.Entries(first, first+50, math.MaxUint64)
			if errors.Is(err, raft.ErrCompacted) {
				continue
			}
			if err != nil || len(es) != 50 {
				failed <- fmt.Errorf("%d entries from %d: %w", len(es), first, err)
				return
			}
			reads.Add(1)
		}
	}()
	for i := uint64(1); i < 150 || reads.Load() < 20; i++ {
		must(t, l.Compact(min(i, 150)))
		purge(t, l)
		if i >= 150 && len(failed) > 0 {
			break
		}
	}
	close(stop)
	must(t, <-failed)
	must(t, l.Close())
}

// purge removes all files that the log has given up.
func purge(t testing.TB, l *Log) {
	t.Helper()
	for done := true; done; {
		var err error
		done, err = l.Purge()
		must(t, err)
	}
}

func readAll(t testing.TB, fs vfs.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(fs.PathJoin(dir, name))
	must(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	must(t, err)
	return b
}

func writeAll(t testing.TB, fs vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := fs.Create(fs.PathJoin(dir, name), vfs.WriteCategoryUnspecified)
	must(t, err)
	_, err = f.Write(bytes.Clone(b)) // which a race build writes over
	must(t, err)
	must(t, f.Close())
}

// A crash may leave any part of the last write, since it was not synced: a
// prefix, or sectors of it in any order.
func TestTornTailIsCut(t *testing.T) {
	fs := newFS(t)
	o := options(fs)
	o.SegmentBytes = 1 << 20
	l, err := Create(o, 0, 0)
	must(t, err)
	fill(t, l, 20)
	want := state(t, l)
	start := l.tail.offset
	must(t, l.Append(nil, []*pb.Entry{entry(21, 1, string(bytes.Repeat([]byte("torn"), 500)))}))
	end := l.tail.offset
	must(t, l.Close())
	name := segmentName(1)
	whole := readAll(t, fs, name)

	check := func(what string, content []byte) {
		t.Helper()
		writeAll(t, fs, name, content)
		l, err := Open(o)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := state(t, l); got != want {
			t.Fatalf("%s: got %s, want %s", what, got, want)
		}
		// What is written next must not be confused by the remains.
		must(t, l.Append(nil, []*pb.Entry{entry(21, 1, "again")}))
		must(t, l.Close())
		l, err = Open(o)
		if err != nil {
			t.Fatalf("%s, appended to and reopened: %v", what, err)
		}
		if got := state(t, l); got != want+" 21/1=again" {
			t.Fatalf("%s, appended to and reopened: %s", what, got)
		}
		must(t, l.Close())
	}
	for cut := start; cut < end-frameAlign; cut += 13 {
		check(fmt.Sprintf("file ends at %d of frame [%d, %d)", cut, start, end), whole[:cut])
		zeroed := bytes.Clone(whole)
		clear(zeroed[cut:end])
		check(fmt.Sprintf("zeros from %d of frame [%d, %d)", cut, start, end), zeroed)
	}
	for sector := start / 512; sector <= (end-1)/512; sector++ {
		lost := bytes.Clone(whole)
		clear(lost[max(sector*512, start):min((sector+1)*512, end)])
		check(fmt.Sprintf("sector %d was not written", sector), lost)
	}
}

func TestDamageIsRefusedAndNothingChanged(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	fill(t, l, 100)
	must(t, l.Close())
	names, err := segmentNames(fs, dir)
	must(t, err)
	r := rand.New(rand.NewPCG(1, 2))
	for _, name := range names {
		whole := readAll(t, fs, name)
		for range 30 {
			// The last frame of the last segment cannot be told from a torn one.
			limit := len(whole)
			if name == names[len(names)-1] {
				limit = segmentHeaderLen + 2*frameHeaderLen
			} else {
				for limit > 0 && whole[limit-1] == 0 {
					limit--
				}
				limit -= frameAlign // padding is not covered by a checksum
			}
			damaged := bytes.Clone(whole)
			at := r.IntN(limit)
			damaged[at] ^= byte(1 + r.IntN(255))
			writeAll(t, fs, name, damaged)
			l, err := Open(options(fs))
			if err == nil {
				l.Close()
				// A byte that no checksum covers is padding; what counts is that no entry is lost.
				if last, _ := l.LastIndex(); last != 100 || whole[at] != 0 {
					t.Fatalf("%s with byte %d changed was opened, with entries to %d", name, at, last)
				}
			} else {
				var (
					damage  *DamageError
					version *VersionError
				)
				if !errors.As(err, &damage) && !errors.As(err, &version) {
					t.Fatalf("%s with byte %d changed: %v", name, at, err)
				}
			}
			if !bytes.Equal(readAll(t, fs, name), damaged) {
				t.Fatalf("%s was changed though it was refused", name)
			}
		}
		writeAll(t, fs, name, whole)
	}
	// A segment that is missing in the middle.
	middle := fs.PathJoin(dir, names[len(names)/2])
	must(t, fs.Rename(middle, middle+".gone"))
	var damage *DamageError
	if _, err := Open(options(fs)); !errors.As(err, &damage) {
		t.Fatalf("a missing segment: %v", err)
	}
}

// A new leader's entries replace others that a segment before the one they are
// written to holds. When that segment is gone the log must still open.
func TestReplacedEntriesOutliveTheirSegments(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	fill(t, l, 20)
	before := l.tail.segment.sequence
	for l.tail.segment.sequence == before {
		fill(t, l, 1)
	}
	last, _ := l.LastIndex()
	for i := range uint64(6) { // from two below the mark of the segment
		must(t, l.Append(nil, []*pb.Entry{entry(last-3+i, 2, fmt.Sprintf("%d'", last-3+i))}))
	}
	must(t, l.Compact(last))
	if len(l.mu.segments) != 1 {
		t.Fatalf("%d segments are left", len(l.mu.segments))
	}
	must(t, l.Compact(l.mu.segments[0].mark.index))
	purge(t, l)
	must(t, l.Close())
	l, err = Open(options(fs))
	must(t, err)
	mark := l.mu.segments[0].mark.index
	if term, err := l.Term(mark); err != nil || term != 2 {
		t.Fatalf("the term of the entry before the first is %d, %v", term, err)
	}
	must(t, l.Compact(last))
	want := fmt.Sprintf("hs=0/0/0 mark=%d/2 %d/2=%d' %d/2=%d'", last, last+1, last+1, last+2, last+2)
	if got := state(t, l); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	must(t, l.Close())
}

// Whether a torn tail is torn, or damage to what the engine has applied, is for
// the caller to say: until Settle or the first Append nothing is changed.
func TestOpenChangesNothing(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	fill(t, l, 3)
	must(t, l.Close())
	name := segmentName(1)
	damaged := readAll(t, fs, name)
	damaged[l.tail.offset-frameAlign-1] ^= 1
	writeAll(t, fs, name, damaged)
	writeAll(t, fs, segmentName(2)+".tmp", []byte("half"))
	for _, settle := range []bool{false, true} {
		l, err := Open(options(fs))
		must(t, err)
		if last, _ := l.LastIndex(); last != 2 {
			t.Fatalf("the log ends with entry %d", last)
		}
		if settle {
			must(t, l.Settle())
		}
		must(t, l.Close())
		_, err = fs.Stat(fs.PathJoin(dir, segmentName(2)+".tmp"))
		if changed := !bytes.Equal(readAll(t, fs, name), damaged); changed != settle || (err != nil) != settle {
			t.Fatalf("settled: %v; changed: %v, %v", settle, changed, err)
		}
	}
}

// forgetful is a file system whose page cache survives a failed sync, clean: the
// writes since the last sync can be read, and no later sync writes them.
type forgetful struct {
	vfs.FS        // the page cache
	disk   vfs.FS // what a power failure leaves
	fail   *bool  // syncs
}

type forgetfulFile struct {
	vfs.File
	fs    forgetful
	path  string
	dirty []func(vfs.File) error
}

func (fs forgetful) OpenReadWrite(path string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(path, c, o...)
	return &forgetfulFile{File: f, fs: fs, path: path}, err
}

func (f *forgetfulFile) WriteAt(b []byte, at int64) (int, error) {
	b = bytes.Clone(b)
	f.dirty = append(f.dirty, func(d vfs.File) error { _, err := d.WriteAt(b, at); return err })
	return f.File.WriteAt(b, at)
}

func (f *forgetfulFile) SyncData() error { return f.Sync() }

func (f *forgetfulFile) Sync() error {
	writes := f.dirty
	f.dirty = nil
	if *f.fs.fail {
		return syscall.EIO
	}
	d, err := f.fs.disk.OpenReadWrite(f.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	for _, write := range writes {
		if err := write(d); err != nil {
			return err
		}
	}
	return d.Close()
}

// After a failed sync the next start may read the frame that was not synced from
// the page cache. What it builds on that must not be lost with the power.
func TestWhatAFailedSyncLeftIsWrittenAgain(t *testing.T) {
	cache, disk, fail := newFS(t), newFS(t), false
	l, err := Create(options(cache), 0, 0)
	must(t, err)
	must(t, l.Close())
	writeAll(t, disk, segmentName(1), readAll(t, cache, segmentName(1)))
	fs := forgetful{cache, disk, &fail}
	l, err = Open(options(fs))
	must(t, err)
	fill(t, l, 2)
	fail = true
	if err := l.Append(nil, []*pb.Entry{entry(3, 1, "not synced")}); err == nil {
		t.Fatal("a failed sync was not told")
	}
	must(t, l.Close())
	fail = false
	l, err = Open(options(fs))
	must(t, err)
	last, _ := l.LastIndex()
	fill(t, l, 1) // on top of what was found
	want := state(t, l)
	must(t, l.Close())
	l, err = Open(options(disk))
	if err != nil {
		t.Fatalf("entry %d was found, one was written on top of it, and then the power failed: %v", last, err)
	}
	if got := state(t, l); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	must(t, l.Close())
}

func TestForeignLogIsRefused(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	must(t, l.Close())
	o := options(fs)
	o.MemberID++
	var foreign *ForeignError
	if _, err := Open(o); !errors.As(err, &foreign) {
		t.Fatalf("another member's log: %v", err)
	}
	if _, err := Create(options(fs), 0, 0); err == nil {
		t.Fatal("a log was created over another")
	}
}

// Power fails at a random moment, and the disk keeps a random part of what was
// not synced.
func TestCrashKeepsWhatWasAcknowledged(t *testing.T) {
	seeds := uint64(200)
	if testing.Short() {
		seeds = 50
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 0))
		fs := newFS(t)
		l, err := Create(options(fs), 0, 0)
		must(t, err)
		acknowledged := uint64(0)
		for range 1 + r.IntN(3) {
			// The clone is taken inside the write or sync that is number stop.
			var crashed *vfs.MemFS
			stop := int64(1 + r.IntN(60))
			var ops atomic.Int64
			faulty := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && crashed == nil && ops.Add(1) == stop {
					crashed = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
				}
				return nil
			}))
			must(t, l.Close())
			o := options(faulty)
			l, err = Open(o)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			atCrash := acknowledged
			for crashed == nil {
				var es []*pb.Entry
				for i := range uint64(1 + r.IntN(3)) {
					es = append(es, entry(acknowledged+1+i, 1, fmt.Sprintf("%08d%0*d", acknowledged+1+i, r.IntN(900), 0)))
				}
				must(t, l.Append(nil, es))
				if crashed == nil {
					acknowledged += uint64(len(es))
					atCrash = acknowledged
				}
				if r.IntN(3) > 0 {
					l.Prepare()
				}
			}
			must(t, l.Close())
			fs, acknowledged = crashed, atCrash
			l, err = Open(options(fs))
			if err != nil {
				t.Fatalf("seed %d: after the crash: %v", seed, err)
			}
			last, _ := l.LastIndex()
			if last < acknowledged {
				t.Fatalf("seed %d: entry %d was acknowledged, the log ends with %d", seed, acknowledged, last)
			}
			es, err := l.Entries(1, last+1, math.MaxUint64)
			if err != nil && last > 0 {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for i, e := range es {
				if want := fmt.Sprintf("%08d", i+1); string(e.Data[:8]) != want {
					t.Fatalf("seed %d: entry %d holds %s", seed, i+1, e.Data[:8])
				}
			}
			acknowledged = last
		}
		must(t, l.Close())
	}
}

func TestFailureIsFinal(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpFileSyncData, errorfs.OpFileWriteAt} {
		fs := newFS(t)
		var broken atomic.Bool
		l, err := Create(options(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if broken.Load() && op.Kind == kind {
				return syscall.ENOSPC
			}
			return nil
		}))), 0, 0)
		must(t, err)
		fill(t, l, 3)
		broken.Store(true)
		if err := l.Append(nil, []*pb.Entry{entry(4, 1, "x")}); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v, want the disk's error", err)
		}
		if last, _ := l.LastIndex(); last != 3 {
			t.Fatalf("entry %d is visible though its append failed", last)
		}
		broken.Store(false)
		// The disk works again, but what the page cache holds is unknown.
		if err := l.Append(nil, []*pb.Entry{entry(4, 1, "x")}); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("an append after a failed one: %v", err)
		}
		must(t, l.Close())
	}
}

func TestEntriesHonourMaxSize(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	fill(t, l, 100) // of which the cache holds about ten
	for _, lo := range []uint64{1, 95} {
		es, err := l.Entries(lo, lo+5, 250)
		must(t, err)
		if len(es) != 2 {
			t.Fatalf("from %d: %d entries of 100 bytes in 250", lo, len(es))
		}
		es, err = l.Entries(lo, lo+5, 0)
		must(t, err)
		if len(es) != 1 {
			t.Fatalf("from %d: %d entries for a limit of 0, want the one that is always given", lo, len(es))
		}
	}
	must(t, l.Close())
}

func FuzzFrame(f *testing.F) {
	b := appendEntry(appendHardState(appendStart(make([]byte, frameHeaderLen), position{3, 2}), hardState(2, 1, 3)), entry(4, 2, "data"))
	f.Add(sealFrame(b, 5, 6), uint64(5), uint64(6))
	f.Add([]byte{}, uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, salt, number uint64) {
		payload, n, err := parseFrame(b, salt, number)
		if err == nil && (n > len(b) || n%frameAlign != 0) {
			t.Fatalf("a frame of %d bytes in %d", n, len(b))
		}
		if err != nil {
			payload = b // whatever it is, it must not crash the decoder
		}
		var again []byte
		decodeErr := decodePayload(payload, func(r record) error {
			switch {
			case r.start != nil:
				again = appendStart(again, *r.start)
			case r.hardState != nil:
				again = appendHardState(again, r.hardState)
			case r.entry != nil:
				again = appendEntry(again, r.entry)
			}
			return nil
		})
		if decodeErr == nil && len(again) > len(payload) {
			t.Fatalf("%d bytes decoded to records of %d", len(payload), len(again))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{300, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l, err := Create(Options{Dir: b.TempDir(), ClusterID: 1, MemberID: 1}, 0, 0)
			must(b, err)
			defer l.Close()
			data := string(make([]byte, size))
			b.SetBytes(int64(size))
			for i := range b.N {
				must(b, l.Append(nil, []*pb.Entry{entry(uint64(i+1), 1, data)}))
			}
		})
	}
}

// TestReplayThroughAWindow: frames of any size are found wherever a window ends,
// and so is damage to them.
func TestForgottenEntriesAreReadFromTheDisk(t *testing.T) {
	l, err := Create(options(newFS(t)), 1, 1)
	must(t, err)
	defer l.Close()
	for i := range uint64(6) {
		must(t, l.Append(hardState(1, 1, 1), []*pb.Entry{entry(2+i, 1, fmt.Sprint("entry ", i))}))
	}
	before := state(t, l)
	for _, index := range []uint64{1, 4, 7, 100} {
		l.Forget(index)
		for _, e := range l.mu.cache.entries {
			if e.GetIndex() <= index {
				t.Errorf("entry %d is in memory after Forget(%d)", e.GetIndex(), index)
			}
		}
		if after := state(t, l); after != before {
			t.Errorf("after Forget(%d):\n%s\nbefore:\n%s", index, after, before)
		}
	}
	if l.mu.cache.bytes != 0 {
		t.Errorf("an empty cache counts %d bytes", l.mu.cache.bytes)
	}
	// What replaces forgotten entries is found, not they.
	must(t, l.Append(hardState(2, 1, 1), []*pb.Entry{entry(5, 2, "another 5")}))
	must(t, l.Append(hardState(2, 1, 1), []*pb.Entry{entry(6, 2, "another 6")}))
	if got, want := state(t, l), "hs=2/1/1 mark=1/1 2/1=entry 0 3/1=entry 1 4/1=entry 2 5/2=another 5 6/2=another 6"; got != want {
		t.Errorf("after replacing:\n%s\nwant:\n%s", got, want)
	}
}

func TestReplayThroughAWindow(t *testing.T) {
	fs := newFS(t)
	o := options(fs)
	o.SegmentBytes = 5 * windowBytes
	l, err := Create(o, 1, 1)
	must(t, err)
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*windowBytes/16)
	index := uint64(1)
	for _, n := range []int{10, windowBytes - 100, 3 * windowBytes, 5, windowBytes / 2, windowBytes / 2, 3*windowBytes - 7, 1, windowBytes, 9} {
		index++
		must(t, l.Append(nil, []*pb.Entry{entry(index, 1, fmt.Sprint(index)+string(data[:n]))}))
	}
	want := state(t, l)
	must(t, l.Close())
	reopen := func() error {
		l, err := Open(o)
		if err != nil {
			return err
		}
		if got := state(t, l); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		return l.Close()
	}
	must(t, reopen())
	names, err := segmentNames(fs, dir)
	must(t, err)
	name := names[0]
	b := readAll(t, fs, name)
	for at := len(b) / 8; at < len(b); at += len(b) / 4 {
		damaged := bytes.Clone(b)
		damaged[at] ^= 1
		writeAll(t, fs, name, damaged)
		var damage *DamageError
		if err := reopen(); !errors.As(err, &damage) {
			t.Errorf("damage at byte %d: %v", at, err)
		}
	}
}

// preparedLog returns a log whose segment is a file of 32 MiB that was zeros, as a member has it.
func preparedLog(t *testing.T) (vfs.FS, Options, *Log) {
	t.Helper()
	fs := vfs.NewMem()
	must(t, fs.MkdirAll(dir, 0o755))
	o := options(fs)
	o.SegmentBytes = DefaultSegmentBytes
	l, err := Create(o, 1, 1)
	must(t, err)
	for i := 0; i < 40 && l.tail.segment.sequence == 1; i++ {
		must(t, l.Append(nil, largeEntry(l, 1<<20-4096)))
		l.Prepare()
		l.Prepare()
	}
	if l.tail.zeroed < DefaultSegmentBytes {
		t.Fatalf("the segment is not prepared: %d", l.tail.zeroed)
	}
	return fs, o, l
}

// fakeHeads is a value that looks like heads of frames that there could be behind the next one.
func fakeHeads(l *Log, size int) []byte {
	var head [frameHeaderLen]byte
	binary.LittleEndian.PutUint32(head[0:], 30<<20) // a length that the file has
	binary.LittleEndian.PutUint64(head[8:], l.frame+2)
	return bytes.Repeat(head[:], size/len(head))
}

// alignedEntry is an entry with the value, which begins where a frame could when it is the first of its frame.
func alignedEntry(index uint64, v []byte) *pb.Entry {
	e := entry(index, 1, "")
	for pad := range frameAlign {
		e.Data = append(bytes.Repeat([]byte{'x'}, pad), v...)
		if (frameHeaderLen+len(appendEntry(nil, e))-len(v))%frameAlign == 0 {
			break
		}
	}
	return e
}

// A client's value is full of what looks like heads of later frames. A crash tears
// the frame that holds it: all of it is on disk but its last block. What the start
// reads is bounded, not in proportion to the value times the segment.
func TestTornFrameOfFakeHeads(t *testing.T) {
	for _, valueBytes := range []int{8 << 10, 32 << 10} {
		fs, o, l := preparedLog(t)
		last, _ := l.LastIndex()
		at := l.tail.offset
		must(t, l.Append(nil, []*pb.Entry{alignedEntry(last+1, fakeHeads(l, valueBytes))}))
		end := l.tail.offset
		path := l.tail.segment.path
		must(t, l.Close())
		f, err := fs.OpenReadWrite(path, writeCategory)
		must(t, err)
		if end-at < 4096 {
			t.Fatal("small")
		}
		_, err = f.WriteAt(make([]byte, end-(end-1)&^4095), (end-1)&^4095) // the block that the crash kept from the disk
		must(t, err)
		must(t, f.Close())
		counting := &countingFS{FS: fs}
		o.FS = counting
		l, err = Open(o)
		must(t, err)
		if got, _ := l.LastIndex(); got != last {
			t.Fatalf("last %d, want %d", got, last)
		}
		must(t, l.Close())
		if read, most := counting.read.Load(), int64(behindBudget+4*DefaultSegmentBytes); read > most {
			t.Errorf("a start with a torn value of %d KiB reads %d MiB, more than %d", valueBytes>>10, read>>20, most>>20)
		}
	}
}

// countingFS counts the bytes that are read by offset.
type countingFS struct {
	vfs.FS
	read atomic.Int64
}

func (fs *countingFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.Open(name, opts...)
	return countingFile{f, &fs.read}, err
}

type countingFile struct {
	vfs.File
	read *atomic.Int64
}

func (f countingFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.read.Add(int64(n))
	return n, err
}

func largeEntry(l *Log, n int) []*pb.Entry {
	last, _ := l.LastIndex()
	return []*pb.Entry{entry(last+1, 1, string(make([]byte, n)))}
}

// A member whose disk hung for a moment has written what came meanwhile as one
// frame. Later it leads, and sends that to a member that lags, by messages of 1 MiB
// as raft does (MaxSizePerMsg), 64 MiB of which may be in flight. What these hold
// in memory is about their size.
func TestReadingALargeFrameByPieces(t *testing.T) {
	const n, size = 32, 1 << 20 // raft would let it be 64
	fs := vfs.NewMem()
	must(t, fs.MkdirAll(dir, 0o755))
	o := options(fs)
	o.SegmentBytes, o.CacheBytes = DefaultSegmentBytes, DefaultCacheBytes
	l, err := Create(o, 1, 1)
	must(t, err)
	var batch []*pb.Entry
	for i := range uint64(n) {
		batch = append(batch, entry(i+2, 1, string(make([]byte, size-100))))
	}
	must(t, l.Append(nil, batch))
	batch = nil
	must(t, l.Close())
	l, err = Open(o)
	must(t, err)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var inFlight [][]*pb.Entry
	total := 0
	for next := uint64(2); next < n+2; {
		es, err := l.Entries(next, n+2, size)
		must(t, err)
		inFlight = append(inFlight, es)
		next += uint64(len(es))
		for _, e := range es {
			total += len(e.Data)
		}
	}
	held := heap() - before
	runtime.KeepAlive(inFlight)
	must(t, l.Close())
	t.Logf("%d messages with %d MiB of entries hold %d MiB", len(inFlight), total>>20, held>>20)
	if held > 4*int64(total) {
		t.Errorf("%d MiB of entries, read by pieces of 1 MiB from one frame, hold %d MiB, and each piece reads all of the frame", total>>20, held>>20)
	}
}

// Size is that of the segments, however many there were before them.
func TestSizeDoesNotDrift(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 1, 1)
	must(t, err)
	for i := range uint64(400) {
		must(t, l.Append(nil, []*pb.Entry{entry(i+2, 1, strings.Repeat("x", 1000))}))
		must(t, l.Compact(i+2))
	}
	var want int64
	for _, s := range l.mu.segments {
		want += s.size.Load()
	}
	got := l.Size()
	must(t, l.Close())
	l, err = Open(options(fs))
	must(t, err)
	must(t, l.Compact(401))
	t.Logf("after %d segments Size is %d, of %d bytes in use; opened again it is %d", l.mu.segments[0].sequence, got, want, l.Size())
	must(t, l.Close())
	if got != want && got != want-segmentHeaderLen {
		t.Errorf("Size is %d, %d bytes are in use", got, want)
	}
}

// Damage anywhere but in a torn tail refuses the start. Here three frames were acknowledged, and one bit of the first of them has rotted; valid
// frames follow it, whatever else it holds.
func TestDamageBehindFakeHeads(t *testing.T) {
	for _, fake := range []bool{false, true} {
		fs, o, l := preparedLog(t)
		v := make([]byte, 32<<10)
		if fake {
			v = fakeHeads(l, len(v))
		}
		last, _ := l.LastIndex()
		e := alignedEntry(last+1, v)
		at := l.tail.offset
		must(t, l.Append(nil, []*pb.Entry{e}))
		must(t, l.Append(nil, []*pb.Entry{entry(last+2, 1, "acknowledged")}))
		must(t, l.Append(nil, []*pb.Entry{entry(last+3, 1, "acknowledged too")}))
		path := l.tail.segment.path
		must(t, l.Close())
		f, err := fs.OpenReadWrite(path, writeCategory)
		must(t, err)
		var b [1]byte
		_, err = f.ReadAt(b[:], at+frameHeaderLen+3)
		must(t, err)
		b[0] ^= 1
		_, err = f.WriteAt(b[:], at+frameHeaderLen+3)
		must(t, err)
		must(t, f.Close())
		l, err = Open(o)
		if err == nil {
			got, _ := l.LastIndex()
			t.Errorf("fake heads %v: the start is not refused, and the log ends with %d, though %d was acknowledged", fake, got, last+3)
			must(t, l.Close())
		} else if !errors.As(err, new(*DamageError)) {
			t.Errorf("fake heads %v: %v", fake, err)
		}
	}
}
