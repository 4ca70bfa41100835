//go:build !linux

package direct

import (
	"errors"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func setDirect(vfs.File, bool) error { return errors.ErrUnsupported }

func isRefusal(error) bool { return false }
