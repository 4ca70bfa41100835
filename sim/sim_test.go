package sim

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
)

var (
	asked   = courseFlags(flag.CommandLine)
	seeds   = flag.Int("sim.seeds", 0, "how many seeds to run; 0: 20, and with -short 3")
	verbose = flag.Bool("sim.verbose", false, "log what happens")
	trace   = flag.Bool("sim.trace", false, "and every single event")
	lasting = flag.Duration("sim.for", 0, "run new seeds for so long, instead of a number")
	shrinks = flag.Duration("sim.shrink", time.Minute, "try for so long to make less of a run that fails")
)

// courseFlags has flags say what course to take. Those that leave something out are
// for one seed.
func courseFlags(fs *flag.FlagSet) *course {
	c := &course{}
	fs.Uint64Var(&c.seed, "sim.seed", 1, "the first seed")
	fs.StringVar(&c.canary, "sim.canary", "", "a defect to run with")
	fs.Var(&c.without, "sim.without", "parts of the run to leave out")
	fs.DurationVar(&c.until, "sim.until", 0, "end the faults then, if before their time")
	return c
}

// TestSeeds runs the full mix of faults.
func TestSeeds(t *testing.T) {
	var sum tally
	var done effects
	if _, ok := canaries[asked.canary]; asked.canary != "" && !ok {
		t.Fatalf("there is no canary %q, but %v", asked.canary, slices.Sorted(maps.Keys(canaries)))
	}
	most := *seeds
	if most == 0 {
		most = orShort(20, 3)
	}
	began, ran := time.Now(), 0
	for ran < most && *lasting == 0 || time.Since(began) < *lasting {
		c := *asked
		c.seed += uint64(ran)
		ok := t.Run(fmt.Sprint(c.seed), func(t *testing.T) {
			w := runWell(t, c)
			sum.add(&w.tally)
			for what, n := range w.effects.n {
				done.add(what, n)
			}
		})
		if ran++; !ok {
			t.FailNow()
		}
	}
	if never := slices.Concat(sum.never(), done.never(ran)); ran >= 20 && asked.canary == "" && len(asked.without) == 0 && asked.until == 0 && len(never) > 0 {
		t.Errorf("in none of %d seeds happened any of %q: what does not happen proves nothing", ran, never)
	}
	t.Logf("%d seeds from %d, %.0f in an hour: %+v", ran, asked.seed, float64(ran)/time.Since(began).Hours(), sum)
	t.Logf("effects of faults: %v", done.n)
}

// orShort returns how many there are of something, which with -short are fewer.
func orShort(ordinary, short int) int {
	if testing.Short() {
		return short
	}
	return ordinary
}

// TestASeedIsARun shows that a seed can be replayed.
func TestASeedIsARun(t *testing.T) {
	for seed := range uint64(orShort(6, 1)) {
		a, b := run(t, course{seed: seed + 1}), run(t, course{seed: seed + 1})
		if a.failed != "" {
			t.Errorf("seed %d: %s", seed+1, a.failed)
		}
		if a.trace != b.trace {
			t.Errorf("seed %d ran in two ways", seed+1)
		}
	}
}

// TestCanaries shows that defects are found.
func TestCanaries(t *testing.T) {
	if testing.Short() {
		t.Skip("runs many seeds")
	}
	for _, canary := range slices.Sorted(maps.Keys(canaries)) {
		t.Run(canary, func(t *testing.T) {
			w := firstFound(t, canary, 0)
			t.Logf("found by seed %d: %s", w.seed, w.failed)
			if as := canaries[canary].as; !slices.ContainsFunc(as, func(words string) bool { return strings.Contains(w.failed, words) }) {
				t.Errorf("it was to be found as %q", as)
			}
		})
	}
}

// firstFound returns the first run that finds a canary after so many faults, as far as is known.
func firstFound(t *testing.T, canary string, faults int) *world {
	t.Helper()
	const most = 200
	c := course{canary: canary}
	if canary == otherOrder {
		_ = c.without.Set("w0-99") // who watches would see it too: hashes are to find it alone
	}
	for seed := range uint64(most + 1) {
		if c.seed = seed; seed == 0 {
			c.seed = canaries[canary].seed
		}
		if w := run(t, c); w.failed != "" && w.faults >= faults {
			return w
		}
	}
	t.Fatalf("not found by %d seeds", most)
	return nil
}

// effectsOf are what so many seeds have some of, nearly for sure.
var effectsOf = map[int][]string{
	20: {
		"a message that is lost", "a message that comes twice", "a message that overtakes another", "a cut in one direction",
		"a clock that goes wrong", "a sync that takes longer than an election timeout",
		"a disk that fails", "a disk that is full", "a crash in a start", "a crash in a change of a directory", "a crash in a change of the log",
		"a read that is refused as compacted", "a read that is refused as of the future",
	},
	1000: {
		"a message that is late", "a crash ordered for an installation",
		"a crash in a change of the next segment", "a crash in a change of a table", "a crash in a change of the identity", "a crash in a change of another file",
		"no room for a table", "no room for the next segment",
		"input/output error in a write of the log", "input/output error in a sync of the log", "no space left on device in a write of the log",
		"input/output error in a write of the next segment", "input/output error in a sync of the next segment", "no space left on device in a write of the next segment",
		"input/output error in a write of the identity", "input/output error in a sync of the identity", "no space left on device in a write of the identity",
		"input/output error in a write of a table", "input/output error in a sync of a table", "input/output error in a sync of a directory",
	},
}

// never is what has not happened in so many seeds, and should have.
func (e *effects) never(seeds int) (names []string) {
	for of, all := range effectsOf {
		if seeds >= of {
			names = append(names, slices.DeleteFunc(slices.Clone(all), func(what string) bool { return e.n[what] > 0 })...)
		}
	}
	slices.Sort(names)
	return names
}

// never is what has not happened, but rot.
func (s *tally) never() (names []string) {
	v := reflect.ValueOf(*s)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; v.Field(i).Int() == 0 && name != "rot" {
			names = append(names, name)
		}
	}
	return names
}

func (s *tally) add(o *tally) {
	s.crashes += o.crashes
	s.kills += o.kills
	s.pauses += o.pauses
	s.cuts += o.cuts
	s.snapshots += o.snapshots
	s.restarts += o.restarts
	s.changes += o.changes
	s.flips += o.flips
	s.rot += o.rot
	s.acked += o.acked
	s.unknown += o.unknown
	s.refused += o.refused
	s.reads += o.reads
	s.events += o.events
	s.progress += o.progress
	s.expired += o.expired
	s.gone += o.gone
	s.compactions += o.compactions
}

// runWell runs a course, in which nothing must be broken. If something is, it looks
// for less that breaks it.
func runWell(t *testing.T, c course) *world {
	w := run(t, c)
	if w.failed == "" {
		return w
	}
	t.Errorf("%s\nreplay: %s -sim.verbose", w.failed, c)
	if *shrinks > 0 && !*verbose {
		s := shrink(t, w, *shrinks)
		t.Logf("%s: %s\nreplay: %s -sim.verbose", s, s.least.failed, s.least.course)
		w = s.least
	}
	if !*verbose {
		for _, l := range w.lines {
			t.Log(l)
		}
	}
	return w
}

func run(t *testing.T, c course) *world {
	cryptotest.SetGlobalRandom(t, c.seed)
	const most = 5 * time.Minute // of real time, where a run takes seconds
	stuck := time.AfterFunc(most, func() { panic(fmt.Sprintf("not over after %v: %s", most, c)) })
	defer stuck.Stop()
	w := &world{course: c, draws: drawsOf(c.seed, "world"), members: map[uint64]*member{}, leases: map[int64]*leaseOwner{}, leaving: map[uint64]int{}}
	w.plan = w.drawPlan()
	w.plan.Verbose, w.plan.Trace = *verbose, *trace
	defer func() {
		if r := recover(); r != nil { // of what a process that panics leaves in the bubble
			panic(fmt.Sprintf("%v\n%s\nreplay: %s", r, w.failed, c))
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		w.t, w.began = t, time.Now()
		w.zap = zap.NewNop()
		if *verbose {
			w.zap = zap.Must(zap.NewDevelopment())
		}
		w.truth = newTruth(w)
		w.reigns = newReigns(w.plan.Checkpoints)
		w.net = &network{w: w, cut: map[[2]uint64]bool{}, last: map[[2]uint64]time.Time{}, loss: w.plan.Loss, double: w.plan.Double, ordered: w.plan.Ordered, slowest: w.plan.Slowest, late: w.plan.Late}
		w.live()
		w.end()
	})
	return w
}

// live is the life of a world.
func (w *world) live() {
	shown := w.plan
	shown.Verbose, shown.Trace = false, false
	w.say("%+v", shown)
	w.found()
	for i := range w.plan.Clients {
		if c := newClient(w, i); w.has(numbered(aClient, i)) {
			w.clients = append(w.clients, c)
			w.after(c.between(0, 300*time.Millisecond), c.next)
		}
	}
	for i := range w.plan.Watchers {
		if x := newWatcher(w, i); w.has(numbered(aWatcher, i)) {
			w.watchers = append(w.watchers, x)
			w.after(x.between(0, 300*time.Millisecond), x.begin)
		}
	}
	w.after(500*time.Millisecond, func() { w.disturb(0) })
	w.after(0, w.net.greet)
	w.after(boundInterval, w.watchBounds)
	w.run(w.plan.Faults)
	w.mend()
	w.restartAll()
	w.promoteAll()
	w.run(2 * time.Second)
	w.steady = true // what is told from here on, is told by the streams that there are
	w.run(2 * time.Second)
	w.finished = true
	for _, m := range w.inOrder() {
		m.start()
	}
	w.run(6 * time.Second) // every lease has expired by then
	w.checkRest()
	w.check()
	w.say("after %d events %d commands are answered, %d refused, and %d are open; %d reads", w.stamp, w.tally.acked, w.tally.refused, w.tally.unknown, w.tally.reads)
}

// check looks at what must hold when all has been well for a while.
func (w *world) check() {
	if w.failed != "" {
		return
	}
	w.truth.mu.Lock()
	entries, rev, left := len(w.truth.entries), w.truth.model.rev, len(w.truth.model.leases)
	w.truth.mu.Unlock()
	var leader uint64
	hashes := map[string]bool{}
	for _, m := range w.staying() {
		if m.p == nil {
			w.fail("member %d does not run in the end", m.id)
			return
		}
		st := m.p.node.Status()
		if st.Leader == 0 || leader != 0 && st.Leader != leader {
			w.fail("member %d takes %d for the leader, others %d", m.id, st.Leader, leader)
		}
		leader = st.Leader
		if applied := m.p.replica.Applied(); applied != uint64(entries)+1 {
			w.fail("member %d has applied entry %d, others %d", m.id, applied, entries+1)
		}
		for range 20 { // a lease clock may just record something
			if st = m.p.node.Status(); st.Pending > 0 {
				w.run(50 * time.Millisecond)
			}
		}
		if st.Pending != 0 {
			w.fail("member %d still holds %d proposals", m.id, st.Pending)
		}
		sum, at, compacted, err := m.p.replica.Machine().KV.HashKV(context.Background(), 0)
		if err != nil {
			w.fail("member %d: %v", m.id, err)
		}
		hashes[fmt.Sprintf("%08x at %d, compacted %d", sum, at, compacted)] = true
		if w.checkPast(m, rev); w.failed != "" {
			return
		}
	}
	if len(hashes) != 1 {
		w.fail("the members differ: %v", hashes)
	}
	if left != 0 {
		w.fail("%d leases have not expired", left)
	}
	for _, x := range w.watchers {
		if n := x.missing(rev); n > 0 {
			w.fail("watcher %d has not been told of %d revisions", x.id, n)
		}
		if x.next <= rev && w.failed == "" {
			w.run(3 * progressInterval) // something may have happened just now
			if x.next <= rev {
				w.fail("watcher %d has no bookmark of revision %d, but of %d", x.id, rev, x.next-1)
			}
		}
	}
	if w.tally.acked < 20 && len(w.without) == 0 {
		w.fail("only %d commands were answered", w.tally.acked)
	}
}

// checkPast reads all of every revision that a member must still have, up to the last one.
func (w *world) checkPast(m *member, rev int64) {
	for at := max(w.truth.compacted(), 1); at <= rev; at++ {
		r := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: at}
		resp, err := m.p.replica.Machine().KV.Range(context.Background(), r)
		if d := w.truth.checkRead(r, resp, err, known{revision: rev}); d != "" {
			w.fail("member %d in the end: %s", m.id, d)
			return
		}
	}
}

// end stops all that runs.
func (w *world) end() {
	w.finished, w.calm = true, true
	for _, x := range w.watchers {
		x.turn++
		if x.reader != nil {
			x.reader.cancel()
			w.ending.Go(x.stream.Close)
		}
	}
	for _, m := range w.inOrder() {
		if m.p != nil {
			m.p.disk.Kill()
			m.drop()
		}
	}
	w.opening.Wait()
	w.settle()
	for _, m := range w.inOrder() {
		if m.p != nil {
			m.p.disk.Kill()
			m.drop()
		}
	}
	w.ending.Wait()
}
