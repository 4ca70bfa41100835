package consensus

import (
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
)

// oneOfThree returns the core of member 5 beside 1 and 2, which misses a leader after so many ticks.
func oneOfThree(t *testing.T, timeout uint64) *bench {
	l := newLog(t, vfs.NewMem())
	t.Cleanup(func() { must(t, l.Close()) })
	conf := &pb.ConfState{Voters: []uint64{1, 2, 5}}
	l.SetConfState(conf)
	rn, err := newRaft(&Config{ID: 5, ElectionTicks: 1000, Logger: zap.NewNop()}, &storage{Log: l}, 1)
	must(t, err)
	return &bench{t: t, log: l, core: &core{id: 5, raft: rn, logger: zap.NewNop(), proposer: 1, batchMax: 1000, retryRead: time.Second,
		termOf: l.Term, applied: 1, conf: conf, presence: presence{timeout: timeout}}}
}

// leaderOfThree returns the core of member 5, which leads 1 and 2 and has an entry
// of its term committed.
func leaderOfThree(t *testing.T) *bench {
	b := oneOfThree(t, 1000)
	must(t, b.raft.Campaign())
	b.settle()
	term := b.raft.BasicStatus().GetTerm()
	b.step(&pb.Message{Type: pb.MsgVoteResp.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: &term})
	b.settle()
	last, err := b.log.LastIndex()
	must(t, err)
	b.step(&pb.Message{Type: pb.MsgAppResp.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: &term, Index: &last})
	b.settle()
	if !b.commitIsKnown() {
		t.Fatalf("no leader with an entry of its term: %+v", b.raft.BasicStatus())
	}
	return b
}

// settle does what the core wants of the log, until it wants nothing more.
func (b *bench) settle() (sent []*pb.Message) {
	for b.hasReady() {
		b.answer(b.work())
		sent = append(sent, b.out.peers...)
		for _, barrier := range b.out.barriers {
			for _, r := range barrier.readers {
				r.done(nil)
			}
		}
	}
	return sent
}

// read starts a round for one reader. It returns the answer of each of the others
// to the heartbeat that asks for it, and whether the reader has been let go.
func (b *bench) read(now time.Time) (from1, from2 *pb.Message, confirmed *bool) {
	confirmed = new(bool)
	b.readers = append(b.readers, read{deadline: now.Add(time.Hour), done: func(err error) { *confirmed = err == nil }})
	b.requestRead(now)
	answers := map[uint64]*pb.Message{}
	for _, m := range b.settle() {
		if m.GetType() == pb.MsgHeartbeat {
			answers[m.GetTo()] = &pb.Message{Type: pb.MsgHeartbeatResp.Enum(), From: m.To, To: m.From, Term: m.Term, Context: m.Context}
		}
	}
	if answers[1] == nil || answers[2] == nil {
		b.t.Fatal("the others are not asked")
	}
	return answers[1], answers[2], confirmed
}

// A leader is asked for a read, and is stopped before the answers of the others to
// its heartbeats come in. They elect another leader, which commits more. Then the
// old one goes on: it is asked for a second read, its time to ask for the first one
// again is over, and now the late answers come in, one by one and twice. They are of
// before the election, and say nothing of the second read.
func TestLateAnswersConfirmNoLaterRead(t *testing.T) {
	b := leaderOfThree(t)
	now := time.Now()
	late1, late2, first := b.read(now)
	_, answer2, second := b.read(now)
	b.step(late1)
	b.tick(now.Add(2 * b.retryRead)) // before the core has told that the first is confirmed
	b.requestRead(now)
	b.step(late2)
	b.settle()
	if !*first {
		t.Error("the first read was asked for before the election, and answered by a majority; it is not confirmed")
	}
	for range 3 {
		b.step(late1)
		b.step(late2)
		b.settle()
		b.tick(now.Add(4 * b.retryRead))
		b.settle()
	}
	if *second {
		t.Error("a read is confirmed by answers that were sent before it came")
	}
	b.step(answer2)
	b.settle()
	if !*second {
		t.Error("the read is not confirmed by its own answers")
	}
}

// A batch of a follower overtakes another on its way to the leader, which does not take it then. Nobody tells of that: the follower sends
// both again when the first has not come back for long, and ever more seldom.
func TestWhatTheLeaderDoesNotTakeIsSentAgain(t *testing.T) {
	const timeout = 10
	b := oneOfThree(t, timeout)
	b.step(&pb.Message{Type: pb.MsgHeartbeat.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: new(uint64(2))})
	b.settle()
	sent := func() (numbers []uint64) {
		for _, m := range b.outbox {
			if m.GetType() == pb.MsgProp {
				numbers = append(numbers, m.GetIndex())
			}
		}
		b.outbox = nil
		return numbers
	}
	for range 3 {
		b.proposals = append(b.proposals, proposal{command: []byte("x"), deadline: time.Now().Add(time.Hour), done: func(machine.Result) {}})
		b.propose()
	}
	all := []uint64{1, 2, 3}
	if got := sent(); !slices.Equal(got, all) {
		t.Fatalf("sent %v", got)
	}
	leader := leaderOfThree(t)
	for _, number := range []uint64{1, 3, 2, 3} { // as they come, the third twice
		batch := b.inflight[number-1]
		leader.step(&pb.Message{Type: pb.MsgProp.Enum(), From: new(uint64(1)), To: new(uint64(5)),
			Term: new(leader.raft.BasicStatus().GetTerm()), Index: &number, Entries: []*pb.Entry{batch.entry}})
		if number == 2 && len(leader.adopted) != 2 {
			t.Errorf("the leader has taken %d batches, want the first two", len(leader.adopted))
		}
	}
	if len(leader.adopted) != 3 {
		t.Errorf("the leader has taken %d batches in the end", len(leader.adopted))
	}
	for round, after := range []int{timeout, 2 * timeout, 4 * timeout} {
		for tick := 1; tick <= after; tick++ {
			b.tick(time.Now())
			if got := sent(); tick < after && len(got) > 0 || tick == after && !slices.Equal(got, all) {
				t.Fatalf("round %d, tick %d: sent %v", round, tick, got)
			}
		}
	}
	b.inflight = b.inflight[1:] // the first is applied
	for range timeout - 1 {
		b.tick(time.Now())
	}
	if got := sent(); len(got) > 0 {
		t.Errorf("sent %v though one has come back", got)
	}
	if b.tick(time.Now()); !slices.Equal(sent(), all[1:]) {
		t.Error("not sent again")
	}
}
