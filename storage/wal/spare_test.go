package wal

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/storage/direct"
)

// prepare does what is to be prepared.
func prepare(l *Log) {
	for {
		select {
		case <-l.ToPrepare():
			l.Prepare()
		default:
			return
		}
	}
}

// fillPrepared appends n entries, one at a time, with all preparations between
// them, and returns the lengths that the segments were begun with.
func fillPrepared(t *testing.T, l *Log, n int) (lengths []int64) {
	t.Helper()
	tail := l.tail
	for range n {
		fill(t, l, 1)
		if l.tail != tail {
			tail = l.tail
			lengths = append(lengths, tail.zeroed)
		}
		prepare(l)
	}
	return lengths
}

func TestSegmentsArePrepared(t *testing.T) {
	fs := newFS(t)
	l, err := Create(options(fs), 0, 0)
	must(t, err)
	lengths := fillPrepared(t, l, 200)
	if len(lengths) < 5 {
		t.Fatalf("only %d segments were begun", len(lengths))
	}
	for i, n := range lengths {
		if n != 4<<10 {
			t.Errorf("segment %d was begun with %d bytes, not with the prepared 4 KiB", i+2, n)
		}
	}
	// Half of a segment on, the next one stands ready.
	for !l.spareReady() {
		fillPrepared(t, l, 1)
	}
	want := state(t, l)
	must(t, l.Close())
	l, err = Open(options(fs))
	must(t, err)
	if got := state(t, l); got != want {
		t.Fatalf("after reopening:\n%s\nwant:\n%s", got, want)
	}
	must(t, l.Settle())
	names, err := fs.List(dir)
	must(t, err)
	if slices.Contains(names, spareName) || len(names) != len(l.mu.segments) {
		t.Fatalf("there are %v for %d segments", names, len(l.mu.segments))
	}
	must(t, l.Close())
}

// TestPreparedSegmentIsBegunEarly shows that a segment which would have to grow
// gives way to one that need not.
func TestPreparedSegmentIsBegunEarly(t *testing.T) {
	fs := newFS(t)
	o := options(fs)
	o.SegmentBytes = 2 << 20
	l, err := Create(o, 0, 0)
	must(t, err)
	data := strings.Repeat("x", 16<<10)
	for i := uint64(1); l.tail.segment.sequence == 1; i++ {
		must(t, l.Append(nil, []*pb.Entry{entry(i, 1, data)}))
		prepare(l)
	}
	// A quarter is how much must be written before half of the next is prepared, and half before all is.
	if size := l.mu.segments[0].size.Load(); size < 1<<20 || size > 1<<20+2*extendBytes {
		t.Errorf("the first segment ends after %d bytes", size)
	}
	if l.tail.zeroed != 2<<20 {
		t.Errorf("the second has %d bytes", l.tail.zeroed)
	}
	must(t, l.Close())
	l, err = Open(o)
	must(t, err)
	if l.tail.zeroed != 2<<20 {
		t.Errorf("the second has %d bytes when it is opened", l.tail.zeroed)
	}
	must(t, l.Close())
}

// TestPreparationFails shows that a log goes on whose next segment cannot be
// prepared, and that the one after it is tried again.
func TestPreparationFails(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileSyncData} {
		fs := newFS(t)
		var full atomic.Bool
		full.Store(true)
		l, err := Create(options(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if full.Load() && op.Kind == kind && strings.HasSuffix(op.Path, spareName) {
				return syscall.ENOSPC
			}
			return nil
		}))), 0, 0)
		must(t, err)
		lengths := fillPrepared(t, l, 100)
		if len(lengths) < 2 {
			t.Fatalf("only %d segments were begun", len(lengths))
		}
		for _, n := range lengths {
			if n <= 4<<10 {
				t.Fatalf("kind %d: a segment was begun with %d bytes of a file that could not be prepared: %v", kind, n, lengths)
			}
		}
		if _, err := fs.Stat(fs.PathJoin(dir, spareName)); !isNotExist(err) {
			t.Errorf("kind %d: the file that could not be prepared is left: %v", kind, err)
		}
		full.Store(false)
		if lengths = fillPrepared(t, l, 200); lengths[len(lengths)-1] != 4<<10 {
			t.Errorf("kind %d: it was not tried again", kind)
		}
		must(t, l.Close())
	}
}

// TestFramesBehindAnEnd shows that a valid frame is found wherever it is in a
// long file, also across the pieces in which that is read.
func TestFramesBehindAnEnd(t *testing.T) {
	const salt, number = 5, 9
	frame := sealFrame(append(make([]byte, frameHeaderLen), "payload"...), salt, number)
	size := 2*windowBytes + 64
	for _, at := range []int{0, 8, windowBytes - 32, windowBytes - 16, windowBytes - 8, windowBytes, windowBytes + 8, 2*windowBytes - 8, size - len(frame)} {
		for _, noise := range []bool{false, true} {
			fs := vfs.NewMem()
			f, err := fs.Create("f", vfs.WriteCategoryUnspecified)
			must(t, err)
			b := make([]byte, size)
			if noise {
				for i := range b {
					b[i] = byte(i>>8) | 1
				}
			}
			copy(b[at:], frame)
			_, err = f.Write(slices.Clone(b))
			must(t, err)
			must(t, f.Close())
			var w window
			must(t, w.open(fs, "f"))
			found, _, err := w.behind(0, salt, number-1)
			must(t, err)
			if found != int64(at) {
				t.Errorf("the frame at %d was found at %d", at, found)
			}
			found, length, err := w.behind(0, salt, number)
			must(t, err)
			if want := len(bytes.TrimRight(b, "\x00")); found != -1 || length != want {
				t.Errorf("a frame that is not later was found at %d; %d bytes, want %d", found, length, want)
			}
			must(t, w.close())
		}
	}
}

// Prepare is called by another goroutine while Append makes a segment of the file
// that was prepared, as it may be: a receipt of ToPrepare can be older than that
// file. What Append acknowledges is there when the log is opened again.
func TestPrepareWhileASegmentIsMade(t *testing.T) {
	for _, when := range []string{"before the file is opened", "before it is renamed"} {
		for name, base := range map[string]func(t *testing.T) (vfs.FS, string){
			"memory": func(t *testing.T) (vfs.FS, string) { return newFS(t), dir },
			"disk": func(t *testing.T) (vfs.FS, string) {
				return direct.New(vfs.Default, writeCategory), t.TempDir()
			},
		} {
			t.Run(when+"/"+name, func(t *testing.T) {
				under, path := base(t)
				var l *Log
				var armed atomic.Bool
				fs := errorfs.Wrap(under, errorfs.InjectorFunc(func(op errorfs.Op) error {
					want := errorfs.OpOpen // what OpenReadWrite is
					if when == "before it is renamed" {
						want = errorfs.OpRename
					}
					if filepath.Base(op.Path) == spareName && op.Kind == want && armed.CompareAndSwap(true, false) {
						l.Prepare() // the other goroutine, which has the time to do all of it
					}
					return nil
				}))
				o := options(fs)
				o.Dir, o.SegmentBytes = path, 32<<10
				var err error
				l, err = Create(o, 1, 1)
				must(t, err)
				next := uint64(2)
				put := func() {
					must(t, l.Append(nil, []*pb.Entry{entry(next, 1, fmt.Sprint(next, strings.Repeat("x", 1000)))}))
					next++
				}
				for !l.spareReady() {
					put()
					l.Prepare()
				}
				armed.Store(true)
				for armed.Load() {
					put()
				}
				for range 5 {
					put()
				}
				must(t, l.Close())
				l, err = Open(o)
				if err != nil {
					t.Fatalf("entries 2 to %d were acknowledged; the next start: %v", next-1, err)
				}
				defer l.Close()
				if last, _ := l.LastIndex(); last != next-1 {
					t.Errorf("entries 2 to %d were acknowledged; after the next start the log ends with %d", next-1, last)
				}
			})
		}
	}
}

// The same without a hand on the file system: one goroutine appends, another does what
// consensus' trimLoop does.
func TestAppendBesidePrepare(t *testing.T) {
	for round := range 4 {
		o := options(direct.New(vfs.Default, writeCategory))
		o.Dir, o.SegmentBytes = t.TempDir(), 1<<20
		l, err := Create(o, 1, 1)
		must(t, err)
		stop, done := make(chan struct{}), make(chan struct{})
		flushed := make(chan struct{}, 1)
		go func() {
			defer close(done)
			var purge <-chan time.Time
			for {
				select {
				case <-stop:
					return
				case <-l.ToPrepare():
					l.Prepare()
				case <-flushed: // trim asks the engine how far it is durable
					time.Sleep(time.Millisecond)
				case <-l.ToPurge():
					if purge == nil {
						purge = time.After(0)
					}
				case <-purge:
					did, err := l.Purge()
					if err != nil {
						t.Error(err)
						return
					}
					if purge = nil; did {
						purge = time.After(10 * time.Millisecond)
					}
				}
			}
		}()
		next := uint64(2)
		data := strings.Repeat("x", 40<<10)
		for range 400 {
			must(t, l.Append(nil, []*pb.Entry{entry(next, 1, data)}))
			if next > 100 {
				must(t, l.Compact(next-100))
			}
			next++
			if next%8 == 0 {
				notify(flushed)
			}
		}
		close(stop)
		<-done
		must(t, l.Close())
		l, err = Open(o)
		if err != nil {
			t.Fatalf("round %d: entries up to %d were acknowledged; the next start: %v", round, next-1, err)
		}
		last, _ := l.LastIndex()
		must(t, l.Close())
		if last != next-1 {
			t.Fatalf("round %d: entries up to %d were acknowledged; after the next start the log ends with %d", round, next-1, last)
		}
	}
}
