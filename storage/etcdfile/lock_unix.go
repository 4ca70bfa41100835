//go:build unix

package etcdfile

import (
	"errors"
	"os"
	"syscall"
)

// lockShared keeps a process of etcd, which locks its database for itself, from
// using the file. The lock ends with f.
func lockShared(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}
