package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
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
	Slowest      time.Duration // of messages
	SyncTime     time.Duration

	Changes bool // of the membership

	Verbose, Trace bool
}

func drawPlan(rng *rand.Rand) plan {
	one := func(choices ...int) int { return choices[rng.IntN(len(choices))] }
	return plan{
		Members: one(1, 3, 3, 3, 3, 5), Clients: one(3, 5, 8), Watchers: one(2, 4), Keys: one(3, 12, 40), ValueBytes: one(100, 5000),
		Think: time.Duration(one(1, 5, 20)) * time.Millisecond, Faults: time.Duration(one(6, 10)) * time.Second, Pace: time.Duration(one(100, 300, 600)) * time.Millisecond,
		SegmentBytes: int64(one(16<<10, 64<<10, 256<<10)), CacheBytes: one(1, 4<<10, 1<<20),
		FlushEntries: uint64(one(5, 40, 300)), KeepEntries: uint64(one(0, 10, 100)), KeepBytes: int64(one(4<<10, 64<<10)),
		RingEvents: one(1, 16, 4096), CompactionBatch: one(1, 10, 1000), CompactionSleep: time.Duration(one(0, 5)) * time.Millisecond,
		Checkpoints: time.Duration(one(200, 1000, 60000)) * time.Millisecond,
		Loss:        one(0, 0, 1, 5), Double: one(0, 0, 2), Ordered: one(0, 1) == 1, Slowest: time.Duration(one(1, 5, 30)) * time.Millisecond,
		SyncTime: time.Duration(one(200, 1000, 4000)) * time.Microsecond,
		Changes:  one(0, 1) == 1,
	}
}

// found makes the members that a cluster begins with.
func (w *world) found() {
	var list []machine.Member
	for i := range w.plan.Members {
		list = append(list, machine.Member{ID: uint64(i + 1), PeerURLs: []string{fmt.Sprintf("http://m%d", i+1)}})
	}
	for _, m := range list {
		w.members[m.ID] = &member{
			w: w, id: m.ID, disk: NewDisk(w.seed ^ m.ID<<40), clock: newClock(), syncTime: w.plan.SyncTime,
			founding: &replica.Founding{ClusterID: clusterID, MemberID: m.ID, Members: list},
		}
	}
	w.truth.members, w.lastMember = list, uint64(len(list))
	for _, m := range w.inOrder() {
		m.start()
	}
}

// disturb does something bad, or mends something, again and again.
func (w *world) disturb() {
	if w.calm {
		return
	}
	defer w.after(w.between(w.plan.Pace/4, 2*w.plan.Pace), w.disturb)
	all := w.inOrder()
	m := all[w.draw(len(all))]
	switch w.draw(17) {
	case 0:
		m.kill(true)
	case 1:
		m.kill(false)
	case 2:
		if m.p != nil {
			n := uint64(1 + w.draw(60))
			w.say("member %d will crash with change %d", m.id, n)
			m.p.disk.CrashAfter(n)
		}
	case 3, 4:
		for _, m := range all {
			if m.p == nil && w.chance(70) {
				m.start()
			}
		}
	case 5:
		if m.p != nil && !m.paused {
			m.paused = true
			w.tally.pauses++
			p, d := m.p, w.between(10*time.Millisecond, 2*time.Second)
			w.say("member %d is paused for %v", m.id, d)
			w.after(d, func() {
				if m.p == p {
					m.paused = false
				}
			})
		}
	case 6:
		speed := 0.975 + 0.05*w.rng.Float64()
		w.say("the clock of member %d goes at %.3f times its speed", m.id, speed)
		m.clock.set(speed)
	case 7, 8:
		w.cutSome(all)
	case 9, 10:
		w.heal()
	case 11:
		m.syncTime = []time.Duration{w.plan.SyncTime, 20 * time.Millisecond, 300 * time.Millisecond}[w.draw(3)]
		w.say("syncs of member %d take up to %v", m.id, m.syncTime)
	case 12:
		w.net.loss = []int{w.plan.Loss, 10, 30}[w.draw(3)]
	case 13:
		w.fill(m)
	case 14, 15:
		if w.plan.Changes {
			w.reconfigure()
		}
	case 16:
		if !w.plan.Changes { // of three, one may leave and another be lost, but not both
			w.rot(m)
		}
	}
}

// fill lets a disk run full, and gives it room again when the process has ended of that.
func (w *world) fill(m *member) {
	if m.p == nil {
		return
	}
	p, d := m.p, w.between(50*time.Millisecond, time.Second)
	m.trouble = maxTime(m.trouble, time.Now().Add(d+100*time.Millisecond))
	w.say("the disk of member %d is full", m.id)
	w.tally.full++
	p.disk.SetRoom(int64(w.draw(20 << 10)))
	w.after(d, func() {
		if m.p == p {
			p.disk.SetRoom(-1)
		}
	})
}

// rot flips a bit of what a member that does not run has on its disk. It must not
// serve what follows from that: it refuses to start, or stops when it meets it.
// Then it is removed, for its data is lost; so only a few of all may have that.
func (w *world) rot(m *member) {
	voters := 0
	for _, of := range w.truth.membership() {
		if !of.IsLearner {
			voters++
		}
		if k := w.members[of.ID]; k == nil || k.rotten || k.gone {
			return
		}
	}
	if m.p != nil || m.opening || m.gone || voters < 3 {
		return
	}
	files := slices.DeleteFunc(m.disk.Files(), func(name string) bool { return m.disk.Size(name) == 0 })
	if len(files) == 0 {
		return
	}
	name := files[w.draw(len(files))]
	bit := w.rng.Int64N(8 * m.disk.Size(name))
	w.say("bit %d of %s of member %d flips", bit, name, m.id)
	if err := m.disk.Rot(name, bit); err != nil {
		w.fail("%v", err)
	}
	m.rotten = true
}

// lose gives up a member whose data is damaged.
func (m *member) lose(err error) {
	m.w.say("member %d is lost: %v", m.id, err)
	m.w.tally.rot++
	m.gone = true
}

// cutSome cuts links: one member's, those between two groups, or some in one
// direction.
func (w *world) cutSome(all []*member) {
	var cut [][2]uint64
	both := func(a, b uint64) { cut = append(cut, [2]uint64{a, b}, [2]uint64{b, a}) }
	alone := all[w.draw(len(all))]
	kind := w.draw(4)
	side := map[uint64]bool{}
	for _, m := range all {
		side[m.id] = w.chance(50)
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
					if w.chance(30) {
						cut = append(cut, l)
					}
				}
			}
		}
	}
	w.say("cut %v", cut)
	w.tally.cuts++
	w.lock.Lock()
	defer w.lock.Unlock()
	for _, l := range cut {
		w.net.cut[l] = true
	}
}

func (w *world) heal() {
	w.lock.Lock()
	defer w.lock.Unlock()
	clear(w.net.cut)
}

// mend ends all faults and has every member run.
func (w *world) mend() {
	w.say("all is mended")
	w.calm = true
	w.heal()
	w.net.loss, w.net.double = 0, 0
	for _, m := range w.inOrder() {
		m.paused, m.syncTime = false, w.plan.SyncTime
		m.clock.set(1)
		if m.p != nil {
			m.p.disk.SetRoom(-1)
			m.p.disk.CrashAfter(0)
		}
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
