package watch

// cohort is the watchers of one stream that get the same events at the same
// time, and the same responses but for the id: they watch the same key or range
// with the same flags. What an event costs, it costs for all of them at once.
type cohort struct {
	s     *Stream
	flags flags // of alike
	pos   int32 // in cohorts.list
	n     int32 // members that are still in
	// members are the watchers in the order in which they came, and some that
	// have left: deliveries share the list, so it is only appended to, and
	// replaced when most of it has left.
	members []*watcher
	// horizon is the highest revision that one of the members starts with: what
	// comes from there on is for all of them.
	horizon int64
}

// alike are the flags that the watchers of a cohort have in common. Those that
// started in the future keep to themselves, lest the list of all others be made
// anew with each event until then.
const alike = filters | prevKV | fragment | ahead

// fewGone is how many watchers that have left a list of members may have, or as
// many as have not.
const fewGone = 8

func (c *cohort) add(w *watcher) {
	w.cohort, w.pos = c, int32(len(c.members))
	c.members = append(c.members, w)
	c.n++
	c.horizon = max(c.horizon, w.next)
}

// has tells whether the i-th of the members is still in.
func (c *cohort) has(i int) bool {
	w := c.members[i]
	return w.cohort == c && int(w.pos) == i
}

func (c *cohort) remove(w *watcher) {
	w.cohort = nil
	if c.n--; c.n == 0 {
		c.members, c.horizon = nil, 0
		return
	}
	if gone := len(c.members) - int(c.n); gone <= fewGone || gone <= int(c.n) {
		return
	}
	all := c.members
	c.members, c.horizon = make([]*watcher, 0, c.n), 0
	for i, w := range all {
		if w.cohort == c && int(w.pos) == i {
			w.pos = int32(len(c.members))
			c.members = append(c.members, w)
			c.horizon = max(c.horizon, w.next)
		}
	}
}

// removeAll empties the cohort and returns who was in it.
func (c *cohort) removeAll() []*watcher {
	ws := make([]*watcher, 0, c.n)
	c.each(func(w *watcher) { ws = append(ws, w) })
	for _, w := range ws {
		w.cohort = nil
	}
	c.n, c.members, c.horizon = 0, nil, 0
	return ws
}

func (c *cohort) each(f func(w *watcher)) {
	for i, w := range c.members {
		if c.has(i) {
			f(w)
		}
	}
}

// from returns the lowest revision that a member is to get.
func (c *cohort) from() int64 {
	from := int64(never)
	c.each(func(w *watcher) { from = min(from, w.next) })
	return from
}

// at returns a list of those who get the events of a revision. It may have some
// that have left.
func (c *cohort) at(revision int64) []*watcher {
	if revision >= c.horizon {
		return c.members
	}
	var ws []*watcher
	c.each(func(w *watcher) {
		if revision >= w.next {
			ws = append(ws, w)
		}
	})
	return ws
}

// group is the watchers of one key or one range.
type group struct {
	// first is a cohort unless it is empty, for most groups have just one.
	first cohort
	// others has the other cohorts; nil if there are none.
	others *cohorts
	// struck is one more than where in index.struck the group is, during match.
	struck int32
}

// cohorts are those of one group.
type cohorts struct {
	list []*cohort
	by   map[cohortKey]*cohort
}

type cohortKey struct {
	s     *Stream
	flags flags
}

func (g *group) empty() bool { return g.first.n == 0 && g.others == nil }

func (g *group) add(w *watcher) { g.cohort(w.s, w.flags&alike).add(w) }

// cohort returns that of a stream and flags, new if there is none.
func (g *group) cohort(s *Stream, f flags) *cohort {
	c := &g.first
	if c.n > 0 && c.s == s && c.flags == f {
		return c
	}
	key := cohortKey{s, f}
	if o := g.others; o != nil && o.by[key] != nil {
		return o.by[key]
	}
	if c.n == 0 {
		c.s, c.flags = s, f
		return c
	}
	if g.others == nil {
		g.others = &cohorts{by: map[cohortKey]*cohort{}}
	}
	o := g.others
	c = &cohort{s: s, flags: f, pos: int32(len(o.list))}
	o.list = append(o.list, c)
	o.by[key] = c
	return c
}

// drop forgets a cohort that is empty.
func (g *group) drop(c *cohort) {
	if c == &g.first {
		c.s = nil
		return
	}
	o := g.others
	last := len(o.list) - 1
	moved := o.list[last]
	o.list[c.pos], moved.pos = moved, c.pos
	o.list[last] = nil
	o.list = o.list[:last]
	delete(o.by, cohortKey{c.s, c.flags})
	if last == 0 {
		g.others = nil
	}
}

// eachCohort calls f for every cohort. f must not change the group.
func (g *group) eachCohort(f func(c *cohort)) {
	if g.first.n > 0 {
		f(&g.first)
	}
	if g.others != nil {
		for _, c := range g.others.list {
			f(c)
		}
	}
}
