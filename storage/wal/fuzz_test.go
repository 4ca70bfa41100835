package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/coteriedb/coterie/internal/footprint"
)

// FuzzSegments damages one segment of a log, at up to two places or by cutting it, and opens the log. It must be refused, or
// hold nothing that was not appended, and of that no less than what lies before the last segment; whatever comes, opening
// changes nothing on the disk. With seal, the header gets a checksum that fits, and may say what it likes.
func FuzzSegments(f *testing.F) {
	fs := newFS(f)
	l, err := Create(options(fs), 0, 0)
	must(f, err)
	fill(f, l, 150)
	must(f, l.Close())
	names, err := segmentNames(fs, dir)
	must(f, err)
	whole := map[string][]byte{}
	for _, name := range names {
		whole[name] = readAll(f, fs, name)
	}
	last := len(names) - 1
	before, err := entriesBefore(whole, names, last)
	must(f, err)

	f.Add(uint8(last), uint16(0), []byte{}, uint16(0), []byte{}, false)
	f.Add(uint8(last), uint16(100), []byte{0xff, 0xff}, uint16(700), []byte{0}, false)
	f.Add(uint8(0), uint16(40), binary.LittleEndian.AppendUint64(nil, math.MaxUint64), uint16(300), []byte{1, 2, 3}, true)
	f.Add(uint8(1), uint16(56), []byte{flagReset}, uint16(64), []byte{0xff, 0xff, 0xff, 0x7f}, true)
	f.Add(uint8(last), uint16(8), []byte{9}, uint16(0), []byte("cut"), true)
	f.Fuzz(func(t *testing.T, which uint8, at1 uint16, patch1 []byte, at2 uint16, patch2 []byte, seal bool) {
		damaged := int(which) % len(names)
		mem := newFS(t)
		for i, name := range names {
			b := whole[name]
			if i == damaged {
				b = bytes.Clone(b)
				if string(patch2) == "cut" {
					b = b[:int(at1)%len(b)]
				} else {
					copy(b[int(at1)%len(b):], patch1)
					copy(b[int(at2)%len(b):], patch2)
				}
				if seal && len(b) >= segmentHeaderLen {
					binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
				}
			}
			writeAll(t, mem, name, b)
		}
		var l *Log
		var err error
		if n := footprint.Of(func() { l, err = Open(options(mem)) }); n > 64<<20 {
			t.Errorf("a log of %d segments of 4 KiB took %d MiB to open", len(names), n>>20)
		}
		if err != nil {
			var (
				damage  *DamageError
				version *VersionError
				foreign *ForeignError
			)
			if !errors.As(err, &damage) && !errors.As(err, &version) && !errors.As(err, &foreign) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		checkOpened(t, l, before, seal)
		must(t, l.Close())
		for i, name := range names {
			if b := readAll(t, mem, name); i != damaged && !bytes.Equal(b, whole[name]) {
				t.Errorf("opening changed %s", name)
			}
		}
	})
}

// entriesBefore is the number of entries in the segments before one.
func entriesBefore(whole map[string][]byte, names []string, segment int) (uint64, error) {
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	for _, name := range names[:segment] {
		f, err := fs.Create(fs.PathJoin(dir, name), vfs.WriteCategoryUnspecified)
		if err != nil {
			return 0, err
		}
		if _, err := f.Write(bytes.Clone(whole[name])); err != nil {
			return 0, err
		}
		if err := f.Close(); err != nil {
			return 0, err
		}
	}
	l, err := Open(options(fs))
	if err != nil {
		return 0, err
	}
	last, _ := l.LastIndex()
	return last, l.Close()
}

func checkOpened(t *testing.T, l *Log, before uint64, forged bool) {
	t.Helper()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if !forged && (first != 1 || last < before) {
		t.Errorf("entries %d to %d are left, and 1 to %d were before the last segment", first, last, before)
	}
	if last < first {
		return
	}
	es, err := l.Entries(first, last+1, math.MaxUint64)
	if err != nil {
		t.Fatalf("entries %d to %d: %v", first, last, err)
	}
	for i, e := range es {
		if index := first + uint64(i); e.GetIndex() != index || !bytes.Equal(e.Data, appended(index)) {
			t.Errorf("entry %d in the place of entry %d: %q", e.GetIndex(), index, e.Data)
		}
	}
}
