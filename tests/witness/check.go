package witness

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// linearTime bounds the search for a linear order of all keys.
const linearTime = 2 * time.Minute

// Check compares what clients have noted with the histories that the members hold, and returns everything that is wrong.
func Check(notes *Notes, histories map[int][]Event) error {
	past, err := oneHistory(notes.Base, histories)
	if err != nil {
		return err
	}
	ops := slices.Concat(notes.Ops, endings(notes.Leases))
	errs := []error{
		checkWrites(ops, past),
		checkReads(ops, past),
		checkTime(ops, past),
		checkLinear(ops, past),
		checkLeases(notes, past),
	}
	for _, w := range notes.Watches {
		errs = append(errs, checkWatch(&w, past, notes.Compacted))
	}
	return errors.Join(errs...)
}

// oneHistory requires that all members hold the same, and indexes it.
func oneHistory(base int64, histories map[int][]Event) (*Past, error) {
	var first, member = []Event(nil), -1
	for i, h := range histories {
		if member < 0 {
			first, member = h, i
			continue
		}
		for at := range max(len(h), len(first)) {
			if at >= len(h) || at >= len(first) {
				return nil, fmt.Errorf("members %d and %d hold %d and %d events", member, i, len(first), len(h))
			}
			if !h[at].equal(first[at], true) {
				return nil, fmt.Errorf("members differ: at %d %v, at %d %v", member, first[at], i, h[at])
			}
		}
	}
	return NewPast(base, first)
}

// written says where the effect of each write is: the revision by the value of a put, and the revisions of deletions.
type written struct {
	puts    map[string]int64
	deletes map[int64]string // key by revision
}

func index(past *Past) (written, error) {
	w := written{puts: map[string]int64{}, deletes: map[int64]string{}}
	for _, e := range past.events {
		if e.Delete {
			w.deletes[e.Mod] = e.Key
			continue
		}
		if at, ok := w.puts[e.Value]; ok && at != e.Mod {
			return w, fmt.Errorf("one write happened twice: %v, and at %d", e, at)
		}
		w.puts[e.Value] = e.Mod
	}
	return w, nil
}

// checkWrites requires that every acknowledged write has happened once, at the revision that was acknowledged, and that
// nothing has happened that nobody asked for.
func checkWrites(ops []Op, past *Past) error {
	w, err := index(past)
	if err != nil {
		return err
	}
	asked := map[string]*Op{}        // by value
	unanswered := map[string]int{}   // deletions by key
	acknowledged := map[int64]bool{} // deletions by revision
	var errs []error
	for i := range ops {
		o := &ops[i]
		if o.Reads() {
			continue
		}
		if o.Value != "" {
			asked[o.Value] = o
		}
		if o.Kind == Delete && o.Return == Never {
			unanswered[o.Keys[0]]++
		}
		if o.Return == Never {
			continue
		}
		if o.Kind == Delete && o.Succeeded {
			acknowledged[o.Revision] = true
		}
		if err := happened(o, past); err != nil {
			errs = append(errs, err)
		}
	}
	for value, revision := range w.puts {
		if o := asked[value]; o == nil {
			errs = append(errs, fmt.Errorf("nobody wrote the value %q, which revision %d has", value, revision))
		} else if err := whole(o, past.revision(revision)); err != nil {
			errs = append(errs, err)
		} else if o.Return != Never && !o.Changed() {
			errs = append(errs, fmt.Errorf("happened at revision %d all the same: %v", revision, o))
		}
	}
	for revision, key := range w.deletes {
		if acknowledged[revision] {
			continue
		}
		if unanswered[key]--; unanswered[key] < 0 {
			errs = append(errs, fmt.Errorf("nobody deleted %s, which revision %d does", key, revision))
		}
	}
	return errors.Join(errs...)
}

// happened checks an acknowledged write against the history.
func happened(o *Op, past *Past) error {
	before, there := past.At(o.Keys[0], o.Revision)
	if o.Changed() {
		before, there = past.At(o.Keys[0], o.Revision-1)
		if err := whole(o, past.revision(o.Revision)); err != nil {
			return fmt.Errorf("an acknowledged write is lost: %w", err)
		}
	}
	switch o.Kind {
	case CAS:
		if (before.Mod == o.Expect) != o.Succeeded {
			return fmt.Errorf("the key was changed at %d: %v", before.Mod, o)
		}
	case Delete:
		if there != o.Succeeded {
			return fmt.Errorf("whether the key was there (%v): %v", there, o)
		}
	}
	return nil
}

// whole requires that a revision is what a write makes, no more and no less.
func whole(o *Op, revision []Event) error {
	for _, key := range o.Keys {
		if !slices.ContainsFunc(revision, func(e Event) bool {
			return e.Key == key && e.Delete == (o.Kind == Delete) && e.Value == o.Value
		}) {
			return fmt.Errorf("%s is not in the revision, which is %v: %v", key, revision, o)
		}
	}
	if len(revision) != len(o.Keys) {
		return fmt.Errorf("the revision is more than the write, %v: %v", revision, o)
	}
	return nil
}

// checkReads requires that every read, of either sort, gave the state of the revision that it named.
func checkReads(ops []Op, past *Past) error {
	var errs []error
	for i := range ops {
		o := &ops[i]
		if !o.Reads() || o.Return == Never {
			continue
		}
		if o.Serializable && o.Revision < past.base {
			continue // of a member that had yet to learn where the history begins: what was before is not known here
		}
		if o.Revision > past.Last() || o.Revision < past.base {
			errs = append(errs, fmt.Errorf("a read of a revision that does not exist, the last is %d: %v", past.Last(), o))
			continue
		}
		var want []Pair
		if o.Kind == Range {
			want = past.Range(o.Keys[0], o.Revision)
		} else if pair, ok := past.At(o.Keys[0], o.Revision); ok {
			want = []Pair{pair}
		}
		if !slices.Equal(o.Pairs, want) {
			errs = append(errs, fmt.Errorf("a read of a state that never was, at that revision it is %v: %v", want, o))
		}
	}
	return errors.Join(errs...)
}

// checkTime requires that revisions agree with time over all keys: who asks after an answer has come sees at least its
// revision, a write gets a later one, and nobody sees a revision before the write that makes it was asked for.
func checkTime(ops []Op, past *Past) error {
	asked := map[int64]time.Duration{} // when a revision's write was called
	w, err := index(past)
	if err != nil {
		return err
	}
	byReturn := make([]*Op, 0, len(ops))
	byCall := make([]*Op, 0, len(ops))
	for i := range ops {
		o := &ops[i]
		if revision, ok := w.puts[o.Value]; ok && o.Value != "" {
			asked[revision] = o.Call
		}
		if o.Return != Never {
			byCall = append(byCall, o)
			if !o.Serializable {
				byReturn = append(byReturn, o)
			}
		}
	}
	slices.SortFunc(byCall, func(a, b *Op) int { return cmp.Compare(a.Call, b.Call) })
	slices.SortFunc(byReturn, func(a, b *Op) int { return cmp.Compare(a.Return, b.Return) })
	var errs []error
	newest := &Op{}
	for _, o := range byCall {
		for len(byReturn) > 0 && byReturn[0].Return < o.Call {
			if byReturn[0].Revision > newest.Revision {
				newest = byReturn[0]
			}
			byReturn = byReturn[1:]
		}
		stale := o.Revision < newest.Revision || o.Changed() && o.Revision == newest.Revision
		if stale && !o.Serializable {
			errs = append(errs, fmt.Errorf("stale: %v; but answered before was %v", o, newest))
		}
		if call, ok := asked[o.Revision]; ok && call > o.Return {
			errs = append(errs, fmt.Errorf("from the future, the write of that revision was asked for at %v: %v", call, o))
		}
	}
	return errors.Join(errs...)
}

// keyState is the state of one key in the linear model.
type keyState struct {
	there bool
	value string
	mod   int64 // of the last change, also of a deletion
}

// model is one key of the store, as a sequence of operations. A keyOp is input and output in one.
var model = porcupine.Model{
	Init: func() any { return keyState{} },
	Step: func(state, input, _ any) (bool, any) {
		o := input.(keyOp)
		return step(state.(keyState), o.Op, o.prior)
	},
	DescribeOperation: func(input, _ any) string {
		return input.(keyOp).String()
	},
}

// keyOp is what an operation is for one key. A change knows the one before it from the history: without that, the search
// among many changes at one time would not end.
type keyOp struct {
	*Op
	prior int64
}

func step(s keyState, o *Op, prior int64) (bool, keyState) {
	mod := int64(0)
	if s.there {
		mod = s.mod
	}
	switch {
	case o.Kind == Get && len(o.Pairs) == 0:
		return !s.there, s
	case o.Kind == Get:
		return s.there && o.Pairs[0].Value == s.value && o.Pairs[0].Mod == s.mod, s
	case o.Kind == CAS && (mod == o.Expect) != o.Succeeded, o.Kind == Delete && s.there != o.Succeeded:
		return false, s
	case !o.Changed():
		return true, s
	}
	return s.mod == prior && o.Revision > prior, keyState{there: o.Kind != Delete, value: o.Value, mod: o.Revision}
}

// checkLinear searches, per key, an order of the operations that agrees with time and with all answers. Ranges and
// serializable reads are left to checkReads.
func checkLinear(ops []Op, past *Past) error {
	byKey, err := perKey(ops, past)
	if err != nil {
		return err
	}
	var errs []error
	for key, operations := range byKey {
		switch porcupine.CheckOperationsTimeout(model, operations, linearTime) {
		case porcupine.Illegal:
			errs = append(errs, fmt.Errorf("%s: there is no linear order of its %d operations", key, len(operations)))
		case porcupine.Unknown:
			errs = append(errs, fmt.Errorf("%s: no linear order of its %d operations was found in %v", key, len(operations), linearTime))
		}
	}
	return errors.Join(errs...)
}

// perKey divides operations by key and settles those without an answer: the history says what became of them. One that
// happened did so before anybody saw its revision or a later one.
func perKey(ops []Op, past *Past) (map[string][]porcupine.Operation, error) {
	w, err := index(past)
	if err != nil {
		return nil, err
	}
	seen := firstSeen(ops)
	byKey := map[string][]porcupine.Operation{}
	add := func(o *Op) {
		for _, key := range o.Keys {
			byKey[key] = append(byKey[key], porcupine.Operation{
				ClientId: o.Client, Input: keyOp{o, past.changedBefore(key, o.Revision)}, Call: int64(o.Call), Return: int64(o.Return),
			})
		}
	}
	acknowledged := map[int64]bool{}
	earliest := map[string]*Op{} // deletions without an answer
	for i := range ops {
		o := &ops[i]
		switch {
		case o.Kind == Range || o.Serializable:
		case o.Return != Never:
			acknowledged[o.Revision] = acknowledged[o.Revision] || o.Changed()
			add(o)
		case o.Kind == Delete:
			if e := earliest[o.Keys[0]]; e == nil || o.Call < e.Call {
				earliest[o.Keys[0]] = o
			}
		case w.puts[o.Value] != 0 && !o.Reads():
			settled := *o
			settled.Revision, settled.Succeeded = w.puts[o.Value], true
			settled.Return = seen(settled.Revision)
			add(&settled)
		}
	}
	// Which of several deletions it was cannot be told: it began no earlier than the first of them.
	for revision, key := range w.deletes {
		if o := earliest[key]; !acknowledged[revision] && o != nil {
			add(&Op{Kind: Delete, Keys: o.Keys, Call: o.Call, Return: seen(revision), Revision: revision, Succeeded: true})
		}
	}
	return byKey, nil
}

// firstSeen returns a function that says when at the latest a revision had happened: when the first answer came that
// names it or a later one.
func firstSeen(ops []Op) func(revision int64) time.Duration {
	var answered []*Op
	for i := range ops {
		if ops[i].Return != Never {
			answered = append(answered, &ops[i])
		}
	}
	slices.SortFunc(answered, func(a, b *Op) int { return cmp.Compare(a.Revision, b.Revision) })
	earliest := make([]time.Duration, len(answered)+1)
	earliest[len(answered)] = Never - 1 // after all answers, and yet an answer
	for i := len(answered) - 1; i >= 0; i-- {
		earliest[i] = min(earliest[i+1], answered[i].Return)
	}
	return func(revision int64) time.Duration {
		i, _ := slices.BinarySearchFunc(answered, revision, func(o *Op, r int64) int { return cmp.Compare(o.Revision, r) })
		return earliest[i]
	}
}

// checkWatch requires that a watch was told its part of the history. It may have missed what was compacted before it was
// told, if it was told that; and previous values that were compacted.
func checkWatch(w *Watch, past *Past, compacted int64) error {
	var expected []Event
	from := past.base + 1
	if len(w.Attempts) > 0 {
		from = w.Attempts[0].From
	}
	for _, e := range past.events {
		if w.matches(e.Key) && e.Mod >= from {
			expected = append(expected, e)
		}
	}
	fail := func(a Attempt, format string, args ...any) error {
		return fmt.Errorf("watch %s, at member %d from %d: %s", w.Name, a.Member, a.From, fmt.Sprintf(format, args...))
	}
	promised := int64(0)
	for i, a := range w.Attempts {
		if a.Compacted > 0 {
			seen := Watch{Attempts: []Attempt{{From: a.From, Responses: a.Responses}}}
			if needed := seen.next(a.From); a.Compacted > compacted || a.Compacted <= needed {
				return fail(a, "it ended because of a compaction at %d, and needed %d; clients have compacted at %d", a.Compacted, needed, compacted)
			}
		}
		if i > 0 && w.Attempts[i-1].Compacted > 0 {
			expected = slices.DeleteFunc(expected, func(e Event) bool { return e.Mod < a.From })
		}
		for _, r := range a.Responses {
			if len(r.Events) == 0 && !r.Progress {
				continue
			}
			for _, e := range r.Events {
				switch {
				case e.Mod > past.Last(): // a late effect of a request that nobody waited for
					continue
				case e.Mod <= promised:
					return fail(a, "%v came after a bookmark at %d", e, promised)
				case len(expected) == 0:
					return fail(a, "%v is not in the history, or comes again", e)
				case e.Mod > expected[0].Mod:
					return fail(a, "a gap: %v came, expected was %v", e, expected[0])
				case e.Mod < expected[0].Mod:
					return fail(a, "%v comes again, or late; expected was %v", e, expected[0])
				case !e.equal(expected[0], w.Prev && (compacted == 0 || e.Prev != nil)):
					return fail(a, "%v with previous %v came, expected was %v with previous %v", e, e.Prev, expected[0], expected[0].Prev)
				}
				expected = expected[1:]
			}
			if last := len(r.Events) - 1; last >= 0 {
				if len(expected) > 0 && expected[0].Mod == r.Events[last].Mod {
					return fail(a, "a revision was divided after %v", r.Events[last])
				}
				if r.Revision < r.Events[last].Mod {
					return fail(a, "%v came under a header of revision %d", r.Events[last], r.Revision)
				}
			}
			if r.Progress {
				if len(expected) > 0 && expected[0].Mod <= r.Revision {
					return fail(a, "a false bookmark at %d: %v has not come", r.Revision, expected[0])
				}
				promised = max(promised, r.Revision)
			}
		}
	}
	if len(expected) > 0 && expected[0].Mod <= w.Until {
		return fmt.Errorf("watch %s: it ended before %v, and should have reached %d", w.Name, expected[0], w.Until)
	}
	return nil
}
