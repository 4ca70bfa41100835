package mvcc

import (
	"bytes"
	"encoding/binary"
	"unsafe"
)

// The first byte of an engine key names its owner; these are ours.
const (
	historyByte  = 'h'
	revisionByte = 'r'
	metaByte     = 'c'
)

// Bounds of the three spaces.
var (
	historyLower  = []byte{historyByte}
	historyUpper  = []byte{historyByte + 1}
	revisionLower = []byte{revisionByte}
	revisionUpper = []byte{revisionByte + 1}
)

// Meta keys.
var (
	metaFormat    = []byte{metaByte, 'v'} // version of the format, one byte
	metaScheduled = []byte{metaByte, 's'} // compacted revision; written by apply
	metaFinished  = []byte{metaByte, 'f'} // revision up to which old versions are deleted; written by the compactor
	metaFreed     = []byte{metaByte, 'd'} // bytes deleted so far; written by the compactor
)

// In a history key the user's key is escaped so that the order of engine keys
// is the order of user keys, whatever bytes they hold: a zero byte becomes
// escape, escapedZero; the end is escape, terminator, which sorts before any
// longer key.
const (
	escape      = 0x00
	escapedZero = 0xff
	terminator  = 0x01
	afterKey    = 0x02 // in the place of the terminator: past all versions of the key
	mainLen     = 8
	subLen      = 8
	revKeyLen   = 1 + mainLen + subLen
)

// historyKeyLen is the length of the history key of key.
func historyKeyLen(key string) int {
	n := 1 + len(key) + 2 + mainLen
	for i := 0; i < len(key); i++ {
		if key[i] == escape {
			n++
		}
	}
	return n
}

// appendKeyPrefix appends what the history keys of all versions of key share.
func appendKeyPrefix(dst []byte, key string) []byte {
	dst = append(dst, historyByte)
	for {
		i := indexZero(key)
		if i < 0 {
			break
		}
		dst = append(dst, key[:i]...)
		dst = append(dst, escape, escapedZero)
		key = key[i+1:]
	}
	dst = append(dst, key...)
	return append(dst, escape, terminator)
}

func indexZero(s string) int {
	return bytes.IndexByte(unsafe.Slice(unsafe.StringData(s), len(s)), 0)
}

// appendHistoryKey appends the history key of the version of key that main
// made. Newer versions sort first.
func appendHistoryKey(dst []byte, key string, main int64) []byte {
	dst = appendKeyPrefix(dst, key)
	return binary.BigEndian.AppendUint64(dst, ^uint64(main))
}

// appendAfterKey appends the least engine key above all versions of key.
func appendAfterKey(dst []byte, key string) []byte {
	dst = appendKeyPrefix(dst, key)
	dst[len(dst)-1] = afterKey
	return dst
}

// appendSupersededKey appends the history key of a change that a later one of
// the same revision has superseded. It sorts right after that one's.
func appendSupersededKey(dst []byte, key string, main, sub int64) []byte {
	dst = appendHistoryKey(dst, key, main)
	return binary.BigEndian.AppendUint64(dst, ^uint64(sub))
}

// endOfKey marks where the escaped key ends: an escape is followed by nothing
// else but escapedZero.
var endOfKey = []byte{escape, terminator}

// splitHistoryKey returns what the history keys of all versions of the same key
// share, and the main revision. It checks only what costs nothing; see
// unescapeKey.
func splitHistoryKey(k []byte) (prefix []byte, main int64, err error) {
	n := bytes.Index(k, endOfKey) + len(endOfKey)
	rest := len(k) - n
	if n < 1+len(endOfKey) || k[0] != historyByte || rest != mainLen && rest != mainLen+subLen {
		return nil, 0, corruptf("history key %x is not of the form h key 00 01 revision", k)
	}
	main = int64(^binary.BigEndian.Uint64(k[n:]))
	if main <= 0 {
		return nil, 0, corruptf("history key %x names revision %d", k, main)
	}
	return k[:n], main, nil
}

// unescapeKey appends to dst the user's key in a history key's prefix.
func unescapeKey(dst, prefix []byte) ([]byte, error) {
	in := prefix[1 : len(prefix)-2]
	for {
		i := bytes.IndexByte(in, escape)
		if i < 0 {
			return append(dst, in...), nil
		}
		if i+1 >= len(in) || in[i+1] != escapedZero {
			return nil, corruptf("history key %x has a bad escape", prefix)
		}
		dst = append(dst, in[:i]...)
		dst = append(dst, 0)
		in = in[i+2:]
	}
}

// appendRevisionKey appends the revision index's key of (main, sub).
func appendRevisionKey(dst []byte, main, sub int64) []byte {
	dst = append(dst, revisionByte)
	dst = binary.BigEndian.AppendUint64(dst, uint64(main))
	return binary.BigEndian.AppendUint64(dst, uint64(sub))
}

func splitRevisionKey(k []byte) (main, sub int64, err error) {
	if len(k) != revKeyLen || k[0] != revisionByte {
		return 0, 0, corruptf("revision key %x is not of the form r main sub", k)
	}
	main = int64(binary.BigEndian.Uint64(k[1:]))
	sub = int64(binary.BigEndian.Uint64(k[1+mainLen:]))
	if main <= 0 || sub < 0 {
		return 0, 0, corruptf("revision key %x names revision %d/%d", k, main, sub)
	}
	return main, sub, nil
}

// aliasString is b as a string without a copy, for a search that ends before b
// changes.
func aliasString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// aliasBytes is s as bytes without a copy, for those who do not change them.
func aliasBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
