package direct

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	chosen = "chosen"
	other  = "other"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%v, not %v", got, want)
	}
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestStream shows that a stream holds what was written to it, whatever the
// pieces and the syncs between them were.
func TestStream(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		name := filepath.Join(t.TempDir(), "stream")
		fs := New(vfs.Default, chosen)
		f, err := fs.Create(name, chosen)
		check(t, err)
		var want []byte
		for range 1 + r.IntN(12) {
			b := random(r, []int{r.IntN(100), BlockBytes, r.IntN(64 << 10), pieceBytes, pieceBytes + r.IntN(2*pieceBytes)}[r.IntN(5)])
			n, err := f.Write(b)
			check(t, err)
			equal(t, n, len(b))
			want = append(want, b...)
			switch r.IntN(12) {
			case 0:
				check(t, f.Sync())
			case 1:
				check(t, f.SyncData())
			case 2:
				_, err := f.SyncTo(int64(len(want)) - int64(r.IntN(len(want)/2+1)))
				check(t, err)
			case 3:
				info, err := f.Stat()
				check(t, err)
				equal(t, info.Size(), int64(len(want)))
			}
		}
		check(t, f.Close())
		got, err := os.ReadFile(name)
		check(t, err)
		if !bytes.Equal(want, got) {
			t.Fatalf("seed %d: the %d bytes are not the %d that were written", seed, len(got), len(want))
		}
	}
}

// TestBlocks shows that whole blocks can be written anywhere, beside what was
// written in the ordinary way.
func TestBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	name := filepath.Join(t.TempDir(), "blocks")
	want := random(r, 10*BlockBytes+17)
	check(t, os.WriteFile(name, want, 0o666))
	fs := New(vfs.Default, chosen)
	f, err := fs.OpenReadWrite(name, chosen)
	check(t, err)
	for _, block := range []int{3, 0, 10, 12, 11} {
		b := Buffer(2 * BlockBytes)
		copy(b, random(r, len(b)))
		_, err := f.WriteAt(b, int64(block)*BlockBytes)
		check(t, err)
		if end := block*BlockBytes + len(b); len(want) < end {
			want = append(want, make([]byte, end-len(want))...)
		}
		copy(want[block*BlockBytes:], b)
	}
	check(t, f.SyncData())
	check(t, f.Close())
	got, err := os.ReadFile(name)
	check(t, err)
	if !bytes.Equal(want, got) {
		t.Fatalf("the %d bytes are not the %d that were written", len(got), len(want))
	}
}

// TestOpen shows that all of a file is read, in an ordinary way if the memory
// does not suit direct reads.
func TestOpen(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for _, size := range []int{0, 1, BlockBytes, 5*BlockBytes + 33} {
		name := filepath.Join(t.TempDir(), "f")
		want := random(r, size)
		check(t, os.WriteFile(name, want, 0o666))
		for _, piece := range [][]byte{Buffer(2 * BlockBytes), Buffer(3 * BlockBytes)[1 : 2*BlockBytes+1]} {
			f, err := Open(vfs.Default, name)
			check(t, err)
			var got []byte
			for {
				n, err := f.Read(piece)
				got = append(got, piece[:n]...)
				if errors.Is(err, io.EOF) {
					break
				}
				check(t, err)
			}
			check(t, f.Close())
			if !bytes.Equal(want, got) {
				t.Fatalf("the %d bytes are not the %d that were written", len(got), len(want))
			}
		}
	}
	if _, err := Open(vfs.Default, filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a file that is not there: %v", err)
	}
}

// TestOnlyChosen shows which files are written directly: on Linux, where the
// file system of the test can do it, those of the category alone.
func TestOnlyChosen(t *testing.T) {
	fs := New(vfs.Default, chosen)
	direct := func(category vfs.DiskWriteCategory) (created, opened bool) {
		name := filepath.Join(t.TempDir(), "file")
		f, err := fs.Create(name, category)
		check(t, err)
		_, created = f.(*stream)
		check(t, f.Close())
		f, err = fs.OpenReadWrite(name, category)
		check(t, err)
		_, opened = f.(*blocks)
		check(t, f.Close())
		return created, opened
	}
	created, opened := direct(other)
	equal(t, created, false)
	equal(t, opened, false)
	f, err := vfs.Default.Create(filepath.Join(t.TempDir(), "probe"), other)
	check(t, err)
	able := setDirect(f, true) == nil
	check(t, f.Close())
	created, opened = direct(chosen)
	equal(t, created, able)
	equal(t, opened, able)
	if runtime.GOOS != "linux" {
		equal(t, able, false)
	}
}

// TestElsewhere shows that a file system that has no direct writes serves.
func TestElsewhere(t *testing.T) {
	fs := New(vfs.NewMem(), chosen)
	f, err := fs.Create("f", chosen)
	check(t, err)
	_, err = f.Write([]byte("odd"))
	check(t, err)
	check(t, f.Sync())
	check(t, f.Close())
	f, err = fs.OpenReadWrite("f", chosen)
	check(t, err)
	_, err = f.WriteAt([]byte("e"), 2)
	check(t, err)
	b := make([]byte, 3)
	_, err = f.ReadAt(b, 0)
	check(t, err)
	equal(t, string(b), "ode")
	check(t, f.Close())
}

// TestRefused shows that what a file system refuses to write directly, it is
// given in the ordinary way: here, because the memory does not suit it.
func TestRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	b := random(r, BlockBytes+1)
	if uintptr(unsafe.Pointer(&b[0]))%2 == 0 {
		b = b[1:]
	}
	b = b[:BlockBytes]
	name := filepath.Join(t.TempDir(), "f")
	fs := New(vfs.Default, chosen)
	f, err := fs.OpenReadWrite(name, chosen)
	check(t, err)
	_, err = f.WriteAt(b, 0)
	check(t, err)
	check(t, f.Close())

	s, err := fs.Create(name+"2", chosen)
	check(t, err)
	if s, ok := s.(*stream); ok {
		odd := Buffer(pieceBytes + BlockBytes)[1:]
		s.buf = new([]byte)
		*s.buf = odd[:pieceBytes]
	}
	for range 2 * pieceBytes / BlockBytes {
		_, err = s.Write(b)
		check(t, err)
	}
	check(t, s.Close())
	for name, want := range map[string][]byte{name: b, name + "2": bytes.Repeat(b, 2*pieceBytes/BlockBytes)} {
		got, err := os.ReadFile(name)
		check(t, err)
		if !bytes.Equal(want, got) {
			t.Fatalf("%s: the %d bytes are not the %d that were written", name, len(got), len(want))
		}
	}
}

// halfway is a file whose first write takes a half and refuses the rest.
type halfway struct {
	vfs.File
	refused bool
}

func (f *halfway) Write(b []byte) (int, error) {
	if f.refused {
		return f.File.Write(b)
	}
	f.refused = true
	n, err := f.File.Write(b[:len(b)/2])
	return n, errors.Join(err, syscall.EINVAL)
}

// TestRefusedHalfway shows that what was taken before a refusal is not written
// again.
func TestRefusedHalfway(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	name := filepath.Join(t.TempDir(), "f")
	f, err := New(vfs.Default, chosen).Create(name, chosen)
	check(t, err)
	s, direct := f.(*stream)
	if !direct {
		return // no direct writes here, and nothing to refuse
	}
	s.File = &halfway{File: s.File}
	want := random(r, 2*pieceBytes+5)
	_, err = f.Write(want)
	check(t, err)
	check(t, f.Close())
	got, err := os.ReadFile(name)
	check(t, err)
	if !bytes.Equal(want, got) {
		t.Fatalf("the %d bytes are not the %d that were written", len(got), len(want))
	}
}

func TestBuffer(t *testing.T) {
	for _, n := range []int{1, BlockBytes, 3*BlockBytes + 5} {
		b := Buffer(n)
		equal(t, len(b), n)
		equal(t, uintptr(unsafe.Pointer(&b[0]))%BlockBytes, 0)
	}
	equal(t, RoundUp(0), 0)
	equal(t, RoundUp(1), BlockBytes)
	equal(t, RoundUp(BlockBytes), BlockBytes)
}

// TestRemove shows that files go whatever their size, and that one with another
// name is whole under that.
func TestRemove(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(4, 4))
	for _, size := range []int{0, 1, removePiece, removePiece + 1, 3*removePiece + 5} {
		name := filepath.Join(dir, "f")
		want := random(r, size)
		check(t, os.WriteFile(name, want, 0o666))
		check(t, os.Link(name, name+".other"))
		var asked int
		hurry := func() bool { asked++; return true }
		check(t, Remove(vfs.Default, name, hurry))
		equal(t, asked, 0)
		got, err := os.ReadFile(name + ".other")
		check(t, err)
		if !bytes.Equal(want, got) {
			t.Fatalf("of %d bytes %d are left under the other name", size, len(got))
		}
		check(t, Remove(vfs.Default, name+".other", hurry))
		if pieces := max(0, (size-1)/removePiece); runtime.GOOS == "linux" && asked != pieces {
			t.Errorf("%d bytes went with %d pauses, want %d", size, asked, pieces)
		}
	}
	if err := Remove(vfs.Default, filepath.Join(dir, "f"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a file that is not there: %v", err)
	}
	check(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o777))
	check(t, os.WriteFile(filepath.Join(dir, "a", "f"), random(r, 2*removePiece), 0o666))
	check(t, os.WriteFile(filepath.Join(dir, "a", "b", "f"), nil, 0o666))
	check(t, RemoveAll(vfs.Default, filepath.Join(dir, "a")))
	check(t, RemoveAll(vfs.Default, filepath.Join(dir, "a")))
	left, err := os.ReadDir(dir)
	check(t, err)
	equal(t, len(left), 0)

	mem := vfs.NewMem()
	f, err := mem.Create("f", other)
	check(t, err)
	_, err = f.Write(make([]byte, 2*removePiece))
	check(t, err)
	check(t, f.Close())
	check(t, Remove(mem, "f", nil))
	if _, err := mem.Stat("f"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the file in memory is still there: %v", err)
	}
}
