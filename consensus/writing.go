package consensus

import (
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// writing is what who appends to the log has in hand.
type writing struct {
	unwritten  []*pb.Message // in order
	unsaved    *pb.HardState // a commit index that waits for the next write
	installing *install      // the log has begun anew for it; nothing is written before its state is there
}

// install is a received snapshot that takes the place of the machine's state.
type install struct {
	index, term uint64
	done        atomic.Bool
}

// logTurn writes what raft wants on disk, all that waits in one write, and
// then lets raft and the other members know.
func (n *Node) logTurn() error {
	messages := n.appends.take()
	n.unwritten = append(n.unwritten, messages...)
	n.appends.recycle(messages)
	for len(n.unwritten) > 0 {
		size, err := n.appendSome(n.unwritten)
		if err != nil {
			return err
		}
		if size == 0 {
			return nil // the end of an installation has this turn taken again
		}
		n.unwritten = slices.Delete(n.unwritten, 0, size)
	}
	if err := n.saveCommit(); err != nil {
		return err
	}
	// The machine may be ahead of what raft was told is applied, after which it reads on.
	return n.cfg.Log.Compact(min(n.cutTo.Load(), n.told.Load()))
}

// appendSome writes the first messages in one write and passes on their
// responses. A snapshot is a write of its own. It returns how many they were: 0
// while a snapshot is being installed.
func (n *Node) appendSome(messages []*pb.Message) (size int, err error) {
	snapshot := func(m *pb.Message) bool { return m.Snapshot != nil && !raft.IsEmptySnap(m.Snapshot) }
	if size = slices.IndexFunc(messages, snapshot); size < 0 {
		size = len(messages)
	}
	if size == 0 {
		if n.installing == nil {
			if err := n.reset(messages[0]); err != nil {
				return 0, err
			}
		}
		if !n.installing.done.Load() {
			return 0, nil
		}
		size, n.installing = 1, nil
	}
	in, err := n.appendMessages(messages[:size])
	if err != nil {
		return 0, err
	}
	n.respond(in)
	return size, nil
}

// saveCommit writes a commit index that waits for the next write, if a change of
// the membership that it covers is about to be applied.
func (n *Node) saveCommit() error {
	saved, _, err := n.cfg.Log.InitialState()
	if err != nil {
		return err
	}
	if change := n.changeAt.Load(); n.unsaved != nil && saved.GetCommit() < change && n.unsaved.GetCommit() >= change {
		if err := n.cfg.Log.Append(n.unsaved, nil); err != nil {
			return err
		}
		n.unsaved = nil
	}
	n.noteSaved()
	return nil
}

// noteSaved has entries applied that wait for the log to have a commit index.
func (n *Node) noteSaved() {
	if n.held.Load() {
		n.applies.put()
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
// has it installed. The write to the log decides: a crash after it leads to the
// snapshot's state, one before it to the old one.
func (n *Node) reset(m *pb.Message) error {
	hs := n.unsaved
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
	n.unsaved = nil
	n.noteSaved()
	n.installing = &install{index: meta.GetIndex(), term: meta.GetTerm()}
	n.applies.put(applyWork{install: n.installing})
	return nil
}

// appendMessages writes the messages' entries and hard states. A hard state
// that differs in its commit index alone is left for the next write, or for
// saveCommit: raft does not need it on disk.
func (n *Node) appendMessages(messages []*pb.Message) (in input, err error) {
	saved, _, err := n.cfg.Log.InitialState()
	if err != nil {
		return input{}, err
	}
	hs := n.unsaved
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
		n.unsaved = hs
		return in, nil
	}
	began := time.Now()
	if err := n.cfg.Log.Append(hs, entries); err != nil {
		return input{}, err
	}
	n.shortcut.lastWrite.Store(int64(time.Since(began)))
	n.unsaved = nil
	return in, nil
}
