package direct

import (
	"errors"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// removePiece is how much space of a file is given back at once, and
	// removePause how long others have the disk between two pieces.
	removePiece = 2 << 20
	removePause = 5 * time.Millisecond
)

// Remove removes the named file of fs, which nobody reads any more. Its space is
// given back piece by piece: a file system may hold up the syncs of all others
// for as long as it, and the disk to which it passes that on, take for one.
// While hurry, if there is one, says so there are no pauses. What has another
// name too only loses this one.
func Remove(fs vfs.FS, name string, hurry func() bool) error {
	_ = shrink(fs, name, hurry) // if it cannot be, the file goes at once
	return fs.Remove(name)
}

// shrink cuts pieces off the end of a file until one is left.
func shrink(fs vfs.FS, name string, hurry func() bool) (err error) {
	info, err := fs.Stat(name)
	if err != nil {
		return err
	}
	size := info.Size()
	if size <= removePiece {
		return nil
	}
	f, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if n, err := links(f); err != nil || n > 1 {
		return err
	}
	for size > removePiece {
		size -= removePiece
		if err := truncate(f, size); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if hurry == nil || !hurry() {
			time.Sleep(removePause)
		}
	}
	return nil
}

// RemoveAll removes a directory of fs and the files in it as Remove does.
func RemoveAll(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		info, err := fs.Stat(path)
		if err == nil && info.IsDir() {
			err = RemoveAll(fs, path)
		} else if err == nil {
			err = Remove(fs, path, nil)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return fs.RemoveAll(dir)
}
