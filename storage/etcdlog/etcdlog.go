// Package etcdlog reads and writes what etcd keeps beside its database: the
// files of its raft log.
//
// It reads logs of etcd 3.5 to 3.7, also those that a crash has left with a torn
// tail, and tells that from damage as etcd does. Reading changes nothing. What
// it writes is the log of a member that begins with a state, in the form in
// which etcd's own tools leave it. It knows nothing of what the entries say.
package etcdlog

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// The kinds of records.
const (
	kindMetadata = 1 + iota
	kindEntry
	kindState
	kindCRC // carries on the checksum of the file before
	kindSnapshot
)

const (
	frameLen    = 8 // length of the record, and of the padding behind it
	sectorBytes = 512
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// DamageError says where a log is damaged in a way that no crash leaves.
type DamageError struct {
	Path   string
	Offset int64
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s is damaged at byte %d, or is no log of etcd's: %s", e.Path, e.Offset, e.Reason)
}

// Snapshot is what the log says of a snapshot: that the state up to an entry was
// saved.
type Snapshot struct{ Index, Term uint64 }

// Log is what a log says of its member, and its last entries.
type Log struct {
	ClusterID, MemberID uint64
	HardState           *raftpb.HardState
	Snapshots           []Snapshot
	// Entries are those after the index that Read was given, one by one.
	Entries []*raftpb.Entry
	// LastIndex is of the last entry or snapshot.
	LastIndex uint64
}

// Exists reports whether dir holds a log.
func Exists(dir string) (bool, error) {
	names, err := files(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return len(names) > 0, err
}

// Read reads the log in dir, and of the entries those after an index.
func Read(ctx context.Context, dir string, after uint64) (*Log, error) {
	names, err := files(dir)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("read the log: %s has no files of a log", dir)
	}
	r := reader{log: &Log{HardState: &raftpb.HardState{}}, after: after}
	for i, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := r.file(filepath.Join(dir, name), i == len(names)-1); err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
	}
	if !r.identified {
		return nil, fmt.Errorf("read the log: %s does not say whose it is", dir)
	}
	return r.log, nil
}

// Continuous reports whether no entry is missing between the index that Read was
// given and the first of Entries.
func (l *Log) Continuous(after uint64) bool {
	return len(l.Entries) == 0 || l.Entries[0].GetIndex() == after+1
}

// files lists the files of a log in order. Others, such as one made in advance,
// are left out.
func files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	next := uint64(0)
	for _, e := range entries { // sorted by name, and so by sequence
		sequence, ok := sequenceOf(e.Name())
		if !ok {
			continue
		}
		if len(names) > 0 && sequence != next {
			return nil, fmt.Errorf("in %s the file with number %d is missing", dir, next)
		}
		names, next = append(names, e.Name()), sequence+1
	}
	return names, nil
}

// fileName is the name of the file with a number, which begins after the index.
func fileName(sequence, index uint64) string { return fmt.Sprintf("%016x-%016x.wal", sequence, index) }

func sequenceOf(name string) (uint64, bool) {
	var sequence, index uint64
	if !strings.HasSuffix(name, ".wal") {
		return 0, false
	}
	n, err := fmt.Sscanf(name, "%016x-%016x.wal", &sequence, &index)
	return sequence, n == 2 && err == nil && name == fileName(sequence, index)
}

// reader reads the files of a log one after the other.
type reader struct {
	log        *Log
	after      uint64
	crc        uint32
	begun      bool // a record that carries a checksum on was met
	identified bool
}

// record is one record of a log.
type record struct {
	kind uint64
	crc  uint32
	data []byte
}

func (r *reader) file(path string, last bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return r.records(path, f, info.Size(), last)
}

// records reads one file. What a crash leaves at the end of the last one ends
// it; anything else that does not check is damage.
func (r *reader) records(path string, f io.Reader, size int64, last bool) error {
	offset := int64(0)
	damaged := func(format string, args ...any) error {
		return &DamageError{Path: path, Offset: offset, Reason: fmt.Sprintf(format, args...)}
	}
	in := newWindow(f)
	for {
		head, err := in.take(frameLen)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, io.ErrUnexpectedEOF) && last {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		length, padding := frameSize(binary.LittleEndian.Uint64(head))
		if length == 0 {
			return nil // space that was made in advance
		}
		if length > size-offset-frameLen-padding {
			if last {
				return nil
			}
			return damaged("a record of %d bytes does not fit in the file", length)
		}
		frame, err := in.take(int(length + padding))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		rec, err := decodeRecord(frame[:length])
		if err == nil {
			err = r.check(rec)
		}
		if err != nil {
			if last && torn(frame, offset+frameLen) {
				return nil
			}
			return damaged("%v", err)
		}
		if err := r.take(rec); err != nil {
			return damaged("%v", err)
		}
		offset += frameLen + length + padding
	}
}

// frameSize splits the number in front of a record: the length in the lower 56
// bits, and of the padding in the next 3 if the highest bit is set.
func frameSize(field uint64) (length, padding int64) {
	length = int64(field &^ (0xff << 56))
	if field>>63 != 0 {
		padding = int64(field >> 56 & 7)
	}
	return length, padding
}

// torn reports whether a sector that the frame covers is all zeros: the write
// did not reach it.
func torn(frame []byte, offset int64) bool {
	for len(frame) > 0 {
		n := min(int(sectorBytes-offset%sectorBytes), len(frame))
		if !slices.ContainsFunc(frame[:n], func(b byte) bool { return b != 0 }) {
			return true
		}
		frame, offset = frame[n:], offset+int64(n)
	}
	return false
}

func decodeRecord(b []byte) (rec record, err error) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return rec, protowire.ParseError(n)
		}
		b = b[n:]
		switch {
		case number == 3 && kind == protowire.BytesType:
			rec.data, n = protowire.ConsumeBytes(b)
		case number < 3 && kind == protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); number == 1 {
				rec.kind = v
			} else {
				rec.crc = uint32(v)
			}
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return rec, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return rec, nil
}

// check carries the checksum on, which is over the data of all records so far.
func (r *reader) check(rec record) error {
	if rec.kind == kindCRC {
		if r.begun && rec.crc != r.crc {
			return fmt.Errorf("the checksum so far is %08x, the file continues one of %08x", r.crc, rec.crc)
		}
		r.crc, r.begun = rec.crc, true
		return nil
	}
	if sum := crc32.Update(r.crc, crcTable, rec.data); rec.crc != sum {
		return fmt.Errorf("the checksum is %08x, the record has %08x", sum, rec.crc)
	}
	r.crc = rec.crc
	return nil
}

// take adds a record to what is known. The record's memory is used again.
func (r *reader) take(rec record) error {
	switch rec.kind {
	case kindCRC:
		return nil
	case kindMetadata:
		return r.takeMetadata(rec.data)
	case kindState:
		hs := &raftpb.HardState{}
		if err := proto.Unmarshal(rec.data, hs); err != nil {
			return fmt.Errorf("undecodable hard state: %w", err)
		}
		r.log.HardState = hs
		return nil
	case kindSnapshot:
		return r.takeSnapshot(rec.data)
	case kindEntry:
		return r.takeEntry(rec.data)
	}
	return fmt.Errorf("a record of unknown kind %d", rec.kind)
}

func (r *reader) takeMetadata(data []byte) error {
	var ids [3]uint64 // by the number of the field: member and cluster
	if err := varints(data, ids[:]); err != nil {
		return fmt.Errorf("undecodable metadata: %w", err)
	}
	if r.identified && (r.log.MemberID != ids[1] || r.log.ClusterID != ids[2]) {
		return fmt.Errorf("a part of the log is of member %x of cluster %x, another of member %x of cluster %x",
			r.log.MemberID, r.log.ClusterID, ids[1], ids[2])
	}
	r.log.MemberID, r.log.ClusterID, r.identified = ids[1], ids[2], true
	return nil
}

func (r *reader) takeSnapshot(data []byte) error {
	var fields [3]uint64
	if err := varints(data, fields[:]); err != nil {
		return fmt.Errorf("undecodable snapshot: %w", err)
	}
	s := Snapshot{Index: fields[1], Term: fields[2]}
	r.log.Snapshots = append(r.log.Snapshots, s)
	r.log.LastIndex = max(r.log.LastIndex, s.Index)
	return nil
}

// takeEntry keeps an entry, which replaces those at its index and after.
func (r *reader) takeEntry(data []byte) error {
	e := &raftpb.Entry{}
	if err := proto.Unmarshal(data, e); err != nil {
		return fmt.Errorf("undecodable entry: %w", err)
	}
	index := e.GetIndex()
	r.log.LastIndex = index
	kept := r.log.Entries
	if n := uint64(len(kept)); n > 0 {
		first := kept[0].GetIndex()
		switch {
		case index <= first, index > first+n: // replaced, or a snapshot has come between
			kept = kept[:0]
		default:
			kept = kept[:index-first]
		}
	}
	if index > r.after {
		kept = append(kept, e)
	}
	r.log.Entries = kept
	return nil
}

// varints reads those fields of a message that are numbers and that there is
// room for.
func varints(b []byte, into []uint64) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if kind == protowire.VarintType && int(number) < len(into) {
			into[number], n = protowire.ConsumeVarint(b)
		} else {
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
	}
	return nil
}

// window reads pieces of a file into memory that it uses again.
type window struct {
	r   *bufio.Reader
	buf []byte
}

func newWindow(r io.Reader) *window { return &window{r: bufio.NewReaderSize(r, 1<<20)} }

// take returns the next n bytes, which the next call overwrites: io.EOF if there
// are none, io.ErrUnexpectedEOF if there are fewer.
func (w *window) take(n int) ([]byte, error) {
	if cap(w.buf) < n {
		w.buf = make([]byte, n)
	}
	b := w.buf[:n]
	_, err := io.ReadFull(w.r, b)
	return b, err
}
