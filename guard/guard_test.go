package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errCompacted   = errors.New("required revision has been compacted")
	errFuture      = errors.New("required revision is a future revision")
	errUnreachable = errors.New("unreachable")
)

// replica is a member's data: a hash of a revision above a compaction, but for
// salt, which is 0 as long as nothing is damaged.
type replica struct {
	newest, compacted int64
	salt              uint32
	down              bool
}

func (r *replica) hash(rev int64) (Hash, error) {
	switch {
	case r.down:
		return Hash{}, errUnreachable
	case rev > r.newest:
		return Hash{}, errFuture
	case rev > 0 && rev < r.compacted:
		return Hash{}, errCompacted
	case rev == 0:
		rev = r.newest
	}
	return Hash{Hash: uint32(rev*1000+r.compacted) + r.salt, HashRevision: rev, CompactRevision: r.compacted, Revision: r.newest}, nil
}

// cluster is Members, as member 1 sees it.
type cluster struct {
	replicas map[uint64]*replica
	raised   []uint64
	looks    int
	// asked, if set, is called when the others are asked, for things to happen meanwhile.
	asked func()
	// linearizing, if set, is called when this member is to catch up.
	linearizing func() error
	raiseErr    error
}

func newCluster(n int) *cluster {
	c := &cluster{replicas: map[uint64]*replica{}}
	for id := range uint64(n) {
		c.replicas[id+1] = &replica{newest: 100, compacted: 50}
	}
	return c
}

func (c *cluster) each(f func(r *replica)) {
	for _, r := range c.replicas {
		f(r)
	}
}

func (c *cluster) Local(_ context.Context, rev int64) (Hash, error) {
	c.looks++
	return c.replicas[1].hash(rev)
}

func (c *cluster) Peers(_ context.Context, rev int64) []PeerHash {
	if c.asked != nil {
		c.asked()
	}
	var all []PeerHash
	for _, id := range slices.Sorted(maps.Keys(c.replicas)) {
		if id != 1 {
			h, err := c.replicas[id].hash(rev)
			all = append(all, PeerHash{ID: id, Hash: h, Err: err})
		}
	}
	return all
}

func (c *cluster) Revisions() (newest, compacted int64) {
	return c.replicas[1].newest, c.replicas[1].compacted
}

func (c *cluster) Linearize(context.Context) error {
	if c.linearizing != nil {
		return c.linearizing()
	}
	return nil
}

func (c *cluster) Raise(_ context.Context, id uint64) error {
	if c.raiseErr != nil {
		return c.raiseErr
	}
	c.raised = append(c.raised, id)
	return nil
}

// runFor runs an active guard of c for a time.
func runFor(t *testing.T, d time.Duration, c *cluster, o Options) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		o.ID = 1
		g := New(c, o)
		g.SetActive(true)
		g.Run(ctx)
	})
}

// minutely compares once a minute, which is once in oneRound.
var minutely = Options{Interval: time.Minute}

const oneRound = 90 * time.Second

func (c *cluster) wantRaised(t *testing.T, want ...uint64) {
	t.Helper()
	if !slices.Equal(c.raised, want) {
		t.Errorf("alarms of %v, want %v", c.raised, want)
	}
}

// TestNamesTheRightMember: the salts are those of members 1 (the leader), 2, 3…
func TestNamesTheRightMember(t *testing.T) {
	for _, c := range []struct {
		name  string
		salts []uint32
		down  []uint64
		want  []uint64
	}{
		{"all equal", []uint32{0, 0, 0}, nil, nil},
		{"alone", []uint32{0}, nil, nil},
		{"a follower", []uint32{0, 0, 7}, nil, []uint64{3}},
		{"the leader", []uint32{7, 0, 0}, nil, []uint64{1}},
		{"two of five", []uint32{0, 7, 0, 0, 9}, nil, []uint64{2, 5}},
		{"the leader and another of five", []uint32{7, 7, 0, 0, 0}, nil, []uint64{1, 2}},
		{"two that answer not, of five", []uint32{7, 0, 0, 0, 0}, []uint64{4, 5}, []uint64{2, 3}},
		{"one that answers not, of five", []uint32{7, 0, 0, 0, 0}, []uint64{5}, []uint64{1}},
		{"one of two", []uint32{0, 7}, nil, []uint64{2}},
		{"one down, no majority", []uint32{0, 7, 0}, []uint64{3}, []uint64{2}},
		{"halves", []uint32{0, 7, 0, 7}, nil, []uint64{2, 4}},
		{"all different", []uint32{1, 2, 3}, nil, []uint64{2, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := newCluster(len(c.salts))
			for i, salt := range c.salts {
				cl.replicas[uint64(i+1)].salt = salt
			}
			for _, id := range c.down {
				cl.replicas[id].down = true
			}
			runFor(t, oneRound, cl, minutely)
			cl.wantRaised(t, c.want...)
		})
	}
}

// TestNoFalseAlarm: what healthy members do while they are compared.
func TestNoFalseAlarm(t *testing.T) {
	for name, prepare := range map[string]func(c *cluster){
		"a member lags": func(c *cluster) { c.replicas[2].newest = 90 },
		"all lag":       func(c *cluster) { c.replicas[2].newest, c.replicas[3].newest = 90, 0 },
		"one has not compacted yet": func(c *cluster) {
			c.replicas[2].compacted = 40
		},
		"all write while they are asked": func(c *cluster) {
			c.asked = func() { c.each(func(r *replica) { r.newest += 10 }) }
		},
		"all compact while they are asked": func(c *cluster) {
			c.asked = func() {
				c.each(func(r *replica) { r.newest += 10; r.compacted += 5 })
			}
		},
		"all compact beyond the revision": func(c *cluster) {
			c.asked = func() {
				c.each(func(r *replica) { r.newest += 10; r.compacted = r.newest })
			}
		},
		"the others apply first": func(c *cluster) {
			c.asked = func() { c.replicas[2].newest += 5; c.replicas[2].compacted += 5 }
			c.linearizing = func() error {
				c.replicas[1].newest, c.replicas[1].compacted = c.replicas[2].newest, c.replicas[2].compacted
				return nil
			}
		},
		"the others apply first, and this one cannot catch up": func(c *cluster) {
			c.asked = func() { c.replicas[2].newest += 5 }
			c.linearizing = func() error { return errUnreachable }
		},
		"one is down":    func(c *cluster) { c.replicas[3].down = true },
		"all are down":   func(c *cluster) { c.replicas[2].down, c.replicas[3].down = true, true },
		"this one fails": func(c *cluster) { c.replicas[1].down = true },
		"one restarts": func(c *cluster) {
			c.asked = func() { c.replicas[3].down = !c.replicas[3].down }
		},
		"a member joins": func(c *cluster) {
			c.asked = func() { c.replicas[4] = &replica{} }
		},
		"an empty cluster": func(c *cluster) {
			c.each(func(r *replica) { r.newest, r.compacted = 1, 0 })
			c.replicas[3].newest = 0
		},
		"a member is removed": func(c *cluster) {
			c.asked = func() { delete(c.replicas, 3) }
		},
		"a difference that is gone at the second look": func(c *cluster) {
			c.asked = func() { c.replicas[2].salt = uint32(c.looks % 2) }
		},
		"a difference whose member is removed": func(c *cluster) {
			c.replicas[3].salt = 7
			c.asked = func() {
				if c.looks == 2 {
					delete(c.replicas, 3)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(3)
			prepare(c)
			runFor(t, 10*time.Minute, c, Options{Interval: time.Minute, CompactInterval: 25 * time.Second})
			c.wantRaised(t)
			if c.looks < 5 {
				t.Errorf("only %d looks", c.looks)
			}
		})
	}
}

// TestWaitsForWhoDecides: without a majority the guard looks again, and finds
// the leader wrong when the member that was missing answers.
func TestWaitsForWhoDecides(t *testing.T) {
	c := newCluster(3)
	c.replicas[1].salt = 7
	c.replicas[3].newest = 90
	c.asked = func() { c.replicas[3].newest = min(100, c.replicas[3].newest+3) }
	runFor(t, oneRound, c, minutely)
	c.wantRaised(t, 1)
}

// TestAhead: a member must not have what was never committed.
func TestAhead(t *testing.T) {
	for _, c := range []struct {
		name  string
		ahead []uint64
		f     func(r *replica)
		want  []uint64
	}{
		{"newer", []uint64{2}, func(r *replica) { r.newest++ }, []uint64{2}},
		{"compacted further", []uint64{3}, func(r *replica) { r.compacted++ }, []uint64{3}},
		{"all but the leader", []uint64{2, 3}, func(r *replica) { r.newest++ }, []uint64{1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := newCluster(3)
			for _, id := range c.ahead {
				c.f(cl.replicas[id])
			}
			runFor(t, oneRound, cl, minutely)
			cl.wantRaised(t, c.want...)
		})
	}
}

func TestOnlyTheLeaderCompares(t *testing.T) {
	c := newCluster(3)
	c.replicas[2].salt = 7
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := New(c, Options{ID: 1, Interval: time.Minute, CompactInterval: time.Minute})
		done := make(chan struct{})
		go func() { // ended below
			defer close(done)
			g.Run(ctx)
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		if c.looks != 0 {
			t.Errorf("a follower looked %d times", c.looks)
		}
		c.asked = func() { g.SetActive(false) } // no longer, when it finds something
		g.SetActive(true)
		time.Sleep(time.Hour)
		synctest.Wait()
		if c.looks != 1 {
			t.Errorf("%d looks, want 1", c.looks)
		}
		cancel()
		<-done
	})
	c.wantRaised(t)
}

func TestOff(t *testing.T) {
	c := newCluster(3)
	c.replicas[2].salt = 7
	runFor(t, time.Hour, c, Options{})
	if c.looks != 0 {
		t.Errorf("%d looks", c.looks)
	}
}

// TestCompactionIsComparedOnce: each compaction, when all could be compared at
// it; but not for ever, when one cannot.
func TestCompactionIsComparedOnce(t *testing.T) {
	c := newCluster(3)
	o := Options{CompactInterval: time.Minute}
	runFor(t, time.Hour, c, o)
	if c.looks != 1 {
		t.Errorf("%d looks at one compaction, want 1", c.looks)
	}
	c.looks, c.replicas[3].down = 0, true
	runFor(t, time.Hour, c, o)
	if c.looks != maxAttempts {
		t.Errorf("%d looks while a member is down, want %d", c.looks, maxAttempts)
	}
	c.looks = 0
	c.each(func(r *replica) { r.compacted = 0 })
	runFor(t, time.Hour, c, o)
	if c.looks != 0 {
		t.Errorf("%d looks without a compaction", c.looks)
	}
}

func TestCompactionNamesTheRightMember(t *testing.T) {
	c := newCluster(3)
	c.replicas[2].salt = 7
	runFor(t, oneRound, c, Options{CompactInterval: time.Minute})
	c.wantRaised(t, 2)
}

// TestAlarmThatCannotBeRaised is raised the next time.
func TestAlarmThatCannotBeRaised(t *testing.T) {
	c := newCluster(3)
	c.replicas[2].salt = 7
	c.raiseErr = errors.New("no leader")
	c.asked = func() {
		if c.looks == 3 {
			c.raiseErr = nil
		}
	}
	runFor(t, 150*time.Second, c, minutely)
	c.wantRaised(t, 2)
}

// TestALookEnds: members that never answer do not hold the guard up for ever.
func TestALookEnds(t *testing.T) {
	c := &hanging{newCluster(3)}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour-time.Second)
		defer cancel()
		g := New(c, Options{ID: 1, Interval: time.Minute, Timeout: 9 * time.Minute})
		g.SetActive(true)
		g.Run(ctx)
	})
	if c.looks != 6 {
		t.Errorf("%d looks in an hour, want one each ten minutes", c.looks)
	}
}

type hanging struct{ *cluster }

func (c *hanging) Linearize(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestCheckInitial(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(c *cluster)
		want    []string // parts of the error; none: it starts
	}{
		{"equal", func(*cluster) {}, nil},
		{"others down", func(c *cluster) { c.replicas[2].down, c.replicas[3].down = true, true }, nil},
		{"this one lags", func(c *cluster) { c.replicas[1].newest = 60 }, nil},
		{"this one lags behind the compaction", func(c *cluster) { c.replicas[1].newest, c.replicas[1].compacted = 40, 30 }, nil},
		{"this one joins", func(c *cluster) { *c.replicas[1] = replica{} }, nil},
		{"another compacted", func(c *cluster) { c.replicas[2].compacted = 60 }, nil},
		{"this one differs", func(c *cluster) { c.replicas[1].salt = 7 },
			[]string{"this member, 1 (hash", "member 2 (hash", "member 3 (hash", "revision 100 above compaction 50", "remove this member"}},
		{"another differs", func(c *cluster) { c.replicas[3].salt = 7 },
			[]string{"this member, 1 (hash", "of member 3 (hash", "most members agree with this one"}},
		{"one differs and one is down", func(c *cluster) { c.replicas[3].salt, c.replicas[2].down = 7, true },
			[]string{"this member, 1 (hash", "of member 3 (hash", "cannot be told"}},
		{"damaged", func(c *cluster) { c.replicas[1].down = true }, []string{"hash the data of this member", "unreachable"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := newCluster(3)
			c.prepare(cl)
			err := New(cl, Options{ID: 1}).CheckInitial(t.Context())
			if (err != nil) != (c.want != nil) {
				t.Fatalf("got %v, want an error with %q", err, c.want)
			}
			for _, part := range c.want {
				if !strings.Contains(fmt.Sprint(err), part) {
					t.Errorf("%v\ndoes not say %q", err, part)
				}
			}
			var different *DifferentError
			if err != nil && errors.As(err, &different) != (c.name != "damaged") {
				t.Errorf("the error is a %T", err)
			}
			cl.wantRaised(t)
		})
	}
}

// slowDisk is a cluster in which member 3 needs longer for its hash than the others: its disk is slow, or about to fail.
type slowDisk struct {
	*cluster
	local, slow time.Duration
}

func (c *slowDisk) Local(ctx context.Context, rev int64) (Hash, error) {
	time.Sleep(c.local)
	return c.cluster.Local(ctx, rev)
}

func (c *slowDisk) Peers(ctx context.Context, rev int64) []PeerHash {
	all := c.cluster.Peers(ctx, rev)
	select {
	case <-time.After(c.slow):
	case <-ctx.Done():
		for i := range all {
			if all[i].ID == 3 {
				all[i] = PeerHash{ID: 3, Err: ctx.Err()}
			}
		}
	}
	return all
}

// A corrupt member is found also if its hash takes much longer than the leader's.
func TestSlowMemberIsCompared(t *testing.T) {
	c := &slowDisk{newCluster(3), 500 * time.Millisecond, 6 * time.Second}
	c.replicas[3].salt = 7
	runForMembers(t, 24*time.Hour, c)
	if len(c.raised) == 0 {
		t.Errorf("not found in %d looks in a day", c.looks)
	}
}

func runForMembers(t *testing.T, d time.Duration, m Members) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		g := New(m, Options{ID: 1, Interval: time.Hour})
		g.SetActive(true)
		g.Run(ctx)
	})
}
