package coterie

import (
	"context"
	"errors"

	"github.com/coteriedb/coterie/storage/etcdfile"
)

// SnapshotStatus is what a snapshot file holds, as etcdutl tells it.
type SnapshotStatus struct {
	Hash     uint32 // of all that is in it, but not how: two files of one state may differ
	Revision int64
	Keys     int   // that are alive
	Size     int64 // in bytes, of the database in the file
	Version  string
}

// ReadSnapshotStatus reads all of a snapshot file, after comparing it with its
// checksum unless that is to be skipped.
func ReadSnapshotStatus(ctx context.Context, path string, skipHashCheck bool, onProgress func(done, total int64)) (_ *SnapshotStatus, err error) {
	f, err := etcdfile.Open(ctx, path, etcdfile.ReadOptions{Unverified: skipHashCheck, OnProgress: onProgress})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s, err := f.Status(ctx)
	if err != nil {
		return nil, err
	}
	return (*SnapshotStatus)(s), nil
}

// VerifySnapshot compares a snapshot file with its checksum.
func VerifySnapshot(ctx context.Context, path string) error {
	f, err := etcdfile.Open(ctx, path, etcdfile.ReadOptions{})
	if err != nil {
		return err
	}
	return f.Close()
}

// IsMissingChecksum reports whether an error says that a file has no checksum,
// which can be skipped.
func IsMissingChecksum(err error) bool { return errors.Is(err, etcdfile.ErrNoChecksum) }
