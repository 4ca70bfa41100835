package watch

// index finds the watchers of a key. The zero value is empty.
type index struct {
	n      int
	keys   map[string]*group // watchers of single keys
	ranges tree              // watchers of ranges
	hit    []*group          // scratch of match
}

// group is the watchers of one key or one range.
type group struct {
	list
	// hits is scratch of match: the events of the revision at hand that the
	// group watches.
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
	x.n--
	if w.is(ranged) {
		n := x.ranges.at(w.rangeOf())
		n.remove(w)
		if n.head == nil {
			x.ranges.drop(n.span)
		}
		return
	}
	g := x.keys[w.key]
	g.remove(w)
	if g.head == nil {
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

// each calls f for every watcher. f must not change the index.
func (x *index) each(f func(w *watcher)) {
	for _, g := range x.keys {
		g.each(f)
	}
	x.ranges.walk(func(n *node) { n.each(f) })
}

// match calls emit for every watcher with events in e, once, with its events
// and their size. The list passed is shared: emit keeps it but does not change
// it. emit must not change the index.
func (x *index) match(e *entry, emit func(w *watcher, evs []*event, bytes int)) {
	for i, ev := range e.events {
		if g := x.keys[string(ev.key)]; g != nil {
			x.strike(g, i)
		}
		x.ranges.stab(ev.key, func(n *node) bool {
			x.strike(&n.group, i)
			return true
		})
	}
	for i, g := range x.hit {
		g.emit(e, emit)
		g.hits = g.hits[:0]
		if cap(g.hits) > 16 {
			g.hits = nil
		}
		x.hit[i] = nil
	}
	x.hit = x.hit[:0]
}

// strike notes that g watches the i-th event at hand.
func (x *index) strike(g *group, i int) {
	if len(g.hits) == 0 {
		x.hit = append(x.hit, g)
	}
	g.hits = append(g.hits, int32(i))
}

// emit passes the events hit to the watchers of the group. Those with the same
// filters share a list.
func (g *group) emit(e *entry, emit func(w *watcher, evs []*event, bytes int)) {
	var parts [filters + 1]struct {
		made  bool
		evs   []*event
		bytes int
	}
	for w := g.head; w != nil; w = w.succ {
		p := &parts[w.flags&filters]
		if !p.made {
			p.made = true
			p.evs, p.bytes = e.part(g.hits, w.flags&filters)
		}
		if len(p.evs) > 0 {
			emit(w, p.evs, p.bytes)
		}
	}
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

// list is a list of watchers, linked through them: a watcher is in one list
// at most.
type list struct{ head *watcher }

func (l *list) add(w *watcher) {
	w.succ = l.head
	if l.head != nil {
		l.head.pred = w
	}
	l.head = w
}

func (l *list) remove(w *watcher) {
	if w.pred != nil {
		w.pred.succ = w.succ
	} else {
		assertf(l.head == w, "watcher %d is not in its list", w.id)
		l.head = w.succ
	}
	if w.succ != nil {
		w.succ.pred = w.pred
	}
	w.pred, w.succ = nil, nil
}

func (l *list) each(f func(w *watcher)) {
	for w := l.head; w != nil; w = w.succ {
		f(w)
	}
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
)

// pass tells whether the filters let an event through.
func (f flags) pass(ev *event) bool {
	if ev.deleted {
		return f&noDelete == 0
	}
	return f&noPut == 0
}
