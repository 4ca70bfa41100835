package wal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/storage/direct"
)

const (
	magic            = "cotriwal"
	formatVersion    = 1
	segmentHeaderLen = 64
	flagReset        = 1
	// extendBytes is how far ahead of the last frame a segment that was not
	// prepared is filled with zeros, in the same write as a frame. Later frames
	// then overwrite blocks that the file already has, and their fdatasync needs
	// no metadata.
	extendBytes = 256 << 10
	// largeFrame is the size from which a frame pays for the metadata itself:
	// zeros ahead of frames that soon fill them would be written for nothing.
	largeFrame = extendBytes / 8

	writeCategory = vfs.DiskWriteCategory("coterie-wal")
)

// segment is a file of the log, as readers need it.
type segment struct {
	fs       vfs.FS
	path     string
	sequence uint64
	first    uint64 // number of the first frame
	salt     uint64
	reset    bool     // all segments before are superseded
	mark     position // the entry before the first one
	size     atomic.Int64

	mu struct {
		sync.Mutex
		file    vfs.File // opened by the first reader
		pins    int
		removed bool
	}
}

func segmentName(sequence uint64) string { return fmt.Sprintf("%016x.wal", sequence) }

func parseSegmentName(name string) (sequence uint64, ok bool) {
	base, found := strings.CutSuffix(name, ".wal")
	if !found || len(base) != 16 {
		return 0, false
	}
	sequence, err := strconv.ParseUint(base, 16, 64)
	return sequence, err == nil
}

// pin keeps the file readable until unpin, whatever Compact does meanwhile.
func (s *segment) pin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.pins++
}

func (s *segment) unpin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.pins--
	if s.mu.pins == 0 && s.mu.removed && s.mu.file != nil {
		s.mu.file.Close() // read-only: nothing to lose
		s.mu.file = nil
	}
}

// readFrame reads and verifies a frame. The caller has pinned the segment.
func (s *segment) readFrame(offset int64, length int) ([]byte, error) {
	s.mu.Lock()
	if s.mu.file == nil {
		f, err := s.fs.Open(s.path, vfs.RandomReadsOption)
		if err != nil {
			s.mu.Unlock()
			return nil, fmt.Errorf("wal: read %s: %w", s.path, err)
		}
		s.mu.file = f
	}
	f := s.mu.file
	s.mu.Unlock()
	b := make([]byte, length)
	if _, err := f.ReadAt(b, offset); err != nil {
		return nil, fmt.Errorf("wal: read %s: %w", s.path, err)
	}
	payload, _, err := parseFrame(b, s.salt, binary.LittleEndian.Uint64(b[8:]))
	if err != nil {
		return nil, &DamageError{s.path, offset, err.Error()}
	}
	return payload, nil
}

// remove deletes the file, whose entries the log has given up. Readers that hold
// a pin finish; there will be no others. The file first loses the name of a
// segment, for it is cut to pieces then.
func (s *segment) remove(dir string) error {
	s.mu.Lock()
	s.mu.removed = true
	if s.mu.pins > 0 {
		defer s.mu.Unlock()
		if s.mu.file == nil {
			f, err := s.fs.Open(s.path)
			if err != nil {
				return err
			}
			s.mu.file = f
		}
		if err := s.fs.Remove(s.path); err != nil {
			return err
		}
		return syncDir(s.fs, dir)
	}
	if s.mu.file != nil {
		s.mu.file.Close() // read-only: nothing to lose
		s.mu.file = nil
	}
	s.mu.Unlock()
	temp := s.path + ".tmp"
	if err := s.fs.Rename(s.path, temp); err != nil {
		return err
	}
	if err := syncDir(s.fs, dir); err != nil {
		return err
	}
	return direct.Remove(s.fs, temp, nil)
}

// release closes the reader's file. No reader may be left.
func (s *segment) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.file == nil {
		return nil
	}
	err := s.mu.file.Close()
	s.mu.file = nil
	return err
}

// writer appends frames to the last segment, in whole blocks: the last one is
// written again with what follows in it.
type writer struct {
	segment *segment
	file    vfs.File
	offset  int64  // where the next frame goes
	zeroed  int64  // the file is zeros from offset to here, if that is further
	last    []byte // what the block at offset holds before it
	buf     []byte // what is written, from a multiple of direct.BlockBytes on
}

// hasRoom reports whether n bytes more need no metadata.
func (w *writer) hasRoom(n int) bool { return w.offset+int64(n) <= w.zeroed }

func (w *writer) write(frame []byte) error {
	from := w.offset - int64(len(w.last))
	end := w.offset + int64(len(frame))
	to := direct.RoundUp(end)
	if end > w.zeroed && len(frame) < largeFrame {
		to += extendBytes
	}
	b := w.scratch(int(to - from))
	n := copy(b, w.last)
	n += copy(b[n:], frame)
	clear(b[n:])
	w.last = append(w.last[:0], b[n&^(direct.BlockBytes-1):n]...)
	if _, err := w.file.WriteAt(b, from); err != nil {
		return fmt.Errorf("write %s: %w", w.segment.path, err)
	}
	w.offset, w.zeroed = end, max(w.zeroed, to)
	w.segment.size.Store(end)
	return nil
}

// scratch returns n bytes to be written from.
func (w *writer) scratch(n int) []byte {
	const usual = 1 << 20
	if cap(w.buf) < n || cap(w.buf) > usual && n <= usual { // a rare giant must not stay
		w.buf = direct.Buffer(max(n, 64<<10))
	}
	return w.buf[:n]
}

// createSegment makes a segment that holds a first frame with its mark and the
// hard state; with reset, one that supersedes all before. It is made of the
// prepared file, if there is one. It returns the length of that frame.
func createSegment(o *Options, prepared *spare, sequence, firstFrame uint64, mark position, hs *pb.HardState, reset bool) (*writer, int, error) {
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, 0, err
	}
	s := &segment{
		fs:       o.FS,
		path:     o.FS.PathJoin(o.Dir, segmentName(sequence)),
		sequence: sequence,
		first:    firstFrame,
		salt:     binary.LittleEndian.Uint64(salt[:]),
		reset:    reset,
		mark:     mark,
	}
	b := appendStart(make([]byte, frameHeaderLen), mark)
	if hs != nil {
		b = appendHardState(b, hs)
	}
	b = sealFrame(b, s.salt, firstFrame)

	w := &writer{segment: s}
	temp := s.path + ".tmp"
	if prepared != nil {
		temp, w.zeroed = prepared.path, prepared.size
	} else if err := o.FS.Remove(temp); err != nil && !isNotExist(err) { // what a crash has left
		return nil, 0, err
	}
	var err error
	if w.file, err = o.FS.OpenReadWrite(temp, writeCategory); err != nil {
		return nil, 0, err
	}
	err = func() error {
		if err := w.write(append(encodeHeader(o, s), b...)); err != nil {
			return err
		}
		if err := w.file.Sync(); err != nil {
			return err
		}
		if err := o.FS.Rename(temp, s.path); err != nil {
			return err
		}
		return syncDir(o.FS, o.Dir)
	}()
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("create %s: %w", s.path, err), w.file.Close())
	}
	return w, len(b), nil
}

// The header of a segment: magic, version, header length, cluster, member,
// sequence, first frame, salt, flags, checksum.
func encodeHeader(o *Options, s *segment) []byte {
	b := make([]byte, 0, segmentHeaderLen)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, formatVersion)
	b = binary.LittleEndian.AppendUint32(b, segmentHeaderLen)
	b = binary.LittleEndian.AppendUint64(b, o.ClusterID)
	b = binary.LittleEndian.AppendUint64(b, o.MemberID)
	b = binary.LittleEndian.AppendUint64(b, s.sequence)
	b = binary.LittleEndian.AppendUint64(b, s.first)
	b = binary.LittleEndian.AppendUint64(b, s.salt)
	var flags uint32
	if s.reset {
		flags |= flagReset
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeHeader checks the header of the segment at path and returns what it
// says.
func decodeHeader(o *Options, path string, sequence uint64, b []byte) (*segment, error) {
	damaged := func(reason string) error { return &DamageError{path, 0, reason} }
	if len(b) < segmentHeaderLen {
		return nil, damaged("the header is cut short")
	}
	b = b[:segmentHeaderLen]
	if string(b[:8]) != magic {
		return nil, damaged("it does not begin like a log segment")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > formatVersion {
		return nil, &VersionError{path, v}
	}
	if crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		return nil, damaged("the checksum of the header is wrong")
	}
	cluster, member := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if cluster != o.ClusterID || member != o.MemberID {
		return nil, &ForeignError{path, cluster, member, o.ClusterID, o.MemberID}
	}
	if binary.LittleEndian.Uint64(b[32:]) != sequence {
		return nil, damaged("its header names another segment")
	}
	flags := binary.LittleEndian.Uint32(b[56:])
	if flags&^flagReset != 0 {
		return nil, damaged(fmt.Sprintf("its header has unknown flags %#x", flags))
	}
	return &segment{
		fs:       o.FS,
		path:     path,
		sequence: sequence,
		first:    binary.LittleEndian.Uint64(b[40:]),
		salt:     binary.LittleEndian.Uint64(b[48:]),
		reset:    flags&flagReset != 0,
	}, nil
}

// readHeader reads the header of the segment at path, or what there is of it.
func readHeader(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, segmentHeaderLen))
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
