package watch

// index finds the watchers of a key. The zero value is empty.
type index struct {
	n      int
	keys   map[string]*group // watchers of single keys
	ranges tree              // watchers of ranges
	struck []struck          // scratch of match
}

// struck is a group that watches some of the events at hand: those with the
// indexes hits.
type struck struct {
	g    *group
	hits []int32
}

func (x *index) add(w *watcher) {
	x.n++
	if w.is(ranged) {
		x.ranges.at(w.rangeOf()).add(w)
		return
	}
	if x.keys == nil {
		x.keys = map[string]*group{}
	}
	g := x.keys[w.key]
	if g == nil {
		g = &group{}
		x.keys[w.key] = g
	}
	g.add(w)
}

// remove takes out w, which must be in x.
func (x *index) remove(w *watcher) {
	c := w.cohort
	assertf(c != nil, "watcher %d is in no index", w.id)
	x.n--
	if c.remove(w); c.n == 0 {
		x.drop(c, w)
	}
}

// removeAll takes out all of a cohort, and returns them.
func (x *index) removeAll(c *cohort) []*watcher {
	ws := c.removeAll()
	x.n -= len(ws)
	x.drop(c, ws[0])
	return ws
}

// drop forgets a cohort that w was the last of.
func (x *index) drop(c *cohort, w *watcher) {
	if w.is(ranged) {
		n := x.ranges.at(w.rangeOf())
		if n.group.drop(c); n.empty() {
			x.ranges.drop(n.span)
		}
		return
	}
	g := x.keys[w.key]
	if g.drop(c); g.empty() {
		delete(x.keys, w.key)
	}
}

// covers tells whether someone watches key.
func (x *index) covers(key []byte) bool {
	if _, ok := x.keys[string(key)]; ok {
		return true
	}
	found := false
	x.ranges.stab(key, func(*node) bool {
		found = true
		return false
	})
	return found
}

// eachCohort calls f for every cohort. f must not change the index.
func (x *index) eachCohort(f func(c *cohort)) {
	for _, g := range x.keys {
		g.eachCohort(f)
	}
	x.ranges.walk(func(n *node) { n.eachCohort(f) })
}

// each calls f for every watcher. f must not change the index.
func (x *index) each(f func(w *watcher)) {
	x.eachCohort(func(c *cohort) { c.each(f) })
}

// match calls emit for every cohort with events in e, once, with its events
// and their size. The list passed is shared: emit keeps it but does not change
// it. emit must not change the index.
func (x *index) match(e *entry, emit func(c *cohort, evs []*event, bytes int)) {
	for i, ev := range e.events {
		if g := x.keys[string(ev.key)]; g != nil {
			x.strike(g, i)
		}
		x.ranges.stab(ev.key, func(n *node) bool {
			x.strike(&n.group, i)
			return true
		})
	}
	for i := range x.struck {
		t := &x.struck[i]
		t.g.emit(e, t.hits, emit)
		t.g.struck, t.g = 0, nil
		if t.hits = t.hits[:0]; cap(t.hits) > 16 {
			t.hits = nil
		}
	}
	x.struck = x.struck[:0]
}

// strike notes that g watches the i-th event at hand.
func (x *index) strike(g *group, i int) {
	if g.struck == 0 {
		n := len(x.struck)
		if n < cap(x.struck) {
			x.struck = x.struck[:n+1] // with the room of earlier hits
		} else {
			x.struck = append(x.struck, struck{})
		}
		x.struck[n].g = g
		g.struck = int32(n + 1)
	}
	t := &x.struck[g.struck-1]
	t.hits = append(t.hits, int32(i))
}

// emit passes the events hit to the cohorts of the group. Those with the same
// filters share a list.
func (g *group) emit(e *entry, hits []int32, emit func(c *cohort, evs []*event, bytes int)) {
	var parts [filters + 1]struct {
		made  bool
		evs   []*event
		bytes int
	}
	g.eachCohort(func(c *cohort) {
		p := &parts[c.flags&filters]
		if !p.made {
			p.made = true
			p.evs, p.bytes = e.part(hits, c.flags&filters)
		}
		if len(p.evs) > 0 {
			emit(c, p.evs, p.bytes)
		}
	})
}

// part returns the events of e with the given indexes that the filters let
// through. The list is e's own if that is all of them.
func (e *entry) part(hits []int32, filter flags) (evs []*event, bytes int) {
	if filter == 0 && len(hits) == len(e.events) {
		return e.events, e.bytes
	}
	if filter == 0 {
		evs = make([]*event, 0, len(hits))
	}
	for _, i := range hits {
		if ev := e.events[i]; filter.pass(ev) {
			evs = append(evs, ev)
			bytes += ev.bytes
		}
	}
	if len(evs) == 1 {
		evs = evs[0].self[:]
	}
	return evs, bytes
}

// flags are the properties of a watcher.
type flags uint8

const (
	noPut flags = 1 << iota
	noDelete
	// filters are the flags that leave events out.
	filters = noPut | noDelete
)

const (
	ranged   flags = 4 << iota // watches a range, not a key
	endless                    // of which there is no end
	prevKV                     // wants previous values
	fragment                   // wants large responses split
	notify                     // wants progress notifications
	ahead                      // started in the future
)

// pass tells whether the filters let an event through.
func (f flags) pass(ev *event) bool {
	if ev.deleted {
		return f&noDelete == 0
	}
	return f&noPut == 0
}
