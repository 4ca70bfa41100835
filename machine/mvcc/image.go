package mvcc

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
)

// An image is a copy of the index as of one revision, kept in the engine so that
// Open need not read the history: docs/format-mvcc.md. It is cut into chunks,
// each of which can be decoded by itself.

const imageByte = 'i'

// Keys of the image space.
var (
	imageLower      = []byte{imageByte}
	imageUpper      = []byte{imageByte + 1}
	imageHeadKey    = []byte{imageByte, 'h'}
	imageChunkLower = []byte{imageByte, 'k'}
	imageChunkUpper = []byte{imageByte, 'k' + 1}
)

const (
	imageVersion = 1
	imageHeadLen = 1 + 8 + 8 + 8 + 4 // version, generation, revision, keys, chunks
	sumLen       = 4
	// imageChunkBytes is the size at which a chunk is closed.
	imageChunkBytes = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// imageHead says which image there is. It is written after all of its chunks.
type imageHead struct {
	generation uint64 // of the chunks' keys
	rev        int64
	keys       int
	chunks     uint32
}

func appendImageHead(dst []byte, h *imageHead) []byte {
	start := len(dst)
	dst = append(dst, imageVersion)
	dst = binary.BigEndian.AppendUint64(dst, h.generation)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.rev))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.keys))
	dst = binary.BigEndian.AppendUint32(dst, h.chunks)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func decodeImageHead(b []byte) (h imageHead, err error) {
	b, err = checkSum(b)
	switch {
	case err != nil:
		return h, err
	case len(b) != imageHeadLen || b[0] != imageVersion:
		return h, corruptf("head of an image of unknown form: %x", b)
	}
	h.generation = binary.BigEndian.Uint64(b[1:])
	h.rev = int64(binary.BigEndian.Uint64(b[9:]))
	keys := int64(binary.BigEndian.Uint64(b[17:]))
	h.keys = int(keys)
	h.chunks = binary.BigEndian.Uint32(b[25:])
	if h.rev <= 0 || keys < 0 {
		return h, corruptf("head of an image at revision %d with %d keys", h.rev, keys)
	}
	return h, nil
}

// checkSum returns b without the checksum at its end.
func checkSum(b []byte) ([]byte, error) {
	n := len(b) - sumLen
	if n < 0 || crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]) {
		return nil, corruptf("%d bytes of an image do not check", len(b))
	}
	return b[:n], nil
}

func appendImageChunkKey(dst []byte, generation uint64, n uint32) []byte {
	dst = append(dst, imageChunkLower...)
	dst = binary.BigEndian.AppendUint64(dst, generation)
	return binary.BigEndian.AppendUint32(dst, n)
}

// chunkWriter encodes items, which come in order, as one chunk.
type chunkWriter struct {
	b     []byte
	items uint32
	last  string
}

const countLen = 4 // of items, at the beginning of a chunk

func (w *chunkWriter) reset() {
	w.b = append(w.b[:0], make([]byte, countLen)...)
	w.items, w.last = 0, ""
}

func (w *chunkWriter) add(it *item) {
	shared := sharedPrefix(w.last, it.key)
	w.b = binary.AppendUvarint(w.b, uint64(shared))
	w.b = binary.AppendUvarint(w.b, uint64(len(it.key)-shared))
	w.b = append(w.b, it.key[shared:]...)
	w.b = binary.AppendUvarint(w.b, uint64(it.mod))
	w.b = binary.AppendUvarint(w.b, uint64(it.mod-it.create))
	w.b = binary.AppendUvarint(w.b, uint64(it.version))
	w.b = binary.AppendUvarint(w.b, uint64(it.lease))
	w.last = it.key
	w.items++
}

// finish returns the chunk, which is good until reset.
func (w *chunkWriter) finish() []byte {
	binary.BigEndian.PutUint32(w.b, w.items)
	w.b = binary.BigEndian.AppendUint32(w.b, crc32.Checksum(w.b, castagnoli))
	return w.b
}

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// chunk is a decoded chunk: full leaves, but for the last.
type chunk struct {
	leaves      []*leaf
	items       int
	first, last string
}

// decodeChunk decodes a chunk of an image at rev. It keeps nothing of b.
func decodeChunk(b []byte, rev int64) (c chunk, err error) {
	if b, err = checkSum(b); err != nil {
		return c, err
	}
	if len(b) < countLen {
		return c, corruptf("chunk of an image of %d bytes", len(b))
	}
	c.items, b = int(binary.BigEndian.Uint32(b)), b[countLen:]
	if c.items == 0 || c.items > len(b) { // of more than one byte each
		return c, corruptf("chunk of an image with %d items in %d bytes", c.items, len(b))
	}
	c.leaves = make([]*leaf, 0, (c.items+leafMax-1)/leafMax)
	var key []byte
	for i := range c.items {
		if i%leafMax == 0 {
			c.leaves = append(c.leaves, &leaf{})
		}
		l := c.leaves[len(c.leaves)-1]
		it := &l.items[l.n]
		l.n++
		if key, b, err = it.decode(key, b); err != nil {
			return c, err
		}
		if i > 0 && it.key <= c.last || it.create < 0 || it.create > it.mod || it.mod > rev || it.version < 0 {
			return c, corruptf("item %q of an image at revision %d: %+v follows %q", it.key, rev, *it, c.last)
		}
		c.last = it.key
	}
	if len(b) != 0 {
		return c, corruptf("%d bytes follow the items of a chunk", len(b))
	}
	c.first = c.leaves[0].items[0].key
	return c, nil
}

// decode decodes the next item of b after the one whose key is given, and
// returns its key in the same memory and what follows it.
func (it *item) decode(key, b []byte) (_, rest []byte, err error) {
	var v [6]uint64
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(b); n <= 0 {
			return nil, nil, corruptf("item of an image is cut short")
		}
		b = b[n:]
		if i == 1 { // the rest of the key comes here
			if v[0] > uint64(len(key)) || v[1] > uint64(len(b)) {
				return nil, nil, corruptf("item of an image whose key has %d bytes of %d, and %d of %d", v[0], len(key), v[1], len(b))
			}
			key = append(key[:v[0]], b[:v[1]]...)
			b = b[v[1]:]
		}
	}
	it.key = strings.Clone(aliasString(key))
	it.mod = int64(v[2])
	it.create = it.mod - int64(v[3])
	it.version = int64(v[4])
	it.lease = int64(v[5])
	return key, b, nil
}

// treeOf makes an index of chunks that are in order.
func treeOf(chunks []chunk) (tree, error) {
	var level []child
	for i := range chunks {
		if c := &chunks[i]; i > 0 && c.first <= chunks[i-1].last {
			return tree{}, corruptf("chunks of an image are out of order: %q follows %q", c.first, chunks[i-1].last)
		}
		for _, l := range chunks[i].leaves {
			level = append(level, child{low: l.items[0].key, size: l.n, leaf: l})
		}
	}
	for len(level) > 1 {
		var above []child
		for len(level) > 0 {
			in := &inner{}
			in.n = copy(in.kids[:], level)
			level = level[in.n:]
			above = append(above, child{low: in.kids[0].low, size: in.size(), inner: in})
		}
		level = above
	}
	t := tree{}
	if len(level) == 1 {
		t.root.child = level[0]
	}
	return t, nil
}

func (h *imageHead) String() string {
	return fmt.Sprintf("image %d at revision %d: %d keys in %d chunks", h.generation, h.rev, h.keys, h.chunks)
}
