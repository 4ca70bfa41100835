package wal

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/direct"
)

// Exists reports whether dir holds a log.
func Exists(fs vfs.FS, dir string) (bool, error) {
	names, err := segmentNames(fs, dir)
	return len(names) > 0, err
}

// segmentNames returns the names of the segments in dir in order.
func segmentNames(fs vfs.FS, dir string) ([]string, error) {
	all, err := fs.List(dir)
	if err != nil {
		if isNotExist(err) {
			return nil, nil
		}
		return nil, err
	}
	all = slices.DeleteFunc(all, func(name string) bool {
		_, ok := parseSegmentName(name)
		return !ok
	})
	slices.Sort(all)
	return all, nil
}

// Create makes a log in an existing directory that has no log yet. Its first
// entry will have the index after the one given: the state up to there, of the
// term given, is the machine's to begin with. A member that is to be given its
// state by others begins with index and term 0.
func Create(o Options, index, term uint64) (*Log, error) {
	l := newLog(o)
	if found, err := Exists(l.o.FS, o.Dir); err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	} else if found {
		return nil, fmt.Errorf("wal: %s already holds a log", o.Dir)
	}
	mark := position{index, term}
	hs := &pb.HardState{Term: &term, Vote: new(uint64), Commit: &index}
	w, _, err := createSegment(&l.o, nil, 1, 1, mark, hs, false)
	if err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	l.mu.mark, l.mu.hardState = mark, hs
	l.tail, l.frame = w, 1
	l.mu.segments = []*segment{w.segment}
	l.mu.size = w.segment.size.Load()
	return l, nil
}

func newLog(o Options) *Log {
	if o.FS == nil {
		o.FS = vfs.Default
		if !o.NoSync { // writes would wait for the disk
			o.FS = direct.New(o.FS, writeCategory)
		}
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	l := &Log{o: o, toPurge: make(chan struct{}, 1), toPrepare: make(chan struct{}, 1)}
	l.mu.cache.limit = o.CacheBytes
	return l
}

// Open opens the log in o.Dir. It reads and checks all of it and changes nothing;
// see Settle.
func Open(o Options) (*Log, error) {
	l := newLog(o)
	names, err := segmentNames(l.o.FS, o.Dir)
	if err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("wal: %s holds no log: check --wal-dir and --data-dir; if the log is lost, restore this member from a snapshot", o.Dir)
	}
	superseded, names, err := l.splitAtReset(names)
	if err != nil {
		return nil, err
	}
	var w window
	for i, name := range names {
		if err := l.replay(&w, name, i == len(names)-1); err != nil {
			return nil, err
		}
	}
	if err := l.raiseMark(); err != nil {
		return nil, errors.Join(err, l.tail.file.Close())
	}
	l.remains.superseded = superseded
	return l, nil
}

// splitAtReset divides the names of segments where the log was last reset: those
// before are superseded, whatever a crash has left of them.
func (l *Log) splitAtReset(names []string) (superseded, live []string, err error) {
	for i := len(names) - 1; i > 0; i-- {
		path := l.o.FS.PathJoin(l.o.Dir, names[i])
		b, err := readHeader(l.o.FS, path)
		if err != nil {
			return nil, nil, fmt.Errorf("wal: %w", err)
		}
		sequence, _ := parseSegmentName(names[i])
		s, err := decodeHeader(&l.o, path, sequence, b)
		if err != nil {
			return nil, nil, err
		}
		if s.reset {
			return names[:i], names[i:], nil
		}
	}
	return nil, names, nil
}

// lowerMark makes room for an entry at or below the mark of the first segment.
// The log went further when the segment was begun; then entries that are gone
// with the segments before were replaced by this one and those behind it.
func (l *Log) lowerMark(e *pb.Entry) {
	if e.GetIndex() <= l.mu.mark.index {
		l.mu.mark = position{e.GetIndex() - 1, 0}
		l.mu.entries = nil
	}
}

// raiseMark undoes lowerMark when all is replayed.
func (l *Log) raiseMark() error {
	given := l.mu.segments[0].mark.index
	if l.mu.mark.index >= given {
		return nil
	}
	if last := l.lastIndexLocked(); last < given {
		return &DamageError{l.tail.segment.path, l.tail.offset, fmt.Sprintf("the log ends with entry %d, but begins after entry %d", last, given)}
	}
	l.giveUpLocked(given)
	return nil
}

// removeLeftovers deletes superseded segments, and those that a crash left
// before they had a name.
func (l *Log) removeLeftovers(superseded []string) error {
	names, err := l.o.FS.List(l.o.Dir)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		base, temporary := strings.CutSuffix(name, ".tmp")
		_, ok := parseSegmentName(base)
		return name != spareName && (!temporary || !ok)
	})
	for _, name := range append(names, superseded...) {
		if err := l.o.FS.Remove(l.o.FS.PathJoin(l.o.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }
