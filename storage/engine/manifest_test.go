package engine

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// manifestOf makes an engine whose manifest has several records, and returns that file's name and content, and where the records
// begin.
func manifestOf(t testing.TB, fs vfs.FS) (name string, content []byte, starts []int) {
	t.Helper()
	e := open(t, Options{FS: fs})
	set(t, e, "a", "1")
	must(t, e.Flush())
	must(t, e.Close())
	e = open(t, Options{FS: fs}) // which begins another manifest, with the tables that there are
	for i := range 3 {
		set(t, e, "a", fmt.Sprint(i))
		must(t, e.Flush())
	}
	must(t, e.Close())
	desc, err := pebble.Peek("engine", fs)
	must(t, err)
	f, err := fs.Open(desc.ManifestFilename)
	must(t, err)
	defer f.Close()
	content, err = io.ReadAll(f)
	must(t, err)
	r := record.NewReader(bytes.NewReader(content), 0)
	for {
		at := int(r.Offset())
		if err := readRecord(r); err == io.EOF {
			return desc.ManifestFilename, content, starts
		} else if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, at)
	}
}

func replace(t testing.TB, fs vfs.FS, name string, content []byte) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	must(t, err)
	_, err = f.Write(slices.Clone(content)) // under the race detector it is changed
	must(t, err)
	must(t, f.Close())
}

// A bit that flips in the manifest never brings an old state back, and does not hide what is written next: only what a crash can have
// torn, the last record, may be missing.
func TestDamagedManifest(t *testing.T) {
	fs := vfs.NewMem()
	name, content, starts := manifestOf(t, fs)
	if len(starts) < 5 {
		t.Fatalf("only %d records", len(starts))
	}
	last := starts[len(starts)-1]
	for bit := range 8 * last {
		flipped := slices.Clone(content)
		flipped[bit/8] ^= 1 << (bit % 8)
		replace(t, fs, name, flipped)
		if e, err := Open(Options{Dir: "engine", FS: fs, ReadOnly: true, MustExist: true}); err == nil {
			must(t, e.Close())
			t.Fatalf("opened with bit %d of %d flipped, the last record begins at byte %d", bit, 8*len(content), last)
		}
	}
}

// A manifest that ends in its last record is what a crash leaves; one that ends before its second is not, if it has tables.
func TestTornManifest(t *testing.T) {
	fs := vfs.NewMem()
	name, content, starts := manifestOf(t, fs)
	for size := range len(content) {
		replace(t, fs, name, content[:size])
		e, err := Open(Options{Dir: "engine", FS: fs, ReadOnly: true, MustExist: true})
		if err == nil {
			must(t, e.Close())
		}
		if whole := slices.IndexFunc(append(starts, len(content)), func(at int) bool { return at > size }) - 1; (err == nil) != (whole >= 2) {
			t.Errorf("%d bytes, %d whole records: %v", size, whole, err)
		}
	}
}

// An engine without tables may have one record alone: it has just been made.
func TestManifestOfNothing(t *testing.T) {
	fs := vfs.NewMem()
	must(t, open(t, Options{FS: fs}).Close())
	desc, err := pebble.Peek("engine", fs)
	must(t, err)
	f, err := fs.Open(desc.ManifestFilename)
	must(t, err)
	content, err := io.ReadAll(f)
	must(t, err)
	must(t, f.Close())
	r := record.NewReader(bytes.NewReader(content), 0)
	must(t, readRecord(r))
	replace(t, fs, desc.ManifestFilename, content[:r.Offset()])
	must(t, open(t, Options{FS: fs}).Close())
}

// FuzzManifest reads whatever may stand in a manifest: neither the check nor Pebble behind it panics, and what the check lets pass
// has a record.
func FuzzManifest(f *testing.F) {
	made := vfs.NewMem()
	name, content, starts := manifestOf(f, made)
	f.Add(content)
	f.Add(content[:starts[1]])
	f.Add(content[:len(content)-3])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		replace(t, made, name, b)
		records, err := checkManifest(made, "engine")
		if err == nil && records < 1 {
			t.Errorf("%d records in %d bytes", records, len(b))
		}
		if e, err := Open(Options{Dir: "engine", FS: made, ReadOnly: true, MustExist: true}); err == nil {
			must(t, e.Close())
		}
	})
}

// Records of any size lie anywhere in the blocks of 32 KiB: what can be missing is the last one, and a damaged one before it is
// found, however long it is.
func TestManifestOfLongRecords(t *testing.T) {
	fs := vfs.NewMem()
	name, _, _ := manifestOf(t, fs)
	const block = 32 << 10
	for _, sizes := range [][]int{
		{100, block - 114 - 3, 40000},       // the second ends 3 bytes before a block does, where no chunk begins: its header is of 7
		{100, block - 114 - 7, 40000},       // 7 bytes before: there is an empty chunk
		{100, block - 114 - 7, 50},          // the same for a short one
		{100, 70000, 10}, {100, 200_000, 1}, // a long one, and one behind it
		{block, block, block},
	} {
		var b bytes.Buffer
		var starts []int
		w := record.NewWriter(&b)
		for i, n := range sizes {
			must(t, w.Flush())
			starts = append(starts, b.Len())
			_, err := w.WriteRecord(bytes.Repeat([]byte{byte(i + 1)}, n))
			must(t, err)
		}
		must(t, w.Close())
		content := b.Bytes()
		check := func(b []byte) (int, error) {
			replace(t, fs, name, b)
			return checkManifest(fs, "engine")
		}
		if records, err := check(content); records != len(sizes) || err != nil {
			t.Errorf("%d: %d records, %v", sizes, records, err)
		}
		last := starts[2]
		torn := []int{2*block - 1, 2 * block, 2*block + 1} // also where a chunk ends
		for size := last; size < len(content); size += 1 + (len(content)-last)/200 {
			torn = append(torn, size)
		}
		for _, size := range torn {
			if size < last || size >= len(content) {
				continue
			}
			if _, err := check(content[:size]); err != nil {
				t.Errorf("%d, torn at byte %d of %d: %v", sizes, size, len(content), err)
			}
		}
		// Pebble looks for the bit of a chunk that flipped, which takes a second if it is far from its begin.
		damaged := []int{starts[1] + 4, starts[1] + 6, starts[1] + 7}
		if sizes[1] > 2*block {
			damaged = append(damaged, 2*block+5, 2*block+7)
		}
		for _, at := range damaged {
			flipped := slices.Clone(content)
			flipped[at] ^= 0x10
			if records, err := check(flipped); err == nil && records != len(sizes) {
				t.Errorf("%d, flipped at byte %d: %d records", sizes, at, records)
			}
		}
	}
}
