package wal

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/coteriedb/coterie/storage/direct"
)

// replay reads one segment through w, and opens the last one for writing.
func (l *Log) replay(w *window, name string, last bool) (err error) {
	path := l.o.FS.PathJoin(l.o.Dir, name)
	sequence, _ := parseSegmentName(name)
	if err := w.open(l.o.FS, path); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	header, err := w.at(0, segmentHeaderLen)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	s, err := decodeHeader(&l.o, path, sequence, header)
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
		payload, n, err := w.frame(end, s.salt, l.frame+1)
		if errors.Is(err, errBadFrame) {
			break
		}
		if err != nil {
			return fmt.Errorf("wal: %w", err)
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
	found, torn, err := w.behind(end, s.salt, l.frame+1)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	if found >= 0 {
		return &DamageError{path, end, fmt.Sprintf("frame %d is not valid, but one written later is, at byte %d", l.frame+1, found)}
	}
	from := start &^ (direct.BlockBytes - 1)
	b, err := w.at(from, int(end-from))
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	b = slices.Clone(b)
	f, err := l.o.FS.OpenReadWrite(s.path, writeCategory)
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	l.tail = &writer{segment: s, file: f, offset: end, zeroed: w.size, last: slices.Clone(b[len(b)&^(direct.BlockBytes-1):])}
	l.remains = remains{offset: from, rewrite: b, torn: torn}
	return nil
}

// remains is what an opened log still has to do to its last segment.
type remains struct {
	offset  int64  // of the block in which the last frame begins
	rewrite []byte // what is there, up to the end of that frame
	torn    int    // bytes behind it, up to the last that is not zero
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
			// The entry is not for the cache: its bytes are those of the window.
		}
		return nil
	})
}

// behind looks at what is behind the end of the frames: for a valid frame with a
// number above the one given, at any place where one can begin, which is -1 if
// there is none, and for the length up to the last byte that is not zero. A frame
// is written only when all before it are on disk, so one that is valid after one
// that is not means damage, not a crash.
//
// No more than behindBudget bytes are checked: what clients have written into a frame that a crash has torn may look like
// the heads of many.
func (w *window) behind(end int64, salt, above uint64) (found int64, length int, err error) {
	budget := int64(behindBudget)
	// If its head is sound, the frame that is not valid tells where the next one begins.
	if head, err := w.at(end, frameHeaderLen); err != nil {
		return 0, 0, err
	} else if len(head) == frameHeaderLen && binary.LittleEndian.Uint64(head[8:]) == above {
		n := frameHeaderLen + int64(binary.LittleEndian.Uint32(head))
		if next := end + n + (frameAlign-n%frameAlign)%frameAlign; next < w.size {
			switch _, _, err := w.frame(next, salt, above+1); {
			case err == nil:
				return next, int(next - end), nil
			case !errors.Is(err, errBadFrame):
				return 0, 0, err
			}
		}
	}
	for off := end; off < w.size; {
		b, err := w.at(off, windowBytes)
		if err != nil {
			return 0, 0, err
		}
		n := len(bytes.TrimRight(b, "\x00"))
		if n == 0 {
			off += int64(len(b))
			continue
		}
		length = int(off-end) + n
		for i := 0; i < n && i+frameHeaderLen <= len(b); i += frameAlign {
			number := binary.LittleEndian.Uint64(b[i+8:])
			if number <= above || number-above > uint64(off+int64(i)-end)/minFrame+1 || budget < 0 {
				continue
			}
			size, from := int64(binary.LittleEndian.Uint32(b[i:])), w.from
			if size > w.size-off-int64(i) {
				continue
			}
			_, _, err := w.frame(off+int64(i), salt, number)
			if budget -= size; w.from != from {
				budget -= windowBytes // to come back
			}
			if err == nil {
				return off + int64(i), length, nil
			}
			if !errors.Is(err, errBadFrame) {
				return 0, 0, err
			}
			if b, err = w.at(off, windowBytes); err != nil { // the window may have moved
				return 0, 0, err
			}
		}
		if off += int64(len(b)); off < w.size {
			off -= frameAlign // where a header can begin that ends in the next piece
		}
	}
	return -1, length, nil
}

const (
	// behindBudget takes less than a second.
	behindBudget = 1 << 30
	// minFrame is how long a frame is at least.
	minFrame = frameHeaderLen + frameAlign
)

// window is a part of a file in memory, and moves over it. Memory that was never
// touched before is what a start would wait for most.
type window struct {
	path string
	file vfs.File
	size int64 // of the file
	buf  []byte
	from int64 // where buf begins in the file
}

// windowBytes is what a window reads at once.
const windowBytes = 2 << 20

func (w *window) open(fs vfs.FS, path string) error {
	f, err := fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.path, w.file, w.size, w.buf, w.from = path, f, info.Size(), w.buf[:0], 0
	return nil
}

func (w *window) close() error { return w.file.Close() }

// at returns n bytes of the file from off on, or what there is. They are good
// until the next call.
func (w *window) at(off int64, n int) ([]byte, error) {
	n = int(min(int64(n), w.size-off))
	if off < w.from || off+int64(n) > w.from+int64(len(w.buf)) {
		if err := w.move(off, max(n, windowBytes)); err != nil {
			return nil, err
		}
	}
	b := w.buf[off-w.from:]
	return b[:n], nil
}

// move makes the window begin at off with n bytes, or what there is. What it has
// of them is not read again.
func (w *window) move(off int64, n int) error {
	n = int(min(int64(n), w.size-off))
	var kept []byte
	if end := w.from + int64(len(w.buf)); w.from <= off && off < end {
		kept = w.buf[off-w.from:]
	}
	buf := w.buf[:0]
	if cap(buf) < n {
		buf = make([]byte, 0, n)
	}
	have := copy(buf[:n], kept)
	if read, err := w.file.ReadAt(buf[have:n], off+int64(have)); have+read < n {
		return fmt.Errorf("read %s at %d: %w", w.path, off, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	w.buf, w.from = buf[:n], off
	return nil
}

// frame is parseFrame at an offset of the file.
func (w *window) frame(off int64, salt, number uint64) (payload []byte, length int, err error) {
	head, err := w.at(off, frameHeaderLen)
	if err != nil {
		return nil, 0, err
	}
	n := frameHeaderLen
	if len(head) == n && binary.LittleEndian.Uint64(head[8:]) == number {
		n += int(binary.LittleEndian.Uint32(head)) + frameAlign
	}
	b, err := w.at(off, n)
	if err != nil {
		return nil, 0, err
	}
	return parseFrame(b, salt, number)
}
