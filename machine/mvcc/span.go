package mvcc

// span is the set of keys that a key and a range end name.
type span struct {
	from string
	to   string // excluded; without meaning if single or open
	// single: from alone. open: everything from from on.
	single, open bool
}

// spanOf reads a range as etcd does: without an end it is one key, the end
// "\x00" is no bound, and one at or below the key makes the range empty.
// The span aliases both.
func spanOf(key, end []byte) span {
	sp := span{from: aliasString(key), to: aliasString(end)}
	switch {
	case len(end) == 0:
		sp.single = true
	case len(end) == 1 && end[0] == 0:
		sp.open = true
	}
	return sp
}

// contains reports whether key, which is not below from, is in the span.
func (sp *span) contains(key string) bool {
	switch {
	case sp.single:
		return key == sp.from
	case sp.open:
		return true
	}
	return key < sp.to
}

// empty reports whether no key can be in the span.
func (sp *span) empty() bool { return !sp.single && !sp.open && sp.to <= sp.from }

// ranks returns the ranks of the first key of the span and of the first after it.
func (sp *span) ranks(r *root) (lo, hi int) {
	if sp.single {
		lo = r.rank(sp.from)
		if r.get(sp.from) != nil {
			return lo, lo + 1
		}
		return lo, lo
	}
	lo, hi = r.rank(sp.from), r.size
	if !sp.open {
		hi = max(lo, r.rank(sp.to))
	}
	return lo, hi
}

// count returns the number of keys of the index in the span.
func (sp *span) count(r *root) int {
	if sp.single {
		if r.get(sp.from) != nil {
			return 1
		}
		return 0
	}
	lo, hi := sp.ranks(r)
	return hi - lo
}

// each calls fn with the items of the span in order until it returns false.
func (sp *span) each(r *root, fn func(*item) bool) {
	if sp.single {
		if it := r.get(sp.from); it != nil {
			fn(it)
		}
		return
	}
	r.ascend(sp.from, func(it *item) bool { return sp.contains(it.key) && fn(it) })
}

// bounds returns the engine keys between which the history of the span lies.
func (sp *span) bounds() (lower, upper []byte) {
	lower = appendKeyPrefix(nil, sp.from)
	switch {
	case sp.single:
		return lower, appendAfterKey(nil, sp.from)
	case sp.open:
		return lower, historyUpper
	}
	return lower, appendKeyPrefix(nil, sp.to)
}
