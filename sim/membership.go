package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/replica"
)

// maxMembers bounds a cluster that grows.
const maxMembers = 6

// reconfigure proposes one change of the membership: somebody new comes, a learner
// becomes a voter, or somebody leaves, for good or to come again empty.
func (f *fault) reconfigure() {
	w := f.w
	if !w.plan.Changes {
		return
	}
	list := w.truth.membership()
	p := w.someone(f.draws)
	if p == nil || len(list) == 0 {
		return
	}
	voters, learners := 0, []machine.Member(nil)
	for _, m := range list {
		if m.IsLearner {
			learners = append(learners, m)
		} else {
			voters++
		}
	}
	c := &machine.Change{}
	switch n := f.draw(3); {
	case len(learners) > 0 && n == 0:
		c.Kind, c.Member.ID = machine.PromoteMember, learners[f.draw(len(learners))].ID
	case n == 1 && voters > 2:
		// With two left, the one that is removed may be the only one to know that it is.
		c.Kind, c.Member.ID = machine.RemoveMember, list[f.draw(len(list))].ID
		if !w.mayRemove(c.Member.ID, list) {
			return
		}
	case len(list) < maxMembers:
		w.lastMember++
		id := w.lastMember
		c.Kind = machine.AddMember
		c.Member = machine.Member{ID: id, PeerURLs: []string{fmt.Sprintf("http://m%d", id)}, IsLearner: f.chance(60)}
	default:
		return
	}
	w.propose(p, c)
}

func (w *world) propose(p *process, c *machine.Change) {
	w.say("through member %d: %s member %d, learner %v", p.m.id, c.Kind, c.Member.ID, c.Member.IsLearner)
	w.changesAsked++
	remove := c.Kind == machine.RemoveMember
	if remove {
		w.leaving[c.Member.ID]++
	}
	p.node.ProposeChange(c, func(r machine.Result) { // what comes of it, the truth tells
		if remove && r.Err != nil && !unknown(r.Err) {
			w.post(fmt.Sprintf("stays %d", c.Member.ID), func() { w.leaving[c.Member.ID]-- })
		}
	})
}

// lasting returns the voters that stay, as far as one knows, whatever becomes of the
// changes that have been proposed.
func (w *world) lasting(list []machine.Member) (ids []uint64) {
	for _, m := range list {
		if !m.IsLearner && w.leaving[m.ID] <= 0 {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// mayRemove tells whether a member may be removed: while one is damaged, three voters
// must stay, so that it may be one of them.
func (w *world) mayRemove(id uint64, list []machine.Member) bool {
	isDamaged := func(id uint64) bool { return w.members[id] != nil && w.members[id].rotten }
	damaged := slices.ContainsFunc(list, func(m machine.Member) bool { return isDamaged(m.ID) })
	stay := slices.DeleteFunc(w.lasting(list), func(other uint64) bool { return other == id })
	return !damaged || isDamaged(id) || len(stay) >= 3
}

// joined has a member that was added come into being.
func (w *world) joined(c machine.Change, list []machine.Member) {
	if w.members[c.Member.ID] != nil {
		return
	}
	m := &member{
		w: w, id: c.Member.ID, disk: w.newDisk(c.Member.ID), clock: newClock(), syncTime: w.plan.SyncTime,
		founding: &replica.Founding{ClusterID: clusterID, MemberID: c.Member.ID, Members: list, Joins: true},
	}
	w.lock.Lock()
	w.members[m.id] = m
	w.lock.Unlock()
	w.tally.changes++
	w.after(w.between(0, 500*time.Millisecond), m.start)
}

// leave ends a member that has been removed.
func (m *member) leave() {
	if m.gone {
		return
	}
	m.w.say("member %d leaves", m.id)
	m.gone = true
	m.w.tally.changes++
	if m.p != nil {
		m.p.disk.Kill()
		m.drop()
	}
}

// membership returns who is in the cluster as of what has been agreed on.
func (t *truth) membership() []machine.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.members)
}

// changed follows a change of the membership. With mu.
func (t *truth) changed(c machine.Change) {
	i := slices.IndexFunc(t.members, func(m machine.Member) bool { return m.ID == c.Member.ID })
	switch c.Kind {
	case machine.AddMember:
		t.members = append(slices.Clone(t.members), c.Member)
		list := t.members
		t.w.post(fmt.Sprintf("joins %d", c.Member.ID), func() { t.w.joined(c, list) })
	case machine.PromoteMember:
		if i >= 0 {
			t.members = slices.Clone(t.members)
			t.members[i].IsLearner = false
		}
	case machine.RemoveMember:
		t.members = slices.Delete(slices.Clone(t.members), i, i+1)
	}
}

// changes is told of changes that a process has applied.
func (p *process) changes([]machine.Change) {
	if p.replica.Machine().Members.Removed(p.m.id) {
		// It has to tell the others that the entry is committed.
		p.m.w.post(fmt.Sprintf("leaves %d", p.m.id), func() { p.m.w.after(5*tick, p.m.leave) })
	}
}

// promoteAll makes voters of the learners that are left, and removes whose data is
// lost.
func (w *world) promoteAll() {
	if w.finished {
		return
	}
	for _, m := range w.truth.membership() {
		p := w.someone(w.draws)
		if p == nil {
			break
		}
		if k := w.members[m.ID]; k != nil && k.rotten && k.gone {
			w.propose(p, &machine.Change{Kind: machine.RemoveMember, Member: machine.Member{ID: m.ID}})
			break
		}
		if m.IsLearner {
			w.propose(p, &machine.Change{Kind: machine.PromoteMember, Member: machine.Member{ID: m.ID}})
			break
		}
	}
	w.after(300*time.Millisecond, w.promoteAll)
}
