package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
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
	w, n, err := createSegment(&l.o, 1, 1, mark, hs, false)
	if err != nil {
		return nil, fmt.Errorf("wal: %w", err)
	}
	l.mu.mark, l.mu.hardState = mark, hs
	l.tail, l.frame = w, 1
	l.mu.segments = []*segment{w.segment}
	l.mu.size = int64(n)
	return l, nil
}

func newLog(o Options) *Log {
	if o.FS == nil {
		o.FS = vfs.Default
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
	l := &Log{o: o}
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
	for i, name := range names {
		if err := l.replay(name, i == len(names)-1); err != nil {
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

// replay reads one segment into memory, and opens the last one for writing.
func (l *Log) replay(name string, last bool) error {
	path := l.o.FS.PathJoin(l.o.Dir, name)
	sequence, _ := parseSegmentName(name)
	b, err := readFile(l.o.FS, path)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	s, err := decodeHeader(&l.o, path, sequence, b)
	if err != nil {
		return err
	}
	if n := len(l.mu.segments); n > 0 {
		before := l.mu.segments[n-1]
		if before.sequence+1 != sequence {
			return &DamageError{path, 0, fmt.Sprintf("the segment before it, %s, is missing", segmentName(sequence-1))}
		}
		if s.first != l.frame+1 {
			return &DamageError{before.path, before.size.Load(), fmt.Sprintf("frames %d to %d are missing", l.frame+1, s.first-1)}
		}
	} else {
		l.frame = s.first - 1
	}
	first := len(l.mu.segments) == 0
	l.mu.segments = append(l.mu.segments, s)

	end, start := int64(segmentHeaderLen), int64(segmentHeaderLen) // of the last frame
	for {
		payload, n, err := parseFrame(b[end:], s.salt, l.frame+1)
		if err != nil {
			break
		}
		if err := l.replayFrame(s, first && l.frame+1 == s.first, payload, locate(s, end, n)); err != nil {
			return &DamageError{path, end, err.Error()}
		}
		l.frame++
		start, end = end, end+int64(n)
	}
	if l.frame < s.first {
		return &DamageError{path, segmentHeaderLen, "its first frame is not valid"}
	}
	s.size.Store(end)
	l.mu.size += end
	if !last {
		return nil
	}
	tail := b[end:]
	if at := findFrame(tail, s.salt, l.frame+1); at >= 0 {
		return &DamageError{path, end, fmt.Sprintf("frame %d is not valid, but one written later is, at byte %d", l.frame+1, end+int64(at))}
	}
	f, err := l.o.FS.OpenReadWrite(s.path, writeCategory)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	l.tail = &writer{segment: s, file: f, offset: end, zeroed: int64(len(b))}
	l.remains = remains{offset: start, rewrite: slices.Clone(b[start:end]), torn: len(bytes.TrimRight(tail, "\x00"))}
	return nil
}

// remains is what an opened log still has to do to its last segment.
type remains struct {
	offset  int64  // of the last frame
	rewrite []byte // the last frame
	torn    int    // bytes behind it that are not zeros
	// superseded are the names of segments that a reset has left.
	superseded []string
}

func (l *Log) replayFrame(s *segment, initial bool, payload []byte, loc location) error {
	return decodePayload(payload, func(r record) error {
		switch {
		case r.start != nil:
			s.mark = *r.start
			if initial {
				l.mu.mark = *r.start
			} else if r.start.index != l.lastIndexLocked() {
				return fmt.Errorf("it begins after entry %d, the log before it ends with %d", r.start.index, l.lastIndexLocked())
			}
		case r.hardState != nil:
			l.mu.hardState = r.hardState
		case r.entry != nil:
			l.lowerMark(r.entry)
			if err := l.placeLocked(r.entry, loc); err != nil {
				return err
			}
			// The cache must not hold on to the whole segment's bytes.
			r.entry.Data = slices.Clone(r.entry.Data)
			l.mu.cache.add(r.entry)
		}
		return nil
	})
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

// findFrame looks for a valid frame with a number above the one given, at any
// place where one can begin. A frame is written only when all before it are on
// disk, so one that is valid after one that is not means damage, not a crash.
func findFrame(b []byte, salt, above uint64) int {
	for i := 0; i+frameHeaderLen <= len(b); i += frameAlign {
		number := binary.LittleEndian.Uint64(b[i+8:])
		if number <= above || number-above > uint64(len(b)) {
			continue
		}
		if _, _, err := parseFrame(b[i:], salt, number); err == nil {
			return i
		}
	}
	return -1
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
		return !temporary || !ok
	})
	for _, name := range append(names, superseded...) {
		if err := l.o.FS.Remove(l.o.FS.PathJoin(l.o.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }
