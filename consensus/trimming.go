package consensus

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// need is what of the log other members may still ask this leader for: the
// entries after index, kept up to a size.
type need struct {
	index uint64
	bytes int64
}

// purgePause is between two files of the log that are removed: a file system may
// keep syncs waiting for as long as it gives back the space of one.
const purgePause = 100 * time.Millisecond

// trimLoop follows what is durable in the machine and lets the log be cut
// below it, but for what slow members may still ask for. It removes the files
// that are no longer needed, and makes those that soon will be.
func (n *Node) trimLoop() error {
	var purge <-chan time.Time // not nil when there may be files to remove
	for {
		select {
		case <-n.stop:
			return nil
		case <-n.cfg.Log.ToPrepare():
			n.cfg.Log.Prepare()
		case <-n.cfg.Log.ToPurge():
			if purge == nil {
				purge = time.After(0)
			}
		case <-purge:
			done, err := n.cfg.Log.Purge()
			if err != nil {
				return err
			}
			if purge = nil; done {
				purge = time.After(purgePause)
			}
		case <-n.cfg.Machine.Flushed():
			if err := n.trim(); err != nil {
				return err
			}
		}
	}
}

// trim says how far the log can be cut now.
func (n *Node) trim() error {
	durable, err := n.cfg.Machine.DurableIndex()
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	if cut := n.cut(durable); cut > n.cutTo.Load() {
		n.cutTo.Store(cut)
		n.appends.put() // wakes who owns the log
	}
	return nil
}

// trimTurn is what trimLoop does, without its pauses.
func (n *Node) trimTurn() error {
	if drain(n.cfg.Log.ToPrepare()) {
		n.cfg.Log.Prepare()
	}
	if drain(n.cfg.Log.ToPurge()) || n.purging {
		var err error
		if n.purging, err = n.cfg.Log.Purge(); err != nil {
			return err
		}
	}
	if drain(n.cfg.Machine.Flushed()) {
		return n.trim()
	}
	return nil
}

func drain(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
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

// noteNeed looks at how far this leader's members are. What all of them have, and
// the machine has applied, need not stay in memory.
func (n *Node) noteNeed() {
	d := &need{index: math.MaxUint64}
	if n.core.state == raft.StateLeader {
		n.core.raft.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
			at := p.Match
			if sent := max(p.PendingSnapshot, n.core.installs[id]); sent > at {
				at, d.bytes = sent, maxKeptForSnapshot
			} else {
				delete(n.core.installs, id)
			}
			d.index = min(d.index, at)
		})
	}
	if *d != *n.needed.Load() {
		n.needed.Store(d)
	}
	n.cfg.Log.Forget(min(n.applied.Load(), d.index))
}

// retry is when raft hears that a snapshot could not be sent: then it wants to send another one, for which the state is flushed and copied.
type retry struct {
	at    uint64 // tick; 0 if it has heard
	pause uint64 // ticks
}

// maxPause bounds the time until another snapshot is sent to a member, in election timeouts.
const maxPause = 8

// holdBack has raft hear of a failure later, the more there were of them in a row the later.
func (c *core) holdBack(id uint64) {
	r := c.retries[id]
	r.pause = min(max(2*r.pause, c.timeout), maxPause*c.timeout)
	r.at = c.ticks + r.pause
	if c.retries == nil {
		c.retries = map[uint64]retry{}
	}
	c.retries[id] = r
}

// forgive lets a member that has ended, and may begin anew, have its next snapshot as soon as it is there.
func (c *core) forgive(id uint64) {
	if r, held := c.retries[id]; held && r.at != 0 {
		c.retries[id] = retry{at: c.ticks}
	} else {
		delete(c.retries, id)
	}
}

// retrySnapshots tells raft, in every tick, of failures that were held back for long enough, and tells it that the snapshot has come: it then looks
// whether the member has what is behind that. It may, for a snapshot of what a member has applied is refused too; else raft wants to send another one.
func (c *core) retrySnapshots() {
	for _, id := range slices.Sorted(maps.Keys(c.retries)) {
		if r := c.retries[id]; r.at != 0 && c.ticks >= r.at {
			r.at = 0
			c.retries[id] = r
			c.raft.ReportSnapshot(id, raft.SnapshotFinish)
		}
	}
}

// snapshotSent notes how it went to send a snapshot to a member, which needs the entries behind it next: raft knows no more than
// what the member had before, until it has installed it.
func (c *core) snapshotSent(id uint64, ok bool) {
	if !ok {
		c.holdBack(id)
		return
	}
	delete(c.retries, id)
	c.raft.WithProgress(func(of uint64, _ raft.ProgressType, p tracker.Progress) {
		if of == id && p.State == tracker.StateSnapshot {
			if c.installs == nil {
				c.installs = map[uint64]uint64{}
			}
			c.installs[id] = p.PendingSnapshot
		}
	})
	c.raft.ReportSnapshot(id, raft.SnapshotFinish)
}
