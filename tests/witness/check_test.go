package witness

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// faithful is a store without a fault, and notes of clients that used it one after the other, some without an answer.
func faithful(seed uint64) (*Notes, []Event) {
	r := rand.New(rand.NewPCG(seed, 0))
	var (
		notes    = Notes{Base: 1}
		events   []Event
		revision = int64(1)
		state    = map[string]Pair{}
		now      time.Duration
	)
	change := func(e Event) {
		if prev, ok := state[e.Key]; ok {
			e.Prev = &prev
			e.Create, e.Version = prev.Create, prev.Version+1
		} else {
			e.Create, e.Version = e.Mod, 1
		}
		if delete(state, e.Key); e.Delete {
			e.Create, e.Version = 0, 0
		} else {
			state[e.Key] = e.Pair
		}
		events = append(events, e)
	}
	for i := range 400 {
		keys := []string{"k/a", "k/b", "k/c"}
		key := keys[r.IntN(len(keys))]
		o := Op{Client: i % 5, Kind: []Kind{Put, CAS, Delete, Get, Range}[r.IntN(5)], Keys: []string{key}, Call: now}
		before, there := state[key]
		switch o.Kind {
		case Put:
			o.Value = fmt.Sprint("v", i)
			if r.IntN(3) == 0 {
				o.Keys = keys[:2]
			}
			revision++
			for _, k := range o.Keys {
				change(Event{Pair: Pair{Key: k, Value: o.Value, Mod: revision}})
			}
		case CAS:
			o.Value, o.Expect, o.Succeeded = fmt.Sprint("v", i), before.Mod, r.IntN(3) > 0
			if !o.Succeeded {
				o.Expect++
				break
			}
			revision++
			change(Event{Pair: Pair{Key: key, Value: o.Value, Mod: revision}})
		case Delete:
			if o.Succeeded = there; there {
				revision++
				change(Event{Pair: Pair{Key: key, Mod: revision}, Delete: true})
			}
		case Get:
			if there {
				o.Pairs = []Pair{before}
			}
		case Range:
			o.Keys = []string{"k/"}
			for _, k := range keys {
				if p, ok := state[k]; ok {
					o.Pairs = append(o.Pairs, p)
				}
			}
		}
		o.Revision = revision
		now += time.Millisecond
		if o.Return = now; r.IntN(10) == 0 {
			o.Return, o.Revision, o.Succeeded, o.Pairs = Never, 0, false, nil
		}
		now += time.Millisecond
		notes.Ops = append(notes.Ops, o)
	}
	notes.Watches = []Watch{watched(events, Watch{Name: "all", Key: "k/", Prefix: true, Prev: true, Until: revision}), watched(events, Watch{Name: "one", Key: "k/a"})}
	return &notes, events
}

// watched is what a watch is told, in two attempts, with a bookmark after every third response.
func watched(events []Event, w Watch) Watch {
	a := Attempt{From: 1}
	for i := 0; i < len(events); {
		var r Response
		for r.Revision = events[i].Mod; i < len(events) && events[i].Mod == r.Revision; i++ {
			if w.matches(events[i].Key) {
				r.Events = append(r.Events, events[i])
			}
		}
		if len(r.Events) == 0 {
			continue
		}
		a.Responses = append(a.Responses, r)
		if len(a.Responses)%3 == 0 {
			a.Responses = append(a.Responses, Response{Revision: r.Revision, Progress: true})
		}
		if len(a.Responses) == 40 {
			w.Attempts = append(w.Attempts, a)
			a = Attempt{From: r.Revision + 1}
		}
	}
	w.Attempts = append(w.Attempts, a)
	return w
}

// compacted is what faithful gives when the first half has been compacted, and a watch of it was away meanwhile.
func compacted(seed uint64) (*Notes, map[int][]Event) {
	notes, events := faithful(seed)
	notes.Compacted = events[len(events)/2].Mod
	late := watched(events, Watch{Name: "late", Key: "k/", Prefix: true, Prev: true})
	var all []Response
	for _, a := range late.Attempts {
		all = append(all, a.Responses...)
	}
	second := slices.IndexFunc(all, func(r Response) bool { return r.Revision >= notes.Compacted })
	late.Attempts = []Attempt{
		{From: 1, Responses: all[:20], Compacted: notes.Compacted},
		{From: notes.Compacted, Responses: all[second:]},
	}
	notes.Watches = append(notes.Watches, late)
	first := slices.IndexFunc(events, func(e Event) bool { return e.Mod >= notes.Compacted })
	rest := slices.Clone(events[first:])
	rest[0].Prev = nil
	return notes, members(rest)
}

func TestCompactedNotes(t *testing.T) {
	for seed := range uint64(20) {
		notes, histories := compacted(seed)
		notes.Complete(histories)
		if err := Check(notes, histories); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	tests := []struct {
		name, want string
		alter      func(n *Notes, late *Watch)
	}{
		{"a gap that nobody told of", "a gap: ", func(_ *Notes, late *Watch) { late.Attempts[0].Compacted = 0 }},
		{"a compaction that nobody asked for", "clients have compacted", func(n *Notes, _ *Watch) { n.Compacted-- }},
		{"a compaction of what is not needed", "because of a compaction", func(_ *Notes, late *Watch) { late.Attempts[0].Compacted = 5 }},
		{"an event behind the compaction is lost", "a gap: ", func(_ *Notes, late *Watch) {
			late.Attempts[1].Responses = late.Attempts[1].Responses[2:]
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			notes, histories := compacted(1)
			notes.Complete(histories)
			test.alter(notes, &notes.Watches[len(notes.Watches)-1])
			if err := Check(notes, histories); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("noticed without %q: %v", test.want, err)
			}
		})
	}
}

func members(events []Event) map[int][]Event {
	return map[int][]Event{0: events, 1: slices.Clone(events), 2: slices.Clone(events)}
}

func TestFaithfulNotesPass(t *testing.T) {
	for seed := range uint64(50) {
		notes, events := faithful(seed)
		behind := find(notes, func(o *Op) bool { return o.Kind == Get })
		behind.Serializable, behind.Revision, behind.Pairs = true, 0, []Pair{{Key: behind.Keys[0], Value: "of before"}}
		if err := Check(notes, members(events)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// find returns an operation of the second half of the notes that satisfies a condition.
func find(n *Notes, condition func(o *Op) bool) *Op {
	for i := len(n.Ops) / 2; i < len(n.Ops); i++ {
		if o := &n.Ops[i]; o.Return != Never && condition(o) {
			return o
		}
	}
	panic("the notes hold no such operation")
}

// TestAlteredNotesAreNoticed alters what a faithful store gave, in each way in which a store can fail.
func TestAlteredNotesAreNoticed(t *testing.T) {
	tests := []struct {
		name, want string
		alter      func(n *Notes, members map[int][]Event)
	}{
		{"an acknowledged write is lost", "an acknowledged write is lost", func(n *Notes, _ map[int][]Event) {
			n.Ops = append(n.Ops, Op{Kind: Put, Keys: []string{"k/a"}, Value: "lost", Call: Never - 2, Return: Never - 1, Revision: 50})
		}},
		{"a write happened twice", "happened twice", func(n *Notes, m map[int][]Event) {
			last := m[0][len(m[0])-1]
			for i, h := range m {
				m[i] = append(h, Event{Pair: Pair{Key: "k/new", Value: n.Watches[0].Attempts[0].Responses[0].Events[0].Value, Create: last.Mod + 1, Mod: last.Mod + 1, Version: 1}})
			}
		}},
		{"a write that nobody asked for", "nobody wrote", func(_ *Notes, m map[int][]Event) {
			last := m[0][len(m[0])-1]
			for i, h := range m {
				m[i] = append(h, Event{Pair: Pair{Key: "k/new", Value: "x", Create: last.Mod + 1, Mod: last.Mod + 1, Version: 1}})
			}
		}},
		{"a deletion that nobody asked for", "nobody deleted", func(n *Notes, _ map[int][]Event) {
			n.Ops = slices.DeleteFunc(n.Ops, func(o Op) bool { return o.Kind == Delete && o.Keys[0] == "k/a" })
		}},
		{"half of a transaction", "is not in the revision", func(n *Notes, _ map[int][]Event) {
			o := find(n, func(o *Op) bool { return o.Kind == Put && len(o.Keys) == 1 })
			o.Keys = []string{o.Keys[0], "k/other"}
		}},
		{"acknowledged at another revision", "an acknowledged write is lost", func(n *Notes, _ map[int][]Event) {
			find(n, func(o *Op) bool { return o.Kind == Put }).Revision--
		}},
		{"a failed comparison that held", "the key was changed at", func(n *Notes, _ map[int][]Event) {
			find(n, func(o *Op) bool { return o.Kind == CAS && !o.Succeeded }).Expect--
		}},
		{"a failed comparison that wrote", "happened at revision", func(n *Notes, _ map[int][]Event) {
			o := find(n, func(o *Op) bool { return o.Kind == CAS && o.Succeeded })
			o.Succeeded = false
		}},
		{"a deletion of something that says there was nothing", "whether the key was there", func(n *Notes, _ map[int][]Event) {
			o := find(n, func(o *Op) bool { return o.Kind == Get && len(o.Pairs) > 0 })
			o.Kind, o.Pairs = Delete, nil
		}},
		{"a stale read", "stale: ", func(n *Notes, m map[int][]Event) {
			past, err := NewPast(1, m[0])
			if err != nil {
				panic(err)
			}
			o := find(n, func(o *Op) bool { return o.Kind == Get })
			o.Revision -= 20
			if o.Pairs = nil; true {
				if p, ok := past.At(o.Keys[0], o.Revision); ok {
					o.Pairs = []Pair{p}
				}
			}
		}},
		{"a stale read with a new revision", "no linear order", func(n *Notes, _ map[int][]Event) {
			o := find(n, func(o *Op) bool { return o.Kind == Get && len(o.Pairs) > 0 && o.Pairs[0].Version > 1 })
			o.Pairs[0].Mod--
		}},
		{"a read of two states", "a state that never was", func(n *Notes, _ map[int][]Event) {
			o := find(n, func(o *Op) bool { return o.Kind == Range && len(o.Pairs) > 1 })
			o.Serializable = true
			o.Pairs = o.Pairs[1:]
		}},
		{"a serializable read from the future", "from the future", func(n *Notes, m map[int][]Event) {
			o := find(n, func(o *Op) bool { return o.Kind == Get })
			o.Serializable = true
			write := find(n, func(w *Op) bool { return w.Kind == Put && w.Call > o.Return+time.Second/10 })
			past, _ := NewPast(1, m[0])
			o.Revision, o.Pairs = write.Revision, nil
			if p, ok := past.At(o.Keys[0], o.Revision); ok {
				o.Pairs = []Pair{p}
			}
		}},
		{"a read of a revision that does not exist", "does not exist", func(n *Notes, _ map[int][]Event) {
			find(n, func(o *Op) bool { return o.Kind == Get }).Revision += 1000
		}},
		{"a serializable read of a revision that does not exist", "does not exist", func(n *Notes, _ map[int][]Event) {
			o := find(n, func(o *Op) bool { return o.Kind == Get })
			o.Serializable, o.Revision = true, o.Revision+1000
		}},
		{"a linearizable read of before the history", "does not exist", func(n *Notes, _ map[int][]Event) {
			find(n, func(o *Op) bool { return o.Kind == Get }).Revision = 0
		}},
		{"members differ", "members differ", func(_ *Notes, m map[int][]Event) {
			m[1][70].Value = "x"
		}},
		{"a member lacks the end", "members ", func(_ *Notes, m map[int][]Event) {
			m[1] = m[1][:len(m[1])-1]
		}},
		{"a history with a gap", "no event between", func(_ *Notes, m map[int][]Event) {
			for i, h := range m {
				m[i] = slices.DeleteFunc(h, func(e Event) bool { return e.Mod == 30 })
			}
		}},
		{"a history with a wrong version", "expected put", func(_ *Notes, m map[int][]Event) {
			for i := range m {
				at := slices.IndexFunc(m[i], func(e Event) bool { return !e.Delete && e.Mod > 20 })
				m[i][at].Version++
			}
		}},
		{"an event is lost", "a gap: ", func(n *Notes, _ map[int][]Event) {
			a := &n.Watches[0].Attempts[0]
			a.Responses = slices.Delete(a.Responses, 4, 5)
		}},
		{"an event is repeated", "comes again", func(n *Notes, _ map[int][]Event) {
			a := &n.Watches[0].Attempts[0]
			a.Responses = slices.Insert(a.Responses, 4, a.Responses[4])
		}},
		{"an event is repeated after a bookmark", "after a bookmark", func(n *Notes, _ map[int][]Event) {
			a := &n.Watches[0].Attempts[0]
			a.Responses = slices.Insert(a.Responses, 4, a.Responses[1])
		}},
		{"an event is repeated by the next attempt", "comes again", func(n *Notes, _ map[int][]Event) {
			w := n.Watches[0].Attempts
			for i := len(w[0].Responses) - 1; ; i-- {
				if !w[0].Responses[i].Progress {
					w[0].Responses = w[0].Responses[:i+1] // or the bookmark would tell
					w[1].Responses = slices.Insert(w[1].Responses, 0, w[0].Responses[i])
					return
				}
			}
		}},
		{"two events change places", "a gap: ", func(n *Notes, _ map[int][]Event) {
			r := n.Watches[0].Attempts[0].Responses
			r[0], r[1] = r[1], r[0]
		}},
		{"a false bookmark", "a false bookmark", func(n *Notes, _ map[int][]Event) {
			a := &n.Watches[0].Attempts[0]
			at := slices.IndexFunc(a.Responses, func(r Response) bool { return r.Progress })
			a.Responses[at].Revision++
		}},
		{"a revision is divided", "a revision was divided", func(n *Notes, _ map[int][]Event) {
			a := &n.Watches[0].Attempts[0]
			at := slices.IndexFunc(a.Responses, func(r Response) bool { return len(r.Events) > 1 })
			rest := a.Responses[at]
			rest.Events = rest.Events[1:]
			a.Responses[at].Events = a.Responses[at].Events[:1]
			a.Responses = slices.Insert(a.Responses, at+1, rest)
		}},
		{"an event with another value", "came, expected was", func(n *Notes, _ map[int][]Event) {
			n.Watches[0].Attempts[0].Responses[0].Events[0].Value = "x"
		}},
		{"an event with another previous value", "came, expected was", func(n *Notes, _ map[int][]Event) {
			a := n.Watches[0].Attempts[1]
			at := slices.IndexFunc(a.Responses, func(r Response) bool { return len(r.Events) > 0 && r.Events[0].Prev != nil })
			a.Responses[at].Events[0].Prev = nil
		}},
		{"a watch ends early", "it ended before", func(n *Notes, _ map[int][]Event) {
			w := &n.Watches[0]
			w.Attempts = w.Attempts[:1]
		}},
		{"a header older than its events", "under a header", func(n *Notes, _ map[int][]Event) {
			n.Watches[0].Attempts[0].Responses[4].Revision--
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			notes, events := faithful(1)
			m := members(events)
			test.alter(notes, m)
			err := Check(notes, m)
			if err == nil {
				t.Fatal("not noticed")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("noticed without %q: %v", test.want, err)
			}
		})
	}
}

// TestLinearOrderAlone holds the search for a linear order to notes that differ in nothing else.
func TestLinearOrderAlone(t *testing.T) {
	events := []Event{
		{Pair: Pair{Key: "k", Value: "a", Create: 2, Mod: 2, Version: 1}},
		{Pair: Pair{Key: "k", Value: "b", Create: 2, Mod: 3, Version: 2}},
	}
	past, err := NewPast(1, append(events[:1:1], Event{Pair: events[1].Pair, Prev: &events[0].Pair}))
	if err != nil {
		t.Fatal(err)
	}
	put := func(value string, call, back time.Duration, revision int64) Op {
		return Op{Kind: Put, Keys: []string{"k"}, Value: value, Call: call, Return: back, Revision: revision}
	}
	get := func(pair Pair, call, back time.Duration) Op {
		return Op{Kind: Get, Keys: []string{"k"}, Pairs: []Pair{pair}, Call: call, Return: back, Revision: pair.Mod}
	}
	tests := []struct {
		name string
		ops  []Op
		fine bool
	}{
		{"in order", []Op{put("a", 0, 1, 2), put("b", 2, 3, 3), get(events[1].Pair, 4, 5)}, true},
		{"at one time", []Op{put("a", 0, 9, 2), put("b", 0, 9, 3), get(events[0].Pair, 4, 5)}, true},
		{"no answer, and it happened", []Op{put("a", 0, 1, 2), put("b", 2, Never, 0), get(events[0].Pair, 3, 4), get(events[1].Pair, 5, 6)}, true},
		{"no answer, and it unhappened", []Op{put("a", 0, 1, 2), put("b", 2, Never, 0), get(events[1].Pair, 3, 4), get(events[0].Pair, 5, 6)}, false},
		{"against time", []Op{put("b", 0, 1, 3), put("a", 2, 3, 2)}, false},
		{"stale", []Op{put("a", 0, 1, 2), put("b", 2, 3, 3), get(events[0].Pair, 4, 5)}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if err := checkLinear(test.ops, past); (err == nil) != test.fine {
				t.Error(err)
			}
		})
	}
}

// TestLeases holds the promises of leases to notes of one: it was renewed, and its key went when its time was over.
func TestLeases(t *testing.T) {
	pair := Pair{Key: "k/lease/1/1", Value: "v", Create: 11, Mod: 11, Version: 1}
	probe := Pair{Key: "k/probe", Value: "p", Create: 13, Mod: 13, Version: 1}
	at := func(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
	tests := []struct {
		name, want string
		alter      func(n *Notes, events []Event) []Event
	}{
		{"in time", "", func(*Notes, []Event) []Event { return nil }},
		{"revoked", "", func(n *Notes, _ []Event) []Event { n.Leases[0].Revoked, n.Leases[0].Held = at(4), at(9); return nil }},
		{"too early", "ended too early", func(n *Notes, _ []Event) []Event { n.Leases[0].Held = at(6); return nil }},
		{"before it was revoked", "ended too early", func(n *Notes, _ []Event) []Event {
			n.Leases[0].Revoked, n.Leases[0].Held = at(6), at(9)
			return nil
		}},
		{"renewed after its end", "renewed after its end", func(n *Notes, _ []Event) []Event { n.Leases[0].Renewed = at(6); return nil }},
		{"its key stays", "its key is there", func(n *Notes, events []Event) []Event {
			n.Ops[1].Revision = 12
			last := events[2]
			last.Create, last.Mod = 12, 12
			return []Event{events[0], last}
		}},
		{"ended twice", "deletes what is not there", func(_ *Notes, events []Event) []Event {
			again := events[1]
			again.Mod = 14
			return append(events, again)
		}},
		{"nobody had it", "nobody deleted", func(n *Notes, _ []Event) []Event { n.Leases = nil; return nil }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			notes := &Notes{
				Base: 10,
				Ops: []Op{
					{Kind: Put, Keys: []string{pair.Key}, Value: "v", Lease: 1, Call: at(1), Return: at(1.1), Revision: 11},
					{Kind: Put, Keys: []string{probe.Key}, Value: "p", Call: at(4.9), Return: at(5), Revision: 13},
				},
				Leases: []Lease{{ID: 1, Key: pair.Key, Granted: at(1), Renewed: at(2), Held: at(4), Revoked: Never}},
			}
			events := []Event{{Pair: pair}, {Pair: Pair{Key: pair.Key, Mod: 12}, Delete: true, Prev: &pair}, {Pair: probe}}
			if altered := test.alter(notes, events); altered != nil {
				events = altered
			}
			err := Check(notes, members(events))
			if test.want == "" && err != nil {
				t.Error(err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("noticed without %q: %v", test.want, err)
			}
		})
	}
}

// TestOutstanding keeps, of what has no answer, what may still happen.
func TestOutstanding(t *testing.T) {
	notes := &Notes{Ops: []Op{
		{Kind: Put, Keys: []string{"k/a"}, Value: "done", Call: 1, Return: Never},
		{Kind: Put, Keys: []string{"k/a"}, Value: "open", Call: 2, Return: Never},
		{Kind: Put, Keys: []string{"k/a"}, Value: "answered", Call: 3, Return: 4, Revision: 3},
		{Kind: Delete, Keys: []string{"k/a"}, Call: 5, Return: Never},
		{Kind: Get, Keys: []string{"k/a"}, Call: 6, Return: Never},
	}}
	var left []string
	for _, o := range notes.Outstanding([]Event{{Pair: Pair{Key: "k/a", Value: "done", Mod: 2}}}) {
		if o.Call != 0 {
			t.Errorf("called at %v", o.Call)
		}
		left = append(left, string(o.Kind)+o.Value)
	}
	if want := []string{"putopen", "delete"}; !slices.Equal(left, want) {
		t.Errorf("outstanding are %v, expected %v", left, want)
	}
}
