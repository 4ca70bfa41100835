package consensus

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

var (
	stressFor  = flag.Duration("consensus.stress", 0, "how long the stress test goes on with new seeds; 0: a few seeds")
	stressSeed = flag.Uint64("consensus.seed", 0, "the first seed of the stress test, and the only one unless -consensus.stress is set")
)

// A cluster under everything at once: messages that are lost, doubled, late and
// out of order, members cut off, crashed with their disks, moved in and out, while
// clients write and read. A seed draws the faults; who of two goroutines comes
// first it does not say, so a failure may need its seed more than once.
func TestStress(t *testing.T) {
	first, seeds := max(*stressSeed, 1), uint64(12)
	if *stressSeed != 0 || testing.Short() {
		seeds = 1
	}
	began := time.Now()
	for i := uint64(0); i < seeds || time.Since(began) < *stressFor; i++ {
		ok := t.Run(fmt.Sprint(first+i), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { stress(t, first+i) })
		})
		if !ok {
			return
		}
	}
}

// The length of a run and its load, in the time of the run.
const (
	stressTime    = 20 * time.Second
	stressClients = 6
	stressTimeout = 2 * time.Second // of requests
	stressTick    = 10 * time.Millisecond
)

// field is where a stress test takes place: the members, the network between
// them, and what is known of what they have promised.
type field struct {
	t *testing.T

	mu      sync.Mutex
	rng     *rand.Rand             // Guarded by mu, as all below.
	calm    bool                   // no more faults
	members map[uint64]*contestant // that run
	down    map[uint64]vfs.FS      // disks of those that do not
	cut     map[[2]uint64]bool     // directed links that lose everything
	due     map[[2]uint64]time.Time
	ordered bool // links keep their messages in order
	loss    int  // percent
	acked   map[int]string
	never   []string // commands that must not be found
	last    int      // the highest position acknowledged
	reads   int
	moved   int // snapshots taken
	limits  Config
	nextID  uint64
}

// contestant is a member of a field, with its disk.
type contestant struct {
	f       *field
	id      uint64
	disk    *vfs.MemFS
	log     *wal.Log
	machine *diskJournal
	node    *Node
	dead    bool // Guarded by field.mu. From now on it says nothing to anybody.
}

func stress(t *testing.T, seed uint64) {
	f := &field{t: t, rng: rand.New(rand.NewPCG(seed, 0)), members: map[uint64]*contestant{}, down: map[uint64]vfs.FS{},
		cut: map[[2]uint64]bool{}, due: map[[2]uint64]time.Time{}, acked: map[int]string{}, nextID: 1}
	f.ordered, f.loss = f.draw(2) == 0, f.draw(6)
	f.limits = Config{
		Tick: stressTick, ElectionTicks: 10, PreVote: f.draw(4) > 0, RequestTimeout: stressTimeout, Logger: zap.NewNop(),
		FlushEntries: uint64(5 + f.draw(40)), KeepEntries: uint64(f.draw(20)), KeepBytes: int64(4<<10 + f.draw(16<<10)),
	}
	voters := []uint64{}
	for range []int{1, 2, 3, 3, 3, 5}[f.draw(6)] {
		voters = append(voters, f.nextID)
		f.nextID++
	}
	for _, id := range voters {
		f.found(id, voters)
	}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for c := range stressClients {
		clients.Go(func() { f.client(c, stop) }) // until stop
	}
	for end := time.Now().Add(stressTime); time.Now().Before(end) && !t.Failed(); {
		f.pause(300 * time.Millisecond)
		f.disturb(len(voters))
	}
	f.settle()
	close(stop)
	f.await(&clients)
	f.settle() // what the clients have asked last
	f.check()
	for _, m := range f.running() {
		f.halt(m)
	}
}

// await waits for the clients, who have asked their last.
func (f *field) await(clients *sync.WaitGroup) {
	answered := make(chan struct{})
	go func() { clients.Wait(); close(answered) }() // ends when the members have been halted, at the latest
	select {
	case <-answered:
	case <-time.After(10 * stressTimeout):
		f.t.Error("a client has not been answered")
	}
}

// draw returns a number below n.
func (f *field) draw(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.IntN(n)
}

// pause lasts at most so long, and mostly far less.
func (f *field) pause(most time.Duration) {
	time.Sleep(most / time.Duration(1+f.draw(20)))
}

func (f *field) running() (list []*contestant) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.members {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *contestant) int { return int(a.id) - int(b.id) })
	return list
}

func (f *field) any() *contestant {
	if list := f.running(); len(list) > 0 {
		return list[f.draw(len(list))]
	}
	return nil
}

// found makes the disk of a member, one of the first voters or, with none, one
// that joins, and starts it.
func (f *field) found(id uint64, voters []uint64) {
	disk := vfs.NewCrashableMem()
	state := stateFile{}
	for _, v := range voters {
		state.Members = append(state.Members, machine.Member{ID: v})
	}
	if len(voters) > 0 {
		state.Applied, state.Term = 1, 1
	}
	must(f.t, disk.MkdirAll("wal", 0o755))
	must(f.t, state.write(disk, firstState))
	must(f.t, writeFile(disk, pointerFile, []byte(firstState)))
	log, err := wal.Create(f.logOptions(disk, id), state.Applied, state.Term)
	must(f.t, err)
	must(f.t, log.Close())
	f.start(id, disk)
}

func (f *field) logOptions(fs vfs.FS, id uint64) wal.Options {
	return wal.Options{Dir: "wal", FS: fs, ClusterID: 1, MemberID: id, SegmentBytes: 2 << 10, CacheBytes: 1 << 10, Logger: zap.NewNop()}
}

// start starts a member on a disk.
func (f *field) start(id uint64, disk *vfs.MemFS) {
	slow := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			f.pause(20 * time.Millisecond)
		}
		return nil
	}))
	m := &contestant{f: f, id: id, disk: disk}
	var err error
	m.log, err = wal.Open(f.logOptions(slow, id))
	must(f.t, err)
	m.machine, err = openDiskJournal(f, disk, m.log)
	must(f.t, err)
	cfg := f.limits
	cfg.ID, cfg.Log, cfg.Machine, cfg.Peers = id, m.log, m.machine, m
	if m.machine.Applied() > 0 {
		cfg.Voters, cfg.Learners = m.machine.voters(), m.machine.learners()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members[id] = m
	if m.node, err = Start(cfg); err != nil {
		f.t.Fatalf("start member %d: %v", id, err)
	}
	delete(f.down, id)
}

// halt stops a member as a crash of its machine does, and keeps what its disk has
// then: a random part of what was not synced.
func (f *field) halt(m *contestant) {
	f.mu.Lock()
	if m.dead {
		f.mu.Unlock()
		return
	}
	m.dead = true
	delete(f.members, m.id)
	f.down[m.id] = m.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: f.rng.IntN(101), RNG: f.rng})
	f.mu.Unlock()
	if err := m.node.Err(); err != nil {
		f.t.Errorf("member %d has failed: %v", m.id, err)
	}
	m.node.Close()
	m.machine.flushing.Wait()
	must(f.t, m.log.Close())
}

// revive starts one that is down.
func (f *field) revive(id uint64) {
	f.mu.Lock()
	disk := f.down[id]
	f.mu.Unlock()
	if disk != nil {
		f.start(id, disk.(*vfs.MemFS))
	}
}

// Send implements Peers.
func (m *contestant) Send(ms []*pb.Message) {
	f := m.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.dead {
		return
	}
	for _, msg := range ms {
		lost := f.cut[[2]uint64{m.id, msg.GetTo()}] || !f.calm && f.rng.IntN(100) < f.loss
		if lost && msg.GetType() != pb.MsgSnap {
			if f.rng.IntN(2) == 0 {
				go m.node.Unreachable(msg.GetTo()) // ends at once
			}
			continue
		}
		copies := 1
		if !f.calm && f.rng.IntN(30) == 0 {
			copies = 2
		}
		if msg.GetType() == pb.MsgSnap {
			time.AfterFunc(f.delayLocked(m.id, msg.GetTo()), func() { m.sendState(msg, lost) })
			continue
		}
		for range copies {
			own := proto.Clone(msg).(*pb.Message)
			time.AfterFunc(f.delayLocked(m.id, msg.GetTo()), func() { f.deliver(own) })
		}
	}
}

// delayLocked says how long a message is on its way: mostly not long.
func (f *field) delayLocked(from, to uint64) time.Duration {
	most := 2 * time.Millisecond
	if !f.calm && f.rng.IntN(50) == 0 {
		most = 200 * time.Millisecond
	}
	at := time.Now().Add(time.Duration(f.rng.Int64N(int64(most))))
	if link := [2]uint64{from, to}; f.ordered {
		if before := f.due[link]; at.Before(before) {
			at = before.Add(1)
		}
		f.due[link] = at
	}
	return time.Until(at)
}

func (f *field) at(id uint64) *contestant {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[id]
}

func (f *field) deliver(msg *pb.Message) {
	if to := f.at(msg.GetTo()); to != nil {
		to.node.Receive(msg)
	}
}

// sendState answers raft's wish to send a snapshot: with the state of now.
func (m *contestant) sendState(msg *pb.Message, lost bool) {
	to := m.f.at(msg.GetTo())
	if lost || to == nil {
		m.node.SnapshotSent(msg.GetTo(), false)
		return
	}
	state := m.machine.state()
	m.f.pause(100 * time.Millisecond) // on the way
	meta := &pb.SnapshotMetadata{Index: &state.Applied, Term: &state.Term, ConfState: state.conf()}
	err := to.machine.receive(state)
	if err == nil {
		m.f.pause(20 * time.Millisecond)
		var taken bool
		taken, err = to.node.ReceiveSnapshot(context.Background(), &pb.Message{Type: msg.Type, From: msg.From, To: msg.To, Term: msg.Term,
			Snapshot: &pb.Snapshot{Metadata: meta}})
		if err == nil && !taken {
			err = to.machine.disk.Remove(stateName(state.Applied))
		}
		if taken {
			m.f.mu.Lock()
			m.f.moved++
			m.f.mu.Unlock()
		}
	}
	m.node.SnapshotSent(msg.GetTo(), err == nil)
}

// client writes and reads, through whichever member, until stopped.
func (f *field) client(c int, stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		f.pause(50 * time.Millisecond)
		m := f.any()
		if m == nil {
			continue
		}
		switch f.draw(5) {
		case 0:
			f.read(m)
		case 1:
			f.write(m, fmt.Sprintf("%d.%d", c, i), m.node.Status().Term)
		default:
			f.write(m, fmt.Sprintf("%d.%d", c, i), 0)
		}
	}
}

// write proposes a command, in a term if that is not 0, and notes what it was told.
func (f *field) write(m *contestant, command string, term uint64) {
	answered := make(chan struct{})
	done := func(r machine.Result) {
		defer close(answered)
		f.mu.Lock()
		defer f.mu.Unlock()
		switch {
		case m.dead: // nobody has heard it
		case r.Err == nil:
			var at int
			got := ""
			fmt.Sscanf(strings.ReplaceAll(text(r), ":", " "), "%d %s", &at, &got)
			if other, taken := f.acked[at]; got != command || taken {
				f.t.Errorf("member %d: %q was acknowledged as %q at position %d, which has %q", m.id, command, got, at, other)
			}
			f.acked[at] = command
			f.last = max(f.last, at)
		case errors.Is(r.Err, ErrNotLeader):
			f.never = append(f.never, command)
		case !errors.Is(r.Err, ErrTimeout) && !errors.Is(r.Err, ErrStopped):
			f.t.Errorf("member %d: %q: %v", m.id, command, r.Err)
		}
	}
	if term != 0 {
		m.node.ProposeInTerm(term, []byte(command), done)
	} else {
		m.node.Propose([]byte(command), done)
	}
	<-answered
}

// read reads linearizably: it must find what was acknowledged before it began.
func (f *field) read(m *contestant) {
	f.mu.Lock()
	want := f.last
	f.mu.Unlock()
	if err := readIndex(m.node); err != nil {
		return
	}
	got := m.machine.length()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	if got < want && !m.dead {
		f.t.Errorf("member %d: a read found %d commands when %d had been acknowledged", m.id, got, want)
	}
}

// disturb does one thing that a cluster must survive.
func (f *field) disturb(first int) {
	m := f.any()
	if m == nil {
		f.reviveOne()
		return
	}
	switch f.draw(12) {
	case 0, 1:
		f.isolate(m.id, true, f.draw(3) == 0)
	case 2, 3:
		f.mu.Lock()
		clear(f.cut)
		f.mu.Unlock()
	case 4, 5:
		f.halt(m)
		if f.draw(2) == 0 {
			for _, o := range f.running() {
				o.node.Gone(m.id)
			}
		}
	case 6, 7, 8:
		f.reviveOne()
	case 9:
		m.node.Gone(f.any().id) // it may be wrong
	case 10:
		m.node.Retire(f.t.Context())
	case 11:
		f.change(m, first)
	}
}

func (f *field) reviveOne() {
	f.mu.Lock()
	ids := []uint64{}
	for id := range f.down {
		ids = append(ids, id)
	}
	f.mu.Unlock()
	if len(ids) > 0 {
		slices.Sort(ids)
		f.revive(ids[f.draw(len(ids))])
	}
}

// isolate cuts a member off, in one direction or both.
func (f *field) isolate(id uint64, out, oneWay bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for other := range f.members {
		f.cut[[2]uint64{id, other}] = out
		f.cut[[2]uint64{other, id}] = out && !oneWay
	}
}

// change changes the membership through a member. Clusters stay about as large
// as they were at first.
func (f *field) change(m *contestant, first int) {
	voters, learners := m.machine.voters(), m.machine.learners()
	var c machine.Change
	switch grow := len(voters)+len(learners) <= first || f.draw(3) == 0; {
	case len(learners) > 0 && f.draw(2) == 0:
		c = machine.Change{Kind: machine.PromoteMember, Member: machine.Member{ID: learners[f.draw(len(learners))]}}
	case grow && len(voters)+len(learners) < first+2:
		c = machine.Change{Kind: machine.AddMember, Member: machine.Member{ID: f.nextID, IsLearner: f.draw(2) == 0}}
		f.nextID++
		f.found(c.Member.ID, nil)
	default:
		all := append(voters, learners...)
		if len(all) == 0 {
			return // it has joined, and has no state yet
		}
		c = machine.Change{Kind: machine.RemoveMember, Member: machine.Member{ID: all[f.draw(len(all))]}}
	}
	if err := change(m.node, c); err != nil || c.Kind != machine.RemoveMember {
		return // perhaps it happens later
	}
	f.pause(500 * time.Millisecond)
	if gone := f.at(c.Member.ID); gone != nil {
		f.halt(gone)
	}
	if m.id == c.Member.ID {
		return // the others may not know yet, and need its vote
	}
	f.mu.Lock()
	delete(f.down, c.Member.ID)
	f.mu.Unlock()
}

// settle ends all faults and waits until every member has what every other has.
func (f *field) settle() {
	f.mu.Lock()
	f.calm = true
	clear(f.cut)
	f.mu.Unlock()
	for f.downCount() > 0 {
		f.reviveOne()
	}
	for i := 0; ; i++ {
		time.Sleep(100 * time.Millisecond)
		members, equal := f.equal()
		if equal {
			break
		}
		if i > 600 {
			f.t.Errorf("a minute after the last fault the members %d are not equal:", members)
			for _, m := range f.running() {
				f.t.Errorf("member %d: %+v, %d commands, voters %d, learners %d, %v", m.id, m.node.Status(), m.machine.length(),
					m.machine.voters(), m.machine.learners(), m.node.Err())
			}
			return
		}
		// What was proposed while a change was under way may be all there is: this makes members hear of each other.
		if m := f.any(); i%10 == 0 {
			f.write(m, fmt.Sprintf("end.%d", i), 0)
		}
	}
}

func (f *field) downCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.down)
}

// equal reports who the members are, as the one that is furthest sees it, and
// whether all of these have the same state, in which nothing is missing.
func (f *field) equal() (members []uint64, equal bool) {
	var best stateFile
	for _, m := range f.running() {
		if s := m.machine.state(); s.Applied > best.Applied {
			best = s
		}
	}
	f.mu.Lock()
	last := f.last
	f.mu.Unlock()
	equal = len(best.Commands) >= last && len(best.Members) > 0
	for _, member := range best.Members {
		members = append(members, member.ID)
		m := f.at(member.ID)
		equal = equal && m != nil && m.node.Err() == nil && m.node.Status().Leader != 0 && m.machine.Applied() == best.Applied
	}
	return members, equal
}

// check compares what the members have with what they have promised, and what
// raft knows of the membership with what the machine does.
func (f *field) check() {
	members, _ := f.equal()
	if len(members) == 0 || f.t.Failed() {
		return
	}
	all := f.at(members[0]).machine.list()
	for _, id := range members {
		m := f.at(id)
		if got := m.machine.list(); !slices.Equal(got[:min(len(got), len(all))], all[:min(len(got), len(all))]) {
			f.t.Errorf("members %d and %d have applied different commands", members[0], id)
		}
		var voters, learners []uint64
		must(f.t, m.node.call(f.t.Context(), func(c *core) { voters, learners = c.conf.GetVoters(), c.conf.GetLearners() }))
		same := func(a, b []uint64) bool {
			return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
		}
		if !same(voters, m.machine.voters()) || !same(learners, m.machine.learners()) {
			f.t.Errorf("member %d: raft has the voters %d and learners %d, the machine %d and %d",
				id, voters, learners, m.machine.voters(), m.machine.learners())
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	times := map[string]int{}
	for _, command := range all {
		if times[command]++; times[command] > 1 {
			f.t.Errorf("%s was applied twice", command)
		}
	}
	for at, command := range f.acked {
		if at > len(all) || all[at-1] != command {
			f.t.Errorf("%s was acknowledged at position %d, and is not there", command, at)
		}
	}
	for _, command := range f.never {
		if times[command] > 0 {
			f.t.Errorf("%s was refused, and applied", command)
		}
	}
	f.t.Logf("%d commands, %d acknowledged, %d refused, %d reads, %d snapshots, members %d, in order %v, %d%% lost",
		len(all), len(f.acked), len(f.never), f.reads, f.moved, members, f.ordered, f.loss)
}

// diskJournal is a journal that keeps its state on the disk of its member, as the
// engine does: in a file that a flush replaces, and a snapshot brings another.
type diskJournal struct {
	*journal
	f    *field
	disk vfs.FS

	flushing sync.WaitGroup
	busy     bool   // Guarded by journal.mu. A flush is under way.
	name     string // Guarded by journal.mu. The file in use.
}

// stateFile is what such a file holds.
type stateFile struct {
	Applied, Term uint64
	Members       []machine.Member
	Commands      []string
}

const (
	firstState  = "state"
	pointerFile = "pointer"
)

func stateName(index uint64) string { return fmt.Sprintf("%s-%d", firstState, index) }

func (s *stateFile) conf() *pb.ConfState {
	j := &journal{members: s.Members}
	return &pb.ConfState{Voters: j.voters(), Learners: j.learners()}
}

func (s *stateFile) write(fs vfs.FS, name string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return writeFile(fs, name, b)
}

// writeFile replaces a file as a whole.
func writeFile(fs vfs.FS, name string, b []byte) error {
	f, err := fs.Create(name+".tmp", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(name+".tmp", name); err != nil {
		return err
	}
	root, err := fs.OpenDir("/")
	if err != nil {
		return err
	}
	return errors.Join(root.Sync(), root.Close())
}

func readFile(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// openDiskJournal opens the state that a disk has, which is that of a snapshot if
// the log begins after it, and removes any other.
func openDiskJournal(f *field, disk vfs.FS, log *wal.Log) (*diskJournal, error) {
	d := &diskJournal{journal: newJournal(), f: f, disk: disk}
	pointer, err := readFile(disk, pointerFile)
	if err != nil {
		return nil, err
	}
	first, err := log.FirstIndex()
	if err != nil {
		return nil, err
	}
	name := string(pointer)
	if _, err := disk.Stat(stateName(first - 1)); err == nil {
		name = stateName(first - 1)
	}
	if err := d.load(name); err != nil {
		return nil, err
	}
	names, err := disk.List("/")
	for _, other := range names {
		if strings.HasPrefix(other, firstState) && other != name {
			err = errors.Join(err, disk.Remove(other))
		}
	}
	return d, errors.Join(err, writeFile(disk, pointerFile, []byte(name)))
}

// load takes the state from a file.
func (d *diskJournal) load(name string) error {
	b, err := readFile(d.disk, name)
	if err != nil {
		return err
	}
	var s stateFile
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.applied, d.term, d.members, d.commands = s.Applied, s.Term, s.Members, s.Commands
	d.durable, d.name = s.Applied, name
	return nil
}

func (d *diskJournal) state() stateFile {
	d.mu.Lock()
	defer d.mu.Unlock()
	return stateFile{d.applied, d.term, d.members, slices.Clone(d.commands)}
}

func (d *diskJournal) length() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.commands)
}

func (d *diskJournal) Apply(entries []machine.Entry) ([]machine.Result, error) {
	results, err := d.journal.Apply(entries)
	d.f.pause(20 * time.Millisecond)
	return results, err
}

// StartFlush writes the state in its own time.
func (d *diskJournal) StartFlush() error {
	s := d.state()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.busy {
		return nil
	}
	d.busy = true
	name := d.name
	d.flushing.Go(func() { // waited for when the member is halted
		d.f.pause(50 * time.Millisecond)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.busy = false
		if d.name != name {
			return // replaced by a snapshot
		}
		if err := s.write(d.disk, name); err != nil {
			d.f.t.Errorf("flush: %v", err)
		}
		d.durable = s.Applied
		select {
		case d.flushed <- struct{}{}:
		default:
		}
	})
	return nil
}

// receive makes the state of a snapshot durable.
func (d *diskJournal) receive(s stateFile) error {
	name := stateName(s.Applied)
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.disk.Stat(name); err == nil || s.Applied <= d.applied {
		return errors.New("too late, or being installed")
	}
	return s.write(d.disk, name)
}

// Install takes the state of a snapshot that receive has kept.
func (d *diskJournal) Install(index, term uint64) error {
	d.f.pause(50 * time.Millisecond)
	d.mu.Lock()
	old := d.name
	d.mu.Unlock()
	if err := d.load(stateName(index)); err != nil {
		return err
	}
	if s := d.state(); s.Applied != index || s.Term != term {
		return fmt.Errorf("the state of entry %d in term %d came as that of %d in %d", s.Applied, s.Term, index, term)
	}
	if err := writeFile(d.disk, pointerFile, []byte(stateName(index))); err != nil {
		return err
	}
	return d.disk.Remove(old)
}
