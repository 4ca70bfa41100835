package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/replica"
)

const clusterID = 0xc0

// plan is what a seed draws before a run begins.
type plan struct {
	Members, Clients, Watchers int
	Keys, ValueBytes           int
	Think                      time.Duration
	Faults                     time.Duration // how long everything goes wrong
	Pace                       time.Duration // between two faults

	SegmentBytes    int64
	CacheBytes      int
	FlushEntries    uint64
	KeepEntries     uint64
	KeepBytes       int64
	RingEvents      int
	CompactionBatch int
	CompactionSleep time.Duration
	Checkpoints     time.Duration // of leases

	Loss, Double int // percent
	Ordered      bool
	Late         bool          // now and then a message comes when its sender may long be something else
	Slowest      time.Duration // of messages
	SyncTime     time.Duration

	Changes bool // of the membership
	Unasked bool // members make no responses that nobody waits for

	Verbose, Trace bool
}

func (w *world) drawPlan() plan {
	d := drawsOf(w.seed, "plan")
	one := func(choices ...int) int { return choices[d.draw(len(choices))] }
	p := plan{
		Members: one(1, 3, 3, 3, 5, 5), Clients: one(3, 5, 8), Watchers: one(2, 4), Keys: one(3, 12, 40), ValueBytes: one(100, 5000),
		Think: time.Duration(one(1, 5, 20)) * time.Millisecond, Faults: time.Duration(one(6, 10)) * time.Second, Pace: time.Duration(one(100, 300, 600)) * time.Millisecond,
		SegmentBytes: int64(one(16<<10, 64<<10, 256<<10)), CacheBytes: one(1, 4<<10, 1<<20),
		FlushEntries: uint64(one(5, 40, 300)), KeepEntries: uint64(one(0, 10, 100)), KeepBytes: int64(one(4<<10, 64<<10)),
		RingEvents: one(1, 16, 4096), CompactionBatch: one(1, 10, 1000), CompactionSleep: time.Duration(one(0, 5)) * time.Millisecond,
		Checkpoints: time.Duration(one(200, 1000, 60000)) * time.Millisecond,
		Loss:        one(0, 0, 1, 5), Double: one(0, 0, 2), Ordered: one(0, 1) == 1, Late: one(0, 0, 1) == 1, Slowest: time.Duration(one(1, 5, 30)) * time.Millisecond,
		SyncTime: time.Duration(one(200, 1000, 4000)) * time.Microsecond,
		Changes:  one(0, 1) == 1, Unasked: one(0, 1) == 1,
	}
	if w.until > 0 {
		p.Faults = min(p.Faults, w.until)
	}
	if !w.has(lossPart) {
		p.Loss = 0
	}
	if !w.has(doublingPart) {
		p.Double = 0
	}
	p.Ordered = p.Ordered || !w.has(disorderPart)
	p.Late = p.Late && !p.Ordered
	return p
}

// found makes the members that a cluster begins with.
func (w *world) found() {
	var list []machine.Member
	for i := range w.plan.Members {
		list = append(list, machine.Member{ID: uint64(i + 1), PeerURLs: []string{fmt.Sprintf("http://m%d", i+1)}})
	}
	for _, m := range list {
		w.members[m.ID] = &member{
			w: w, id: m.ID, disk: w.newDisk(m.ID), clock: newClock(), syncTime: w.plan.SyncTime,
			founding: &replica.Founding{ClusterID: clusterID, MemberID: m.ID, Members: list},
		}
	}
	w.truth.members, w.lastMember = list, uint64(len(list))
	for _, m := range w.inOrder() {
		m.start()
	}
}

func (w *world) newDisk(id uint64) *Disk {
	d := NewDisk(w.seed ^ id<<40)
	d.forgets = w.canary == forgottenSync
	d.hides = w.canary == ignoredFull
	d.tell = func(what string) { w.effects.add(what, 1) }
	return d
}

// fault is one thing that goes wrong, or is mended.
type fault struct {
	draws
	w   *world
	all []*member
	m   *member // whom it hits, if it hits one
}

// drawnFault is what was drawn of one.
type drawnFault struct {
	name string
	at   time.Duration
	kind int
}

// disturb does something bad, or mends something, again and again. When the nth
// time is and what is drawn then does not depend on the others.
func (w *world) disturb(n int) {
	if w.calm {
		return
	}
	f := &fault{draws: drawsOf(w.seed, numbered(aFault, n)), w: w, all: w.inOrder()}
	w.after(f.between(w.plan.Pace/4, 2*w.plan.Pace), func() { w.disturb(n + 1) })
	w.faults = n + 1
	if !w.has(numbered(aFault, n)) {
		return
	}
	f.m = f.all[f.draw(len(f.all))]
	kind := f.draw(len(faultKinds))
	w.drawn = append(w.drawn, drawnFault{numbered(aFault, n), time.Since(w.began), kind})
	w.say("fault %d", n)
	faultKinds[kind](f)
}

// faultKinds is what may go wrong. What is to come oftener is there more than once.
var faultKinds = []func(*fault){
	(*fault).powerFailure, (*fault).kill, (*fault).crashSoon, (*fault).start, (*fault).start, (*fault).pause, (*fault).skew,
	(*fault).cut, (*fault).cut, (*fault).heal, (*fault).heal, (*fault).slow, (*fault).drop, (*fault).fill, (*fault).breakDisk, (*fault).breakDisk,
	(*fault).reconfigure, (*fault).reconfigure, (*fault).rot,
}

func (f *fault) powerFailure() { f.m.kill(true) }

func (f *fault) kill() { f.m.kill(false) }

func (f *fault) crashSoon() {
	if f.m.p != nil {
		n := uint64(1 + f.draw(60))
		f.w.say("member %d will crash with change %d", f.m.id, n)
		f.m.p.disk.CrashAfter(n)
	}
}

func (f *fault) start() {
	for _, m := range f.all {
		if m.p == nil && f.chance(70) {
			m.start()
		}
	}
}

func (f *fault) pause() {
	m := f.m
	if m.p == nil || m.paused {
		return
	}
	m.paused = true
	f.w.tally.pauses++
	p, d := m.p, f.between(10*time.Millisecond, 2*time.Second)
	f.w.say("member %d is paused for %v", m.id, d)
	f.w.after(d, func() {
		if m.p == p {
			m.paused = false
		}
	})
}

func (f *fault) skew() {
	speed := 0.975 + 0.05*f.Float64()
	f.w.say("the clock of member %d goes at %.3f times its speed", f.m.id, speed)
	f.m.clock.set(speed)
	f.w.effects.add("a clock that goes wrong", 1)
}

func (f *fault) slow() {
	f.m.syncTime = []time.Duration{f.w.plan.SyncTime, 20 * time.Millisecond, 300 * time.Millisecond, 2 * time.Second}[f.draw(4)]
	f.w.say("syncs of member %d take up to %v", f.m.id, f.m.syncTime)
}

func (f *fault) drop() {
	if f.w.has(lossPart) {
		f.w.net.loss = []int{f.w.plan.Loss, 10, 30}[f.draw(3)]
	}
}

// fill lets a disk run full, and gives it room again when the process has ended of that.
func (f *fault) fill() {
	w, m := f.w, f.m
	if m.p == nil {
		return
	}
	p, d := m.p, f.between(50*time.Millisecond, time.Second)
	w.say("the disk of member %d is full", m.id)
	p.disk.SetRoom(int64(f.draw(20 << 10)))
	w.after(d, func() {
		if m.p == p {
			p.disk.SetRoom(-1)
		}
	})
}

// breakDisk has one write or sync of a disk fail, or all for a while. The member
// may end of that, and must if it was its log; whatever it has acknowledged must be
// there then.
func (f *fault) breakDisk() {
	w, m := f.w, f.m
	if m.p == nil {
		return
	}
	x := &Failure{Err: syscall.EIO, Syncs: f.chance(50), Lasting: f.chance(50)}
	d := f.between(50*time.Millisecond, time.Second)
	switch f.draw(7) {
	case 0, 1:
		x.Suffix, x.After = ".wal", f.draw(20)
	case 2, 3:
		x.Suffix, x.After = ".wal.tmp", f.draw(2) // one is made now and then
	case 4:
		x.Suffix, x.After = ".sst", f.draw(20)
	case 5:
		x.Suffix, x.After = ".json.tmp", f.draw(2) // for each snapshot
	case 6:
		x.Suffix, x.Syncs, x.Dirs, x.After = []string{"wal", "data"}[f.draw(2)], true, true, f.draw(3)
	}
	if f.chance(40) && !x.Syncs { // of a file system that finds room for what is overwritten, too
		x.Err = syscall.ENOSPC
	}
	w.say("the disk of member %d is broken for %v: %+v", m.id, d, *x)
	m.failure = x
	m.disk.Break(x)
	if x.Lasting {
		w.after(d, func() {
			if m.failure == x {
				m.mendDisk()
			}
		})
	}
	if f.chance(50) { // what it could not sync may then still be only in memory
		w.after(f.between(0, 2*d), func() {
			if !w.calm {
				m.kill(true)
			}
		})
	}
}

func (m *member) mendDisk() {
	m.failure = nil
	m.disk.Break(nil)
}

// rot flips a bit of what a member that does not run has on its disk. It must not
// serve what follows from that: it refuses to start, or stops when it meets it, and is
// then removed, for its data is lost.
//
// So whoever is damaged is as one that has crashed for good: it never speaks from less
// than it has promised. (Where it could not know, no bit flips: see firm.) Safety is
// not at stake then, however members come and go. What has to be seen to is that a
// majority of the voters can run: one of all may be damaged, and only while three
// voters are left besides those whose removal has been proposed; see mayRemove for the
// other side.
func (f *fault) rot() {
	w, m := f.w, f.m
	list := w.truth.membership()
	for _, of := range list {
		if k := w.members[of.ID]; k == nil || k.rotten || k.gone {
			return
		}
	}
	if m.p != nil || m.opening || m.gone || len(w.lasting(list)) < 3 {
		return
	}
	files := slices.DeleteFunc(m.disk.Files(), func(name string) bool { return m.firm(name) == 0 })
	if len(files) == 0 {
		return
	}
	// Of the log, whose checksums are Coterie's own, as often as of all else together.
	if logs := slices.DeleteFunc(slices.Clone(files), func(name string) bool { return !strings.HasSuffix(name, ".wal") }); len(logs) > 0 && f.chance(50) {
		files = logs
	}
	name := files[f.draw(len(files))]
	w.tally.flips++
	bit := f.Int64N(8 * m.firm(name))
	w.say("bit %d of %s of member %d flips", bit, name, m.id)
	m.rotten, m.logRotten = true, strings.HasSuffix(name, ".wal") && m.framed(name, int(bit/8)) && !m.superseded(name)
	if err := m.disk.Rot(name, bit); err != nil {
		w.fail("%v", err)
	}
}

// firm returns how many bytes of a file are such that damage to them can be told from
// what a crash leaves. The last frame of the log cannot: without it the log looks as
// if its write had been torn, and what it says may have been promised. Behind it there
// may be one that was torn, so it is the last two that stay whole.
func (m *member) firm(name string) int64 {
	if !strings.HasSuffix(name, ".wal") {
		return m.disk.Size(name)
	}
	files := m.disk.Files()
	if slices.ContainsFunc(files, func(other string) bool { return strings.HasSuffix(other, ".wal") && other > name }) {
		return m.disk.Size(name)
	}
	frames := frames(m.disk.Bytes(name))
	if len(frames) < 2 {
		return 0
	}
	return int64(frames[len(frames)-2].from)
}

// framed tells whether a byte of the log is in its header or in a frame, not behind that.
func (m *member) framed(name string, at int) bool {
	return at < segmentHeader || slices.ContainsFunc(frames(m.disk.Bytes(name)), func(f frame) bool { return f.from <= at && at < f.to })
}

// superseded tells whether a segment of the log is before one that a reset has begun: it is not looked at, but removed.
func (m *member) superseded(name string) bool {
	const flags, reset = 56, 1
	return slices.ContainsFunc(m.disk.Files(), func(other string) bool {
		if !strings.HasSuffix(other, ".wal") || other <= name {
			return false
		}
		b := m.disk.Bytes(other)
		return len(b) > flags && b[flags]&reset != 0
	})
}

// frame is where one is in a segment of the log, without what aligns the next one.
type frame struct{ from, to int }

const segmentHeader = 64

// frames returns where the frames of a segment are, as docs/format-wal.md has it.
func frames(b []byte) (all []frame) {
	const header, align = 16, 8
	for at := segmentHeader; at+header <= len(b); {
		length := int(binary.LittleEndian.Uint32(b[at:]))
		if length == 0 || length > len(b) {
			break
		}
		all = append(all, frame{at, at + header + length})
		at += (header + length + align - 1) / align * align
	}
	return all
}

// lose gives up a member whose data is damaged.
func (m *member) lose(err error) {
	m.w.say("member %d is lost: %v", m.id, err)
	m.w.tally.rot++
	m.gone = true
}

// cut cuts links: one member's, those between two groups, or some in one
// direction.
func (f *fault) cut() {
	w, all := f.w, f.all
	var cut [][2]uint64
	both := func(a, b uint64) { cut = append(cut, [2]uint64{a, b}, [2]uint64{b, a}) }
	alone := all[f.draw(len(all))]
	kind := f.draw(4)
	side := map[uint64]bool{}
	for _, m := range all {
		side[m.id] = f.chance(50)
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			switch kind {
			case 0:
				if a == alone || b == alone {
					both(a.id, b.id)
				}
			case 1:
				if side[a.id] != side[b.id] {
					both(a.id, b.id)
				}
			case 2:
				if a == alone {
					cut = append(cut, [2]uint64{a.id, b.id})
				} else if b == alone {
					cut = append(cut, [2]uint64{b.id, a.id})
				}
			case 3:
				for _, l := range [][2]uint64{{a.id, b.id}, {b.id, a.id}} {
					if f.chance(30) {
						cut = append(cut, l)
					}
				}
			}
		}
	}
	w.say("cut %v", cut)
	if slices.ContainsFunc(cut, func(l [2]uint64) bool { return !slices.Contains(cut, [2]uint64{l[1], l[0]}) }) {
		w.effects.add("a cut in one direction", 1)
	}
	w.tally.cuts++
	w.lock.Lock()
	defer w.lock.Unlock()
	for _, l := range cut {
		w.net.cut[l] = true
	}
}

func (f *fault) heal() { f.w.heal() }

func (w *world) heal() {
	w.lock.Lock()
	defer w.lock.Unlock()
	clear(w.net.cut)
}

// mend ends all faults and has every member run.
func (w *world) mend() {
	w.say("all is mended")
	w.lock.Lock()
	w.calm = true
	w.lock.Unlock()
	w.heal()
	w.net.loss, w.net.double, w.net.late = 0, 0, false
	for _, m := range w.inOrder() {
		m.paused, m.syncTime = false, w.plan.SyncTime
		m.clock.set(1)
		m.mendDisk()
		m.disk.SetRoom(-1)
		m.disk.CrashAfter(0)
		m.start()
	}
}

// restartAll starts who is down, again and again: a start can end in a crash that
// was ordered before.
func (w *world) restartAll() {
	for _, m := range w.inOrder() {
		m.start()
	}
	w.after(200*time.Millisecond, w.restartAll)
}

func (w *world) logger(id uint64) *zap.Logger {
	if w.plan.Verbose {
		return w.zap.With(zap.Uint64("m", id))
	}
	return zap.NewNop()
}

// staying returns the members that were not removed, nor lost.
func (w *world) staying() []*member {
	return slices.DeleteFunc(w.inOrder(), func(m *member) bool { return m.gone })
}
