package consensus

import (
	"fmt"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/machine"
)

// appendLoop writes what raft wants on disk, all that waits in one write, and
// then lets raft know.
func (n *Node) appendLoop() error {
	var unsaved *pb.HardState // a commit index that waits for the next write
	for {
		select {
		case <-n.stop:
			return nil
		case <-n.appends.wake:
		}
		messages := n.appends.take()
		if len(messages) > 0 {
			in, hs, err := n.appendMessages(messages, unsaved)
			if err != nil {
				return err
			}
			unsaved = hs
			n.inbox.put(in)
			n.appends.recycle(messages)
		}
		if err := n.cfg.Log.Compact(n.cutTo.Load()); err != nil {
			return err
		}
	}
}

// appendMessages writes the messages' entries and hard states. A hard state
// that differs in its commit index alone is returned for the next write: raft
// does not need it on disk.
func (n *Node) appendMessages(messages []*pb.Message, unsaved *pb.HardState) (in input, hs *pb.HardState, err error) {
	saved, _, err := n.cfg.Log.InitialState()
	if err != nil {
		return input{}, nil, err
	}
	hs = unsaved
	var entries []*pb.Entry
	for _, m := range messages {
		if m.Snapshot != nil && !raft.IsEmptySnap(m.Snapshot) {
			return input{}, nil, fmt.Errorf("consensus: a snapshot for entry %d came from member %x, and this member takes none",
				m.Snapshot.GetMetadata().GetIndex(), m.GetFrom())
		}
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
		if err := n.applyAll(work); err != nil {
			return err
		}
		n.applies.recycle(work)
		waiting := barriers[:0]
		for _, b := range barriers {
			if b.index > n.applied.Load() {
				waiting = append(waiting, b)
				continue
			}
			for _, r := range b.readers {
				r.done(nil)
			}
		}
		clear(barriers[len(waiting):])
		barriers = waiting
	}
}

// applyAll applies the entries in work and answers their callers.
func (n *Node) applyAll(work []applyWork) error {
	entries, responses, err := collect(work)
	if err == nil && len(entries) == 0 {
		return nil
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
	n.inbox.put(input{messages: responses})
	i := 0
	for _, w := range work {
		for _, callers := range w.callers {
			commands := len(entries[i].Commands)
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

// collect returns the entries in work, and what raft is to be told when they
// are applied.
func collect(work []applyWork) (entries []machine.Entry, responses []*pb.Message, err error) {
	for _, w := range work {
		if w.message == nil {
			continue
		}
		for _, e := range w.message.Entries {
			entry, err := decodeEntry(e)
			if err != nil {
				return nil, nil, err
			}
			entries = append(entries, entry)
		}
		responses = append(responses, w.message.Responses...)
	}
	return entries, responses, nil
}

func failCallers(all [][]proposal) {
	for _, callers := range all {
		for _, p := range callers {
			p.done(machine.Result{Err: ErrStopped})
		}
	}
}

func decodeEntry(e *pb.Entry) (machine.Entry, error) {
	m := machine.Entry{Index: e.GetIndex(), Term: e.GetTerm()}
	if e.GetType() != pb.EntryNormal {
		return m, fmt.Errorf("consensus: entry %d changes the membership, which this version does not do", m.Index)
	}
	if len(e.Data) == 0 {
		return m, nil // a new leader's
	}
	commands, err := decodeBatch(e.Data)
	if err != nil {
		return m, fmt.Errorf("consensus: entry %d: %w", m.Index, err)
	}
	m.Commands = commands
	return m, nil
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

// trimLoop follows what is durable in the machine and lets the log be cut
// below it, but for what slow followers may still ask for.
func (n *Node) trimLoop() error {
	for {
		select {
		case <-n.stop:
			return nil
		case <-n.cfg.Machine.Flushed():
		}
		durable, err := n.cfg.Machine.DurableIndex()
		if err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
		if durable > n.cfg.KeepEntries && durable-n.cfg.KeepEntries > n.cutTo.Load() {
			n.cutTo.Store(durable - n.cfg.KeepEntries)
			n.appends.put() // wakes the goroutine that owns the log
		}
	}
}
