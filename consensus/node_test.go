package consensus

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal is a machine that remembers the commands it applied. What survives a
// crash is what was there at the last flush.
type journal struct {
	mu       sync.Mutex
	commands []string
	members  []machine.Member
	applied  uint64
	term     uint64
	entries  int // with commands
	durable  uint64
	kept     []string         // commands as of durable
	keptOf   []machine.Member // members as of durable
	flushed  chan struct{}
	broken   error
	offered  *journal // a snapshot that has been received
}

func newJournal() *journal {
	return &journal{applied: 1, term: 1, durable: 1, flushed: make(chan struct{}, 1)}
}

func (j *journal) Apply(entries []machine.Entry) ([]machine.Result, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return nil, j.broken
	}
	var results []machine.Result
	for _, e := range entries {
		if e.Index != j.applied+1 {
			return nil, fmt.Errorf("entry %d after %d", e.Index, j.applied)
		}
		j.applied, j.term = e.Index, e.Term
		if len(e.Commands) > 0 {
			j.entries++
		}
		if e.Change != nil {
			results = append(results, machine.Result{Err: j.change(e.Change)})
		}
		for _, c := range e.Commands {
			j.commands = append(j.commands, string(c))
			results = append(results, machine.Result{Response: wrapperspb.String(fmt.Sprintf("%d:%s", len(j.commands), c))})
		}
	}
	return results, nil
}

func (j *journal) change(c *machine.Change) error {
	i := slices.IndexFunc(j.members, func(m machine.Member) bool { return m.ID == c.Member.ID })
	if i < 0 && c.Kind != machine.AddMember {
		return machine.ErrMemberNotFound
	}
	voters := 0
	for _, m := range j.members {
		if !m.IsLearner {
			voters++
		}
	}
	if c.Kind == machine.RemoveMember && voters == 1 && !j.members[i].IsLearner {
		return machine.ErrLastVoter
	}
	j.members = slices.Clone(j.members)
	switch c.Kind {
	case machine.AddMember:
		j.members = append(j.members, c.Member)
	case machine.PromoteMember:
		j.members[i].IsLearner = false
	case machine.RemoveMember:
		j.members = slices.Delete(j.members, i, i+1)
	}
	return nil
}

func (j *journal) ids(learners bool) (ids []uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, m := range j.members {
		if m.IsLearner == learners {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

func (j *journal) voters() []uint64   { return j.ids(false) }
func (j *journal) learners() []uint64 { return j.ids(true) }

// copy returns the state of this moment, as a snapshot carries it.
func (j *journal) copy() *journal {
	j.mu.Lock()
	defer j.mu.Unlock()
	return &journal{commands: slices.Clone(j.commands), members: j.members, applied: j.applied, term: j.term}
}

// offer keeps a snapshot until Install asks for it.
func (j *journal) offer(state *journal) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.offered = state
}

func (j *journal) Install(index, term uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	o := j.offered
	if o == nil || o.applied != index || o.term != term {
		return fmt.Errorf("no snapshot of entry %d and term %d has been received", index, term)
	}
	j.commands, j.members, j.applied, j.term = o.commands, o.members, index, term
	j.durable, j.kept, j.keptOf, j.offered = index, o.commands, o.members, nil
	return nil
}

func (j *journal) Applied() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.applied
}

func (j *journal) DurableIndex() (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable, nil
}

func (j *journal) Flushed() <-chan struct{} { return j.flushed }

func (j *journal) StartFlush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.durable = j.applied
	j.kept, j.keptOf = slices.Clone(j.commands), j.members
	select {
	case j.flushed <- struct{}{}:
	default:
	}
	return nil
}

// crash returns the machine as the next start finds it.
func (j *journal) crash() *journal {
	n := newJournal()
	n.applied, n.durable = j.durable, j.durable
	n.commands, n.members = slices.Clone(j.kept), j.keptOf
	n.kept, n.keptOf = j.kept, j.keptOf
	return n
}

func (j *journal) list() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.commands...)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func logOptions(fs vfs.FS) wal.Options {
	return wal.Options{Dir: "wal", FS: fs, ClusterID: 1, MemberID: 5, SegmentBytes: 16 << 10}
}

func newLog(t testing.TB, fs vfs.FS) *wal.Log {
	t.Helper()
	must(t, fs.MkdirAll("wal", 0o755))
	root, err := fs.OpenDir("/")
	must(t, err)
	must(t, errors.Join(root.Sync(), root.Close()))
	l, err := wal.Create(logOptions(fs), 1, 1)
	must(t, err)
	return l
}

func config(l *wal.Log, m StateMachine) Config {
	return Config{
		ID: 5, Log: l, Machine: m, Voters: []uint64{5},
		Tick: 10 * time.Millisecond, ElectionTicks: 10, PreVote: true,
		RequestTimeout: 10 * time.Second, FlushEntries: 100, KeepEntries: 10,
		Logger: zap.NewNop(),
	}
}

func start(t testing.TB, cfg Config) *Node {
	t.Helper()
	n, err := Start(cfg)
	must(t, err)
	return n
}

func propose(n *Node, command string) machine.Result {
	answer := make(chan machine.Result, 1)
	n.Propose([]byte(command), func(r machine.Result) { answer <- r })
	return <-answer
}

func readIndex(n *Node) error {
	answer := make(chan error, 1)
	n.ReadIndex(func(err error) { answer <- err })
	return <-answer
}

func text(r machine.Result) string {
	if r.Err != nil {
		return r.Err.Error()
	}
	return r.Response.(*wrapperspb.StringValue).Value
}

func TestCallersGetTheirOwnResults(t *testing.T) {
	m, l := newJournal(), newLog(t, vfs.NewMem())
	n := start(t, config(l, m))
	const callers, each = 50, 40
	var group sync.WaitGroup
	for c := range callers {
		group.Go(func() {
			for i := range each {
				command := fmt.Sprintf("%d/%d", c, i)
				got := text(propose(n, command))
				if _, mine, _ := strings.Cut(got, ":"); mine != command {
					t.Errorf("%s got the result %s", command, got)
				}
			}
		})
	}
	group.Wait()
	must(t, readIndex(n))
	seen := map[string]bool{}
	next := map[string]int{}
	for _, command := range m.list() {
		var c, i int
		fmt.Sscanf(command, "%d/%d", &c, &i)
		if seen[command] || next[fmt.Sprint(c)] != i {
			t.Fatalf("%s was applied twice or out of its caller's order", command)
		}
		seen[command] = true
		next[fmt.Sprint(c)]++
	}
	if len(seen) != callers*each {
		t.Fatalf("%d commands applied, %d proposed", len(seen), callers*each)
	}
	n.Close()
	must(t, l.Close())
}

// While the disk writes one batch, the commands that arrive gather in the next.
func TestCommandsGatherWhileTheDiskWorks(t *testing.T) {
	gate := make(chan struct{})
	var gated atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && gated.Load() {
			<-gate
		}
		return nil
	}))
	m, l := newJournal(), newLog(t, fs)
	n := start(t, config(l, m))
	must(t, readIndex(n))
	gated.Store(true)
	const commands = 1000
	var group sync.WaitGroup
	group.Add(commands)
	for i := range commands {
		n.Propose(fmt.Appendf(nil, "%d", i), func(r machine.Result) {
			must(t, r.Err)
			group.Done()
		})
	}
	gated.Store(false)
	close(gate)
	group.Wait()
	if m.entries > 3 {
		t.Errorf("%d commands that waited for one disk write were spread over %d entries", commands, m.entries)
	}
	n.Close()
	must(t, l.Close())
}

func TestRestartReplaysWhatWasAcknowledged(t *testing.T) {
	fs := vfs.NewCrashableMem()
	m, l := newJournal(), newLog(t, fs)
	var acknowledged []string
	for round := range 6 {
		n := start(t, config(l, m))
		must(t, readIndex(n))
		if got := m.list(); fmt.Sprint(got) != fmt.Sprint(acknowledged) {
			t.Fatalf("round %d: the machine holds %d commands, %d were acknowledged", round, len(got), len(acknowledged))
		}
		for i := range 150 { // more than FlushEntries, so that the log is cut at times
			command := fmt.Sprintf("%d/%d", round, i)
			must(t, propose(n, command).Err)
			acknowledged = append(acknowledged, command)
		}
		if round == 5 { // 900 entries are several segments
			oldest := fs.PathJoin("wal", fmt.Sprintf("%016x.wal", 1))
			eventually(t, "the oldest segment is removed", func() bool { _, err := fs.Stat(oldest); return err != nil })
		}
		fs = fs.CrashClone(vfs.CrashCloneCfg{}) // nothing that was not synced survives
		n.Close()
		must(t, l.Close())
		m = m.crash()
		var err error
		l, err = wal.Open(logOptions(fs))
		must(t, err)
	}
	if first, _ := l.FirstIndex(); first <= 2 {
		t.Errorf("the log still begins with entry %d after %d entries", first, len(acknowledged))
	}
	must(t, l.Close())
}

func TestReadIndexSeesWhatWasAcknowledged(t *testing.T) {
	m, l := newJournal(), newLog(t, vfs.NewMem())
	n := start(t, config(l, m))
	var acknowledged atomic.Int64
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 200 {
				must(t, propose(n, "x").Err)
				acknowledged.Add(1)
			}
		})
		group.Go(func() {
			for range 200 {
				before := int(acknowledged.Load())
				must(t, readIndex(n))
				if got := len(m.list()); got < before {
					t.Errorf("a read saw %d commands after %d were acknowledged", got, before)
				}
			}
		})
	}
	group.Wait()
	n.Close()
	must(t, l.Close())
}

func TestFailedSyncStopsEverything(t *testing.T) {
	var full atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileSyncData {
			return syscall.ENOSPC
		}
		return nil
	}))
	m, l := newJournal(), newLog(t, fs)
	n := start(t, config(l, m))
	must(t, propose(n, "before").Err)
	full.Store(true)
	if r := propose(n, "during"); !errors.Is(r.Err, ErrStopped) {
		t.Fatalf("a proposal that could not be written: %v", r.Err)
	}
	<-n.Stopping()
	if !errors.Is(n.Err(), syscall.ENOSPC) {
		t.Fatalf("the node stopped because of %v", n.Err())
	}
	full.Store(false)
	if r := propose(n, "after"); !errors.Is(r.Err, ErrStopped) {
		t.Fatalf("a proposal to a stopped node: %v", r.Err)
	}
	if err := readIndex(n); !errors.Is(err, ErrStopped) {
		t.Fatalf("a read on a stopped node: %v", err)
	}
	if got := fmt.Sprint(m.list()); got != "[before]" {
		t.Fatalf("applied %s", got)
	}
	n.Close()
	must(t, l.Close())
}

func TestFailedApplyStopsEverything(t *testing.T) {
	m, l := newJournal(), newLog(t, vfs.NewMem())
	n := start(t, config(l, m))
	must(t, propose(n, "before").Err)
	m.mu.Lock()
	m.broken = errors.New("engine is gone")
	m.mu.Unlock()
	if r := propose(n, "x"); !errors.Is(r.Err, ErrStopped) {
		t.Fatalf("a command that could not be applied: %v", r.Err)
	}
	<-n.Stopping()
	if !errors.Is(n.Err(), m.broken) {
		t.Fatalf("the node stopped because of %v", n.Err())
	}
	n.Close()
	must(t, l.Close())
}

// brittle applies when the gate lets it, and breaks on the command "bad".
type brittle struct {
	*journal
	gate chan struct{}
}

func (b brittle) Apply(entries []machine.Entry) ([]machine.Result, error) {
	<-b.gate
	for _, e := range entries {
		for _, c := range e.Commands {
			if string(c) == "bad" {
				return nil, errors.New("engine is gone")
			}
		}
	}
	return b.journal.Apply(entries)
}

// Readers that came to the machine together with the entry that broke it are
// told.
func TestFailedApplyIsToldToReaders(t *testing.T) {
	m, l := brittle{newJournal(), make(chan struct{}, 100)}, newLog(t, vfs.NewMem())
	cfg := config(l, m)
	cfg.Learners = []uint64{6} // the only member has no reads that wait
	n := start(t, cfg)
	m.gate <- struct{}{}
	must(t, readIndex(n))
	queued := func(want int) { // the apply goroutine is at the gate, and so much waits
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); n.Err() == nil; {
			if time.Now().After(deadline) {
				t.Fatalf("%d do not wait to be applied", want)
			}
			n.applies.mu.Lock()
			got := len(n.applies.items)
			n.applies.mu.Unlock()
			n.barriers.mu.Lock()
			got += len(n.barriers.all)
			n.barriers.mu.Unlock()
			if got == want {
				return
			}
			runtime.Gosched()
		}
	}
	answers := make(chan error, 3)
	for i, command := range []string{"good", "bad"} {
		n.Propose([]byte(command), func(r machine.Result) { answers <- r.Err })
		for n.Status().Commit < uint64(3+i) {
			runtime.Gosched()
		}
		queued(i)
	}
	n.ReadIndex(func(err error) { answers <- err })
	queued(2)
	m.gate <- struct{}{}
	must(t, <-answers)
	m.gate <- struct{}{}
	for range 2 {
		if err := <-answers; !errors.Is(err, ErrStopped) {
			t.Fatalf("got %v", err)
		}
	}
	n.Close()
	must(t, l.Close())
}

// Callers of an entry that this binary cannot read are told.
func TestUnreadableEntryIsToldToCallers(t *testing.T) {
	m, l := newJournal(), newLog(t, vfs.NewMem())
	n := start(t, config(l, m))
	must(t, readIndex(n))
	future := appendBatchHeader(nil, 1, 2)
	future[0]++
	answer := make(chan error, 1)
	n.applies.put(applyWork{apply: apply{
		message: &pb.Message{Entries: []*pb.Entry{{Data: future}}},
		callers: []results{{callers: []proposal{{done: func(r machine.Result) { answer <- r.Err }}}}},
	}})
	if err := <-answer; !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
	<-n.Stopping()
	n.Close()
	must(t, l.Close())
}

// Raft panics when the log cannot be read, which must stop the member alone, not
// the process.
func TestUnreadableLogStopsTheMember(t *testing.T) {
	var broken atomic.Bool
	fs := vfs.NewMem()
	m, l := newJournal(), newLog(t, fs)
	cfg := config(l, m)
	cfg.FlushEntries = 1 << 20
	n := start(t, cfg)
	for range 200 {
		must(t, propose(n, fmt.Sprintf("%0200d", 0)).Err)
	}
	n.Close()
	must(t, l.Close())
	o := logOptions(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind == errorfs.OpFileReadAt {
			return syscall.EIO
		}
		return nil
	})))
	o.CacheBytes = 1 << 10
	for _, unreadable := range []bool{true, false} {
		broken.Store(false)
		l, err := wal.Open(o)
		must(t, err)
		broken.Store(unreadable) // when entries are read to be applied
		again := m.crash()
		n, err := Start(config(l, again))
		if err == nil {
			if err = readIndex(n); err != nil {
				<-n.Stopping()
				err = n.Err()
			}
			n.Close()
		}
		if broken.Load() {
			if !errors.Is(err, syscall.EIO) {
				t.Fatalf("got %v", err)
			}
		} else if must(t, err); len(again.list()) != 200 {
			t.Fatalf("%d commands were replayed", len(again.list()))
		}
		must(t, l.Close())
	}
}

// A disk that hangs must not make callers wait for ever, and their number is
// bounded.
func TestHangingDiskTimesOutAndBoundsTheQueue(t *testing.T) {
	gate := make(chan struct{})
	var hang atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && hang.Load() {
			<-gate
		}
		return nil
	}))
	m, l := newJournal(), newLog(t, fs)
	cfg := config(l, m)
	cfg.RequestTimeout = 100 * time.Millisecond
	n := start(t, cfg)
	must(t, readIndex(n))
	hang.Store(true)
	if r := propose(n, "stuck"); !errors.Is(r.Err, ErrTimeout) {
		t.Fatalf("a proposal on a disk that hangs: %v", r.Err)
	}
	if r := propose(n, "behind it"); !errors.Is(r.Err, ErrTimeout) {
		t.Fatalf("a proposal behind it: %v", r.Err)
	}
	big := make([]byte, maxWaitingBytes/2)
	answers := make(chan error, 3)
	for range 3 {
		n.Propose(big, func(r machine.Result) { answers <- r.Err })
	}
	if err := <-answers; !errors.Is(err, ErrTooManyRequests) {
		t.Fatalf("the third half of the queue's bytes: %v", err)
	}
	for range 2 {
		if err := <-answers; !errors.Is(err, ErrTimeout) {
			t.Fatalf("the first halves: %v", err)
		}
	}
	hang.Store(false)
	close(gate)
	must(t, propose(n, "later").Err)
	if got := n.FailedProposals(); got != 4 {
		t.Errorf("%d failed proposals were counted, not 4", got)
	}
	// What timed out was promised nothing: here it had reached the log.
	if got := m.list(); got[0] != "stuck" || got[len(got)-1] != "later" {
		t.Fatalf("applied %.100s", fmt.Sprint(got))
	}
	n.Close()
	must(t, l.Close())
}

func TestCloseAnswersThoseWhoWait(t *testing.T) {
	m, l := newJournal(), newLog(t, vfs.NewMem())
	n := start(t, config(l, m))
	const callers = 500
	answers := make(chan error, 2*callers)
	var group sync.WaitGroup
	for range callers {
		group.Go(func() {
			n.Propose([]byte("x"), func(r machine.Result) { answers <- r.Err })
			n.ReadIndex(func(err error) { answers <- err })
		})
	}
	n.Close()
	group.Wait()
	for range 2 * callers {
		if err := <-answers; err != nil && !errors.Is(err, ErrStopped) {
			t.Fatalf("got %v", err)
		}
	}
	must(t, n.Err())
	must(t, l.Close())
}

func TestLogAndMachineMustBelongTogether(t *testing.T) {
	for _, c := range []struct {
		applied uint64
		want    string
	}{
		{applied: 9, want: "the log has lost entries"},
		{applied: 0, want: "not of the same time"},
	} {
		m, l := newJournal(), newLog(t, vfs.NewMem())
		m.applied = c.applied
		if _, err := Start(config(l, m)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("machine at %d, log at 1: %v", c.applied, err)
		}
		must(t, l.Close())
	}
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add(appendCommand(appendCommand(appendBatchHeader(nil, 1, 2), []byte("one")), nil))
	f.Add([]byte{batchVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		commands, err := decodeBatch(b)
		if err != nil {
			return
		}
		proposer, sequence := batchOrigin(b)
		again := appendBatchHeader(nil, proposer, sequence)
		for _, c := range commands {
			again = appendCommand(again, c)
		}
		if second, err := decodeBatch(again); err != nil || len(second) != len(commands) {
			t.Fatalf("%d commands became %d: %v", len(commands), len(second), err)
		}
	})
}

// The only member knows without asking what was acknowledged; it does not while it
// replays its log, nor from when on another one is there.
func TestOnlyMemberIsUpToDate(t *testing.T) {
	fs := vfs.NewMem()
	m, l := newJournal(), newLog(t, fs)
	cfg := config(l, m)
	cfg.FlushEntries = 1 << 20
	n := start(t, cfg)
	for range 20 {
		must(t, propose(n, "x").Err)
	}
	eventually(t, "the member to know that it is alone", n.UpToDate)
	done := false
	if n.ReadIndex(func(err error) { done = err == nil }); !done {
		t.Error("a read waited for itself")
	}
	n.Close()
	if n.UpToDate() {
		t.Error("up to date after Close")
	}
	must(t, l.Close())

	l, err := wal.Open(logOptions(fs))
	must(t, err)
	slow := &slowStart{journal: m.crash(), begin: make(chan struct{})}
	n = start(t, config(l, slow))
	defer func() {
		n.Close()
		must(t, l.Close())
	}()
	eventually(t, "the member to lead", func() bool { return n.Status().IsLeader })
	if n.UpToDate() {
		t.Error("up to date before the log is applied")
	}
	close(slow.begin)
	must(t, readIndex(n))
	eventually(t, "the member to know that it is alone", n.UpToDate)
	if got := len(slow.list()); got != 20 {
		t.Errorf("up to date with %d of 20 commands", got)
	}
	must(t, change(n, machine.Change{Kind: machine.AddMember, Member: machine.Member{ID: 2, IsLearner: true}}))
	eventually(t, "the member to know of another", func() bool { return !n.UpToDate() })
}

// slowStart is a machine that applies nothing before it is let go.
type slowStart struct {
	*journal
	begin chan struct{}
}

func (s *slowStart) Apply(entries []machine.Entry) ([]machine.Result, error) {
	<-s.begin
	return s.journal.Apply(entries)
}

// noFlush is a machine that cannot begin a flush.
type noFlush struct{ *journal }

func (noFlush) StartFlush() error { return errors.New("no flush") }

// Who was answered before the member failed is not answered again.
func TestAnsweredOnceWhenAFlushFails(t *testing.T) {
	cfg := config(newLog(t, vfs.NewMem()), noFlush{newJournal()})
	cfg.FlushEntries = 2 // the leader's first entry, and one command
	n := start(t, cfg)
	var answers atomic.Int64
	n.Propose([]byte("x"), func(machine.Result) { answers.Add(1) })
	<-n.Stopping()
	n.Close()
	if n.Err() == nil || answers.Load() != 1 {
		t.Errorf("%d answers, and the failure is %v", answers.Load(), n.Err())
	}
}
