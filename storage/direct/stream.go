package direct

import (
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// stream is a file that is written from its beginning to its end.
type stream struct {
	vfs.File
	buf   *[]byte // of pieceBytes, nil when there is nothing in it
	n     int     // bytes in buf
	sent  int64   // bytes that have left it
	plain bool    // the rest goes the ordinary way
}

var pieces = sync.Pool{New: func() any { b := Buffer(pieceBytes); return &b }}

// Write implements vfs.File.
func (f *stream) Write(b []byte) (written int, err error) {
	for !f.plain && len(b) > 0 {
		if f.buf == nil {
			f.buf = pieces.Get().(*[]byte)
		}
		n := copy((*f.buf)[f.n:], b)
		written, f.n, b = written+n, f.n+n, b[n:]
		if f.n < pieceBytes {
			continue
		}
		if err := f.flush(); err != nil {
			return written - n, err
		}
	}
	if len(b) == 0 {
		return written, nil
	}
	n, err := f.File.Write(b)
	return written + n, err
}

// flush writes what is gathered. If that does not end with a whole block, the
// end of it and all that follows goes the ordinary way.
func (f *stream) flush() error {
	if f.buf == nil {
		return nil
	}
	b := (*f.buf)[:f.n]
	f.sent += int64(f.n)
	defer func() {
		pieces.Put(f.buf)
		f.buf, f.n = nil, 0
	}()
	if whole := f.n &^ (BlockBytes - 1); whole > 0 {
		n, err := f.File.Write(b[:whole])
		if err != nil && !isRefusal(err) {
			return err
		}
		b = b[n:] // a file system may refuse what follows a part that it has taken
	}
	if len(b) == 0 {
		return nil
	}
	if err := setDirect(f.File, false); err != nil {
		return err
	}
	f.plain = true
	_, err := f.File.Write(b)
	return err
}

// Sync implements vfs.File.
func (f *stream) Sync() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Sync()
}

// SyncData implements vfs.File.
func (f *stream) SyncData() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.SyncData()
}

// SyncTo implements vfs.File. What has left the buffer is on its way to the
// disk already; the rest follows if it is asked for.
func (f *stream) SyncTo(length int64) (fullSync bool, err error) {
	if f.buf != nil && length > f.sent {
		if err := f.flush(); err != nil {
			return false, err
		}
	}
	if !f.plain {
		return false, nil
	}
	return f.File.SyncTo(length)
}

// Stat implements vfs.File.
func (f *stream) Stat() (vfs.FileInfo, error) {
	if err := f.flush(); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

// Close implements vfs.File.
func (f *stream) Close() error { return errors.Join(f.flush(), f.File.Close()) }
