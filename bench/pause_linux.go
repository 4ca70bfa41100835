package bench

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// sleepPrecisely is sleepUntil for one goroutine that must be in time. The runtime's timers may be a millisecond late when
// nothing else is to be done, which would be a large part of a good server's latency; the kernel's are not.
func sleepPrecisely(ctx context.Context, t time.Time) bool {
	const coarse = 2 * time.Millisecond
	if time.Until(t) > coarse && !sleepUntil(ctx, t.Add(-coarse)) {
		return false
	}
	for {
		wait := time.Until(t)
		if wait <= 0 {
			return ctx.Err() == nil
		}
		ts := unix.NsecToTimespec(int64(wait))
		_ = unix.Nanosleep(&ts, nil) // interrupted by a signal: once more
	}
}
