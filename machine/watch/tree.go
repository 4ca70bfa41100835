package watch

import "strings"

// span is the range of keys [begin, end), or all keys from begin if it is
// endless.
type span struct {
	begin string
	end   bound
}

// bound is an upper bound of keys.
type bound struct {
	key     string
	endless bool
}

func (b bound) above(key []byte) bool { return b.endless || b.key > string(key) }

func (b bound) compare(c bound) int {
	switch {
	case b.endless && c.endless:
		return 0
	case b.endless:
		return 1
	case c.endless:
		return -1
	}
	return strings.Compare(b.key, c.key)
}

func (s span) compare(t span) int {
	if c := strings.Compare(s.begin, t.begin); c != 0 {
		return c
	}
	return s.end.compare(t.end)
}

// tree is an interval tree: an AVL tree of spans in order, where each node
// knows the highest end below it. The zero value is empty.
type tree struct{ root *node }

// node is one span and the group of its watchers.
type node struct {
	span
	group
	left, right *node
	height      int8
	// max is the highest end in the subtree.
	max bound
}

// at returns the node of s, new if there is none.
func (t *tree) at(s span) *node {
	for n := t.root; n != nil; {
		c := s.compare(n.span)
		if c == 0 {
			return n
		}
		n = *n.child(c)
	}
	n := &node{span: s, height: 1, max: s.end}
	t.root = t.root.insert(n)
	return n
}

// drop removes the node of s.
func (t *tree) drop(s span) { t.root = t.root.drop(s) }

func (n *node) child(c int) **node {
	if c < 0 {
		return &n.left
	}
	return &n.right
}

func (n *node) insert(m *node) *node {
	if n == nil {
		return m
	}
	child := n.child(m.span.compare(n.span))
	*child = (*child).insert(m)
	return n.balanced()
}

func (n *node) drop(s span) *node {
	assertf(n != nil, "no watchers of %q", s.begin)
	c := s.compare(n.span)
	if c != 0 {
		child := n.child(c)
		*child = (*child).drop(s)
		return n.balanced()
	}
	if n.left == nil {
		return n.right
	}
	if n.right == nil {
		return n.left
	}
	right, heir := n.right.takeFirst()
	heir.left, heir.right = n.left, right
	return heir.balanced()
}

// takeFirst removes the first node of the subtree and returns the rest and it.
func (n *node) takeFirst() (rest, first *node) {
	if n.left == nil {
		return n.right, n
	}
	n.left, first = n.left.takeFirst()
	return n.balanced(), first
}

// balanced returns the root of the subtree of n after a change below it that
// altered the height of one side by at most one.
func (n *node) balanced() *node {
	switch d := n.left.tall() - n.right.tall(); {
	case d > 1:
		if n.left.left.tall() < n.left.right.tall() {
			n.left = n.left.rotatedLeft()
		}
		return n.rotatedRight()
	case d < -1:
		if n.right.right.tall() < n.right.left.tall() {
			n.right = n.right.rotatedRight()
		}
		return n.rotatedLeft()
	}
	n.sum()
	return n
}

func (n *node) rotatedLeft() *node {
	m := n.right
	n.right, m.left = m.left, n
	n.sum()
	m.sum()
	return m
}

func (n *node) rotatedRight() *node {
	m := n.left
	n.left, m.right = m.right, n
	n.sum()
	m.sum()
	return m
}

func (n *node) tall() int8 {
	if n == nil {
		return 0
	}
	return n.height
}

// sum recomputes what n knows of its subtree.
func (n *node) sum() {
	n.height = 1 + max(n.left.tall(), n.right.tall())
	n.max = n.end
	for _, m := range [...]*node{n.left, n.right} {
		if m != nil && m.max.compare(n.max) > 0 {
			n.max = m.max
		}
	}
}

// stab calls f for the nodes whose span has key, until it returns false.
func (t *tree) stab(key []byte, f func(n *node) bool) { t.root.stab(key, f) }

func (n *node) stab(key []byte, f func(n *node) bool) bool {
	if n == nil || !n.max.above(key) {
		return true
	}
	if !n.left.stab(key, f) {
		return false
	}
	if n.begin > string(key) {
		return true
	}
	if n.end.above(key) && !f(n) {
		return false
	}
	return n.right.stab(key, f)
}

// walk calls f for all nodes in order.
func (t *tree) walk(f func(n *node)) { t.root.walk(f) }

func (n *node) walk(f func(n *node)) {
	if n != nil {
		n.left.walk(f)
		f(n)
		n.right.walk(f)
	}
}
