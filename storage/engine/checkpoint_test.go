package engine

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A checkpoint holds whole batches: here, as many of one kind of key as of the other.
func TestCheckpointIsAStoreOfItsOwn(t *testing.T) {
	fs := vfs.NewCrashableMem()
	e := open(t, Options{FS: fs, MemTableBytes: 64 << 10})
	var committed atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ended by stop, awaited by stopped
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			b := e.NewBatch()
			if err := errors.Join(
				b.Set(fmt.Appendf(nil, "a%06d", i), make([]byte, 100), nil),
				b.Set(fmt.Appendf(nil, "b%06d", i), make([]byte, 100), nil),
				e.Commit(b), b.Close()); err != nil {
				t.Error(err)
				return
			}
			committed.Store(int64(i + 1))
		}
	}()
	for n := range 5 {
		dir := fmt.Sprintf("checkpoints/%d", n)
		for start := committed.Load(); committed.Load() < start+200; {
			runtime.Gosched()
		}
		before := committed.Load()
		must(t, e.Checkpoint(dir))
		after := committed.Load()
		// All of it is durable on return.
		c, err := Open(Options{Dir: dir, FS: fs.CrashClone(vfs.CrashCloneCfg{}), MustExist: true})
		must(t, err)
		as, bs := count(t, c, "a"), count(t, c, "b")
		if as != bs || as < before || as > after+1 {
			t.Errorf("checkpoint %d holds %d and %d keys; %d were there before it and %d after", n, as, bs, before, after)
		}
		set(t, c, "c", "its own")
		must(t, c.Close())
		g, err := e.Glance(dir)
		must(t, err)
		if as := count(t, g, "a"); as < before {
			t.Errorf("%d keys are seen of %d", as, before)
		}
		must(t, g.Close())
	}
	close(stop)
	<-stopped
	if err := e.Checkpoint("checkpoints/0"); err == nil {
		t.Error("a checkpoint was made where one is")
	}
	must(t, e.CompactAll(t.Context())) // which removes tables that a checkpoint still has
	c, err := Open(Options{Dir: "checkpoints/0", FS: fs, MustExist: true})
	must(t, err)
	if count(t, c, "a") == 0 {
		t.Error("the checkpoint is empty")
	}
	must(t, c.Close())
	must(t, e.Close())
}

// lastWins merges as Set does, but for a mark that shows that it was asked.
var lastWins = &pebble.Merger{Name: "test", Merge: func(_, value []byte) (pebble.ValueMerger, error) {
	return &markedMerger{append([]byte("merged "), value...)}, nil
}}

type markedMerger struct{ value []byte }

func (m *markedMerger) MergeNewer(v []byte) error {
	m.value = append([]byte("merged "), v...)
	return nil
}
func (m *markedMerger) MergeOlder([]byte) error                { return nil }
func (m *markedMerger) Finish(bool) ([]byte, io.Closer, error) { return m.value, nil, nil }

// TestMergerOfAStore: the merger is that of Options wherever a store is opened, and another is refused.
func TestMergerOfAStore(t *testing.T) {
	fs := vfs.NewMem()
	e := open(t, Options{FS: fs, Merger: lastWins})
	set(t, e, "k", "old")
	b := e.NewBatch()
	must(t, errors.Join(b.Merge([]byte("k"), []byte("new"), nil), e.Commit(b), b.Close()))
	must(t, e.Checkpoint("copy"))
	must(t, e.Flush())
	must(t, e.Close())
	if _, err := Open(Options{Dir: "engine", FS: fs}); err == nil {
		t.Fatal("opened without the merger")
	}
	e = open(t, Options{FS: fs, Merger: lastWins, ReadOnly: true})
	must(t, e.MakeWritable())
	g, err := e.Glance("copy")
	must(t, err)
	for name, e := range map[string]*Engine{"the store": e, "its copy": g} {
		if v, err := e.Get([]byte("k"), nil); err != nil || string(v) != "merged new" || e.Merger() != lastWins {
			t.Errorf("%s has %q, %v", name, v, err)
		}
	}
	must(t, errors.Join(g.Close(), e.Close()))
}

func count(t testing.TB, e *Engine, prefix string) int64 {
	t.Helper()
	it, err := e.NewIter([]byte(prefix), []byte(prefix+"~"))
	must(t, err)
	n := int64(0)
	for it.First(); it.Valid(); it.Next() {
		n++
	}
	must(t, it.Close())
	return n
}

func TestNothingIsLeftOfACheckpointThatFailed(t *testing.T) {
	fs := vfs.NewMem()
	e := open(t, Options{FS: errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpLink || strings.HasPrefix(op.Path, "checkpoint/MANIFEST") {
			return syscall.ENOSPC
		}
		return nil
	}))})
	set(t, e, "a", "1")
	if err := e.Checkpoint("checkpoint"); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	if names, err := fs.List("checkpoint"); err == nil {
		t.Fatalf("left are %v", names)
	}
	set(t, e, "a", "2") // the engine is not the worse for it
	must(t, e.Flush())
	must(t, e.Close())
}

func TestNoCheckpointOfAnAbandonedEngine(t *testing.T) {
	var broken atomic.Bool
	e := open(t, Options{FS: breakable(vfs.NewMem(), "MANIFEST", &broken)})
	set(t, e, "a", "1")
	broken.Store(true)
	if err := e.Checkpoint("checkpoint"); err == nil {
		t.Fatal("a checkpoint was made")
	}
	e.Close() // what it returns is not the point; it returns
}
