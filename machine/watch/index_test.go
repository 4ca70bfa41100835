package watch

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// TestIndex compares the index with asking every watcher, while watchers come
// and go.
func TestIndex(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var x index
	var ws []*watcher
	for step := range 3000 {
		if len(ws) > 0 && rnd.IntN(5) < 2 {
			i := rnd.IntN(len(ws))
			x.remove(ws[i])
			ws = slices.Delete(ws, i, i+1)
		} else {
			w := randomWatcher(rnd, int64(step))
			x.add(w)
			ws = append(ws, w)
		}
		if x.n != len(ws) {
			t.Fatalf("step %d: %d watchers, want %d", step, x.n, len(ws))
		}
		checkTree(t, x.ranges.root)
		checkMatch(t, &x, ws, randomEntry(rnd))
	}
	for _, w := range ws {
		x.remove(w)
	}
	if x.n != 0 || len(x.keys) != 0 || x.ranges.root != nil {
		t.Errorf("after all have gone: %d watchers, %d keys, tree %v", x.n, len(x.keys), x.ranges.root)
	}
}

func randomKey(rnd *rand.Rand) string { return fmt.Sprintf("%02d", rnd.IntN(40)) }

func randomWatcher(rnd *rand.Rand, id int64) *watcher {
	w := &watcher{id: id, key: randomKey(rnd), flags: flags(rnd.IntN(int(filters) + 1))}
	switch rnd.IntN(4) {
	case 0:
		w.flags |= ranged | endless
	case 1, 2:
		w.flags |= ranged
		w.end = w.key + fmt.Sprint(rnd.IntN(9))
		if rnd.IntN(2) == 0 {
			w.end = fmt.Sprintf("%02d", 40+rnd.IntN(5))
		}
	}
	return w
}

func randomEntry(rnd *rand.Rand) *entry {
	r := mvcc.RevisionEvents{Revision: 2}
	for range 1 + rnd.IntN(6) {
		k := rnd.IntN(40) // perhaps again
		ev := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: fmt.Appendf(nil, "%02d", k), Value: make([]byte, rnd.IntN(9))}}
		if rnd.IntN(2) == 0 {
			ev.Type = mvccpb.Event_DELETE
		}
		r.Events = append(r.Events, ev)
	}
	e := newEntry(r)
	return &e
}

func covers(w *watcher, key string) bool {
	switch {
	case !w.is(ranged):
		return key == w.key
	case w.is(endless):
		return key >= w.key
	}
	return key >= w.key && key < w.end
}

func checkMatch(t *testing.T, x *index, ws []*watcher, e *entry) {
	t.Helper()
	got := map[*watcher][]*event{}
	x.match(e, func(c *cohort, evs []*event, bytes int) {
		c.each(func(w *watcher) {
			if got[w] != nil {
				t.Fatalf("watcher %d got one revision in two parts", w.id)
			}
			if w.s != c.s || w.flags&alike != c.flags {
				t.Fatalf("watcher %d is in the wrong cohort", w.id)
			}
			got[w] = evs
		})
		sum := 0
		for _, ev := range evs {
			sum += eventOverhead + len(ev.key) + len(ev.message.Load().Kv.Value)
		}
		if sum != bytes {
			t.Fatalf("%d bytes reported, want %d", bytes, sum)
		}
	})
	for _, w := range ws {
		var want []*event
		for _, ev := range e.events {
			if covers(w, string(ev.key)) && w.flags.pass(ev) {
				want = append(want, ev)
			}
		}
		if !slices.Equal(got[w], want) {
			t.Fatalf("watcher %+v got %d events, want %d", w.rangeOf(), len(got[w]), len(want))
		}
		delete(got, w)
	}
	if len(got) > 0 {
		t.Fatal("events for watchers that have gone")
	}
	for _, ev := range e.events {
		if want := slices.ContainsFunc(ws, func(w *watcher) bool { return covers(w, string(ev.key)) }); x.covers(ev.key) != want {
			t.Fatalf("covers(%s) is not %v", ev.key, want)
		}
	}
}

// checkTree holds the tree against its invariants.
func checkTree(t *testing.T, n *node) (height int8, highest bound) {
	t.Helper()
	if n == nil {
		return 0, bound{}
	}
	lh, lmax := checkTree(t, n.left)
	rh, rmax := checkTree(t, n.right)
	if d := lh - rh; d < -1 || d > 1 {
		t.Fatalf("subtrees of %+v are %d and %d high", n.span, lh, rh)
	}
	if n.left != nil && n.left.span.compare(n.span) >= 0 || n.right != nil && n.right.span.compare(n.span) <= 0 {
		t.Fatalf("%+v is out of order", n.span)
	}
	highest = n.end
	for _, b := range []bound{lmax, rmax} {
		if b.compare(highest) > 0 {
			highest = b
		}
	}
	if n.max != highest {
		t.Fatalf("highest end below %+v is %+v, want %+v", n.span, n.max, highest)
	}
	if n.empty() {
		t.Fatalf("%+v has no watchers", n.span)
	}
	return 1 + max(lh, rh), highest
}
