package etcdfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The layout of a bbolt file, as far as reading needs it. All integers are
// little-endian, as every machine that etcd supports in production writes them.
const (
	pageHeaderLen   = 16 // id 8, flags 2, count 2, overflow 4
	branchElemLen   = 16 // position 4, key size 4, page 8
	leafElemLen     = 16 // flags 4, position 4, key size 4, value size 4
	bucketHeaderLen = 16 // root page 8, sequence 8; a root of 0 has its page follow
	metaLen         = 64 // with the checksum

	pageBranch = 0x01
	pageLeaf   = 0x02
	pageMeta   = 0x04
	leafBucket = 0x01 // flag of an element whose value is a bucket

	metaMagic   = 0xED0CDAED
	metaVersion = 2

	minPageBytes = 1 << 10
	maxPageBytes = 1 << 24
	maxDepth     = 64       // of a tree; a full one of this depth fits on no disk
	maxRunBytes  = 1 << 31  // of one page with its overflow: more than the largest request allows
	maxKeyBytes  = 32 << 10 // bbolt's own limit
)

// DamageError says where a file breaks the rules of its format.
type DamageError struct {
	Path   string
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s is damaged, or is no file of etcd's: %s", e.Path, e.Reason)
}

// tree reads a bbolt file. It maps nothing and trusts nothing: a damaged file
// gives an error, where bbolt itself would end the process.
type tree struct {
	path     string
	r        io.ReaderAt
	pageSize int64
	pages    uint64 // that are in use or free; page ids are below
	root     uint64
	onRead   func(bytes int64)
}

// openTree reads the newer valid one of the two meta pages. The size is that of
// the file without a checksum behind it.
func openTree(path string, r io.ReaderAt, size int64) (*tree, error) {
	t := &tree{path: path, r: r, onRead: func(int64) {}}
	var newest uint64
	try := func(offset int64) bool {
		m, ok := readMeta(r, offset)
		if ok && (t.pageSize == 0 || m.txid > newest) {
			t.pageSize, t.pages, t.root, newest = m.pageSize, m.pages, m.root, m.txid
		}
		return ok
	}
	if try(0) {
		try(t.pageSize)
	} else {
		for at := int64(minPageBytes); at <= maxPageBytes && !try(at); at *= 2 {
		}
	}
	if t.pageSize == 0 {
		return nil, t.damaged("neither of its two meta pages is valid")
	}
	// The product of two numbers from the file must not overflow.
	if t.pages > uint64(size/t.pageSize) {
		return nil, t.damaged("it is cut short: it should have %d pages of %d bytes and has %d bytes", t.pages, t.pageSize, size)
	}
	return t, nil
}

type meta struct {
	pageSize          int64
	root, pages, txid uint64
}

func readMeta(r io.ReaderAt, offset int64) (m meta, ok bool) {
	var b [pageHeaderLen + metaLen]byte
	if _, err := r.ReadAt(b[:], offset); err != nil {
		return m, false
	}
	u32, u64 := binary.LittleEndian.Uint32, binary.LittleEndian.Uint64
	p := b[pageHeaderLen:]
	sum := fnv.New64a()
	sum.Write(p[:metaLen-8])
	if u32(p) != metaMagic || u32(p[4:]) != metaVersion || u64(p[metaLen-8:]) != sum.Sum64() {
		return m, false
	}
	m = meta{pageSize: int64(u32(p[8:])), root: u64(p[16:]), pages: u64(p[40:]), txid: u64(p[48:])}
	return m, m.pageSize >= minPageBytes && m.pageSize <= maxPageBytes
}

func (t *tree) damaged(format string, args ...any) error {
	return &DamageError{Path: t.path, Reason: fmt.Sprintf(format, args...)}
}

// size is the number of bytes that the pages take.
func (t *tree) size() int64 { return int64(t.pages) * t.pageSize }

// page is one page with its overflow.
type page struct {
	id    uint64
	flags uint16
	count int
	data  []byte // header included
}

func (t *tree) page(id uint64) (*page, error) {
	if id < 2 || id >= t.pages {
		return nil, t.damaged("it refers to page %d of %d", id, t.pages)
	}
	var h [pageHeaderLen]byte
	if _, err := t.r.ReadAt(h[:], int64(id)*t.pageSize); err != nil {
		return nil, fmt.Errorf("read %s: %w", t.path, err)
	}
	if got := binary.LittleEndian.Uint64(h[:]); got != id {
		return nil, t.damaged("page %d says that it is page %d", id, got)
	}
	n := 1 + uint64(binary.LittleEndian.Uint32(h[12:]))
	if n > t.pages-id || n > uint64(maxRunBytes/t.pageSize) {
		return nil, t.damaged("page %d claims to be %d pages long", id, n)
	}
	data := make([]byte, int64(n)*t.pageSize)
	if _, err := t.r.ReadAt(data, int64(id)*t.pageSize); err != nil {
		return nil, fmt.Errorf("read %s: %w", t.path, err)
	}
	t.onRead(int64(len(data)))
	return t.parsePage(id, data), nil
}

func (t *tree) parsePage(id uint64, data []byte) *page {
	return &page{
		id:    id,
		flags: binary.LittleEndian.Uint16(data[8:]),
		count: int(binary.LittleEndian.Uint16(data[10:])),
		data:  data,
	}
}

// slice returns n bytes at pos bytes behind the start of the element at off.
func (t *tree) slice(p *page, off int, pos, n uint32) ([]byte, error) {
	from := uint64(off) + uint64(pos)
	if from+uint64(n) > uint64(len(p.data)) {
		return nil, t.damaged("an element of page %d ends beyond it", p.id)
	}
	return p.data[from : from+uint64(n) : from+uint64(n)], nil
}

// walk is one pass over a bucket. It meets each page once, in the order of keys.
type walk struct {
	t    *tree
	seen map[uint64]bool // pages without keys of their own: one that is its own descendant, or is met again, ends here
	last []byte
	any  bool
	fn   func(key, value []byte, bucket bool) error
}

// each calls fn with the elements of the bucket that begins at a page, in the
// order of their keys. What it is called with stays as it is.
func (t *tree) each(root uint64, fn func(key, value []byte, bucket bool) error) error {
	w := &walk{t: t, seen: make(map[uint64]bool), fn: fn}
	return w.at(root, 0)
}

// eachOf is each for a bucket that is the value of an element.
func (t *tree) eachOf(bucket []byte, fn func(key, value []byte, bucket bool) error) error {
	if len(bucket) < bucketHeaderLen {
		return t.damaged("a bucket has a record of %d bytes", len(bucket))
	}
	if root := binary.LittleEndian.Uint64(bucket); root != 0 {
		return t.each(root, fn)
	}
	inline := bucket[bucketHeaderLen:]
	if len(inline) < pageHeaderLen {
		return t.damaged("a bucket's own page has %d bytes", len(inline))
	}
	w := &walk{t: t, fn: fn}
	p := t.parsePage(0, inline)
	if p.flags != pageLeaf {
		return t.damaged("a bucket's own page is of kind %#x", p.flags)
	}
	return w.leaf(p)
}

func (w *walk) at(id uint64, depth int) error {
	if depth > maxDepth {
		return w.t.damaged("a tree is more than %d levels deep", maxDepth)
	}
	p, err := w.t.page(id)
	if err != nil {
		return err
	}
	if w.seen[id] {
		return w.t.damaged("page %d is in a tree twice", id)
	}
	switch p.flags {
	case pageLeaf:
		if p.count == 0 { // its keys tell of others that it is met again
			w.seen[id] = true
		}
		return w.leaf(p)
	case pageBranch:
		w.seen[id] = true
		return w.branch(p, depth)
	}
	return w.t.damaged("page %d is of kind %#x", id, p.flags)
}

func (w *walk) branch(p *page, depth int) error {
	if pageHeaderLen+p.count*branchElemLen > len(p.data) {
		return w.t.damaged("page %d claims to have %d elements", p.id, p.count)
	}
	for i := range p.count {
		off := pageHeaderLen + i*branchElemLen
		if err := w.at(binary.LittleEndian.Uint64(p.data[off+8:]), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) leaf(p *page) error {
	if pageHeaderLen+p.count*leafElemLen > len(p.data) {
		return w.t.damaged("page %d claims to have %d elements", p.id, p.count)
	}
	for i := range p.count {
		off := pageHeaderLen + i*leafElemLen
		e := p.data[off:]
		pos, keyLen, valueLen := binary.LittleEndian.Uint32(e[4:]), binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		key, err := w.t.slice(p, off, pos, keyLen)
		if err != nil {
			return err
		}
		if keyLen > maxKeyBytes || w.any && bytes.Compare(key, w.last) <= 0 {
			return w.t.damaged("the keys of page %d are not in order", p.id)
		}
		w.last, w.any = key, true
		from := uint64(pos) + uint64(keyLen)
		if from > uint64(len(p.data)) {
			return w.t.damaged("an element of page %d ends beyond it", p.id)
		}
		value, err := w.t.slice(p, off, uint32(from), valueLen)
		if err != nil {
			return err
		}
		if err := w.fn(key, value, binary.LittleEndian.Uint32(e)&leafBucket != 0); err != nil {
			return err
		}
	}
	return nil
}

// errFound ends a walk that has what it was made for.
var errFound = errors.New("found")

// bucket returns the record of a bucket at the top, nil if there is none.
func (t *tree) bucket(name []byte) (record []byte, err error) {
	err = t.each(t.root, func(key, value []byte, bucket bool) error {
		if !bytes.Equal(key, name) {
			return nil
		}
		if !bucket {
			return t.damaged("%q is not a bucket", name)
		}
		record = value
		return errFound
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return record, err
}

// eachIn is each for a bucket at the top, by its name. One that is not there
// has no elements.
func (t *tree) eachIn(name []byte, fn func(key, value []byte) error) error {
	record, err := t.bucket(name)
	if err != nil || record == nil {
		return err
	}
	return t.eachOf(record, func(key, value []byte, bucket bool) error {
		if bucket {
			return t.damaged("bucket %q has a bucket %q in it", name, key)
		}
		return fn(key, value)
	})
}
