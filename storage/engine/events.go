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
			select {
			case e.flushed <- struct{}{}:
			default:
			}
		},
		BackgroundError: func(err error) { fatal(fmt.Errorf("engine: %w", err)) },
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			fatal(fmt.Errorf("engine: damaged file %s: %w", i.Path, i.Details))
		},
		DiskSlow: func(i pebble.DiskSlowInfo) {
			z.Warn("engine: slow disk", zap.String("operation", i.String()))
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			z.Warn("engine: writes wait for flushes or compactions", zap.String("reason", i.Reason))
		},
	}
}

// logger passes Pebble's log lines on. Pebble calls Fatalf where it cannot go
// on, and expects it not to return.
type logger struct {
	z     *zap.Logger
	fatal func(error)
}

func (l *logger) Infof(format string, args ...any) {
	l.z.Debug("engine: " + fmt.Sprintf(format, args...))
}

func (l *logger) Errorf(format string, args ...any) {
	l.z.Error("engine: " + fmt.Sprintf(format, args...))
}

func (l *logger) Fatalf(format string, args ...any) {
	err := fmt.Errorf("engine: "+format, args...)
	l.fatal(err)
	panic(err)
}
