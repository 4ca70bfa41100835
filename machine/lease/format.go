package lease

import (
	"encoding/binary"
	"fmt"
)

// The stored form of a lease; docs/format-lease.md describes it.
const (
	prefix        = 'l'
	keyLen        = 1 + 8
	formatVersion = 1
	recordLen     = 1 + 8 + 8
)

func encodeKey(id int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefix}, uint64(id))
}

func encode(l Lease) []byte {
	b := make([]byte, 1, recordLen)
	b[0] = formatVersion
	b = binary.BigEndian.AppendUint64(b, uint64(l.TTL))
	return binary.BigEndian.AppendUint64(b, uint64(l.RemainingTTL))
}

// decode is the inverse of encodeKey and encode.
func decode(key, value []byte) (Lease, error) {
	if len(key) != keyLen || key[0] != prefix {
		return Lease{}, fmt.Errorf("lease key %x: want %q and 8 bytes of id", key, prefix)
	}
	id := int64(binary.BigEndian.Uint64(key[1:]))
	if id == 0 {
		return Lease{}, fmt.Errorf("lease key %x: no lease has the id 0", key)
	}
	damaged := func(format string, args ...any) (Lease, error) {
		return Lease{}, fmt.Errorf("record %x of lease %016x: %s", value, uint64(id), fmt.Sprintf(format, args...))
	}
	if len(value) == 0 {
		return damaged("empty")
	}
	if value[0] != formatVersion {
		return damaged("format version %d, this release reads version %d", value[0], formatVersion)
	}
	if len(value) != recordLen {
		return damaged("%d bytes long, want %d", len(value), recordLen)
	}
	l := Lease{
		ID:           id,
		TTL:          int64(binary.BigEndian.Uint64(value[1:])),
		RemainingTTL: int64(binary.BigEndian.Uint64(value[9:])),
	}
	if l.TTL > MaxTTL {
		return damaged("time to live of %d s is above the maximum of %d", l.TTL, int64(MaxTTL))
	}
	return l, nil
}
