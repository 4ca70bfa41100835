//go:build !linux

package direct

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func setDirect(vfs.File, bool) error { return errors.ErrUnsupported }

func isRefusal(error) bool { return false }

func links(vfs.File) (uint64, error) { return 0, errors.ErrUnsupported }

func truncate(vfs.File, int64) error { return errors.ErrUnsupported }
