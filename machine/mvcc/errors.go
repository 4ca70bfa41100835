package mvcc

import (
	"errors"
	"fmt"
)

// What a request can run into. The API maps each to etcd's code and message.
var (
	// ErrCompacted: the revision asked for is below the compacted one.
	ErrCompacted = errors.New("mvcc: revision is compacted")
	// ErrFutureRev: the revision asked for does not exist yet.
	ErrFutureRev = errors.New("mvcc: revision is in the future")
	// ErrKeyNotFound: a put was to keep the value or lease of a key that does
	// not exist.
	ErrKeyNotFound = errors.New("mvcc: key not found")
	// ErrTooLarge: the command would write more than one may.
	ErrTooLarge = errors.New("mvcc: command would write too much at once: divide it")
	// ErrClosed: the store was closed before it was read.
	ErrClosed = errors.New("mvcc: closed")
	// ErrCorrupt: what is stored cannot have been written by this package.
	ErrCorrupt = errors.New("mvcc: damaged data")
)

// errStale tells a read that compaction has passed its view, so that what the
// view names may be gone. The read starts over on the newest view.
var errStale = errors.New("mvcc: view is older than the compaction in progress")

func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
