//go:build !linux

package bench

import (
	"context"
	"time"
)

// sleepPrecisely is as precise as the runtime's timers.
func sleepPrecisely(ctx context.Context, t time.Time) bool { return sleepUntil(ctx, t) }
