package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/bits"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble's manifest is a log of changes of the set of tables. Where a record cannot be read Pebble takes that for the end, as a crash
// leaves it, and goes on with the tables before. But each record is synced before the next is written, so a crash can tear the last one
// alone; anything else is damage, which must not bring an old state back. The first two records are synced before the file is used at all,
// if there were tables then; the second is the first that says which sequence numbers have been given: without it, what is written next
// would be hidden by what is older.

// A record is made of chunks, and each of them is in one block, as in LevelDB's logs
// (https://github.com/google/leveldb/blob/main/doc/log_format.md): checksum, length, and a type of which two begin a record. What is
// left of a block that has no room for a chunk's header is zero.
const (
	blockBytes  = 32 << 10
	chunkHeader = 7
	chunkFull   = 1
	chunkFirst  = 2
)

// checkManifest returns how many records the manifest of the engine in dir has, and refuses one that is damaged before
// its last. It returns -1 if there is no engine.
func checkManifest(fsys vfs.FS, dir string) (records int, err error) {
	desc, err := pebble.Peek(dir, fsys)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !desc.Exists {
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	f, err := fsys.Open(desc.ManifestFilename)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	r := record.NewReader(f, 0)
	var next int64 // where the record begins that is read next
	for {
		if err = readRecord(r); err != nil {
			break
		}
		records++
		next = r.Offset()
	}
	if err == io.EOF && records > 0 {
		return records, nil
	}
	if err != io.EOF && !record.IsInvalidRecord(err) {
		return records, err
	}
	next = afterPadding(next)
	rest := make([]byte, max(info.Size()-next, 0))
	if _, err := f.ReadAt(rest, next); err != nil && err != io.EOF {
		return records, err
	}
	if records == 0 || holdsRecords(rest, next) {
		return records, fmt.Errorf("%s is damaged at byte %d", desc.ManifestFilename, next)
	}
	return records, nil
}

// afterPadding returns where a chunk begins that is not before at.
func afterPadding(at int64) int64 {
	if left := blockBytes - at%blockBytes; left < chunkHeader {
		return at + left
	}
	return at
}

// readRecord reads the next record and forgets it.
func readRecord(r *record.Reader) error {
	content, err := r.Next()
	if err == nil {
		_, err = io.Copy(io.Discard, content)
	}
	return err
}

// holdsRecords tells whether from some place in b on, which is not its begin, there are whole records and nothing else. b is the end of a
// file, from the byte from on.
func holdsRecords(b []byte, from int64) bool {
	for at := 1; at < len(b); at++ {
		if kind, n := chunk(b[at:], from+int64(at)); (kind == chunkFull || kind == chunkFirst) && chunksOnly(b[at+n:], from+int64(at+n)) {
			return true
		}
	}
	return false
}

// chunksOnly tells whether b consists of chunks.
func chunksOnly(b []byte, from int64) bool {
	for len(b) > 0 {
		if padding := afterPadding(from) - from; padding > 0 {
			b, from = b[min(padding, int64(len(b))):], from+padding
			continue
		}
		_, n := chunk(b, from)
		if n == 0 {
			return false
		}
		b, from = b[n:], from+int64(n)
	}
	return true
}

// chunk returns the type and the length of the chunk that b begins with, 0 if that is none. It is not the reader of Pebble that
// looks for one: that tries out which bit may have flipped in each thing that it takes for one.
func chunk(b []byte, from int64) (kind byte, n int) {
	if len(b) < chunkHeader {
		return 0, 0
	}
	n = chunkHeader + int(binary.LittleEndian.Uint16(b[4:]))
	if kind = b[6]; kind == 0 || kind > 4 || n > len(b) || int64(n) > blockBytes-from%blockBytes {
		return 0, 0
	}
	sum := crc32.Checksum(b[6:n], castagnoli)
	if binary.LittleEndian.Uint32(b) != bits.RotateLeft32(sum, 17)+0xa282ead8 {
		return 0, 0
	}
	return kind, n
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
