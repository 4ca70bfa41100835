package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"gopkg.in/natefinch/lumberjack.v2"
)

// logSettings say what is logged and where, in etcd's terms.
type logSettings struct {
	outputs  []string
	level    string
	format   string
	rotate   bool
	rotation string // JSON, if rotate
}

const (
	logDefault = "default" // standard error
	logStderr  = "stderr"
	logStdout  = "stdout"
	logJournal = "systemd/journal"
)

func (l *logSettings) validate() error {
	var errs []error
	if _, err := zapcore.ParseLevel(l.level); err != nil {
		errs = append(errs, fmt.Errorf("log-level: %q is none of debug, info, warn, error, panic, fatal", l.level))
	}
	if _, err := logutil.ConvertToZapFormat(l.format); err != nil {
		errs = append(errs, fmt.Errorf("log-format: %q is neither json nor console", l.format))
	}
	for _, alone := range []string{logDefault, logJournal} {
		if len(l.outputs) > 1 && slices.Contains(l.outputs, alone) {
			errs = append(errs, fmt.Errorf("log-outputs: %q cannot be combined with others", alone))
		}
	}
	if l.rotate {
		if len(l.files()) != 1 {
			errs = append(errs, errors.New("enable-log-rotation: log-outputs must contain one file"))
		}
		if _, err := l.rotator(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// files are the outputs that are paths.
func (l *logSettings) files() []string {
	var paths []string
	for _, o := range l.outputs {
		switch o {
		case logDefault, logStderr, logStdout, logJournal:
		default:
			paths = append(paths, o)
		}
	}
	return paths
}

func (l *logSettings) rotator() (*lumberjack.Logger, error) {
	r := new(lumberjack.Logger)
	if err := json.Unmarshal([]byte(l.rotation), r); err != nil {
		return nil, fmt.Errorf("log-rotation-config-json: %w", err)
	}
	return r, nil
}

// build opens the outputs. The returned function flushes and closes them.
func (l *logSettings) build() (*zap.Logger, func(), error) {
	level, err := zapcore.ParseLevel(l.level)
	if err != nil {
		return nil, nil, err
	}
	if slices.Contains(l.outputs, logJournal) {
		if !journal.Enabled() {
			return nil, nil, errors.New("log-outputs: systemd's journal is not there")
		}
		return newLogger(newJournalCore(level, l.encoder()), zapcore.Lock(os.Stderr)), func() {}, nil
	}
	var sinks []zapcore.WriteSyncer
	var closers []func() error
	outputs := l.outputs
	if len(outputs) == 0 {
		outputs = []string{logDefault}
	}
	for _, o := range outputs {
		switch {
		case o == logDefault || o == logStderr:
			sinks = append(sinks, zapcore.AddSync(os.Stderr))
		case o == logStdout:
			sinks = append(sinks, zapcore.AddSync(os.Stdout))
		case l.rotate:
			r, err := l.rotator()
			if err != nil {
				return nil, nil, err
			}
			r.Filename = o
			sinks, closers = append(sinks, zapcore.AddSync(r)), append(closers, r.Close)
		default:
			f, err := os.OpenFile(o, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return nil, nil, fmt.Errorf("log-outputs: %w", err)
			}
			sinks, closers = append(sinks, f), append(closers, f.Close)
		}
	}
	sink := zapcore.Lock(zapcore.NewMultiWriteSyncer(sinks...))
	logger := newLogger(zapcore.NewCore(l.encoder(), sink, level), sink)
	return logger, func() {
		_ = logger.Sync() // a terminal cannot be synced
		for _, c := range closers {
			_ = c() // nowhere is left to complain
		}
	}, nil
}

// newLogger samples as etcd does: of lines that repeat within a second, the first hundred and every hundredth.
func newLogger(core zapcore.Core, complaints zapcore.WriteSyncer) *zap.Logger {
	core = zapcore.NewSamplerWithOptions(core, time.Second, 100, 100)
	return zap.New(core, zap.AddCaller(), zap.AddStacktrace(zap.PanicLevel), zap.ErrorOutput(complaints))
}

// encoder writes lines with etcd's fields: level, ts, caller, msg.
func (l *logSettings) encoder() zapcore.Encoder {
	fields := logutil.DefaultZapLoggerConfig.EncoderConfig
	if l.format == logutil.ConsoleLogFormat {
		return zapcore.NewConsoleEncoder(fields)
	}
	return zapcore.NewJSONEncoder(fields)
}
