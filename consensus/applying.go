package consensus

import (
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/machine"
)

// applying is what who applies to the machine has in hand.
type applying struct {
	unapplied []applyWork // in order
	flushFrom uint64      // where the last flush was asked for
}

// applyWork is for the machine: entries, or a snapshot to install.
type applyWork struct {
	apply
	install *install
}

// applyTurn applies committed entries, all that wait at once, answers their
// callers, and lets readers go on whose index is reached.
func (n *Node) applyTurn() error {
	work := n.applies.take()
	n.unapplied = append(n.unapplied, work...)
	n.applies.recycle(work)
	for len(n.unapplied) > 0 {
		size, err := n.applySome(n.unapplied)
		n.unapplied = slices.Delete(n.unapplied, 0, size)
		if err != nil {
			return err
		}
		if size == 0 {
			break // noteSaved has this turn taken again
		}
	}
	n.barriers.reach(n.applied.Load())
	return nil
}

// applySome applies the first of the work: the entries before a snapshot, or a
// snapshot. It returns how much that was, also with an error: those are answered. 0
// is while it has to wait.
func (n *Node) applySome(work []applyWork) (size int, err error) {
	if size = slices.IndexFunc(work, func(w applyWork) bool { return w.install != nil }); size < 0 {
		size = len(work)
	}
	if size == 0 {
		return 1, n.installSnapshot(work[0].install)
	}
	may, err := n.applyAll(work[:size])
	if !may {
		return 0, err
	}
	return size, err
}

// stopApplying answers all that will not be applied any more.
func (n *Node) stopApplying() {
	for _, w := range append(n.unapplied, n.applies.take()...) {
		for i := range w.callers {
			w.callers[i].fail(ErrStopped)
		}
	}
	n.unapplied = nil
	n.barriers.fail(ErrStopped)
}

// installSnapshot has the machine replaced.
func (n *Node) installSnapshot(i *install) error {
	if err := n.cfg.Machine.Install(i.index, i.term); err != nil {
		return fmt.Errorf("consensus: install the snapshot of entry %d: %w", i.index, err)
	}
	n.applied.Store(i.index)
	n.flushFrom = i.index
	i.done.Store(true)
	n.appends.put() // wakes who waits for it
	return nil
}

// applyAll applies the entries in work and answers their callers, if it may
// already and can; then it reports true.
func (n *Node) applyAll(work []applyWork) (may bool, err error) {
	entries, in, err := collect(work)
	if err == nil && len(entries) == 0 {
		return true, nil
	}
	if err == nil && len(in.changes) > 0 {
		// Who is removed never votes again. The others must not forget, in a crash,
		// that they need no vote of his any more.
		if may, err = n.isSaved(in.changes[len(in.changes)-1].index); err == nil && !may {
			return false, nil
		}
	}
	var results []machine.Result
	if err == nil {
		i := 0
		for _, w := range work {
			for c := range w.callers {
				entries[i].Unasked = !w.callers[c].asked()
				i++
			}
		}
		if results, err = n.cfg.Machine.Apply(entries); err != nil {
			err = fmt.Errorf("consensus: apply entry %d: %w", entries[0].Index, err)
		}
	}
	if err != nil {
		return false, err // their callers are answered with all the others
	}
	n.applied.Store(entries[len(entries)-1].Index)
	in.changes = accepted(entries, results, in.changes)
	n.inbox.put(in)
	i := 0
	for _, w := range work {
		for c := range w.callers {
			commands, callers := answers(&entries[i]), w.callers[c].take()
			if callers != nil && len(callers) != commands {
				panic(fmt.Sprintf("consensus: entry %d has %d commands and %d callers", entries[i].Index, commands, len(callers)))
			}
			for j, p := range callers {
				p.done(results[j])
			}
			results = results[commands:]
			i++
		}
	}
	return true, n.flushIfDue()
}

// isSaved reports whether the log on disk says that the entry with the index is
// committed. If not, noteSaved will have this turn taken again.
func (n *Node) isSaved(index uint64) (bool, error) {
	n.held.Store(true)
	saved, _, err := n.cfg.Log.InitialState()
	if err != nil || saved.GetCommit() < index {
		return false, err
	}
	n.held.Store(false)
	return true, nil
}

// answers is how many results an entry has.
func answers(e *machine.Entry) int {
	if e.Change != nil {
		return 1
	}
	return len(e.Commands)
}

// accepted returns those of the changes, which are the entries' in order, that
// the machine has not rejected.
func accepted(entries []machine.Entry, results []machine.Result, changes []appliedChange) []appliedChange {
	if len(changes) == 0 {
		return nil
	}
	var kept []appliedChange
	for i := range entries {
		if entries[i].Change != nil {
			if results[0].Err == nil {
				kept = append(kept, changes[0])
			}
			changes = changes[1:]
		}
		results = results[answers(&entries[i]):]
	}
	return kept
}

// collect returns the entries in work, and what raft is to be told when they
// are applied.
func collect(work []applyWork) (entries []machine.Entry, in input, err error) {
	for _, w := range work {
		if w.message == nil {
			continue
		}
		for _, e := range w.message.Entries {
			entry, change, err := decodeEntry(e)
			if err != nil {
				return nil, input{}, err
			}
			entries = append(entries, entry)
			if change != nil {
				in.changes = append(in.changes, appliedChange{entry.Index, change})
			}
		}
		in.messages = append(in.messages, w.message.Responses...)
	}
	return entries, in, nil
}

func decodeEntry(e *pb.Entry) (m machine.Entry, change *pb.ConfChange, err error) {
	m = machine.Entry{Index: e.GetIndex(), Term: e.GetTerm()}
	switch {
	case e.GetType() == pb.EntryConfChange:
		change, m.Change, err = decodeChange(e.Data)
	case e.GetType() != pb.EntryNormal:
		err = fmt.Errorf("entries of type %v are unknown", e.GetType())
	case len(e.Data) > 0: // else it is a new leader's
		m.Commands, err = decodeBatch(e.Data)
	}
	if err != nil {
		return m, nil, fmt.Errorf("consensus: entry %d: %w", m.Index, err)
	}
	return m, change, nil
}

// flushIfDue asks for the machine's state to become durable when enough
// entries would have to be replayed.
func (n *Node) flushIfDue() error {
	if applied := n.applied.Load(); applied >= n.flushFrom+n.cfg.FlushEntries {
		n.flushFrom = applied
		if err := n.cfg.Machine.StartFlush(); err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
	}
	return nil
}
