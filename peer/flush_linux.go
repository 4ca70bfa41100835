package peer

import (
	"os"

	"golang.org/x/sys/unix"
)

// beginFlush has the kernel begin to write a part of a file to disk, and does not
// wait. It promises nothing; the sync at the end does.
func beginFlush(f *os.File, offset, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), offset, n, unix.SYNC_FILE_RANGE_WRITE) // only a hint
}
