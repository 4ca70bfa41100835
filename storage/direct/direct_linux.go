package direct

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// setDirect chooses whether writes to the file pass the page cache.
func setDirect(f vfs.File, on bool) error {
	fd := f.Fd()
	if fd == vfs.InvalidFd {
		return errors.ErrUnsupported
	}
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if flags &^= unix.O_DIRECT; on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(fd, unix.F_SETFL, flags)
	return err
}

// isRefusal reports whether a direct write has failed because it was one.
func isRefusal(err error) bool { return errors.Is(err, unix.EINVAL) }

// links returns how many names a file has.
func links(f vfs.File) (uint64, error) {
	fd := f.Fd()
	if fd == vfs.InvalidFd {
		return 0, errors.ErrUnsupported
	}
	var s unix.Stat_t
	err := unix.Fstat(int(fd), &s)
	return uint64(s.Nlink), err
}

func truncate(f vfs.File, size int64) error { return unix.Ftruncate(int(f.Fd()), size) }
