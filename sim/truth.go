package sim

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/replica"
)

// truth is what has been agreed on: the entries that any member has applied, and
// what the model makes of them. All members must apply the same ones, with the
// model's results; what clients and watchers are told must follow from them.
//
// A response names the revision that it is of, and so the place in the order of
// all that it claims. That it does not go back behind anything that was answered
// before it was asked for is all that linearizability asks for beyond that.
type truth struct {
	w *world

	mu      sync.Mutex
	model   *model
	members []machine.Member  // Guarded by mu.
	entries []agreed          // Guarded by mu. From the first after those that a cluster begins with.
	placed  map[uint64]*place // Guarded by mu. Commands of clients, by their ids.
}

// agreed is an entry that was applied.
type agreed struct {
	entry    machine.Entry
	outcomes []outcome
	granted  []int64 // leases
	// seen is set when a change of the membership was applied, and took when it was accepted.
	seen, took bool
}

// outcome is what the model answers.
type outcome struct {
	resp proto.Message
	err  error
}

// place is where in the order of all commands one is.
type place struct {
	position uint64 // in the order of all commands
	revision int64  // after it
	outcome
}

func newTruth(w *world) *truth {
	return &truth{w: w, model: newModel(), placed: map[uint64]*place{}}
}

// fail breaks off the run; it may be called from any goroutine.
func (t *truth) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t.w.post("a truth", func() { t.w.failAs(format, text) })
}

// applied takes note of entries that a process has applied.
func (t *truth) applied(p *process, entries []machine.Entry, results []machine.Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		n := e.Index - replica.FirstIndex - 1
		switch {
		case n > uint64(len(t.entries)):
			t.fail("member %d applies entry %d, and nobody has applied entry %d", p.m.id, e.Index, replica.FirstIndex+1+len(t.entries))
			return
		case n == uint64(len(t.entries)):
			t.agree(e)
		case !sameEntry(&t.entries[n].entry, e):
			t.fail("member %d applies another entry %d than others have, of term %d and not %d", p.m.id, e.Index, e.Term, t.entries[n].entry.Term)
			return
		}
		if e.Change != nil {
			took := results[0].Err == nil
			results = results[1:]
			if a := &t.entries[n]; !a.seen {
				if a.seen, a.took = true, took; took {
					t.changed(*e.Change)
				}
			} else if took != a.took {
				t.fail("member %d takes a change of the membership, entry %d: %v, and others: %v", p.m.id, e.Index, took, !took)
				return
			}
			continue
		}
		for j, want := range t.entries[n].outcomes {
			if e.Unasked {
				want.resp = nil
			}
			if d := differs(results[j].Response, results[j].Err, want.resp, want.err); d != "" {
				t.fail("member %d, entry %d, command %d: %s", p.m.id, e.Index, j, d)
				return
			}
		}
		results = results[len(e.Commands):]
		for _, id := range t.entries[n].granted {
			t.w.reigns.granted(p, id)
		}
	}
}

func sameEntry(a, b *machine.Entry) bool {
	return a.Term == b.Term && (a.Change == nil) == (b.Change == nil) && slices.EqualFunc(a.Commands, b.Commands, slices.Equal)
}

// agree has the model evaluate an entry. With mu.
func (t *truth) agree(e *machine.Entry) {
	a := agreed{entry: machine.Entry{Index: e.Index, Term: e.Term, Change: e.Change}}
	for j, c := range e.Commands {
		a.entry.Commands = append(a.entry.Commands, slices.Clone(c))
		r := &pb.InternalRaftRequest{}
		if err := proto.Unmarshal(c, r); err != nil {
			t.fail("entry %d, command %d: %v", e.Index, j, err)
			return
		}
		id := r.GetHeader().GetID()
		resp, err := t.model.apply(r)
		o := outcome{resp, err}
		a.outcomes = append(a.outcomes, o)
		switch {
		case err != nil:
		case r.LeaseGrant != nil:
			a.granted = append(a.granted, r.LeaseGrant.ID)
			t.w.reigns.agreed(r.LeaseGrant)
		case r.LeaseRevoke != nil && id != 0:
			t.w.reigns.ended(r.LeaseRevoke.ID) // by its owner, whenever he likes
		}
		switch {
		case id == 0 && r.LeaseRevoke != nil && err == nil:
			late := t.w.reigns.ended(r.LeaseRevoke.ID)
			t.w.post("expired", func() { t.w.leaseEnded(r.LeaseRevoke.ID, late) })
		case id != 0 && t.placed[id] != nil:
			t.fail("command %d is applied twice: %v", id, r)
		case id != 0:
			t.placed[id] = &place{position: e.Index<<16 | uint64(j), revision: t.model.rev, outcome: o}
		}
	}
	t.entries = append(t.entries, a)
}

// where returns where a command of a client is, nil if it has not been applied.
func (t *truth) where(id uint64) *place {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.placed[id]
}

func (t *truth) revision() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.model.rev
}

func (t *truth) compacted() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.model.compact
}

// known is what a read must know: what had been answered before it began.
type known struct {
	revision  int64
	compacted int64 // what is older must be refused
}

// checkRead says what is wrong with the answer to a range.
func (t *truth) checkRead(r *pb.RangeRequest, resp *pb.RangeResponse, err error, k known) string {
	return t.checkAnswer(resp.GetHeader(), err, []int64{r.Revision}, k, func(m *model, rev int64) string {
		want, wantErr := m.read(r, rev)
		return differs(resp, nil, want, wantErr)
	})
}

// checkReadTxn does so of a transaction that only reads.
func (t *truth) checkReadTxn(r *pb.TxnRequest, resp *pb.TxnResponse, err error, k known) string {
	var revs []int64
	for _, op := range slices.Concat(r.Success, r.Failure) {
		revs = append(revs, op.GetRequestRange().Revision)
	}
	return t.checkAnswer(resp.GetHeader(), err, revs, k, func(m *model, rev int64) string {
		defer func(rev int64) { m.rev = rev }(m.rev)
		m.rev = rev
		want, wantErr := m.txn(r)
		return differs(resp, nil, want, wantErr)
	})
}

// checkAnswer says what is wrong with an answer to what reads some revisions, 0 for the newest. Of what is answered
// right says that.
func (t *truth) checkAnswer(h *pb.ResponseHeader, err error, of []int64, k known, right func(m *model, rev int64) string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		if !slices.ContainsFunc(of, func(rev int64) bool { return rev > 0 && rev < t.model.compact }) {
			return fmt.Sprintf("a read of revisions %d is refused as compacted, and the compaction is of %d", of, t.model.compact)
		}
		t.w.effects.add("a read that is refused as compacted", 1)
		return ""
	case errors.Is(err, mvcc.ErrFutureRev):
		if slices.Max(of) <= k.revision {
			return fmt.Sprintf("a read of revisions %d is refused as of the future, after %d", of, k.revision)
		}
		t.w.effects.add("a read that is refused as of the future", 1)
		return ""
	case err != nil:
		return err.Error()
	}
	rev := h.Revision
	if rev < k.revision {
		return fmt.Sprintf("a read is of revision %d, when %d had been answered before it began: it is stale", rev, k.revision)
	}
	if rev > t.model.rev {
		return fmt.Sprintf("a read is of revision %d, and nobody has applied more than %d", rev, t.model.rev)
	}
	defer func(compact int64) { t.model.compact = compact }(t.model.compact)
	t.model.compact = k.compacted // what is answered must be right, even if it could have been refused by now
	return right(t.model, rev)
}

// eventsOf returns what a watcher of a range is to be told of the revisions from
// to to.
func (t *truth) eventsOf(key, end []byte, from, to int64) (revisions [][]*mvccpb.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for rev := max(from, 2); rev <= min(to, t.model.rev); rev++ {
		var evs []*mvccpb.Event
		for _, e := range t.model.events[rev] {
			if within(e.Kv.Key, key, end) {
				evs = append(evs, e)
			}
		}
		if len(evs) > 0 {
			revisions = append(revisions, evs)
		}
	}
	return revisions
}

// before returns the state of a key before an event, and whether it may be gone
// with a compaction.
func (t *truth) before(e *mvccpb.Event) (kv *mvccpb.KeyValue, forgotten bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rev := e.Kv.ModRevision - 1
	return t.model.at(string(e.Kv.Key), rev), rev < t.model.compact
}
