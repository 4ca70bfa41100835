package wal

import pb "go.etcd.io/raft/v3/raftpb"

// entryCache keeps the newest entries of the log, up to a bound in bytes. They
// are a contiguous suffix of the log.
type entryCache struct {
	limit   int
	bytes   int
	entries []*pb.Entry
}

func (c *entryCache) add(e *pb.Entry) {
	if n := len(c.entries); n > 0 {
		first := c.entries[0].GetIndex()
		switch {
		case e.GetIndex() <= first:
			c.truncate(0)
		case e.GetIndex() <= first+uint64(n):
			c.truncate(int(e.GetIndex() - first))
		default:
			panic("wal: gap in the entry cache")
		}
	}
	c.entries = append(c.entries, e)
	c.bytes += len(e.Data)
	drop := 0
	for c.bytes > c.limit && drop < len(c.entries)-1 {
		c.bytes -= len(c.entries[drop].Data)
		drop++
	}
	c.drop(drop)
}

// truncate keeps the first n entries.
func (c *entryCache) truncate(n int) {
	for i := n; i < len(c.entries); i++ {
		c.bytes -= len(c.entries[i].Data)
		c.entries[i] = nil
	}
	c.entries = c.entries[:n]
}

// dropTo forgets the entries up to index.
func (c *entryCache) dropTo(index uint64) {
	n := 0
	for n < len(c.entries) && c.entries[n].GetIndex() <= index {
		c.bytes -= len(c.entries[n].Data)
		n++
	}
	c.drop(n)
}

// drop removes the first n entries, whose bytes have been discounted. The
// slice moves along its array, which append replaces now and then.
func (c *entryCache) drop(n int) {
	clear(c.entries[:n])
	c.entries = c.entries[n:]
}

// slice returns the entries [lo, hi), as far as maxSize bytes allow but at
// least one, if all of them are cached.
func (c *entryCache) slice(lo, hi, maxSize uint64) ([]*pb.Entry, bool) {
	if len(c.entries) == 0 || lo < c.entries[0].GetIndex() {
		return nil, false
	}
	first := c.entries[0].GetIndex()
	all := c.entries[lo-first : hi-first]
	var size uint64
	for i, e := range all {
		size += uint64(len(e.Data))
		if i > 0 && size > maxSize {
			all = all[:i]
			break
		}
	}
	return append([]*pb.Entry(nil), all...), true
}
