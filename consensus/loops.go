package consensus

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
)

// appendLoop writes what raft wants on disk, all that waits in one write, and
// then lets raft and the other members know.
func (n *Node) appendLoop() error {
	var unsaved *pb.HardState // a commit index that waits for the next write
	for {
		select {
		case <-n.stop:
			return nil
		case <-n.appends.wake:
		}
		messages := n.appends.take()
		for rest := messages; len(rest) > 0; {
			size, err := n.appendSome(rest, &unsaved)
			if err != nil {
				return err
			}
			rest = rest[size:]
		}
		n.appends.recycle(messages)
		if err := n.saveCommit(&unsaved); err != nil {
			return err
		}
		// The machine may be ahead of what raft was told is applied, after which it reads on.
		if err := n.cfg.Log.Compact(min(n.cutTo.Load(), n.told.Load())); err != nil {
			return err
		}
	}
}

// appendSome writes the first messages in one write and passes on their
// responses. A snapshot is a write of its own. It returns how many they were.
func (n *Node) appendSome(messages []*pb.Message, unsaved **pb.HardState) (size int, err error) {
	snapshot := func(m *pb.Message) bool { return m.Snapshot != nil && !raft.IsEmptySnap(m.Snapshot) }
	if size = slices.IndexFunc(messages, snapshot); size < 0 {
		size = len(messages)
	}
	if size == 0 {
		size = 1
		if err := n.reset(messages[0], *unsaved); err != nil {
			return 0, err
		}
		*unsaved = nil
	}
	in, hs, err := n.appendMessages(messages[:size], *unsaved)
	if err != nil {
		return 0, err
	}
	*unsaved = hs
	n.respond(in)
	return size, nil
}

// saveCommit writes a commit index that waits for the next write, if a change of
// the membership that it covers is about to be applied.
func (n *Node) saveCommit(unsaved **pb.HardState) error {
	saved, _, err := n.cfg.Log.InitialState()
	if err != nil {
		return err
	}
	if change := n.changeAt.Load(); *unsaved != nil && saved.GetCommit() < change && (*unsaved).GetCommit() >= change {
		if err := n.cfg.Log.Append(*unsaved, nil); err != nil {
			return err
		}
		*unsaved = nil
	}
	n.noteSaved()
	return nil
}

// noteSaved wakes who waits in awaitSaved.
func (n *Node) noteSaved() {
	select {
	case n.saved <- struct{}{}:
	default:
	}
}

// awaitSaved waits until the log on disk says that the entry with the index is
// committed. It is false when the node stops before.
func (n *Node) awaitSaved(index uint64) (bool, error) {
	for {
		saved, _, err := n.cfg.Log.InitialState()
		if err != nil || saved.GetCommit() >= index {
			return err == nil, err
		}
		select {
		case <-n.saved:
		case <-n.stop:
			return false, nil
		}
	}
}

// respond passes on what the messages that raft gave to the log ask to be told
// when they are on disk: to raft itself, or to other members.
func (n *Node) respond(in input) {
	var peers []*pb.Message
	in.messages = slices.DeleteFunc(in.messages, func(m *pb.Message) bool {
		other := m.GetTo() != n.cfg.ID
		if other {
			peers = append(peers, m)
		}
		return other
	})
	if len(peers) > 0 {
		n.cfg.Peers.Send(peers)
	}
	n.inbox.put(in)
}

// reset begins the log anew after a snapshot that has been received, and then
// installs it. The write to the log decides: a crash after it leads to the
// snapshot's state, one before it to the old one.
func (n *Node) reset(m *pb.Message, unsaved *pb.HardState) error {
	hs := unsaved
	if m.Term != nil {
		hs = &pb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
	}
	if hs == nil {
		saved, _, err := n.cfg.Log.InitialState()
		if err != nil {
			return err
		}
		hs = saved
	}
	meta := m.Snapshot.GetMetadata()
	if hs.GetCommit() < meta.GetIndex() {
		hs = &pb.HardState{Term: hs.Term, Vote: hs.Vote, Commit: new(meta.GetIndex())}
	}
	n.cfg.Logger.Info("consensus: installing a snapshot", zap.Uint64("index", meta.GetIndex()), zap.Uint64("term", meta.GetTerm()))
	if err := n.cfg.Log.Reset(hs, meta.GetIndex(), meta.GetTerm()); err != nil {
		return err
	}
	n.noteSaved()
	i := &install{meta.GetIndex(), meta.GetTerm(), make(chan struct{})}
	n.applies.put(applyWork{install: i})
	select {
	case <-i.done:
	case <-n.stop:
	}
	return nil
}

// appendMessages writes the messages' entries and hard states. A hard state
// that differs in its commit index alone is returned for the next write, or for
// saveCommit: raft does not need it on disk.
func (n *Node) appendMessages(messages []*pb.Message, unsaved *pb.HardState) (in input, hs *pb.HardState, err error) {
	saved, _, err := n.cfg.Log.InitialState()
	if err != nil {
		return input{}, nil, err
	}
	hs = unsaved
	var entries []*pb.Entry
	for _, m := range messages {
		if m.Term != nil {
			hs = &pb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		}
		entries = append(entries, m.Entries...)
		in.messages = append(in.messages, m.Responses...)
		in.stable += uint64(len(m.Entries))
	}
	if len(entries) == 0 && (hs == nil || hs.GetTerm() == saved.GetTerm() && hs.GetVote() == saved.GetVote()) {
		return in, hs, nil
	}
	if err := n.cfg.Log.Append(hs, entries); err != nil {
		return input{}, nil, err
	}
	return in, nil, nil
}

// errStopping says that the node was stopped while something waited.
var errStopping = errors.New("consensus: stopping")

// applyLoop applies committed entries, all that wait at once, answers their
// callers, and lets readers go on whose index is reached.
func (n *Node) applyLoop() error {
	var barriers []*barrier // readers not yet let go
	defer func() {
		for _, b := range barriers {
			for _, r := range b.readers {
				r.done(ErrStopped)
			}
		}
	}()
	for {
		select {
		case <-n.stop:
			return nil
		case <-n.applies.wake:
		}
		work := n.applies.take()
		for _, w := range work {
			if w.barrier != nil {
				barriers = append(barriers, w.barrier)
			}
		}
		for rest := work; len(rest) > 0; {
			size := slices.IndexFunc(rest, func(w applyWork) bool { return w.install != nil })
			if size < 0 {
				size = len(rest)
			}
			err := n.applyAll(rest[:size])
			if size == 0 {
				size, err = 1, n.installSnapshot(rest[0].install)
			}
			if errors.Is(err, errStopping) {
				return nil
			}
			if err != nil {
				return err
			}
			rest = rest[size:]
		}
		n.applies.recycle(work)
		barriers = n.letGo(barriers)
	}
}

// letGo answers the readers whose index is reached, and those whose time is
// over, and returns what still waits.
func (n *Node) letGo(barriers []*barrier) []*barrier {
	if len(barriers) == 0 {
		return barriers
	}
	applied, now := n.applied.Load(), time.Now()
	waiting := barriers[:0]
	for _, b := range barriers {
		reached := b.index <= applied
		for len(b.readers) > 0 && (reached || !now.Before(b.readers[0].deadline)) {
			var err error
			if !reached {
				err = ErrTimeout
			}
			b.readers[0].done(err)
			b.readers = b.readers[1:]
		}
		if len(b.readers) > 0 {
			waiting = append(waiting, b)
		}
	}
	clear(barriers[len(waiting):])
	return waiting
}

// installSnapshot has the machine replaced.
func (n *Node) installSnapshot(i *install) error {
	if err := n.cfg.Machine.Install(i.index, i.term); err != nil {
		return fmt.Errorf("consensus: install the snapshot of entry %d: %w", i.index, err)
	}
	n.applied.Store(i.index)
	n.flushFrom = i.index
	close(i.done)
	return nil
}

// applyAll applies the entries in work and answers their callers.
func (n *Node) applyAll(work []applyWork) error {
	entries, in, err := collect(work)
	if err == nil && len(entries) == 0 {
		return nil
	}
	if err == nil && len(in.changes) > 0 {
		// Who is removed never votes again. The others must not forget, in a crash,
		// that they need no vote of his any more.
		var saved bool
		if saved, err = n.awaitSaved(in.changes[len(in.changes)-1].index); err == nil && !saved {
			err = errStopping
		}
	}
	var results []machine.Result
	if err == nil {
		if results, err = n.cfg.Machine.Apply(entries); err != nil {
			err = fmt.Errorf("consensus: apply entry %d: %w", entries[0].Index, err)
		}
	}
	if err != nil {
		for _, w := range work {
			failCallers(w.callers)
		}
		return err
	}
	n.applied.Store(entries[len(entries)-1].Index)
	in.changes = accepted(entries, results, in.changes)
	n.inbox.put(in)
	i := 0
	for _, w := range work {
		for _, callers := range w.callers {
			commands := answers(&entries[i])
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
	return n.flushIfDue()
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

func failCallers(all [][]proposal) {
	for _, callers := range all {
		for _, p := range callers {
			p.done(machine.Result{Err: ErrStopped})
		}
	}
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

// purgePause is between two files of the log that are removed: a file system may
// keep syncs waiting for as long as it gives back the space of one.
const purgePause = 100 * time.Millisecond

// trimLoop follows what is durable in the machine and lets the log be cut
// below it, but for what slow members may still ask for. It removes the files
// that are no longer needed.
func (n *Node) trimLoop() error {
	var purge <-chan time.Time // not nil when there may be files to remove
	for {
		select {
		case <-n.stop:
			return nil
		case <-n.cfg.Log.ToPrepare():
			n.cfg.Log.Prepare()
			continue
		case <-n.cfg.Log.ToPurge():
			if purge == nil {
				purge = time.After(0)
			}
			continue
		case <-purge:
			done, err := n.cfg.Log.Purge()
			if err != nil {
				return err
			}
			if purge = nil; done {
				purge = time.After(purgePause)
			}
			continue
		case <-n.cfg.Machine.Flushed():
		}
		durable, err := n.cfg.Machine.DurableIndex()
		if err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
		if cut := n.cut(durable); cut > n.cutTo.Load() {
			n.cutTo.Store(cut)
			n.appends.put() // wakes the goroutine that owns the log
		}
	}
}

// cut returns the index up to which the log can go when the machine is durable
// up to another: so many entries stay for members that lag a little, more if a
// member of this leader's needs them, but never more than a number of bytes.
func (n *Node) cut(durable uint64) uint64 {
	need := n.needed.Load()
	cut := need.index
	if durable > n.cfg.KeepEntries {
		cut = min(cut, durable-n.cfg.KeepEntries)
	} else {
		cut = 0
	}
	return min(durable, max(cut, n.cfg.Log.Within(max(n.cfg.KeepBytes, need.bytes))))
}

// noteNeed looks at how far this leader's members are.
func (n *Node) noteNeed() {
	d := &need{index: math.MaxUint64}
	if n.core.state == raft.StateLeader {
		n.core.raft.WithProgress(func(_ uint64, _ raft.ProgressType, p tracker.Progress) {
			at := p.Match
			if p.State == tracker.StateSnapshot {
				at, d.bytes = max(at, p.PendingSnapshot), maxKeptForSnapshot
			}
			d.index = min(d.index, at)
		})
	}
	if *d != *n.needed.Load() {
		n.needed.Store(d)
	}
}
