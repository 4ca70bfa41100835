package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/peer"
)

// network carries messages between members. Each direction of each pair is a
// link of its own.
type network struct {
	w       *world
	cut     map[[2]uint64]bool      // links that lose everything
	last    map[[2]uint64]time.Time // when the last message of a link arrives
	loss    int                     // percent
	double  int                     // percent
	ordered bool                    // a link keeps its messages in order, but for those that come twice
	slowest time.Duration
	late    bool // a few take up to latest
}

// latest is when what a connection has kept comes at last: its sender may have led terms ago.
const latest = 3 * time.Second

// send takes the messages of a member. What is lost its sender hears of, as the
// end of a connection tells it.
func (n *network) send(from *process, ms []*pb.Message) {
	for _, m := range ms {
		if m.GetType() == pb.MsgSnap {
			n.sendSnapshot(from, m)
			continue
		}
		n.promised(from.m, m)
		link := [2]uint64{from.m.id, m.GetTo()}
		if n.cut[link] || n.w.chance(n.loss) {
			n.w.effects.add("a message that is lost", 1)
			n.w.after(n.w.between(0, 20*time.Millisecond), func() {
				if from.alive() {
					from.node.Unreachable(m.GetTo())
				}
			})
			continue
		}
		m := proto.CloneOf(m)
		n.deliver(link, m)
		if n.w.chance(n.double) {
			n.w.effects.add("a message that comes twice", 1)
			n.deliver(link, proto.CloneOf(m))
		}
	}
}

func (n *network) deliver(link [2]uint64, m *pb.Message) {
	slowest := n.slowest
	if n.late && n.w.chance(1) {
		slowest = latest
	}
	at := time.Now().Add(n.w.between(50*time.Microsecond, slowest))
	if n.ordered && at.Before(n.last[link]) {
		at = n.last[link]
	}
	if at.Before(n.last[link]) {
		n.w.effects.add("a message that overtakes another", 1)
	}
	n.last[link] = at
	sent := time.Now()
	n.w.after(time.Until(at), func() {
		if n.cut[link] {
			return
		}
		to := n.w.members[link[1]]
		if to == nil || to.p == nil || !to.p.alive() {
			return
		}
		if time.Since(sent) > electionTicks*tick {
			n.w.effects.add("a message that is late", 1)
		}
		to.p.node.Receive(m)
	})
}

// greet has the members that have been removed told so: connections are made all
// the time, and theirs are refused.
func (n *network) greet() {
	for _, from := range n.w.inOrder() {
		for _, to := range n.w.inOrder() {
			if from.serves() && to.serves() && !n.cut[[2]uint64{from.id, to.id}] && !n.cut[[2]uint64{to.id, from.id}] &&
				to.p.replica.Machine().Members.Removed(from.id) {
				from.leave()
			}
		}
	}
	n.w.after(electionTicks*tick, n.greet)
}

// sendSnapshot sends the state itself in answer to a message about it.
func (n *network) sendSnapshot(from *process, m *pb.Message) {
	to := m.GetTo()
	m = proto.CloneOf(m)
	name := fmt.Sprintf("snapshot %d-%d", from.m.id, to)
	pause := n.w.between(500*time.Microsecond, 10*time.Millisecond)
	trouble := func(*Disk) {} // of the receiver, when all files have come
	if !n.w.calm && n.w.has(installsPart) {
		trouble = n.troubleInstall()
	}
	from.group.Go(func() { // ends with the transfer
		err := n.transfer(from, to, m, pause, trouble)
		n.w.post(name, func() {
			n.w.say("%s: index %d, %v", name, m.GetSnapshot().GetMetadata().GetIndex(), err)
			if err == nil {
				n.w.tally.snapshots++
			}
			if from.alive() {
				from.node.SnapshotSent(to, err == nil)
			}
		})
	})
}

// troubleInstall draws what goes wrong while a snapshot is installed.
func (n *network) troubleInstall() func(*Disk) {
	switch d := n.w.draw(100); {
	case d < 10:
		after := 1 + uint64(n.w.draw(40))
		return func(d *Disk) {
			n.w.effects.add("a crash ordered for an installation", 1)
			d.CrashAfter(after)
		}
	case d < 20:
		x := n.w.onStart()
		return func(d *Disk) { d.Break(x) }
	}
	return func(*Disk) {}
}

// errCut ends a transfer.
var errCut = fmt.Errorf("sim: the connection is broken")

// A transfer takes so many pauses, however many files there are: that depends on
// what the engine has just been doing.
const transferPauses = 8

func (n *network) transfer(from *process, id uint64, m *pb.Message, pause time.Duration, trouble func(*Disk)) error {
	c, err := from.replica.Take()
	if err != nil {
		return err
	}
	if n.w.canary != leftFiles {
		defer c.Release()
	}
	m.Snapshot.Metadata = &pb.SnapshotMetadata{
		Index: &c.Index, Term: &c.Term, ConfState: &pb.ConfState{Voters: c.Voters, Learners: c.Learners},
	}
	to := n.receiver(from, id)
	if to == nil {
		return errCut
	}
	if !to.receiving.TryLock() {
		return fmt.Errorf("sim: another snapshot is being received")
	}
	defer to.receiving.Unlock()
	to.group.Add(1)
	defer to.group.Done()
	dir, err := to.replica.Begin(c.Index)
	if err != nil {
		return err
	}
	if err := n.copyFiles(from, to, c.Dir, dir, c.Files, pause); err != nil {
		to.replica.Abort(dir)
		return err
	}
	n.w.lock.Lock() // mend takes back what was ordered before it
	if !n.w.calm {
		trouble(to.disk)
	}
	n.w.lock.Unlock()
	return to.replica.Complete(c.Index, dir, func() (bool, error) { return to.node.ReceiveSnapshot(context.Background(), m) })
}

// receiver returns who receives, if he can be reached.
func (n *network) receiver(from *process, id uint64) *process {
	n.w.lock.Lock()
	defer n.w.lock.Unlock()
	to := n.w.members[id]
	if to == nil || to.p == nil || !to.p.alive() || !from.alive() || n.cut[[2]uint64{from.m.id, id}] || n.cut[[2]uint64{id, from.m.id}] {
		return nil
	}
	return to.p
}

// copyFiles has one member send files and another receive them, with the code that does it between processes. What they are connected
// with stands still now and then.
func (n *network) copyFiles(from, to *process, src, dst string, names []string, pause time.Duration) error {
	var files []peer.File
	c := &connection{net: n, from: from, to: to, pause: pause}
	for _, name := range names {
		fi, err := from.disk.Stat(src + "/" + name)
		if err != nil {
			return err
		}
		files = append(files, peer.File{Name: name, Size: fi.Size()})
		c.bytes += fi.Size()
	}
	r, w := io.Pipe()
	c.PipeWriter = w
	sent := make(chan error, 1)
	go func() { // ends with the transfer
		err := peer.SendFiles(c, from.disk, src, files)
		w.CloseWithError(err)
		sent <- err
	}()
	err := peer.ReceiveFiles(r, to.received(), dst, files)
	r.CloseWithError(err)
	return errors.Join(err, <-sent)
}

// connection carries files, and breaks where one of its ends cannot be reached.
type connection struct {
	*io.PipeWriter
	net      *network
	from, to *process
	bytes    int64 // of the files
	written  int64
	pauses   int64 // that there were
	pause    time.Duration
}

func (c *connection) Write(b []byte) (int, error) {
	c.written += int64(len(b))
	for ; c.pauses < transferPauses && c.written*transferPauses >= c.bytes*c.pauses; c.pauses++ {
		time.Sleep(c.pause)
		if c.net.receiver(c.from, c.to.m.id) != c.to {
			return 0, errCut
		}
	}
	return c.PipeWriter.Write(b)
}

// received is where the process writes what it receives.
func (p *process) received() vfs.FS {
	if p.m.w.canary == looseSnapshot {
		return loose{p.disk}
	}
	return p.disk
}

// loose is a file system that does not sync.
type loose struct{ vfs.FS }

func (l loose) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, category)
	return unsynced{f}, err
}

type unsynced struct{ vfs.File }

func (unsynced) Sync() error     { return nil }
func (unsynced) SyncData() error { return nil }
