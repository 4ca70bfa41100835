package sim

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	raftpb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/auth"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/replica"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

// tick is the heartbeat interval of members whose clock is right.
const (
	tick          = 10 * time.Millisecond
	electionTicks = 10
	requestTime   = 2 * time.Second
)

// member is one machine of the cluster: its disk, and the process on it while
// there is one.
type member struct {
	w         *world
	id        uint64
	founding  *replica.Founding
	disk      *Disk
	p         *process // nil while none runs; changed with world.lock held
	promise   promise  // what it has told others
	opening   bool     // somebody has started it
	gone      bool     // removed from the cluster, or its data is lost
	rotten    bool     // a bit of its data has flipped
	logRotten bool     // in its log
	paused    bool
	clock     *clock
	syncTime  time.Duration // what a sync takes at most
	failure   *Failure      // how its disk is broken, until that is mended
}

// process is one run of a member.
type process struct {
	m       *member
	disk    *Disk
	dead    atomic.Bool
	data    *replica.Dir
	replica *replica.Replica
	node    *consensus.Node
	lessor  *lessor.Lessor
	planned [consensus.Turns]bool
	shown   int64          // the newest revision that a read of it was of
	turns   sync.WaitGroup // under way
	trims   atomic.Bool    // one of them trims the log
	besides int            // calls of prepare; of the turn of the log

	mu     sync.Mutex
	counts map[string]int // Guarded by mu. Proposals of the lease clock that are under way, by kinds.

	receiving sync.Mutex // a snapshot
	ctx       context.Context
	cancel    context.CancelFunc
	group     sync.WaitGroup // lead, and transfers of snapshots
}

// alive tells whether the process can still do something that others see.
func (p *process) alive() bool { return !p.dead.Load() && !p.disk.Crashed() }

// serves tells whether clients reach the process.
func (m *member) serves() bool { return m.p != nil && m.p.alive() && !m.paused }

// start opens the member on what its disk holds.
func (m *member) start() {
	if m.p != nil || m.opening || m.gone {
		return
	}
	m.opening = true
	// Two that began at one time would share out random numbers as they come.
	m.w.after(m.w.between(0, 10*time.Millisecond), func() {
		p := &process{m: m, disk: m.disk}
		p.ctx, p.cancel = context.WithCancel(context.Background())
		m.disk.Slow(m.latency)
		if !m.w.calm && m.w.has(startsPart) {
			m.troubleStart()
		}
		m.disk.Break(m.failure)
		m.w.opening.Go(func() { // ends when the member is open
			err := caught(p.open)
			m.w.post(fmt.Sprintf("open %d", m.id), func() { m.opened(p, err) })
		})
	})
}

// troubleStart has some starts end in a crash, or meet a disk that fails.
func (m *member) troubleStart() {
	switch d := m.w.draw(100); {
	case d < 20:
		m.disk.CrashAfter(1 + uint64(m.w.draw(70)))
	case d < 25 && (m.failure == nil || m.disk.Spent(m.failure)):
		m.failure = m.w.onStart()
	}
}

// onStart draws how a disk fails once, with what is written at a start or when a snapshot has come.
func (w *world) onStart() *Failure {
	x := &Failure{Err: syscall.EIO, Suffix: ".json.tmp", Syncs: w.chance(50), After: w.draw(2)}
	switch w.draw(4) {
	case 0:
		x.Suffix, x.After = ".wal.tmp", w.draw(3)
	case 1:
		x.Suffix, x.Syncs, x.Dirs, x.After = []string{"wal", "data"}[w.draw(2)], true, true, w.draw(4)
	}
	if !x.Syncs && w.chance(50) {
		x.Err = syscall.ENOSPC
	}
	return x
}

// prepare has the next segment of the log prepared at a moment at which the last one is just being made of it: a turn that trims the
// log may be as far as that.
func (p *process) prepare(name string) {
	if name != "next.wal.tmp" {
		return
	}
	// It is opened, then renamed: do so before the one for one segment, before the other for the next.
	if p.besides++; (p.besides%4 == 1 || p.besides%4 == 0) && !p.trims.Load() {
		p.data.Log.Prepare()
	}
}

// latency of a sync. It follows from what is synced, so that it does not matter
// which of two goroutines comes first. The engine's take no time: Pebble holds
// locks meanwhile, and a bubble's clock stands still while somebody waits for one.
func (m *member) latency(name string, syncs uint64) time.Duration {
	if !strings.HasSuffix(name, ".wal") {
		return 0
	}
	h := m.w.seed ^ m.id<<32 ^ syncs<<8
	for _, c := range name {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return time.Duration(h%uint64(m.syncTime)) + 20*time.Microsecond
}

// opened takes a process that has been opened into the cluster.
func (m *member) opened(p *process, err error) {
	m.opening = false
	switch {
	case p.disk.Crashed():
		m.w.say("member %d crashed while it started: %v", m.id, err)
		m.w.effects.add("a crash in a start", 1)
		if err == nil {
			p.end()
		}
		m.disk = p.disk.Reboot()
		return
	case errors.Is(err, errRemoved):
		m.w.say("member %d has been removed", m.id)
		m.gone = true
		return
	case err != nil && m.rotten && !strings.HasPrefix(err.Error(), "panic"):
		m.lose(err)
		return
	case err != nil && p.mayEnd(err):
		m.w.say("member %d does not start: %v", m.id, err)
		p.disk.Kill()
		m.disk = p.disk.Reboot()
		return
	case err != nil:
		m.w.fail("member %d does not start: %v", m.id, err)
		return
	case m.logRotten:
		m.w.fail("member %d runs with a damaged log", m.id)
		p.end()
		return
	}
	m.checkPromise(p)
	m.w.say("member %d runs, entry %d applied", m.id, p.replica.Applied())
	m.w.tally.restarts++
	m.w.lock.Lock()
	m.p = p
	m.w.lock.Unlock()
	p.disk.Slow(m.latency)
	p.disk.Beside(p.prepare)
	m.tickLater(p)
}

var errRemoved = errors.New("sim: the member has been removed")

// open is what the root package does at a start.
func (p *process) open() (err error) {
	m := p.m
	fatal := func(err error) {
		p.disk.Tire()
		m.w.post(fmt.Sprintf("fatal %d", m.id), func() { m.ended(p, fmt.Errorf("engine: %w", err)) })
	}
	plan := &m.w.plan
	p.data, err = replica.Open(replica.Options{
		Path: "/data", FS: p.disk, Logger: m.w.logger(m.id),
		Log:    wal.Options{SegmentBytes: plan.SegmentBytes, CacheBytes: plan.CacheBytes, Logger: m.w.logger(m.id), NoSync: m.w.canary == skippedSync},
		Engine: engine.Options{MemTableBytes: 256 << 10, CacheBytes: 4 << 20, OnFatal: fatal, Logger: m.w.logger(m.id)},
	}, func() (*replica.Founding, error) { return m.founding, nil })
	if err != nil {
		return err
	}
	state, err := p.openMachine(p.data.Engine)
	if err != nil {
		return errors.Join(err, p.data.Engine.Close(), p.data.Close())
	}
	p.replica = replica.New(p.data, state, replica.Config{
		Logger: m.w.logger(m.id), Open: p.openMachine, Switched: p.switched, Changed: p.changes,
	})
	err = consensus.CheckLog(p.data.Log, state.Applied())
	if err == nil {
		err = p.data.MakeWritable()
	}
	if err == nil && m.w.canary == forgottenVote {
		err = p.forgetVote()
	}
	if err == nil && state.Members.Removed(m.id) {
		err = errRemoved
	}
	p.lessor = lessor.New(m.w.known(state.Leases), lessor.Options{
		Clock: m.w.hurried(m.clock), Extend: electionTicks * tick, CheckpointInterval: plan.Checkpoints, MaxInFlight: revocations, Logger: m.w.logger(m.id),
	})
	if err == nil {
		cfg := consensus.Config{
			ID: m.id, Log: p.data.Log, Machine: tapped{p.replica, p}, Peers: link{p},
			Tick: tick, ElectionTicks: electionTicks, PreVote: true, RequestTimeout: requestTime,
			FlushEntries: plan.FlushEntries, KeepEntries: plan.KeepEntries, KeepBytes: plan.KeepBytes, Logger: m.w.logger(m.id),
		}
		if state.Applied() > 0 {
			cfg.Voters, cfg.Learners = state.Members.Voters(), state.Members.Learners()
		}
		p.node, err = consensus.New(cfg)
	}
	if err != nil {
		p.lessor.Close()
		return errors.Join(err, p.replica.Close(false), p.data.Close())
	}
	p.group.Go(func() { // until cancel
		if err := caught(func() error { p.lead(); return nil }); err != nil {
			m.w.truth.fail("member %d: %v", m.id, err)
		}
	})
	return nil
}

// progressInterval is how often watchers are told that nothing has happened.
const progressInterval = 200 * time.Millisecond

func (p *process) openMachine(eng *engine.Engine) (*machine.Machine, error) {
	log := p.m.w.logger(p.m.id)
	return machine.Open(machine.Options{
		Engine: eng,
		KV:     mvcc.Options{Logger: log, CompactionBatchLimit: p.m.w.plan.CompactionBatch, CompactionSleep: p.m.w.plan.CompactionSleep},
		Watch: watch.Options{Logger: log, RingEvents: p.m.w.plan.RingEvents, ProgressInterval: progressInterval,
			Jitter: func(n int64) int64 { return n / 2 }, FragmentBytes: 2 << 20},
		Auth:   auth.Options{Logger: log},
		Logger: log,
	})
}

func (p *process) switched(m *machine.Machine) { p.lessor.Reset(p.m.w.known(m.Leases)) }

// lead follows leadership, as the root package does.
func (p *process) lead() {
	var again <-chan time.Time
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.node.Stopping():
			return
		case <-p.node.LeaderMoved():
		case <-again:
		}
		again = nil
		st := p.node.Status()
		if st.IsLeader && p.readIndex(p.ctx) != nil {
			again = time.After(electionTicks * tick)
			continue
		}
		if st.IsLeader {
			p.lessor.Promote(proposer{p, st.Term})
			p.m.w.reigns.begin(p, st.Term)
		} else {
			p.m.w.reigns.end(p)
			p.lessor.Demote()
		}
	}
}

func (p *process) readIndex(ctx context.Context) error {
	if p.node.UpToDate() {
		return nil
	}
	answer := make(chan error, 1)
	p.node.ReadIndex(func(err error) { answer <- err })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// proposer is what the lease clock proposes through.
type proposer struct {
	p    *process
	term uint64
}

func (q proposer) Propose(ctx context.Context, r *pb.InternalRaftRequest) (err error) {
	decided := q.p.m.w.reigns.proposes(q.p, q.term)
	defer func() { decided(err) }()
	switch cs := r.GetLeaseCheckpoint().GetCheckpoints(); {
	case r.LeaseRevoke != nil:
		defer q.p.under("revocations", revocations)()
	case len(cs) > 0 && cs[0].ID == 0: // renewals have them without the clock
		defer q.p.under("records of leases", 1)()
	}
	command, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	answer := make(chan error, 1)
	// Many do so at one time: in the order of what they propose.
	q.p.m.w.post(fmt.Sprintf("lease clock %d %d %x", q.p.m.id, q.term, command), func() {
		q.p.node.ProposeInTerm(q.term, command, func(r machine.Result) { answer <- r.Err })
	})
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (q proposer) Confirm(ctx context.Context) error {
	if err := q.p.readIndex(ctx); err != nil {
		return err
	}
	if !q.leads() {
		return consensus.ErrNotLeader
	}
	return nil
}

func (q proposer) Confirmed() bool { return q.p.node.UpToDate() && q.leads() }

func (q proposer) leads() bool {
	st := q.p.node.Status()
	return st.IsLeader && st.Term == q.term
}

// clock is a member's: it may go too fast or too slow.
type clock struct {
	mu    sync.Mutex
	at    time.Time // Guarded by mu. When speed was set.
	shown time.Time // Guarded by mu. What the clock showed then.
	speed float64   // Guarded by mu.
}

func newClock() *clock { return &clock{at: time.Now(), shown: time.Now(), speed: 1} }

func (c *clock) set(speed float64) {
	shown := c.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.shown, c.speed = time.Now(), shown, speed
}

// Now implements lessor.Clock.
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown.Add(time.Duration(float64(time.Since(c.at)) * c.speed))
}

// lasts is how long a time by this clock is in truth.
func (c *clock) lasts(d time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(float64(d) / c.speed)
}

// After implements lessor.Clock.
func (c *clock) After(d time.Duration) <-chan time.Time { return time.After(c.lasts(d)) }

// link is the network as a process has it.
type link struct{ p *process }

func (l link) Send(ms []*raftpb.Message) {
	if !l.p.alive() {
		return
	}
	w := l.p.m.w
	w.post(fmt.Sprintf("send %d", l.p.m.id), func() { w.net.send(l.p, ms) })
}

// tapped shows the truth what a process applies.
type tapped struct {
	*replica.Replica
	p *process
}

// StartFlush begins a flush after a while.
func (t tapped) StartFlush() error {
	w := t.p.m.w
	w.post(fmt.Sprintf("flush %d", t.p.m.id), func() {
		w.after(w.between(0, 50*time.Millisecond), func() {
			if t.p.alive() {
				if err := t.Replica.StartFlush(); err != nil {
					t.p.m.ended(t.p, err)
				}
			}
		})
	})
	return nil
}

// Flushed is the replica's.
func (t tapped) Flushed() <-chan struct{} {
	if t.p.m.w.canary == uncutLog {
		return nil
	}
	return t.Replica.Flushed()
}

// DurableIndex is the replica's.
func (t tapped) DurableIndex() (uint64, error) {
	if t.p.m.w.canary == earlyCut {
		return t.Applied(), nil
	}
	return t.Replica.DurableIndex()
}

func (t tapped) Apply(entries []machine.Entry) ([]machine.Result, error) {
	for i := range entries {
		entries[i].Unasked = entries[i].Unasked && t.p.m.w.plan.Unasked
	}
	doubled, extra := t.p.m.w.doubled(entries)
	results, err := t.Replica.Apply(t.p.reordered(doubled))
	for _, i := range slices.Backward(extra) {
		results = slices.Delete(results, i, i+1)
	}
	if err == nil && t.p.alive() {
		t.p.m.w.truth.applied(t.p, entries, results)
	}
	return results, err
}

// tickLater has the process hear of the next heartbeat interval by its clock.
func (m *member) tickLater(p *process) {
	m.w.after(m.clock.lasts(tick), func() {
		if m.p != p || !p.alive() {
			return
		}
		if !m.paused {
			p.node.Tick(time.Now())
		}
		m.tickLater(p)
	})
}

// planTurns draws when the turns that have something to do are taken.
func (m *member) planTurns() {
	p := m.p
	if p == nil {
		return
	}
	if p.disk.Crashed() {
		m.crashed()
		return
	}
	if at := p.disk.LogDied(); !at.IsZero() && time.Now().After(at) {
		m.w.fail("member %d goes on after its log could not be written", m.id)
		return
	}
	if m.paused {
		return
	}
	if err := p.node.Err(); err != nil {
		m.ended(p, err)
		return
	}
	for t := range consensus.Turns {
		if p.planned[t] || !p.node.Due(t) {
			continue
		}
		p.planned[t] = true
		m.w.after(m.w.turnDelay(), func() { m.take(p, t) })
	}
}

// turnDelay draws how long it takes until a turn is begun.
func (w *world) turnDelay() time.Duration {
	if w.chance(2) {
		return w.between(0, 5*time.Millisecond)
	}
	return w.between(0, 100*time.Microsecond)
}

// take takes a turn. It may have to wait for the disk; others go on meanwhile.
func (m *member) take(p *process, t consensus.Turn) {
	if m.p != p {
		return
	}
	if m.paused {
		m.w.after(tick, func() { m.take(p, t) })
		return
	}
	p.turns.Go(func() { // ends with the turn
		err := caught(func() error { return p.takeTurn(t) })
		m.w.post(fmt.Sprintf("turn %d %d", m.id, t), func() {
			p.planned[t] = false
			if m.p == p && p.alive() && err != nil {
				m.ended(p, err)
			}
		})
	})
}

// caught makes an error of a panic, so that the world can tell how it came to it.
func caught(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return f()
}

func (p *process) takeTurn(t consensus.Turn) error {
	if t == consensus.TurnTrim {
		p.trims.Store(true)
		defer p.trims.Store(false)
	}
	if err := p.node.Take(t); err != nil || t != consensus.TurnLog && t != consensus.TurnTrim {
		return err
	}
	p.checkCut()
	return nil
}

// checkCut looks whether the log still has what a power failure would leave not applied: all behind the flushed part of the engine,
// or behind a snapshot that is about to replace it.
func (p *process) checkCut() {
	durable, err1 := p.replica.DurableIndex()
	first, err2 := p.data.Log.FirstIndex()
	if err1 != nil || err2 != nil || first <= durable+1 {
		return
	}
	if _, err := p.disk.Stat(filepath.Join("/data", replica.SnapshotDir(first-1))); err != nil {
		w := p.m.w
		w.post(fmt.Sprintf("cut %d", p.m.id), func() {
			w.fail("member %d: its log begins with entry %d, and a power failure would leave entry %d applied", p.m.id, first, durable)
		})
	}
}

// crashed follows a crash that the disk has drawn.
func (m *member) crashed() {
	m.w.say("member %d crashed", m.id)
	m.w.tally.crashes++
	m.drop()
}

// ended follows the end of a process by itself.
func (m *member) ended(p *process, err error) {
	if m.p != p {
		return
	}
	m.w.say("member %d ended: %v", m.id, err)
	if m.rotten && !strings.HasPrefix(err.Error(), "panic") {
		p.disk.Kill()
		m.drop()
		m.lose(err)
		return
	}
	if !p.mayEnd(err) {
		m.w.fail("member %d has stopped: %v", m.id, err)
	}
	p.disk.Kill()
	m.drop()
}

// mayEnd tells whether a process may end with an error: of a disk that has failed.
func (p *process) mayEnd(err error) bool {
	return p.disk.Failed() && (errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC))
}

// kill ends the process; with power, the whole machine.
func (m *member) kill(power bool) {
	if m.p == nil {
		return
	}
	if power {
		m.p.disk.Crash()
		m.crashed()
		return
	}
	m.w.say("member %d killed", m.id)
	m.w.tally.kills++
	m.p.disk.Kill()
	m.drop()
}

// drop lets go of a process that has ended. What of it still runs has a disk and
// a network that nobody sees.
func (m *member) drop() {
	p := m.p
	m.w.lock.Lock()
	m.p = nil
	m.w.lock.Unlock()
	p.dead.Store(true)
	m.w.reigns.end(p)
	m.disk = p.disk.Reboot()
	m.paused = false
	m.w.left(p)
	p.end()
}

// end stops what of a process still runs, in its own time.
func (p *process) end() {
	p.dead.Store(true)
	p.cancel()
	p.m.w.ending.Go(func() {
		p.node.Fail(errors.New("sim: over"))
		p.turns.Wait()
		p.node.End()
		p.lessor.Close()
		p.group.Wait()
		if err := errors.Join(p.replica.Close(false), p.data.Close()); err != nil {
			p.m.w.logger(p.m.id).Debug("close", zap.Error(err))
		}
	})
}
