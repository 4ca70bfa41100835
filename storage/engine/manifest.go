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

// searched bounds how far behind a record that cannot be read another one is looked for. Records are of some KiB.
const searched = 64 << 10

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
	rest := make([]byte, min(info.Size()-next, searched))
	if _, err := f.ReadAt(rest, next); err != nil && err != io.EOF {
		return records, err
	}
	if records == 0 || holdsRecord(rest) {
		return records, fmt.Errorf("%s is damaged at byte %d", desc.ManifestFilename, next)
	}
	return records, nil
}

// readRecord reads the next record and forgets it.
func readRecord(r *record.Reader) error {
	content, err := r.Next()
	if err == nil {
		_, err = io.Copy(io.Discard, content)
	}
	return err
}

// holdsRecord tells whether a record begins anywhere in b but at its begin. The reader is no help there, for it tries out which flipped bit
// may have damaged each thing that it takes for a record.
func holdsRecord(b []byte) bool {
	// As in LevelDB's logs (https://github.com/google/leveldb/blob/main/doc/log_format.md): checksum, length, and a type of which
	// two are of a record's begin.
	const header, full, first = 7, 1, 2
	for at := 1; at+header <= len(b); at++ {
		h := b[at : at+header]
		size := int(binary.LittleEndian.Uint16(h[4:]))
		if kind := h[6]; kind != full && kind != first || size == 0 || at+header+size > len(b) {
			continue
		}
		sum := crc32.Checksum(b[at+header-1:at+header+size], castagnoli)
		if binary.LittleEndian.Uint32(h) == bits.RotateLeft32(sum, 17)+0xa282ead8 {
			return true
		}
	}
	return false
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
