// Package witness uses a cluster as clients do, notes what they are told, and checks what they were promised. Clients write,
// read, watch and hold leases through all members and note every answer. Afterwards the notes are compared with the history
// that the members hold, which must be one: every acknowledged write is in it once and where it was acknowledged, every read
// saw a state that there was (the newest one, unless it was serializable), per key all is linearizable, every watch delivered
// its part of it in order, without a gap or a repeat, in whole revisions, and as far as its bookmarks said, and no lease ended
// before the time that was promised to its holder.
//
// The package knows servers by etcd's API only, so real etcd is held to the same, and nothing of what is done to a cluster
// meanwhile. The checkers see nothing but notes, and have tests of their own with notes that are wrong on purpose.
package witness

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sort"
	"strings"
	"time"
)

// Kind is what a client asked for.
type Kind string

const (
	Put    Kind = "put"    // one value to one or more keys, in one transaction when there are more
	CAS    Kind = "cas"    // a put, if the key was last changed at an expected revision
	Delete Kind = "delete" // one key
	Get    Kind = "get"    // one key
	Range  Kind = "range"  // all keys with a prefix
)

// Never is the time of an answer that did not come: whether the request was executed is not known.
const Never = time.Duration(math.MaxInt64)

// Op is one request and its answer.
type Op struct {
	Client, Member int
	Kind           Kind
	Keys           []string      // of a range: the prefix
	Value          string        `json:",omitempty"` // no two requests of a history have the same
	Expect         int64         `json:",omitempty"` // of a CAS: the revision compared with
	Lease          int64         `json:",omitempty"` // of a put: the keys end with it
	Serializable   bool          `json:",omitempty"`
	Call, Return   time.Duration // since the beginning of the history
	Revision       int64         // of the answer's header
	Succeeded      bool          // of a CAS: it held; of a delete: there was a key
	Pairs          []Pair        `json:",omitempty"` // of a get and a range, sorted by key
	Err            string        `json:",omitempty"`
}

// Changed reports whether the request is known to have made a revision.
func (o *Op) Changed() bool {
	return o.Return != Never && (o.Kind == Put || (o.Kind == CAS || o.Kind == Delete) && o.Succeeded)
}

// Reads reports whether the request changes nothing, whatever the answer.
func (o *Op) Reads() bool { return o.Kind == Get || o.Kind == Range }

func (o *Op) String() string {
	text := fmt.Sprintf("client %d at member %d: %s %s", o.Client, o.Member, o.Kind, strings.Join(o.Keys, "+"))
	if o.Value != "" {
		text += " = " + o.Value
	}
	if o.Kind == CAS {
		text += fmt.Sprintf(" if changed at %d", o.Expect)
	}
	if o.Serializable {
		text += " (serializable)"
	}
	if o.Return == Never {
		return fmt.Sprintf("%s, called at %v, no answer (%s)", text, o.Call, o.Err)
	}
	return fmt.Sprintf("%s, called at %v, answered at %v: revision %d, succeeded %v, %v", text, o.Call, o.Return, o.Revision, o.Succeeded, o.Pairs)
}

// Pair is a key with its value.
type Pair struct {
	Key, Value           string
	Create, Mod, Version int64
}

// Event is one change of a key.
type Event struct {
	Pair   // of a deletion: only Key and Mod
	Delete bool
	Prev   *Pair `json:",omitempty"` // nil when there was none, or it was not asked for
}

func (e Event) String() string {
	if e.Delete {
		return fmt.Sprintf("delete %s at %d", e.Key, e.Mod)
	}
	return fmt.Sprintf("put %s = %s at %d (created %d, version %d)", e.Key, e.Value, e.Mod, e.Create, e.Version)
}

func (e Event) equal(o Event, prev bool) bool {
	if e.Pair != o.Pair || e.Delete != o.Delete {
		return false
	}
	return !prev || e.Prev == nil && o.Prev == nil || e.Prev != nil && o.Prev != nil && *e.Prev == *o.Prev
}

// Watch is what one client watched, over all the times that it had to begin again.
type Watch struct {
	Name     string
	Key      string
	Prefix   bool
	Prev     bool // previous values were asked for
	Attempts []Attempt
	Until    int64 // what was delivered must reach to here; 0 when the watch was given up on the way
}

// Attempt is one time that a watch was begun.
type Attempt struct {
	Member    int
	From      int64
	Responses []Response
	Compacted int64 `json:",omitempty"` // it ended because what it needed next was older than this
}

// Response is what a watch was told at a time.
type Response struct {
	Revision int64 // of the header
	Progress bool  // a bookmark: everything up to the revision has been delivered
	Events   []Event
}

func (w *Watch) matches(key string) bool {
	return key == w.Key || w.Prefix && strings.HasPrefix(key, w.Key)
}

// next is the revision to begin again from.
func (w *Watch) next(from int64) int64 {
	for _, a := range w.Attempts {
		from = max(from, a.From)
		for _, r := range a.Responses {
			if r.Progress {
				from = max(from, r.Revision+1)
			}
			if len(r.Events) > 0 {
				from = max(from, r.Events[len(r.Events)-1].Mod+1)
			}
		}
		from = max(from, a.Compacted)
	}
	return from
}

// Notes are all that clients have noted.
type Notes struct {
	Base      int64 // the revision before their first: nothing was there then under Prefix, and nobody uses other keys
	Ops       []Op
	Watches   []Watch
	Leases    []Lease
	Compacted int64 // what is older has been compacted, or may have been; 0 when nobody asked for it
}

// Outstanding are the writes without an answer that have not happened in a history, as far as that can be told. They may
// happen still, and are then noted once more by who goes on with the cluster.
func (n *Notes) Outstanding(history []Event) []Op {
	done := map[string]bool{}
	for _, e := range history {
		if !e.Delete {
			done[e.Value] = true
		}
	}
	var left []Op
	for _, o := range n.Ops {
		if !o.Reads() && o.Return == Never && (o.Kind == Delete || !done[o.Value]) {
			o.Call = 0
			left = append(left, o)
		}
	}
	return left
}

// Acknowledged is how many writes were acknowledged.
func (n *Notes) Acknowledged() int {
	all := 0
	for i := range n.Ops {
		if o := &n.Ops[i]; !o.Reads() && o.Return != Never {
			all++
		}
	}
	return all
}

// Write dumps notes and histories as lines of JSON.
func (n *Notes) Write(w io.Writer, histories map[int][]Event) error {
	enc := json.NewEncoder(w)
	for _, o := range n.Ops {
		if err := enc.Encode(map[string]Op{"op": o}); err != nil {
			return err
		}
	}
	for _, watch := range n.Watches {
		if err := enc.Encode(map[string]Watch{"watch": watch}); err != nil {
			return err
		}
	}
	for _, l := range n.Leases {
		if err := enc.Encode(map[string]Lease{"lease": l}); err != nil {
			return err
		}
	}
	for member, events := range histories {
		if err := enc.Encode(map[string]any{"member": member, "history": events}); err != nil {
			return err
		}
	}
	return nil
}

// Complete puts before the histories, which begin at the compacted revision, what is older: as the first watch was told
// that saw it. Whether all watches were told the same is left to Check. Previous values are worked out, because members
// do not have to know those that were compacted.
func (n *Notes) Complete(histories map[int][]Event) {
	if n.Compacted == 0 {
		return
	}
	older := map[int64][]Event{}
	for _, w := range n.Watches {
		if w.Key != Prefix || !w.Prefix {
			continue
		}
		for _, a := range w.Attempts {
			for _, r := range a.Responses {
				for revision, events := range byRevision(r.Events) {
					if older[revision] == nil && revision < n.Compacted {
						older[revision] = events
					}
				}
			}
		}
	}
	var first []Event
	for _, revision := range slices.Sorted(maps.Keys(older)) {
		first = append(first, older[revision]...)
	}
	for i, h := range histories {
		histories[i] = withPrevious(slices.Concat(first, h))
	}
}

func byRevision(events []Event) map[int64][]Event {
	all := map[int64][]Event{}
	for _, e := range events {
		all[e.Mod] = append(all[e.Mod], e)
	}
	return all
}

// withPrevious gives each event the state before it, in place of what it had.
func withPrevious(events []Event) []Event {
	state := map[string]*Pair{}
	for i := range events {
		e := &events[i]
		e.Prev = state[e.Key]
		if e.Delete {
			delete(state, e.Key)
			continue
		}
		p := e.Pair
		state[e.Key] = &p
	}
	return events
}

// Past is a history with an index: which state there was at which revision.
type Past struct {
	base   int64
	events []Event
	byKey  map[string][]Event
}

// NewPast indexes the history after a revision in which the store was empty. It fails when the history cannot be one of a
// store: revisions have no gap, a key changes once in each, and what events say of earlier ones is so.
func NewPast(base int64, events []Event) (*Past, error) {
	p := &Past{base: base, events: events, byKey: map[string][]Event{}}
	last := base
	for i, e := range events {
		switch {
		case e.Mod < last:
			return nil, fmt.Errorf("history: %v comes after revision %d", e, last)
		case e.Mod > last+1:
			return nil, fmt.Errorf("history: no event between revision %d and %v", last, e)
		case e.Mod == last && i == 0:
			return nil, fmt.Errorf("history: %v in an empty store's revision", e)
		}
		if err := p.follows(e); err != nil {
			return nil, err
		}
		p.byKey[e.Key] = append(p.byKey[e.Key], e)
		last = e.Mod
	}
	return p, nil
}

// follows checks an event against the newest state of its key.
func (p *Past) follows(e Event) error {
	before := p.byKey[e.Key]
	if len(before) > 0 && before[len(before)-1].Mod == e.Mod {
		return fmt.Errorf("history: %v is the second change of its key in that revision", e)
	}
	prev, there := p.At(e.Key, e.Mod)
	want := Event{Pair: Pair{Key: e.Key, Mod: e.Mod}, Delete: e.Delete}
	if there {
		want.Prev = &prev
	}
	switch {
	case e.Delete && !there:
		return fmt.Errorf("history: %v deletes what is not there", e)
	case !e.Delete && there:
		want.Pair = Pair{Key: e.Key, Value: e.Value, Create: prev.Create, Mod: e.Mod, Version: prev.Version + 1}
	case !e.Delete:
		want.Pair = Pair{Key: e.Key, Value: e.Value, Create: e.Mod, Mod: e.Mod, Version: 1}
	}
	if !e.equal(want, true) {
		return fmt.Errorf("history: %v with previous %v, expected %v with previous %v", e, e.Prev, want, want.Prev)
	}
	return nil
}

// Last is the newest revision.
func (p *Past) Last() int64 {
	if len(p.events) == 0 {
		return p.base
	}
	return p.events[len(p.events)-1].Mod
}

// At is the state of a key at a revision.
func (p *Past) At(key string, revision int64) (Pair, bool) {
	events := p.byKey[key]
	i := sort.Search(len(events), func(i int) bool { return events[i].Mod > revision })
	if i == 0 || events[i-1].Delete {
		return Pair{}, false
	}
	return events[i-1].Pair, true
}

// changedBefore is the revision of the last change of a key before the given one, and 0 when there is none.
func (p *Past) changedBefore(key string, revision int64) int64 {
	events := p.byKey[key]
	i := sort.Search(len(events), func(i int) bool { return events[i].Mod >= revision })
	if i == 0 {
		return 0
	}
	return events[i-1].Mod
}

// Range is the state of all keys with a prefix at a revision, sorted.
func (p *Past) Range(prefix string, revision int64) []Pair {
	var all []Pair
	for key := range p.byKey {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		if pair, ok := p.At(key, revision); ok {
			all = append(all, pair)
		}
	}
	slices.SortFunc(all, func(a, b Pair) int { return cmp.Compare(a.Key, b.Key) })
	return all
}

// revision is the events of one revision.
func (p *Past) revision(revision int64) []Event {
	first := sort.Search(len(p.events), func(i int) bool { return p.events[i].Mod >= revision })
	last := sort.Search(len(p.events), func(i int) bool { return p.events[i].Mod > revision })
	return p.events[first:last]
}
