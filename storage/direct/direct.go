// Package direct keeps large files out of others' way, where the operating
// system and the file system can do that: it writes and reads them past the page
// cache, and gives their space back by pieces. What is written once and not soon
// read again then takes no memory, no copying and none of the kernel's work on
// pages from the rest, and who waits for a sync of one file waits less for the
// bytes of others.
//
// Elsewhere the files are as all others: nothing depends on it but speed.
package direct

import (
	"slices"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// BlockBytes is what places, lengths and addresses of direct writes have to
	// be multiples of. No disk has larger sectors.
	BlockBytes = 4 << 10
	// pieceBytes is how much of a stream is written at once.
	pieceBytes = 512 << 10
)

// FS is a file system some of whose files are written directly.
type FS struct {
	vfs.FS
	categories []vfs.DiskWriteCategory
}

// New returns a file system in which files of the categories are written
// directly. Those that are created are streams: whatever is written to them is
// gathered first, and they are written to at their end alone. Those that are
// opened for reading and writing take WriteAt of whole blocks, from a Buffer.
func New(fs vfs.FS, categories ...vfs.DiskWriteCategory) *FS { return &FS{fs, categories} }

// Unwrap implements vfs.FS.
func (fs *FS) Unwrap() vfs.FS { return fs.FS }

// Create implements vfs.FS.
func (fs *FS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, category)
	if err != nil || !slices.Contains(fs.categories, category) || setDirect(f, true) != nil {
		return f, err
	}
	return &stream{File: f}, nil
}

// OpenReadWrite implements vfs.FS.
func (fs *FS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, category, opts...)
	if err != nil || !slices.Contains(fs.categories, category) || setDirect(f, true) != nil {
		return f, err
	}
	return &blocks{f}, nil
}

// Open opens the named file of fs to be read from its beginning to its end, past
// the page cache if that can be: what is read is not expected to be wanted soon
// again. Reads have to be of whole blocks into a Buffer; at the end of the file
// there are less bytes than that.
func Open(fs vfs.FS, name string) (vfs.File, error) {
	f, err := fs.Open(name, vfs.SequentialReadsOption)
	if err != nil || setDirect(f, true) != nil {
		return f, err
	}
	return &source{f}, nil
}

// source is a file that is read in whole blocks.
type source struct{ vfs.File }

// Read implements vfs.File.
func (f *source) Read(b []byte) (int, error) {
	n, err := f.File.Read(b)
	if isRefusal(err) && setDirect(f.File, false) == nil {
		return f.File.Read(b)
	}
	return n, err
}

// Buffer returns n zero bytes at an address that direct writes can be made from.
func Buffer(n int) []byte {
	b := make([]byte, n+BlockBytes)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) % BlockBytes)
	return b[skip : skip+n : skip+n]
}

// RoundUp returns the first multiple of BlockBytes that is not below n.
func RoundUp(n int64) int64 { return (n + BlockBytes - 1) &^ (BlockBytes - 1) }

// blocks is a file that is written to in whole blocks.
type blocks struct{ vfs.File }

// WriteAt implements vfs.File.
func (f *blocks) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(b, off)
	if isRefusal(err) && setDirect(f.File, false) == nil {
		return f.File.WriteAt(b, off)
	}
	return n, err
}
