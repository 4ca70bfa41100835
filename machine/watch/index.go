package watch

import "go.etcd.io/etcd/api/v3/mvccpb"

// index finds the watchers of a key. The zero value is empty.
type index struct {
	n      int
	keys   map[string]list // watchers of single keys
	ranges tree            // watchers of ranges
	hit    []*node         // scratch of match
}

func (x *index) add(w *watcher) {
	x.n++
	if w.is(ranged) {
		x.ranges.at(w.rangeOf()).add(w)
		return
	}
	if x.keys == nil {
		x.keys = map[string]list{}
	}
	l := x.keys[w.key]
	l.add(w)
	x.keys[w.key] = l
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
	l := x.keys[w.key]
	l.remove(w)
	if l.head == nil {
		delete(x.keys, w.key)
		return
	}
	x.keys[w.key] = l
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
	for _, l := range x.keys {
		l.each(f)
	}
	x.ranges.walk(func(n *node) { n.each(f) })
}

// match calls emit for every watcher with events in e, once, with its events
// and their size. The list passed is shared: emit keeps it but does not change
// it. emit must not change the index.
func (x *index) match(e *entry, emit func(w *watcher, evs []*event, bytes int)) {
	for i, ev := range e.events {
		key := ev.ev.Kv.Key
		l := x.keys[string(key)]
		for w := l.head; w != nil; w = w.succ {
			if w.wants(ev) {
				emit(w, ev.self[:], ev.bytes)
			}
		}
		x.ranges.stab(key, func(n *node) bool {
			if len(n.hits) == 0 {
				x.hit = append(x.hit, n)
			}
			n.hits = append(n.hits, int32(i))
			return true
		})
	}
	for i, n := range x.hit {
		n.emit(e, emit)
		n.hits = n.hits[:0]
		if cap(n.hits) > 16 {
			n.hits = nil
		}
		x.hit[i] = nil
	}
	x.hit = x.hit[:0]
}

// emit passes the events hit to the watchers of the node. Those with the same
// filters share a list.
func (n *node) emit(e *entry, emit func(w *watcher, evs []*event, bytes int)) {
	var parts [filters + 1]struct {
		made  bool
		evs   []*event
		bytes int
	}
	for w := n.head; w != nil; w = w.succ {
		p := &parts[w.flags&filters]
		if !p.made {
			p.made = true
			p.evs, p.bytes = e.part(n.hits, w.flags&filters)
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
		if ev := e.events[i]; filter.pass(ev.ev.Type) {
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

// pass tells whether the filters let events of a type through.
func (f flags) pass(t mvccpb.Event_EventType) bool {
	if t == mvccpb.Event_DELETE {
		return f&noDelete == 0
	}
	return f&noPut == 0
}
