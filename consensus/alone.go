package consensus

import (
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

// ForceAlone makes one member of a cluster whose others are lost for good its
// only one. It appends to the log what removes the others, and what makes this
// one a voter, as if they had agreed to that and to all that the log has: this
// member cannot tell which of its last entries were acknowledged, and none of
// those may go. The machine has applied the log up to an index, and members are
// those as of that. It is called before Start, and does nothing for a member
// that is alone.
func ForceAlone(log *wal.Log, applied, id uint64, members []machine.Member) error {
	if applied == 0 {
		return fmt.Errorf("consensus: member %x cannot become the only one: it has joined and not been sent the cluster's state; "+
			"use another member, or restore a snapshot", id)
	}
	hs, _, err := log.InitialState()
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	members, err = membersAsOf(log, applied, last, members)
	if err != nil {
		return err
	}
	self := slices.IndexFunc(members, func(m machine.Member) bool { return m.ID == id })
	if self < 0 {
		return fmt.Errorf("consensus: member %x cannot become the only one: its data says that it has been removed", id)
	}
	var changes []machine.Change
	if members[self].IsLearner {
		changes = append(changes, machine.Change{Kind: machine.PromoteMember, Member: machine.Member{ID: id}})
	}
	for _, m := range members {
		if m.ID != id {
			changes = append(changes, machine.Change{Kind: machine.RemoveMember, Member: machine.Member{ID: m.ID}})
		}
	}
	if len(changes) == 0 {
		return nil
	}
	var entries []*pb.Entry
	for i := range changes {
		data, err := encodeChange(&changes[i], 0, uint64(i))
		if err != nil {
			return err
		}
		entries = append(entries, &pb.Entry{
			Index: new(last + 1 + uint64(i)), Term: new(hs.GetTerm()), Type: pb.EntryConfChange.Enum(), Data: data,
		})
	}
	return log.Append(&pb.HardState{Term: hs.Term, Vote: hs.Vote, Commit: new(last + uint64(len(entries)))}, entries)
}

// membersAsOf returns what becomes of members through the entries that the
// machine has not applied.
func membersAsOf(log *wal.Log, applied, last uint64, members []machine.Member) ([]machine.Member, error) {
	members = slices.Clone(members)
	for next := applied + 1; next <= last; {
		entries, err := log.Entries(next, last+1, 1<<20)
		if err != nil {
			return nil, fmt.Errorf("consensus: read the log: %w", err)
		}
		for _, e := range entries {
			entry, _, err := decodeEntry(e)
			if err != nil {
				return nil, err
			}
			if entry.Change != nil {
				members = applyChange(members, entry.Change)
			}
		}
		next += uint64(len(entries))
	}
	return members, nil
}

// applyChange does to members what the machine would, as far as it matters for
// who remains. Whether the machine would reject it does not: removing a member
// twice, or promoting a voter, is rejected then and changes nothing.
func applyChange(members []machine.Member, c *machine.Change) []machine.Member {
	i := slices.IndexFunc(members, func(m machine.Member) bool { return m.ID == c.Member.ID })
	switch {
	case i < 0 && c.Kind == machine.AddMember:
		return append(members, c.Member)
	case i < 0:
		return members
	case c.Kind == machine.PromoteMember:
		members[i].IsLearner = false
	case c.Kind == machine.RemoveMember:
		return slices.Delete(members, i, i+1)
	}
	return members
}
