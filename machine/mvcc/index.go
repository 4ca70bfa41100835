package mvcc

import "strings"

// item is what the index knows of a live key.
type item struct {
	key     string
	create  int64
	mod     int64
	version int64
	lease   int64
}

// The index is a B+tree whose nodes are shared between versions of it. A root
// is an immutable version as long as no writer owns it; the writer's tree
// copies a node before it changes it, unless the node is of the tree's own
// epoch, that is, was made after the last freeze and cannot be shared.
//
// Sizes of nodes: with 31 items a leaf fills the allocator's class of 1536
// bytes, with 25 children an inner node that of 1024. Larger nodes would make
// the copies, smaller ones the overhead per key, dearer.
const (
	leafMax  = 31
	innerMax = 25
)

type leaf struct {
	epoch uint64
	n     int
	items [leafMax]item
}

// child is a subtree. Exactly one of inner and leaf is set, and neither in the
// zero value, which is the empty tree.
type child struct {
	// low is at most every key of the subtree, and above every key to the left
	// of it. It means nothing in the first child of a node.
	low   string
	size  int // keys in the subtree
	inner *inner
	leaf  *leaf
}

type inner struct {
	epoch uint64
	n     int
	kids  [innerMax]child
}

// root is one version of the index. Its methods may be called from any
// goroutine once the version is frozen.
type root struct{ child }

// tree is the writer's index.
type tree struct {
	root  root
	epoch uint64
}

// freeze returns the present version, which no later change of t affects.
func (t *tree) freeze() root {
	t.epoch++
	return t.root
}

// search returns the position of the first item that is not below key, and
// whether it is key.
func (l *leaf) search(key string) (int, bool) {
	lo, hi := 0, l.n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if l.items[mid].key < key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < l.n && l.items[lo].key == key
}

// search returns the child that key belongs to.
func (in *inner) search(key string) int {
	lo, hi := 1, in.n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if in.kids[mid].low <= key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo - 1
}

// get returns the item of key, or nil. The item must not be changed.
func (r *root) get(key string) *item {
	c := &r.child
	for c.inner != nil {
		c = &c.inner.kids[c.inner.search(key)]
	}
	if c.leaf == nil {
		return nil
	}
	if i, ok := c.leaf.search(key); ok {
		return &c.leaf.items[i]
	}
	return nil
}

// rank returns the number of keys below key.
func (r *root) rank(key string) int {
	c, rank := &r.child, 0
	for c.inner != nil {
		i := c.inner.search(key)
		for j := range i {
			rank += c.inner.kids[j].size
		}
		c = &c.inner.kids[i]
	}
	if c.leaf == nil {
		return rank
	}
	i, _ := c.leaf.search(key)
	return rank + i
}

// ascend calls fn with the items from key on, in order, until it returns false.
func (r *root) ascend(key string, fn func(*item) bool) {
	r.ascendKey(key, fn)
}

// ascendRank calls fn with the items from the one of that rank on, in order,
// until it returns false.
func (r *root) ascendRank(rank int, fn func(*item) bool) {
	r.child.ascendRank(rank, fn)
}

func (c *child) ascendKey(key string, fn func(*item) bool) bool {
	switch {
	case c.inner != nil:
		i := c.inner.search(key)
		if !c.inner.kids[i].ascendKey(key, fn) {
			return false
		}
		return c.inner.ascendAll(i+1, fn)
	case c.leaf != nil:
		i, _ := c.leaf.search(key)
		return c.leaf.ascendAll(i, fn)
	}
	return true
}

func (c *child) ascendRank(rank int, fn func(*item) bool) bool {
	switch {
	case c.inner != nil:
		for i := range c.inner.n {
			kid := &c.inner.kids[i]
			if rank < kid.size {
				return kid.ascendRank(rank, fn) && c.inner.ascendAll(i+1, fn)
			}
			rank -= kid.size
		}
	case c.leaf != nil:
		return c.leaf.ascendAll(rank, fn)
	}
	return true
}

func (l *leaf) ascendAll(from int, fn func(*item) bool) bool {
	for i := from; i < l.n; i++ {
		if !fn(&l.items[i]) {
			return false
		}
	}
	return true
}

func (in *inner) ascendAll(from int, fn func(*item) bool) bool {
	for i := from; i < in.n; i++ {
		kid := &in.kids[i]
		var more bool
		if kid.inner != nil {
			more = kid.inner.ascendAll(0, fn)
		} else {
			more = kid.leaf.ascendAll(0, fn)
		}
		if !more {
			return false
		}
	}
	return true
}

// ownLeaf makes c's leaf one that t may change.
func (t *tree) ownLeaf(c *child) *leaf {
	if c.leaf.epoch != t.epoch {
		cp := *c.leaf
		cp.epoch = t.epoch
		c.leaf = &cp
	}
	return c.leaf
}

// ownInner makes c's inner node one that t may change.
func (t *tree) ownInner(c *child) *inner {
	if c.inner.epoch != t.epoch {
		cp := *c.inner
		cp.epoch = t.epoch
		c.inner = &cp
	}
	return c.inner
}

// put returns the item of key for the caller to fill, and whether it existed; a
// new one has all but its key zero. The pointer is good until the next change
// of t. The key is copied if it is new.
func (t *tree) put(key string) (it *item, existed bool) {
	c := &t.root.child
	if c.size == 0 {
		*c = child{leaf: &leaf{epoch: t.epoch}}
	}
	it, existed, right := t.putIn(c, key)
	if right.size > 0 {
		in := &inner{epoch: t.epoch, n: 2}
		in.kids[0], in.kids[1] = *c, right
		*c = child{size: c.size + right.size, inner: in}
	}
	return it, existed
}

// putIn is put in a subtree. Where the subtree had to be split, right is the
// new one to the right of it.
func (t *tree) putIn(c *child, key string) (it *item, existed bool, right child) {
	if c.leaf != nil {
		return t.putInLeaf(c, key)
	}
	in := t.ownInner(c)
	i := in.search(key)
	it, existed, split := t.putIn(&in.kids[i], key)
	if !existed {
		c.size++
	}
	if split.size > 0 {
		right = t.addKid(c, i+1, split)
	}
	return it, existed, right
}

func (t *tree) putInLeaf(c *child, key string) (it *item, existed bool, right child) {
	l := t.ownLeaf(c)
	i, ok := l.search(key)
	if ok {
		return &l.items[i], true, child{}
	}
	if l.n < leafMax {
		it = l.insert(i, key)
		c.size++
		return it, false, child{}
	}
	at := splitPoint(i, leafMax)
	r := &leaf{epoch: t.epoch}
	r.n = copy(r.items[:], l.items[at:])
	clear(l.items[at:])
	l.n = at
	if i > at || at == leafMax {
		it = r.insert(i-at, key)
	} else {
		it = l.insert(i, key)
	}
	c.size = l.n
	return it, false, child{low: r.items[0].key, size: r.n, leaf: r}
}

// splitPoint is how many entries a full node of that many keeps when one more
// comes in at position i: half of them, but all if the new one is the last, so
// that keys that arrive in ascending order leave full nodes behind them.
func splitPoint(i, full int) int {
	if i == full {
		return full
	}
	return full / 2
}

func (l *leaf) insert(i int, key string) *item {
	copy(l.items[i+1:l.n+1], l.items[i:l.n])
	l.items[i] = item{key: strings.Clone(key)}
	l.n++
	return &l.items[i]
}

// addKid puts kid at position i of c's inner node, which t owns. Where that
// had to be split, right is the new subtree.
func (t *tree) addKid(c *child, i int, kid child) (right child) {
	in := c.inner
	if in.n < innerMax {
		in.insert(i, kid)
		return child{}
	}
	at := splitPoint(i, innerMax)
	r := &inner{epoch: t.epoch}
	r.n = copy(r.kids[:], in.kids[at:])
	clear(in.kids[at:])
	in.n = at
	if i > at || at == innerMax {
		r.insert(i-at, kid)
	} else {
		in.insert(i, kid)
	}
	c.size = in.size()
	return child{low: r.kids[0].low, size: r.size(), inner: r}
}

func (in *inner) insert(i int, kid child) {
	copy(in.kids[i+1:in.n+1], in.kids[i:in.n])
	in.kids[i] = kid
	in.n++
}

func (in *inner) size() int {
	n := 0
	for i := range in.n {
		n += in.kids[i].size
	}
	return n
}

// remove takes key out and reports whether it was there.
func (t *tree) remove(key string) bool {
	if t.root.get(key) == nil {
		return false
	}
	c := &t.root.child
	t.removeIn(c, key)
	for c.inner != nil && c.inner.n == 1 {
		*c = c.inner.kids[0]
	}
	if c.size == 0 {
		*c = child{}
	}
	return true
}

// removeIn takes key, which is there, out of a subtree.
func (t *tree) removeIn(c *child, key string) {
	c.size--
	if c.leaf != nil {
		l := t.ownLeaf(c)
		i, _ := l.search(key)
		copy(l.items[i:], l.items[i+1:l.n])
		l.n--
		l.items[l.n] = item{}
		return
	}
	in := t.ownInner(c)
	i := in.search(key)
	t.removeIn(&in.kids[i], key)
	switch {
	case in.kids[i].size == 0:
		in.removeKid(i)
	case !in.kids[i].sparse():
	case i > 0 && in.mergeable(i-1):
		t.merge(in, i-1)
	case i+1 < in.n && in.mergeable(i):
		t.merge(in, i)
	}
}

func (in *inner) removeKid(i int) {
	copy(in.kids[i:], in.kids[i+1:in.n])
	in.n--
	in.kids[in.n] = child{}
}

// entries is the number of entries of the top node of c and the most it holds.
func (c *child) entries() (n, full int) {
	if c.leaf != nil {
		return c.leaf.n, leafMax
	}
	return c.inner.n, innerMax
}

func (c *child) sparse() bool {
	n, full := c.entries()
	return n < full/4
}

// mergeable reports whether children i and i+1 fit into one node with some
// room to spare, so that the next put does not split it again.
func (in *inner) mergeable(i int) bool {
	n, full := in.kids[i].entries()
	m, _ := in.kids[i+1].entries()
	return n+m <= full*3/4
}

// merge moves what child i+1 of in holds into child i.
func (t *tree) merge(in *inner, i int) {
	l, r := &in.kids[i], &in.kids[i+1]
	if l.leaf != nil {
		to := t.ownLeaf(l)
		to.n += copy(to.items[to.n:], r.leaf.items[:r.leaf.n])
	} else {
		to := t.ownInner(l)
		first := to.n
		to.n += copy(to.kids[to.n:], r.inner.kids[:r.inner.n])
		to.kids[first].low = r.low
	}
	l.size += r.size
	in.removeKid(i + 1)
}
