// Package wal is the raft log on disk: entries and hard states in segment
// files, one write and one fdatasync for each append. It is Coterie's only
// write-ahead log.
//
// It promises that what Append has acknowledged survives a crash; that a torn
// tail, which no one was told of, is cut when an opened log is settled; and that
// damage anywhere else refuses the start and changes nothing. After a failed
// write or sync the log takes no more appends, since the state of the page
// cache is then unknown: the caller stops, and the next start writes again what
// may be in that cache alone.
//
// It knows nothing of what the entries say. The format is described byte by
// byte in docs/format-wal.md.
package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/direct"
)

// Defaults of Options.
const (
	DefaultSegmentBytes = 32 << 20
	DefaultCacheBytes   = 16 << 20
)

// ErrClosed is returned by Append after Close.
var ErrClosed = errors.New("wal: closed")

// DamageError says where a log is damaged in a way that no crash leaves.
type DamageError struct {
	Path   string
	Offset int64
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("wal: %s is damaged at byte %d: %s; acknowledged writes may be lost: "+
		"restore this member from a snapshot, or remove its data directory and let it join again", e.Path, e.Offset, e.Reason)
}

// ForeignError says that a segment belongs to another member or cluster.
type ForeignError struct {
	Path                        string
	ClusterID, MemberID         uint64
	WantClusterID, WantMemberID uint64
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("wal: %s belongs to member %x of cluster %x, not to member %x of cluster %x: check --data-dir and --wal-dir",
		e.Path, e.MemberID, e.ClusterID, e.WantMemberID, e.WantClusterID)
}

// VersionError says that a segment was written by a newer format.
type VersionError struct {
	Path    string
	Version uint32
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("wal: %s has format version %d, this binary reads up to %d: start it with a newer version of Coterie",
		e.Path, e.Version, formatVersion)
}

// Options configures Open. Dir is required.
type Options struct {
	Dir string
	// FS is the file system; nil is the disk.
	FS                  vfs.FS
	ClusterID, MemberID uint64
	// SegmentBytes is the size at which a new segment is begun, if not earlier
	// because the next one is prepared and this one would have to grow.
	SegmentBytes int64
	// CacheBytes bounds the newest entries that are kept in memory for readers, until Forget.
	CacheBytes int
	// NoSync leaves out fdatasync: a power failure then loses acknowledged
	// writes. For tests and throwaway data.
	NoSync bool
	// OnSync, if set, is told how long each fdatasync took.
	OnSync func(time.Duration)
	Logger *zap.Logger
}

// Log is an open raft log. It implements raft.Storage, except that InitialState
// reports the configuration that SetConfState was given. Append, Reset,
// Compact and Close are called by one goroutine at a time, Purge and Prepare by
// one, which may be another, and ends before Close; the reading methods by any.
type Log struct {
	o Options

	// Owned by the appending goroutine.
	tail    *writer
	buf     []byte
	err     error // the first failure; final
	frame   uint64
	remains remains // what Settle has to do

	written atomic.Uint64

	mu struct {
		sync.Mutex
		segments  []*segment // oldest first, without gaps; the last is the one written to
		hardState *pb.HardState
		confState *pb.ConfState
		// entries holds where each entry after mark is; entries[i] has index mark.index+1+i.
		entries []location
		terms   terms    // of entries
		mark    position // the entry before the first
		cache   entryCache
		size    int64      // bytes of segments that are in use
		dropped []*segment // whose files Purge has to remove, oldest first
		spare   *spare     // nil until there is a piece of it
	}
	toPurge, toPrepare chan struct{} // capacity 1; see the methods
}

type position struct{ index, term uint64 }

// FirstIndex implements raft.Storage.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.mark.index + 1, nil
}

// LastIndex implements raft.Storage.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastIndexLocked(), nil
}

func (l *Log) lastIndexLocked() uint64 { return l.mu.mark.index + uint64(len(l.mu.entries)) }

// Term implements raft.Storage.
func (l *Log) Term(i uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case i < l.mu.mark.index:
		return 0, raft.ErrCompacted
	case i > l.lastIndexLocked():
		return 0, raft.ErrUnavailable
	}
	return l.termLocked(i), nil
}

// termLocked returns the term of an entry of the log, or of the mark.
func (l *Log) termLocked(i uint64) uint64 {
	if i == l.mu.mark.index {
		return l.mu.mark.term
	}
	return l.mu.terms.of(i)
}

// InitialState implements raft.Storage.
func (l *Log) InitialState() (*pb.HardState, *pb.ConfState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	cs := l.mu.confState
	if cs == nil {
		cs = &pb.ConfState{}
	}
	return l.mu.hardState, cs, nil
}

// SetConfState sets what InitialState reports as configuration. The log does
// not store it: it belongs to the machine's state, as of its applied index.
func (l *Log) SetConfState(cs *pb.ConfState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.confState = cs
}

// RaiseCommit lifts the commit index that InitialState reports, for a caller
// that knows of more committed entries than the last hard state on disk does.
func (l *Log) RaiseCommit(index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hs := l.mu.hardState
	l.mu.hardState = &pb.HardState{Term: hs.Term, Vote: hs.Vote, Commit: &index}
}

// Snapshot implements raft.Storage. Snapshots are made by the machine, not here.
func (l *Log) Snapshot() (*pb.Snapshot, error) {
	return nil, raft.ErrSnapshotTemporarilyUnavailable
}

// Entries implements raft.Storage: the entries [lo, hi), as many as fit in
// maxSize bytes but at least one.
func (l *Log) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	l.mu.Lock()
	if lo <= l.mu.mark.index {
		l.mu.Unlock()
		return nil, raft.ErrCompacted
	}
	if hi > l.lastIndexLocked()+1 {
		l.mu.Unlock()
		return nil, raft.ErrUnavailable
	}
	if cached, ok := l.mu.cache.slice(lo, hi, maxSize); ok {
		l.mu.Unlock()
		return cached, nil
	}
	locations, segments := l.locateLocked(lo, hi, maxSize)
	for _, s := range segments {
		s.pin()
	}
	l.mu.Unlock()
	defer func() {
		for _, s := range segments {
			s.unpin()
		}
	}()
	return readEntries(lo, locations, segments, maxSize)
}

// locateLocked returns where the entries [lo, hi) are, but no more of them than
// stand in frames of about maxSize bytes, and the segments that hold these.
func (l *Log) locateLocked(lo, hi, maxSize uint64) ([]location, []*segment) {
	all := l.mu.entries[lo-l.mu.mark.index-1 : hi-l.mu.mark.index-1]
	if len(all) == 0 {
		return nil, nil
	}
	var size uint64
	for i, loc := range all {
		if i > 0 && loc == all[i-1] {
			continue
		}
		if i > 0 && size >= maxSize {
			all = all[:i]
			break
		}
		size += uint64(loc.length())
	}
	first, last := all[0].in(l.mu.segments), all[len(all)-1].in(l.mu.segments)
	return slices.Clone(all), slices.Clone(l.mu.segments[first : last+1])
}

// readEntries reads entries from their segments, which are pinned. Each frame
// is read and verified once.
func readEntries(lo uint64, locations []location, segments []*segment, maxSize uint64) ([]*pb.Entry, error) {
	var (
		out  []*pb.Entry
		size uint64
		in   []*pb.Entry // the entries of the frame read last
	)
	for i, loc := range locations {
		index := lo + uint64(i)
		s := segments[loc.in(segments)]
		if i == 0 || loc != locations[i-1] {
			payload, err := s.readFrame(loc.offset(), int(loc.length()))
			if err != nil {
				return nil, err
			}
			in = in[:0]
			if err := decodePayload(payload, func(r record) error {
				if r.entry != nil {
					in = append(in, r.entry)
				}
				return nil
			}); err != nil {
				return nil, &DamageError{s.path, loc.offset(), err.Error()}
			}
		}
		e := find(in, index)
		if e == nil {
			return nil, &DamageError{s.path, loc.offset(), fmt.Sprintf("entry %d is missing", index)}
		}
		size += uint64(len(e.Data))
		if len(out) > 0 && size > maxSize {
			break
		}
		e.Data = bytes.Clone(e.Data) // what of the frame is not asked for need not stay in memory for it
		out = append(out, e)
	}
	return out, nil
}

// find returns the last of es that has the index: within one frame a later
// entry replaces an earlier one.
func find(es []*pb.Entry, index uint64) *pb.Entry {
	for i := len(es) - 1; i >= 0; i-- {
		if es[i].GetIndex() == index {
			return es[i]
		}
	}
	return nil
}

// Written returns the bytes that Append has written since the log was opened.
func (l *Log) Written() uint64 { return l.written.Load() }

// Size returns the bytes of log on disk that are in use.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.size
}

// Append writes hs, if not nil, and entries, and returns when they are on disk.
// An entry replaces what the log had at its index and after. Any error is
// final: every later call returns it again.
func (l *Log) Append(hs *pb.HardState, entries []*pb.Entry) error {
	if l.err != nil {
		return l.err
	}
	if err := l.append(hs, entries); err != nil {
		l.err = fmt.Errorf("wal: append: %w", err)
		return l.err
	}
	return nil
}

func (l *Log) append(hs *pb.HardState, entries []*pb.Entry) error {
	if err := l.follow(entries); err != nil {
		return err // before anything is written that the next start would refuse
	}
	if err := l.settle(); err != nil {
		return err
	}
	b := l.buf[:0]
	if cap(b) > 4<<20 {
		b = nil // a rare giant must not stay
	}
	b = append(b, make([]byte, frameHeaderLen)...)
	if hs != nil {
		b = appendHardState(b, hs)
	}
	for _, e := range entries {
		b = appendEntry(b, e)
	}
	l.buf = b
	if len(b)-frameHeaderLen > math.MaxInt32 {
		return fmt.Errorf("%d bytes do not fit in a frame", len(b))
	}
	if l.tail.offset >= l.o.SegmentBytes || !l.tail.hasRoom(len(b)+frameAlign) && l.spareReady() {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	at, n, err := l.write(b)
	if err != nil {
		return err
	}
	l.written.Add(uint64(n))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.size += int64(n)
	if hs != nil {
		l.mu.hardState = hs
	}
	for _, e := range entries {
		if err := l.placeLocked(e, locate(l.tail.segment, at, n)); err != nil {
			return err
		}
		l.mu.cache.add(e)
	}
	if l.wantsSpareLocked() {
		notify(l.toPrepare)
	}
	return nil
}

// Settle makes durable what Open has found: it cuts the tail that a crash has
// torn, and writes the last frame again. That frame may have been read from a
// page cache whose last sync was interrupted or has failed, and is then not on
// disk, though no sync would fail any more. Until Settle, or the first Append, an
// opened log is as it was: who finds that it does not fit can still refuse it.
// It is called like Append.
func (l *Log) Settle() error {
	if l.err == nil {
		if err := l.settle(); err != nil {
			l.err = fmt.Errorf("wal: settle: %w", err)
		}
	}
	return l.err
}

func (l *Log) settle() error {
	r := l.remains
	l.remains = remains{}
	if r.rewrite == nil {
		return nil
	}
	if r.torn > 0 {
		l.o.Logger.Warn("wal: cutting the tail that a crash has torn",
			zap.String("path", l.tail.segment.path), zap.Int64("offset", l.tail.offset), zap.Int("bytes", r.torn))
	}
	b := direct.Buffer(int(direct.RoundUp(int64(len(r.rewrite) + r.torn))))
	copy(b, r.rewrite)
	if _, err := l.tail.file.WriteAt(b, r.offset); err != nil {
		return err
	}
	if err := l.tail.file.Sync(); err != nil {
		return err
	}
	// A crash may have come between the naming of the last segment and this; and
	// what it supersedes goes only when it is sure to stay.
	if err := syncDir(l.o.FS, l.o.Dir); err != nil {
		return err
	}
	if err := l.removeLeftovers(r.superseded); err != nil {
		return err
	}
	return syncDir(l.o.FS, l.o.Dir)
}

// follow checks that each entry follows the log, or replaces some of it.
func (l *Log) follow(entries []*pb.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.lastIndexLocked()
	for _, e := range entries {
		if err := l.followsLocked(e.GetIndex(), last); err != nil {
			return err
		}
		last = e.GetIndex()
	}
	return nil
}

func (l *Log) followsLocked(index, last uint64) error {
	if index <= l.mu.mark.index || index > last+1 {
		return fmt.Errorf("entry %d does not follow the log, which holds %d to %d", index, l.mu.mark.index+1, last)
	}
	return nil
}

// placeLocked notes where the entry is, and forgets those that it replaces.
func (l *Log) placeLocked(e *pb.Entry, loc location) error {
	index := e.GetIndex()
	if err := l.followsLocked(index, l.lastIndexLocked()); err != nil {
		return err
	}
	l.mu.entries = append(l.mu.entries[:index-l.mu.mark.index-1], loc)
	l.mu.terms = l.mu.terms.place(index, e.GetTerm())
	return nil
}

// write completes the frame in b, writes it to the tail and makes it durable.
// It returns the frame's place.
func (l *Log) write(b []byte) (offset int64, length int, err error) {
	l.frame++
	b = sealFrame(b, l.tail.segment.salt, l.frame)
	l.buf = b
	offset = l.tail.offset
	if err := l.tail.write(b); err != nil {
		return 0, 0, err
	}
	if !l.o.NoSync {
		start := time.Now()
		if err := l.tail.file.SyncData(); err != nil {
			return 0, 0, fmt.Errorf("fdatasync %s: %w", l.tail.segment.path, err)
		}
		if l.o.OnSync != nil {
			l.o.OnSync(time.Since(start))
		}
	}
	return offset, len(b), nil
}

// rotate begins a new segment. The new file gets its name only when its first
// frame, which repeats the hard state, is on disk.
func (l *Log) rotate() error {
	l.mu.Lock()
	hs := l.mu.hardState
	last := l.lastIndexLocked()
	mark := position{index: last, term: l.termLocked(last)}
	sequence := l.tail.segment.sequence + 1
	l.mu.Unlock()

	spare := l.readySpare()
	w, _, err := createSegment(&l.o, spare, sequence, l.frame+1, mark, hs, false)
	if err != nil {
		return err
	}
	l.frame++
	old := l.tail
	l.tail = w
	l.mu.Lock()
	l.mu.segments = append(l.mu.segments, w.segment)
	l.usedSpareLocked(spare)
	l.mu.size += w.segment.size.Load()
	l.mu.Unlock()
	return old.file.Close()
}

// Reset lets the log begin anew, without entries, after the one with the index
// and term: the state up to there has come from elsewhere and is durable. What
// was before is gone. hs is recorded as committing just that index, since the
// log holds nothing beyond. A crash leaves the log as before or as after. Any
// error is final, as one of Append is.
func (l *Log) Reset(hs *pb.HardState, index, term uint64) error {
	if l.err != nil {
		return l.err
	}
	if err := l.reset(hs, position{index, term}); err != nil {
		l.err = fmt.Errorf("wal: reset: %w", err)
		return l.err
	}
	return nil
}

func (l *Log) reset(hs *pb.HardState, mark position) error {
	if err := l.settle(); err != nil {
		return err
	}
	hs = &pb.HardState{Term: hs.Term, Vote: hs.Vote, Commit: &mark.index}
	w, n, err := createSegment(&l.o, nil, l.tail.segment.sequence+1, l.frame+1, mark, hs, true)
	if err != nil {
		return err
	}
	l.frame++
	l.written.Add(uint64(n))
	tail := l.tail
	l.tail = w
	l.mu.Lock()
	old := l.mu.segments // superseded by the reset, whenever they go
	l.mu.segments = []*segment{w.segment}
	l.mu.size = w.segment.size.Load()
	l.mu.dropped = append(l.mu.dropped, old...)
	l.mu.hardState, l.mu.mark = hs, mark
	l.mu.entries, l.mu.terms = nil, nil
	l.mu.cache.truncate(0)
	l.mu.Unlock()
	notify(l.toPurge)
	return tail.file.Close()
}

// Compact gives up the entries up to index, which must be applied and durable
// elsewhere, and the segments that hold no other. Their files go with Purge.
func (l *Log) Compact(index uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index <= l.mu.mark.index {
		return nil
	}
	if last := l.lastIndexLocked(); index > last {
		return fmt.Errorf("wal: compact to %d, beyond the last entry %d", index, last)
	}
	l.giveUpLocked(index)
	// All entries of a segment are at or below the mark of the next.
	for len(l.mu.segments) > 1 && l.mu.segments[1].mark.index <= index {
		l.mu.dropped = append(l.mu.dropped, l.mu.segments[0])
		l.mu.size -= l.mu.segments[0].size.Load()
		l.mu.segments = l.mu.segments[1:]
	}
	if len(l.mu.dropped) > 0 {
		notify(l.toPurge)
	}
	return nil
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ToPurge receives when there is something for Purge.
func (l *Log) ToPurge() <-chan struct{} { return l.toPurge }

// Purge removes the file of the oldest segment that the log has given up, and
// reports whether there was one. It takes long enough to be kept away from
// Append: another goroutine may call it, one at a time, and appends go on. What
// is not purged when the log is closed is again a part of it when it is opened.
func (l *Log) Purge() (done bool, err error) {
	l.mu.Lock()
	if len(l.mu.dropped) == 0 {
		l.mu.Unlock()
		return false, nil
	}
	s := l.mu.dropped[0] // the oldest: what is left is a suffix
	l.mu.dropped = l.mu.dropped[1:]
	l.mu.Unlock()
	if err := s.remove(l.o.Dir); err != nil {
		return false, fmt.Errorf("wal: purge: %w", err)
	}
	return true, nil
}

// giveUpLocked forgets the entries up to index, which is in the log.
func (l *Log) giveUpLocked(index uint64) {
	n := index - l.mu.mark.index
	l.mu.mark = position{index: index, term: l.termLocked(index)}
	l.mu.entries = slices.Clone(l.mu.entries[n:])
	l.mu.terms = l.mu.terms.dropTo(index)
	l.mu.cache.dropTo(index)
}

// Forget frees the memory of entries up to index, which nobody is expected to ask
// for: who does has them read from the disk.
func (l *Log) Forget(index uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.cache.dropTo(index)
}

// Within returns the lowest index after which the log holds at most so many
// bytes, as far as whole segments are counted before the last: what a caller may
// Compact to who keeps entries for others, but no more than that.
func (l *Log) Within(bytes int64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, left := len(l.mu.segments), bytes
	for first > 0 && l.mu.segments[first-1].size.Load() <= left {
		first--
		left -= l.mu.segments[first].size.Load()
	}
	if first == len(l.mu.segments) {
		return l.lastIndexLocked()
	}
	// A segment may begin after entries that were replaced since.
	return min(max(l.mu.segments[first].mark.index, l.mu.mark.index), l.lastIndexLocked())
}

// Close releases the files. It does not sync: Append already has.
func (l *Log) Close() error {
	if errors.Is(l.err, ErrClosed) {
		return nil
	}
	l.err = ErrClosed
	errs := []error{l.tail.file.Close()}
	l.mu.Lock()
	defer l.mu.Unlock()
	errs = append(errs, l.closeSpare())
	for _, s := range slices.Concat(l.mu.dropped, l.mu.segments) {
		errs = append(errs, s.release())
	}
	return errors.Join(errs...)
}
