package lease

import (
	"encoding/binary"
	"fmt"
	"time"
)

// The stored forms of leases and of their clock; docs/format-lease.md describes
// them.
const (
	prefix = 'l'
	keyLen = 1 + 8

	formatVersion = 2
	recordLen     = 1 + 8 + 8 + 8
	firstVersion  = 1 // without the time of the checkpoint
	firstLen      = 1 + 8 + 8

	clockVersion = 1
	clockLen     = 1 + 8
)

func encodeKey(id int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefix}, uint64(id))
}

func encode(r *record) []byte {
	b := make([]byte, 1, recordLen)
	b[0] = formatVersion
	b = binary.BigEndian.AppendUint64(b, uint64(r.TTL))
	b = binary.BigEndian.AppendUint64(b, uint64(r.RemainingTTL))
	return binary.BigEndian.AppendUint64(b, uint64(r.recorded))
}

// decode is the inverse of encodeKey and encode. It reads the first version
// too, whose checkpoints were made when there was no clock, or before it ran.
func decode(key, value []byte) (*record, error) {
	if len(key) != keyLen || key[0] != prefix {
		return nil, fmt.Errorf("lease key %x: want %q and 8 bytes of id", key, prefix)
	}
	id := int64(binary.BigEndian.Uint64(key[1:]))
	if id == 0 {
		return nil, fmt.Errorf("lease key %x: no lease has the id 0", key)
	}
	damaged := func(format string, args ...any) (*record, error) {
		return nil, fmt.Errorf("record %x of lease %016x: %s", value, uint64(id), fmt.Sprintf(format, args...))
	}
	if len(value) == 0 {
		return damaged("empty")
	}
	want := recordLen
	switch value[0] {
	case formatVersion:
	case firstVersion:
		want = firstLen
	default:
		return damaged("format version %d, this release reads versions up to %d", value[0], formatVersion)
	}
	if len(value) != want {
		return damaged("%d bytes long, want %d", len(value), want)
	}
	r := &record{Lease: Lease{
		ID:           id,
		TTL:          int64(binary.BigEndian.Uint64(value[1:])),
		RemainingTTL: int64(binary.BigEndian.Uint64(value[9:])),
	}}
	if want == recordLen {
		r.recorded = time.Duration(binary.BigEndian.Uint64(value[17:]))
	}
	if r.TTL > MaxTTL {
		return damaged("time to live of %d s is above the maximum of %d", r.TTL, int64(MaxTTL))
	}
	if r.recorded < 0 {
		return damaged("the checkpoint's time is negative")
	}
	return r, nil
}

// isClock reports whether key is that of the clock: the id that no lease has.
func isClock(key []byte) bool { return string(key) == string(encodeKey(0)) }

func encodeClock(d time.Duration) []byte {
	return binary.BigEndian.AppendUint64([]byte{clockVersion}, uint64(d))
}

func decodeClock(value []byte) (time.Duration, error) {
	if len(value) == 0 || value[0] != clockVersion {
		return 0, fmt.Errorf("clock of leases %x: this release reads version %d", value, clockVersion)
	}
	if len(value) != clockLen {
		return 0, fmt.Errorf("clock of leases %x: %d bytes long, want %d", value, len(value), clockLen)
	}
	d := time.Duration(binary.BigEndian.Uint64(value[1:]))
	if d < 0 {
		return 0, fmt.Errorf("clock of leases %x: negative", value)
	}
	return d, nil
}
