package main

import (
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/journal"
	"go.uber.org/zap/zapcore"
)

// journalCore writes entries to systemd's journal, which is told their level. What the journal does not take goes to
// a fallback.
type journalCore struct {
	zapcore.LevelEnabler
	encoder  zapcore.Encoder
	send     func(message string, p journal.Priority, vars map[string]string) error
	fallback zapcore.WriteSyncer
}

func newJournalCore(level zapcore.Level, encoder zapcore.Encoder) *journalCore {
	return &journalCore{level, encoder, journal.Send, zapcore.Lock(os.Stderr)}
}

func (c *journalCore) With(fields []zapcore.Field) zapcore.Core {
	with := *c
	with.encoder = c.encoder.Clone()
	for _, f := range fields {
		f.AddTo(with.encoder)
	}
	return &with
}

func (c *journalCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *journalCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	line, err := c.encoder.EncodeEntry(e, fields)
	if err != nil {
		return err
	}
	defer line.Free()
	err = c.send(line.String(), journalPriority(e.Level), map[string]string{
		"PACKAGE":           filepath.Dir(e.Caller.TrimmedPath()),
		"SYSLOG_IDENTIFIER": filepath.Base(os.Args[0]),
	})
	if err != nil {
		_, err = c.fallback.Write(line.Bytes())
	}
	return err
}

func (c *journalCore) Sync() error { return nil }

func journalPriority(l zapcore.Level) journal.Priority {
	switch l {
	case zapcore.DebugLevel:
		return journal.PriDebug
	case zapcore.InfoLevel:
		return journal.PriInfo
	case zapcore.WarnLevel:
		return journal.PriWarning
	case zapcore.ErrorLevel:
		return journal.PriErr
	}
	return journal.PriCrit
}
