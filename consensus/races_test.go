package consensus

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

// What comes while something else is under way.

// slowJournal has applied, and flushed, what it is given, but says so only when
// it is let go.
type slowJournal struct {
	*journal
	applied, leave chan struct{}
}

func newSlowJournal() *slowJournal {
	return &slowJournal{newJournal(), make(chan struct{}), make(chan struct{})}
}

func (j *slowJournal) Apply(entries []machine.Entry) ([]machine.Result, error) {
	results, err := j.journal.Apply(entries)
	if err == nil {
		err = j.StartFlush()
	}
	j.applied <- struct{}{}
	<-j.leave
	return results, err
}

// follower5 starts member 5 of three, which hears of member 1 alone.
func follower5(t *testing.T, l *wal.Log, m StateMachine) *Node {
	cfg := config(l, m)
	cfg.Voters, cfg.KeepEntries, cfg.ElectionTicks = []uint64{1, 2, 5}, 0, 1000
	return start(t, cfg)
}

// fromLeader sends entries in term 2 that follow one of the term before.
func fromLeader(n *Node, prev, prevTerm, commit uint64, entries ...*pb.Entry) {
	n.Receive(&pb.Message{Type: pb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: new(uint64(2)),
		Index: &prev, LogTerm: &prevTerm, Commit: &commit, Entries: entries})
}

func entriesOfTerm2(from, to uint64) (es []*pb.Entry) {
	for i := from; i <= to; i++ {
		es = append(es, &pb.Entry{Index: new(i), Term: new(uint64(2))})
	}
	return es
}

// A learner is added, and promoted by an entry that comes in a snapshot only:
// when the first is found to be applied, raft already has both.
func TestChangeAppliedWhileALaterSnapshotComes(t *testing.T) {
	l, m := newLog(t, vfs.NewMem()), newSlowJournal()
	n := follower5(t, l, m)
	data, err := encodeChange(&machine.Change{Kind: machine.AddMember, Member: machine.Member{ID: 7, IsLearner: true}}, 1, 1)
	must(t, err)
	fromLeader(n, 1, 1, 2, &pb.Entry{Index: new(uint64(2)), Term: new(uint64(2)), Type: pb.EntryConfChange.Enum(), Data: data})
	<-m.applied
	voters := []uint64{1, 2, 5, 7}
	m.offer(&journal{applied: 9, term: 2})
	taken, err := n.ReceiveSnapshot(t.Context(), &pb.Message{
		Type: pb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: new(uint64(2)),
		Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(uint64(9)), Term: new(uint64(2)), ConfState: &pb.ConfState{Voters: voters}}},
	})
	if err != nil || !taken {
		t.Fatalf("taken %v, %v", taken, err)
	}
	m.leave <- struct{}{}
	eventually(t, "the snapshot to be installed", func() bool { return n.Status().Applied == 9 })
	var known, told []uint64
	must(t, n.call(t.Context(), func(c *core) {
		known, told = slices.Sorted(maps.Keys(c.raft.Status().Config.Voters.IDs())), c.conf.GetVoters()
	}))
	if !slices.Equal(known, voters) || !slices.Equal(told, voters) {
		t.Errorf("raft counts the votes of %d, snapshots name %d, want %d", known, told, voters)
	}
	n.Close()
	must(t, l.Close())
}

// Before it stands for election, raft looks for changes of the membership in
// what it does not know to be applied. The machine may have it on disk already.
func TestLogIsNotCutBeyondWhatRaftKnowsToBeApplied(t *testing.T) {
	l, m := newLog(t, vfs.NewMem()), newSlowJournal()
	n := follower5(t, l, m)
	fromLeader(n, 1, 1, 30, entriesOfTerm2(2, 30)...)
	<-m.applied
	eventually(t, "the flush to be noted", func() bool { return n.cutTo.Load() == 30 })
	for last := uint64(31); last <= 32; last++ { // the log is cut between two writes at the latest
		fromLeader(n, last-1, 2, 30, entriesOfTerm2(last, last)...)
		eventually(t, "a write", func() bool { written, _ := l.LastIndex(); return written == last })
	}
	if first, _ := l.FirstIndex(); first > 2 {
		t.Errorf("the log begins with entry %d; raft was told of none applied", first)
	} else {
		must(t, n.call(t.Context(), func(c *core) { must(t, c.raft.Campaign()) }))
	}
	m.leave <- struct{}{}
	n.Close()
	must(t, l.Close())
}

// A crash must not make a member forget that a change which it has acknowledged is
// committed: it could need the vote of one who has gone for good.
func TestCommitOfAnAcknowledgedChangeIsOnDisk(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := newLog(t, fs)
	n := start(t, config(l, newJournal()))
	must(t, change(n, machine.Change{Kind: machine.AddMember, Member: machine.Member{ID: 7, IsLearner: true}}))
	left, err := wal.Open(logOptions(fs.CrashClone(vfs.CrashCloneCfg{})))
	must(t, err)
	hs, _, err := left.InitialState()
	must(t, err)
	if last, _ := left.LastIndex(); hs.GetCommit() != last {
		t.Errorf("entry %d is committed, the change is entry %d", hs.GetCommit(), last)
	}
	must(t, left.Close())
	n.Close()
	must(t, l.Close())
}

// asked passes on the read indexes that a member asks for.
type asked chan *pb.Message

func (a asked) Send(ms []*pb.Message) {
	for _, m := range ms {
		if m.GetType() == pb.MsgReadIndex {
			select {
			case a <- m:
			default:
			}
		}
	}
}

// The leader has told what a reader must wait for, and then it is not heard of
// any more.
func TestReadThatWaitsForEntriesTimesOut(t *testing.T) {
	l, asks := newLog(t, vfs.NewMem()), make(asked, 1)
	cfg := config(l, newJournal())
	cfg.Voters, cfg.ElectionTicks, cfg.RequestTimeout, cfg.Peers = []uint64{1, 2, 5}, 1000, 100*time.Millisecond, asks
	n := start(t, cfg)
	fromLeader(n, 1, 1, 1)
	answer := make(chan error, 1)
	n.ReadIndex(func(err error) { answer <- err })
	ask := <-asks
	n.Receive(&pb.Message{Type: pb.MsgReadIndexResp.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: new(uint64(2)),
		Index: new(uint64(40)), Entries: ask.Entries})
	select {
	case err := <-answer:
		if !errors.Is(err, ErrTimeout) {
			t.Errorf("answered with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("not answered")
	}
	n.Close()
	must(t, l.Close())
}

// sent passes on the batches that a member sends to its leader.
type sent chan *pb.Message

func (s sent) Send(ms []*pb.Message) {
	for _, m := range ms {
		if m.GetType() == pb.MsgProp {
			s <- m
		}
	}
}

// A member that lags hears nothing of what it has the leader append. When a
// snapshot has brought it the outcome, it goes on.
func TestMemberWritesAfterASnapshotHasBroughtWhatItWrote(t *testing.T) {
	l, m, batches := newLog(t, vfs.NewMem()), newJournal(), make(sent, 10*maxUnanswered)
	cfg := config(l, m)
	cfg.Voters, cfg.Tick, cfg.ElectionTicks, cfg.RequestTimeout, cfg.Peers = []uint64{1, 2, 5}, time.Millisecond, 10_000, 3*time.Millisecond, batches
	n := start(t, cfg)
	fromLeader(n, 1, 1, 1)
	for i := 0; len(batches) < maxUnanswered && i < 10*maxUnanswered; i++ {
		if r := propose(n, "x"); !errors.Is(r.Err, ErrTimeout) {
			t.Fatalf("answered with %v", r.Err)
		}
	}
	m.offer(&journal{applied: 99, term: 2})
	taken, err := n.ReceiveSnapshot(t.Context(), &pb.Message{
		Type: pb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: new(uint64(2)),
		Snapshot: &pb.Snapshot{Metadata: &pb.SnapshotMetadata{Index: new(uint64(99)), Term: new(uint64(2)), ConfState: &pb.ConfState{Voters: cfg.Voters}}},
	})
	if err != nil || !taken {
		t.Fatalf("taken %v, %v", taken, err)
	}
	before := len(batches)
	for i := 0; len(batches) == before && i < 100; i++ {
		propose(n, "y")
	}
	if len(batches) == before {
		t.Errorf("nothing is sent to the leader after %d batches that a snapshot has brought", before)
	}
	n.Close()
	must(t, l.Close())
}

// A disk that hangs keeps a failed node from ending. Who brings messages must
// not have to wait for it.
func TestReceiveReturnsWhenANodeHasFailed(t *testing.T) {
	hang := make(chan struct{})
	syncing := make(chan struct{}, 100)
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			syncing <- struct{}{}
			<-hang
		}
		return nil
	}))
	l := newLog(t, fs)
	n := follower5(t, l, newJournal())
	fromLeader(n, 1, 1, 1, entriesOfTerm2(2, 2)...)
	<-syncing
	n.Fail(ErrStopped)
	returned := make(chan struct{})
	go func() { // ends when the node takes nothing, or has ended
		large := &pb.Entry{Index: new(uint64(3)), Term: new(uint64(2)), Data: make([]byte, maxInbound)}
		for range 3 {
			fromLeader(n, 2, 2, 1, large)
		}
		close(returned)
	}()
	select {
	case <-returned:
	case <-time.After(5 * time.Second):
		t.Error("waits for room that nobody makes")
	}
	close(hang)
	<-returned
	n.Close()
	must(t, l.Close())
}

// bench is a core whose log and machine are the test's to perform.
type bench struct {
	*core
	t   *testing.T
	log *wal.Log
	out output // of the last ready
}

// loneVoter returns the core of the only voter of a cluster with a learner. Its
// log ends with an entry that was committed, though a crash has left no word of
// that, and the next thing that it learns makes it the leader.
func loneVoter(t *testing.T) (b *bench, elect func()) {
	l := newLog(t, vfs.NewMem())
	t.Cleanup(func() { must(t, l.Close()) })
	must(t, l.Append(nil, []*pb.Entry{{Index: new(uint64(2)), Term: new(uint64(1))}}))
	conf := &pb.ConfState{Voters: []uint64{5}, Learners: []uint64{6}}
	l.SetConfState(conf)
	rn, err := newRaft(&Config{ID: 5, ElectionTicks: 10, Logger: zap.NewNop()}, &storage{Log: l}, 1)
	must(t, err)
	b = &bench{t: t, log: l, core: &core{id: 5, raft: rn, logger: zap.NewNop(), proposer: 1, batchMax: 1000, retryRead: time.Second,
		termOf: l.Term, applied: 1, conf: conf, presence: presence{timeout: 10}}}
	must(t, b.raft.Campaign())
	vote := b.work()
	return b, func() { b.answer(vote) }
}

// work does what the core wants of the log, and returns what is to be said of it.
func (b *bench) work() (answers []*pb.Message) {
	b.out = b.ready()
	for _, m := range b.out.appends {
		must(b.t, b.log.Append(&pb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}, m.Entries))
		answers = append(answers, m.Responses...)
	}
	return answers
}

func (b *bench) answer(answers []*pb.Message) {
	for _, m := range answers {
		b.step(m)
	}
}

func TestChangeProposedAtTheMomentOfElectionWaits(t *testing.T) {
	b, elect := loneVoter(t)
	b.proposals = []proposal{{change: &machine.Change{Kind: machine.PromoteMember, Member: machine.Member{ID: 6}}, deadline: time.Now().Add(time.Hour)}}
	elect()
	b.propose()
	b.work()
	if len(b.proposals) != 1 {
		t.Errorf("the change was proposed when raft takes none, as %v", b.out.appends)
	}
}

func TestLoneLeaderTellsNobodyACommitIndexThatItDoesNotKnow(t *testing.T) {
	b, elect := loneVoter(t)
	ask := func() {
		b.step(&pb.Message{Type: pb.MsgReadIndex.Enum(), From: new(uint64(6)), To: new(uint64(5)), Entries: []*pb.Entry{{Data: make([]byte, 16)}}})
		b.requestRead(time.Now())
	}
	told := func() (index uint64) {
		for _, m := range b.out.peers {
			if m.GetType() == pb.MsgReadIndexResp {
				index = m.GetIndex()
			}
		}
		return index
	}
	elect()
	ask()
	first := b.work()
	if at := told(); at != 0 {
		t.Errorf("told that %d is committed; 2 was", at)
	}
	ask()
	b.answer(first)
	b.work()
	if at := told(); at != 0 {
		t.Errorf("told that %d is committed; 2 was", at)
	}
	ask()
	b.work()
	if at := told(); at != 3 {
		t.Errorf("told that %d is committed, want 3, the first entry of the leader", at)
	}
	if b.state != raft.StateLeader {
		t.Fatalf("not the leader but %v", b.state)
	}
}

// A member whose log was brought back from an older copy hears of its leader, who knows it to have had more: that ends the member, not
// the program. And what no member sends does neither.
func TestLeaderKnowsMoreThanTheLog(t *testing.T) {
	l := newLog(t, vfs.NewMem())
	n := follower5(t, l, newJournal())
	from := func(kind pb.MessageType) *pb.Message {
		return &pb.Message{Type: kind.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: new(uint64(2))}
	}
	short := from(pb.MsgHeartbeatResp)
	short.Context = []byte("short")
	n.Receive(short)
	must(t, n.call(t.Context(), func(*core) {}))
	beat := from(pb.MsgHeartbeat)
	beat.Commit = new(uint64(40))
	n.Receive(beat)
	select {
	case <-n.Stopping():
		if err := n.Err(); err == nil || !strings.Contains(err.Error(), "tocommit(40)") {
			t.Errorf("it ends with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it goes on")
	}
	n.Close()
	must(t, l.Close())
}

// To be run with -race: whoever asks gives up while the core is about to answer.
func TestProgressThatIsGivenUp(t *testing.T) {
	l := newLog(t, vfs.NewMem())
	n := start(t, config(l, newJournal()))
	must(t, propose(n, "x").Err)
	sum := 0
	for range 2000 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		all, err := n.Progress(ctx)
		if err != nil {
			sum += len(all)
		}
	}
	t.Logf("%d members told of together with an error", sum)
	n.Close()
	must(t, l.Close())
}

// A node fails while an append hangs in the disk. Whoever proposes, or asks for a read, at that moment must be answered.
func TestAllAreAnsweredWhenANodeFailsWhoseDiskHangs(t *testing.T) {
	lost := 0
	for round := 0; round < 20 && lost == 0; round++ {
		var hangs atomic.Bool
		hang := make(chan struct{})
		syncing := make(chan struct{}, 100)
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSyncData && hangs.Load() {
				select {
				case syncing <- struct{}{}:
				default:
				}
				<-hang
			}
			return nil
		}))
		l := newLog(t, fs)
		n := start(t, config(l, newJournal()))
		must(t, propose(n, "before").Err)
		hangs.Store(true)
		n.Propose([]byte("hangs"), func(machine.Result) {})
		<-syncing
		var asked, answered atomic.Int64
		var clients sync.WaitGroup
		for range 16 {
			clients.Go(func() {
				for i := 0; i < 20000; i++ {
					asked.Add(1)
					n.Propose([]byte("x"), func(machine.Result) { answered.Add(1) })
					if n.Err() != nil {
						return
					}
					if i%64 == 0 {
						runtime.Gosched()
					}
				}
			})
		}
		time.Sleep(time.Millisecond)
		n.Fail(errors.New("broken"))
		clients.Wait()
		for until := time.Now().Add(2 * time.Second); answered.Load() < asked.Load() && time.Now().Before(until); {
			time.Sleep(time.Millisecond)
		}
		if lost = int(asked.Load() - answered.Load()); lost > 0 {
			t.Errorf("round %d: %d of %d proposals are not answered two seconds after the failure", round, lost, asked.Load())
		}
		close(hang)
		n.Close()
		must(t, l.Close())
	}
}
