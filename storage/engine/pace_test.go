package engine

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestPaceLooks(t *testing.T) {
	for _, tt := range []struct {
		memTables float64
		sublevels int32
		flush     int64
		compact   int64
	}{
		{0.3, 0, flushRate, compactRate},
		{2, compactSublevels, flushRate, compactRate},
		{2.1, compactSublevels + sublevelsAhead - 1, 0, compactRate},
		{0.5, compactSublevels + sublevelsAhead, flushRate, 2 * compactRate},
		{0.5, compactSublevels + sublevelsAhead + sublevelsDouble, flushRate, 4 * compactRate},
		{0.5, maxSublevels - 2*sublevelsAhead, flushRate, 0},
		{9, maxSublevels, 0, 0},
	} {
		t.Run(fmt.Sprintf("%g memtables, %d sublevels", tt.memTables, tt.sublevels), func(t *testing.T) {
			p := newPace()
			p.look(tt.memTables, tt.sublevels)
			if flush, compact := p.flushing(), p.compacting(); flush != tt.flush || compact != tt.compact {
				t.Errorf("flushes write %d B/s, compactions %d; want %d and %d", flush, compact, tt.flush, tt.compact)
			}
			done := p.hurry()
			if flush, compact := p.flushing(), p.compacting(); flush != 0 || compact != tt.compact {
				t.Errorf("in a hurry flushes write %d B/s, compactions %d; want no limit and %d", flush, compact, tt.compact)
			}
			if done(); p.flushing() != tt.flush {
				t.Error("the hurry did not end")
			}
			p.ending.Store(true)
			if flush, compact := p.flushing(), p.compacting(); flush != 0 || compact != 0 {
				t.Errorf("at the end flushes write %d B/s, compactions %d; want no limits", flush, compact)
			}
		})
	}
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rate := int64(10 << 20)
		th := &throttle{rate: func() int64 { return rate }}
		took := func(writers int) time.Duration {
			began := time.Now()
			var group sync.WaitGroup
			for range writers {
				group.Go(func() {
					for range 100 {
						th.wait(100 << 10)
					}
				})
			}
			group.Wait()
			return time.Since(began)
		}
		// 100 × 100 KiB at 10 MiB/s, but for the last piece, the credit and the shortest pause.
		const alone = 100*100*time.Second/10240 - 2*credit
		if d := took(1); d < alone || d > alone+2*credit {
			t.Errorf("one writer took %v, want %v", d, alone)
		}
		time.Sleep(time.Minute) // that is not made up for
		if d := took(3); d < 3*alone || d > 3*alone+6*credit {
			t.Errorf("three writers took %v together, want %v", d, 3*alone)
		}
		rate = 0
		if d := took(3); d != 0 {
			t.Errorf("without a limit it took %v", d)
		}
	})
}

// categoryFS notes how Pebble calls the writes of its tables.
type categoryFS struct {
	vfs.FS
	mu   sync.Mutex
	seen map[vfs.DiskWriteCategory]int // Guarded by mu.
}

func (fs *categoryFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") {
		fs.mu.Lock()
		fs.seen[c]++
		fs.mu.Unlock()
	}
	return fs.FS.Create(name, c)
}

// TestEveryTableIsPaced fails if Pebble gives its writes other names than those that are paced, or if it is not given
// the file system that paces them.
func TestEveryTableIsPaced(t *testing.T) {
	fs := &categoryFS{FS: vfs.NewMem(), seen: map[vfs.DiskWriteCategory]int{}}
	e := open(t, Options{FS: fs})
	defer e.Close()
	for _, value := range []string{"1", "2"} {
		set(t, e, "a", value)
		set(t, e, "z", value)
		must(t, e.Flush())
	}
	<-e.Flushed()              // what Flush waited for
	set(t, e, "unhurried", "") // by anyone who waits
	must(t, e.StartFlush())
	<-e.Flushed()
	must(t, e.CompactAll(t.Context()))
	for name, th := range map[string]*throttle{"flushes": &e.pace.flushes, "compactions": &e.pace.compactions} {
		if th.due.IsZero() {
			t.Errorf("%s did not pass their throttle", name)
		}
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.seen) != 2 || fs.seen[flushCategory] == 0 || fs.seen[compactCategory] == 0 {
		t.Errorf("tables were written as %v, want %q and %q", fs.seen, flushCategory, compactCategory)
	}
}
