package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, o Options) *Engine {
	t.Helper()
	o.Dir = "engine"
	e, err := Open(o)
	must(t, err)
	return e
}

func set(t testing.TB, e *Engine, key, value string) {
	t.Helper()
	b := e.NewBatch()
	defer b.Close()
	must(t, b.Set([]byte(key), []byte(value), nil))
	must(t, e.Commit(b))
}

func TestWhatIsVisibleAndWhatIsDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	e := open(t, Options{FS: fs})
	set(t, e, "a", "1")
	if _, err := e.DurableGet([]byte("a")); !errors.Is(err, ErrNotFound) {
		t.Fatalf("durable before any flush: %v", err)
	}
	must(t, e.Flush())
	<-e.Flushed()
	set(t, e, "a", "2")
	set(t, e, "ab", "3")
	if v, err := e.Get([]byte("a"), []byte("=")); err != nil || string(v) != "=2" {
		t.Fatalf("visible %q, %v", v, err)
	}
	if v, err := e.DurableGet([]byte("a")); err != nil || string(v) != "1" {
		t.Fatalf("durable %q, %v", v, err)
	}
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	must(t, e.Close())
	e = open(t, Options{FS: crashed})
	if v, err := e.Get([]byte("a"), nil); err != nil || string(v) != "1" {
		t.Fatalf("after a crash %q, %v", v, err)
	}
	if _, err := e.Get([]byte("ab"), nil); !errors.Is(err, ErrNotFound) {
		t.Fatalf("what was not flushed survived: %v", err)
	}
	must(t, e.Close())
}

func TestOverlay(t *testing.T) {
	e := open(t, Options{FS: vfs.NewMem()})
	set(t, e, "a", "old")
	set(t, e, "b", "old")
	b := e.NewBatch()
	must(t, b.Set([]byte("b"), []byte("new"), nil))
	must(t, b.Set([]byte("c"), []byte("new"), nil))
	must(t, b.Delete([]byte("a"), nil))
	o := e.NewOverlay(b)
	check := func(want string) {
		t.Helper()
		it, err := o.NewIter([]byte("a"), []byte("z"))
		must(t, err)
		var got []string
		for it.First(); it.Valid(); it.Next() {
			got = append(got, fmt.Sprintf("%s=%s", it.Key(), it.Value()))
		}
		must(t, it.Close())
		if fmt.Sprint(got) != want {
			t.Fatalf("got %v, want %s", got, want)
		}
	}
	check("[b=new c=new]")
	must(t, b.Delete([]byte("c"), nil))
	must(t, b.DeleteRange([]byte("b"), []byte("c"), nil))
	must(t, b.Set([]byte("d"), []byte("newer"), nil))
	check("[d=newer]")
	check("[d=newer]")
	must(t, b.Set([]byte("b"), []byte("newest"), nil))
	check("[b=newest d=newer]")
	must(t, o.Close())
	must(t, b.Close())
	if v, err := e.Get([]byte("b"), nil); err != nil || string(v) != "old" {
		t.Fatalf("the batch was applied: %q, %v", v, err)
	}
	must(t, e.Close())
}

// A store whose marker of the manifest is lost looks to Pebble as if there were
// none. Making a new one in its place would remove its tables.
func TestMustExistKeepsWhatIsThere(t *testing.T) {
	fs := vfs.NewMem()
	e := open(t, Options{FS: fs})
	set(t, e, "a", "1")
	must(t, e.Flush())
	<-e.Flushed()
	must(t, e.Close())
	names, err := fs.List("engine")
	must(t, err)
	tables := 0
	for _, name := range names {
		if strings.HasPrefix(name, "marker.manifest.") {
			must(t, fs.Remove(fs.PathJoin("engine", name)))
		}
		if strings.HasSuffix(name, ".sst") {
			tables++
		}
	}
	if tables == 0 {
		t.Fatal("no table was written")
	}
	if e, err := Open(Options{Dir: "engine", FS: fs, MustExist: true}); err == nil {
		must(t, e.Close())
		t.Fatal("a store without a manifest was opened")
	}
	names, err = fs.List("engine")
	must(t, err)
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			tables--
		}
	}
	if tables != 0 {
		t.Fatalf("tables removed; left are %v", names)
	}
}

func TestReadOnlyUntilMadeWritable(t *testing.T) {
	fs := vfs.NewMem()
	e := open(t, Options{FS: fs})
	set(t, e, "a", "1")
	must(t, e.Flush())
	must(t, e.Close())
	before, err := fs.List("engine")
	must(t, err)

	e = open(t, Options{FS: fs, ReadOnly: true})
	if v, err := e.Get([]byte("a"), nil); err != nil || string(v) != "1" {
		t.Fatalf("got %q, %v", v, err)
	}
	b := e.NewBatch()
	must(t, b.Set([]byte("a"), []byte("2"), nil))
	if err := e.Commit(b); err == nil {
		t.Fatal("a write was taken")
	}
	must(t, b.Close())
	select {
	case <-e.Writable():
		t.Fatal("it says that it is writable")
	default:
	}
	after, err := fs.List("engine")
	must(t, err)
	slices.Sort(before)
	slices.Sort(after)
	if !slices.Equal(before, after) {
		t.Fatalf("the files were %v and are %v", before, after)
	}
	must(t, e.MakeWritable())
	<-e.Writable()
	set(t, e, "a", "3")
	must(t, e.Flush())
	if v, err := e.DurableGet([]byte("a")); err != nil || string(v) != "3" {
		t.Fatalf("got %q, %v", v, err)
	}
	must(t, e.Close())
}

func TestDirectoryIsLocked(t *testing.T) {
	dir := t.TempDir()
	e, err := Open(Options{Dir: dir})
	must(t, err)
	if second, err := Open(Options{Dir: dir}); err == nil {
		second.Close()
		t.Fatal("a directory in use was opened")
	}
	must(t, e.CompactAll(context.Background()))
	must(t, e.Close())
}

// breakable is a file system whose writes to files with the suffix fail while
// broken is set.
func breakable(fs vfs.FS, suffix string, broken *atomic.Bool) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && strings.Contains(op.Path, suffix) {
			return syscall.ENOSPC
		}
		return nil
	}))
}

// The first memtables are small and not flushed one by one: writers must not
// wait for that.
func TestWritersGoOnWhileFirstMemTablesFill(t *testing.T) {
	e := open(t, Options{FS: vfs.NewMem(), MemTableBytes: 16 << 20})
	for i := range 64 << 10 {
		set(t, e, fmt.Sprint(i), strings.Repeat("x", 1<<10))
	}
	must(t, e.Close())
}

// Writers that wait for a flush must not wait for ever when it fails.
func TestFailedFlushIsToldToAll(t *testing.T) {
	var broken atomic.Bool
	told := make(chan error, 100)
	e := open(t, Options{
		FS:            breakable(vfs.NewMem(), ".sst", &broken),
		MemTableBytes: 64 << 10,
		OnFatal: func(err error) {
			select {
			case told <- err:
			default:
			}
		},
	})
	set(t, e, "a", "1")
	broken.Store(true)
	var err error
	for i := 0; err == nil; i++ {
		b := e.NewBatch()
		must(t, b.Set(fmt.Appendf(nil, "%d", i), make([]byte, 1<<10), nil))
		err = e.Commit(b)
		must(t, b.Close())
		if i > 1<<16 {
			t.Fatal("64 MiB were taken by an engine that cannot flush")
		}
	}
	if !errors.Is(err, syscall.ENOSPC) || !errors.Is(<-told, syscall.ENOSPC) {
		t.Fatalf("commit: %v", err)
	}
	if err := e.Flush(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("flush: %v", err)
	}
	if err := e.StartFlush(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("start of a flush: %v", err)
	}
	e.Close() // what it returns is not the point; it returns
}

// When its manifest cannot be written Pebble stops where it is. The engine
// says so and can be closed.
func TestFailedManifestAbandonsTheEngine(t *testing.T) {
	var broken atomic.Bool
	told := make(chan error, 100)
	e := open(t, Options{FS: breakable(vfs.NewMem(), "MANIFEST", &broken), OnFatal: func(err error) { told <- err }})
	set(t, e, "a", "1")
	broken.Store(true)
	if err := e.Flush(); !errors.Is(err, syscall.ENOSPC) && !strings.Contains(fmt.Sprint(err), "no space") {
		t.Fatalf("flush: %v", err)
	}
	<-told
	if err := e.Close(); err == nil {
		t.Fatal("an abandoned engine was closed in peace")
	}
	if err := e.Flush(); err == nil {
		t.Fatal("the failure is forgotten")
	}
}
