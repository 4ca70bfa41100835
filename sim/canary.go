package sim

import (
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	raftpb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/lease"
)

// Canaries are defects that a world can be given. A checker that has never found
// anything proves nothing.
const (
	skippedSync   = "skipped-sync"   // the log acknowledges what is not on the disk
	unaskedRead   = "unasked-read"   // a linearizable read asks nobody whether it is up to date
	lostEvent     = "lost-event"     // a watcher does not get the event of the compacted revision
	doubledEntry  = "doubled-entry"  // some puts are applied twice, as two commands
	otherOrder    = "other-order"    // one member makes the puts of some transactions in another order
	hastyLease    = "hasty-lease"    // the clock of leases goes a third too fast
	renewedLeases = "renewed-leases" // whoever becomes leader takes every lease for just renewed
	uncutLog      = "uncut-log"      // nobody cuts the log
	openStream    = "open-stream"    // the stream of a watcher that has left stays
	leftFiles     = "left-files"     // what a snapshot was sent from stays
	forgottenSync = "forgotten-sync" // a sync that failed is tried again, and succeeds
	ignoredFull   = "ignored-full"   // the log takes what found no room for written
	looseSnapshot = "loose-snapshot" // the files of a received snapshot are not synced
	forgottenVote = "forgotten-vote" // whoever starts does not know whom it has voted for
	earlyCut      = "early-cut"      // the log is cut up to what is applied, on the disk or not
	revivedLease  = "revived-lease"  // a renewal of a lease that is gone succeeds
	hastyBookmark = "hasty-bookmark" // a bookmark is ahead of what has been sent
	deafStream    = "deaf-stream"    // a stream falls silent when there is nothing to send for a while
)

// canaries are all of them, and how they are found.
var canaries = map[string]finding{
	skippedSync:   {1, []string{"does not start"}},
	unaskedRead:   {1, []string{"it is stale", "as of the future"}},
	lostEvent:     {11, []string{"events up to revision"}},
	doubledEntry:  {1, []string{"events up to revision", "must answer"}},
	otherOrder:    {6, []string{"the members differ"}},
	hastyLease:    {1, []string{"after it was renewed"}},
	renewedLeases: {14, []string{"lives for too long"}},
	looseSnapshot: {8, []string{"does not start"}},
	ignoredFull:   {146, []string{"and starts with entry", "does not start"}},
	forgottenSync: {73, []string{"does not start"}},
	uncutLog:      {1, []string{"the log of member"}},
	openStream:    {1, []string{"streams and"}},
	leftFiles:     {8, []string{"has left"}},
	forgottenVote: {1, []string{"and starts in term", "votes for"}},
	earlyCut:      {7, []string{"its log begins with entry"}},
	revivedLease:  {1, []string{"whose end had been answered"}},
	hastyBookmark: {1, []string{"its bookmark is of revision"}},
	deafStream:    {1, []string{"has not been told of", "events and"}},
}

// finding is how a canary is found.
type finding struct {
	seed uint64   // the first that does; it is run first, to save time
	as   []string // one of which is in what is said then
}

// doubled has some puts applied twice. It returns which results nobody has asked for.
func (w *world) doubled(entries []machine.Entry) (_ []machine.Entry, extra []int) {
	if w.canary != doubledEntry {
		return entries, nil
	}
	entries = slices.Clone(entries)
	n := 0
	for i := range entries {
		e := &entries[i]
		if e.Change != nil {
			n++
			continue
		}
		var commands [][]byte
		for _, c := range e.Commands {
			commands = append(commands, c)
			n++
			r := &pb.InternalRaftRequest{}
			// Which one must be the same wherever it is applied: only then is it the model that notices.
			if proto.Unmarshal(c, r) == nil && r.Put != nil && r.GetHeader().GetID()%50 == 0 {
				commands = append(commands, c)
				extra = append(extra, n)
				n++
			}
		}
		e.Commands = commands
	}
	return entries, extra
}

// reordered has one member exchange puts that follow each other in a transaction. That changes neither
// its results nor what is read later, only the order of events and what is stored.
func (p *process) reordered(entries []machine.Entry) []machine.Entry {
	if p.m.w.canary != otherOrder || p.m.id != 1 {
		return entries
	}
	entries = slices.Clone(entries)
	for i := range entries {
		entries[i].Commands = slices.Clone(entries[i].Commands)
		for j, c := range entries[i].Commands {
			r := &pb.InternalRaftRequest{}
			if proto.Unmarshal(c, r) != nil || r.Txn == nil {
				continue
			}
			ops := r.Txn.Success
			for k := 1; k < len(ops); k++ {
				if a, b := ops[k-1].GetRequestPut(), ops[k].GetRequestPut(); a != nil && b != nil && !a.PrevKv && !b.PrevKv {
					ops[k-1], ops[k] = ops[k], ops[k-1]
					if c, err := proto.Marshal(r); err == nil {
						entries[i].Commands[j] = c
					}
					break
				}
			}
		}
	}
	return entries
}

// forget takes the events of the compacted revision out of a response, and reports
// whether anything is left.
func (w *world) forget(m *pb.WatchResponse) bool {
	if len(m.Events) == 0 {
		return true
	}
	m.Events = slices.DeleteFunc(m.Events, func(e *mvccpb.Event) bool { return e.Kv.ModRevision == w.truth.compacted() })
	return len(m.Events) > 0
}

// hasty is a clock that goes too fast.
type hasty struct {
	lessor.Clock
	began time.Time
}

func (c hasty) Now() time.Time {
	return c.began.Add(c.Clock.Now().Sub(c.began) * 4 / 3)
}

func (c hasty) After(d time.Duration) <-chan time.Time { return c.Clock.After(d * 3 / 4) }

func (w *world) hurried(c *clock) lessor.Clock {
	if w.canary != hastyLease {
		return c
	}
	return hasty{c, c.Now()}
}

// forgetful is a table of leases whose checkpoints no new leader sees.
type forgetful struct{ lessor.Leases }

func (f forgetful) All() []lease.Lease {
	all := f.Leases.All()
	for i := range all {
		all[i].RemainingTTL = 0
	}
	return all
}

func (w *world) known(t *lease.Table) lessor.Leases {
	if w.canary != renewedLeases {
		return t
	}
	return forgetful{t}
}

func (p *process) forgetVote() error {
	hs, _, err := p.data.Log.InitialState()
	if err != nil || hs.GetVote() == 0 {
		return err
	}
	return p.data.Log.Append(&raftpb.HardState{Term: hs.Term, Vote: new(uint64), Commit: hs.Commit}, nil)
}
