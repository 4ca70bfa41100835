package engine

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"
)

// listener turns Pebble's events into the engine's: the end of a flush, and
// the failures after which nothing more may be acknowledged.
func (e *Engine) listener(z *zap.Logger, fatal func(error)) *pebble.EventListener {
	return &pebble.EventListener{
		FlushEnd: func(i pebble.FlushInfo) {
			if i.Err != nil {
				return // reported as a background error
			}
			signal(e.flushed)
			e.room.happen()
		},
		CompactionEnd: func(pebble.CompactionInfo) {
			e.pace.rate.Store(compactRate) // until the next commits tell that more is to be done
			e.room.happen()
		},
		BackgroundError: func(err error) { fatal(fmt.Errorf("engine: %w", err)) },
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			fatal(fmt.Errorf("engine: damaged file %s: %w", i.Path, i.Details))
		},
		DiskSlow: func(i pebble.DiskSlowInfo) {
			z.Warn("engine: slow disk", zap.String("operation", i.String()))
		},
	}
}

// logger passes Pebble's log lines on.
type logger struct {
	z       *zap.Logger
	abandon func(error)
}

func (l *logger) Infof(format string, args ...any) {
	l.z.Debug("engine: " + fmt.Sprintf(format, args...))
}

func (l *logger) Errorf(format string, args ...any) {
	l.z.Error("engine: " + fmt.Sprintf(format, args...))
}

// Fatalf is called where Pebble cannot go on, such as when its manifest cannot
// be written, and must not return. A full disk is no reason to take down a
// program that embeds a member, so the goroutine ends here for good, with what
// it holds: the engine is abandoned.
func (l *logger) Fatalf(format string, args ...any) {
	l.abandon(fmt.Errorf("engine: "+format, args...))
	select {}
}
