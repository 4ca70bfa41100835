package consensus

import (
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/machine"
)

// A leader of two removes the other, and is alone. Before it was, it had told the
// other to stand for election (MoveLeader, or a disk that was slow), and that comes
// late. The other has its entry, not word that it is committed: it is elected, by
// the vote of the one that is alone, and acknowledges writes.
func TestWhoIsAloneAsksAgainWhenAnotherLeads(t *testing.T) {
	c := newCluster(t, func(cfg *Config) { cfg.ElectionTicks = 200 }, 1, 2)
	a := c.leader()
	b := c.follower()
	must(t, readIndex(b.node))
	var before uint64
	eventually(t, "both to be equally far", func() bool {
		before = a.node.Status().Commit
		last, _ := a.log.LastIndex()
		return b.node.Status().Commit == before && last == before
	})
	removal := before + 1

	var stage int                 // Guarded by c.mu.
	var acks, stand []*pb.Message // Guarded by c.mu: on their way for long.
	set := func(s int) { c.mu.Lock(); stage = s; c.mu.Unlock() }
	c.mu.Lock()
	c.lose = func(m *pb.Message) bool {
		fromA := m.GetFrom() == a.id
		switch {
		case fromA && m.GetType() == pb.MsgTimeoutNow:
			stand = append(stand, m)
			return true
		case stage == 0 && !fromA && m.GetType() == pb.MsgAppResp && m.GetIndex() >= removal:
			acks = append(acks, m)
			return true
		case stage <= 1 && fromA && m.GetCommit() >= removal: // late too
			return true
		case stage == 2 && fromA && m.GetType() == pb.MsgAppResp:
			return true
		case stage == 3 && !fromA && m.GetCommit() >= removal: // late too
			return true
		}
		return false
	}
	c.mu.Unlock()
	removed := make(chan error, 1)
	go func() {
		removed <- change(a.node, machine.Change{Kind: machine.RemoveMember, Member: machine.Member{ID: b.id}})
	}()
	eventually(t, "the acknowledgement of the removal", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(acks) > 0 })
	must(t, a.node.call(t.Context(), func(c *core) { c.raft.TransferLeader(b.id) }))
	set(1)
	c.mu.Lock()
	ack := acks[0]
	c.mu.Unlock()
	a.node.Receive(ack)
	must(t, <-removed)
	eventually(t, "the leader to be alone", a.node.UpToDate)
	eventually(t, "the order to stand", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(stand) > 0 })

	set(2)
	c.mu.Lock()
	order := stand[0]
	c.mu.Unlock()
	b.node.Receive(order)
	eventually(t, "the other to lead", func() bool { return b.node.Status().IsLeader })
	put := make(chan machine.Result, 1)
	b.node.Propose([]byte("x"), func(r machine.Result) { put <- r })
	eventually(t, "the put in both logs", func() bool {
		of1, _ := a.log.LastIndex()
		of2, _ := b.log.LastIndex()
		return of1 >= removal+2 && of2 >= removal+2
	})
	set(3)
	if r := <-put; r.Err != nil {
		t.Fatalf("the put: %v", r.Err)
	}
	// It is acknowledged. From here on every linearizable read must see it.
	read := make(chan error, 1)
	a.node.ReadIndex(func(err error) { read <- err })
	if a.node.UpToDate() {
		t.Error("the member that follows another says that it acknowledges all there is")
	}
	select {
	case err := <-read:
		if err == nil && !slices.Contains(a.machine.list(), "x") {
			t.Errorf("a read is confirmed that does not see what was acknowledged; leads: %v, term %d; the other's term is %d",
				a.node.Status().IsLeader, a.node.Status().Term, b.node.Status().Term)
		}
	case <-time.After(200 * time.Millisecond):
		set(4)
		must(t, <-read)
		if !slices.Contains(a.machine.list(), "x") {
			t.Error("not seen")
		}
	}
}
