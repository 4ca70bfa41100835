package lessor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"

	"github.com/coteriedb/coterie/machine/lease"
	"github.com/coteriedb/coterie/storage/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// member is a table, the log in front of it, and a lessor. Inside a synctest
// bubble its time is fake: sleeping is how the tests say that time passes.
type member struct {
	t     *testing.T
	eng   *engine.Engine
	table *lease.Table
	l     *Lessor
	// commits takes batches out of the bubble, answers brings the results in.
	commits chan<- *pebble.Batch
	answers <-chan error

	mu sync.Mutex // guards the fields below and makes a log of the proposals
	// delay is how long a proposal takes.
	delay time.Duration
	// fail is what proposals return instead of being applied.
	fail error
	// stuck is a lease whose revocation fails.
	stuck int64
	// revoked has the time at which each lease was last proposed for
	// revocation; attempts counts.
	revoked     map[int64]time.Time
	attempts    int
	checkpoints []string
	clocks      int
	confirmed   int
	// late applies what was committed before and has not been applied yet.
	late          func()
	inFlight      int
	mostInFlight  int
	granted       map[int64]time.Time
	appliedErrors []error
}

func newEngine(t *testing.T) *engine.Engine {
	eng, err := engine.Open(engine.Options{Dir: "db", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := eng.Close(); err != nil {
			t.Error(err)
		}
	})
	return eng
}

// bubble runs f on fake time with a promoted member. The engine is outside and
// in real time: commits may wait for its goroutines, which are there too.
func bubble(t *testing.T, o Options, f func(m *member)) {
	t.Helper()
	eng := newEngine(t)
	commits, answers := make(chan *pebble.Batch), make(chan error)
	done := make(chan struct{})
	go func() { // ended, and waited for, below
		defer close(done)
		for b := range commits {
			answers <- eng.Commit(b)
		}
	}()
	defer func() {
		close(commits)
		<-done
	}()
	synctest.Test(t, func(t *testing.T) {
		m := &member{
			t: t, eng: eng, commits: commits, answers: answers,
			revoked: map[int64]time.Time{}, granted: map[int64]time.Time{},
		}
		m.start(o)
		f(m)
		m.l.Close()
		for _, err := range m.appliedErrors {
			t.Errorf("apply: %v", err)
		}
	})
}

// start opens the table and a lessor that leads, as after a restart.
func (m *member) start(o Options) {
	m.t.Helper()
	table, err := lease.Open(m.eng)
	if err != nil {
		m.t.Fatal(err)
	}
	m.table = table
	m.l = New(table, o)
	m.l.Promote(m)
}

// succeed makes another leader: a new term, and a clock that knows only what is
// in the table.
func (m *member) succeed() { m.l.Promote(&laterTerm{m}) }

// laterTerm is another one than any before.
type laterTerm struct{ *member }

// TestPromotedTwice: the news that this member leads may come twice in a term.
func TestPromotedTwice(t *testing.T) {
	bubble(t, Options{Extend: time.Minute}, func(m *member) {
		m.grant(1, 5)
		pass(3 * time.Second)
		m.l.Promote(m)
		m.wantTimeToLive(1, 5, 2)
		pass(2050 * time.Millisecond)
		m.wantGone(1)
	})
}

// Confirm implements Proposer.
func (m *member) Confirm(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.confirmed++
	if m.late != nil {
		m.late()
		m.late = nil
	}
	return m.fail
}

// Confirmed implements Proposer.
func (m *member) Confirmed() bool { return m.Confirm(m.t.Context()) == nil }

// Propose applies r, after the delay.
func (m *member) Propose(ctx context.Context, r *pb.InternalRaftRequest) error {
	m.mu.Lock()
	delay := m.delay
	if r.LeaseRevoke != nil {
		m.inFlight++
		m.mostInFlight = max(m.mostInFlight, m.inFlight)
		defer func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.inFlight--
		}()
		m.attempts++
		m.revoked[r.LeaseRevoke.ID] = time.Now()
	}
	if r.LeaseCheckpoint != nil {
		for _, c := range r.LeaseCheckpoint.Checkpoints {
			if c.ID == 0 {
				m.clocks++
				continue
			}
			m.checkpoints = append(m.checkpoints, fmt.Sprintf("%d:%d", c.ID, c.Remaining_TTL))
		}
	}
	m.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return m.apply(r)
}

func (m *member) apply(r *pb.InternalRaftRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applyLocked(r)
}

func (m *member) applyLocked(r *pb.InternalRaftRequest) error {
	if m.fail != nil {
		return m.fail
	}
	b := m.eng.NewBatch()
	var err error
	switch {
	case r.LeaseGrant != nil:
		err = m.table.Grant(b, r.LeaseGrant.ID, r.LeaseGrant.TTL)
		m.granted[r.LeaseGrant.ID] = time.Now()
	case r.LeaseRevoke != nil && r.LeaseRevoke.ID == m.stuck:
		err = errors.New("too large")
	case r.LeaseRevoke != nil:
		_, err = m.table.Revoke(b, r.LeaseRevoke.ID)
	case r.LeaseCheckpoint != nil:
		for _, c := range r.LeaseCheckpoint.Checkpoints {
			err = errors.Join(err, m.table.Checkpoint(b, c.ID, c.Remaining_TTL))
		}
	}
	m.commits <- b
	if cerr := <-m.answers; cerr != nil {
		m.appliedErrors = append(m.appliedErrors, cerr)
	}
	return err
}

func (m *member) grant(id, ttl int64) {
	m.t.Helper()
	if err := m.apply(&pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: ttl}}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) revoke(id int64) {
	m.t.Helper()
	if err := m.apply(&pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *member) setDelay(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delay = d
}

func (m *member) counts() (attempts, most int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attempts, m.mostInFlight
}

// pass lets time pass and everything due in it happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (m *member) wantAlive(ids ...int64) {
	m.t.Helper()
	for _, id := range ids {
		if !m.table.Has(id) {
			m.t.Errorf("lease %d is gone", id)
		}
	}
}

func (m *member) wantGone(ids ...int64) {
	m.t.Helper()
	for _, id := range ids {
		if m.table.Has(id) {
			m.t.Errorf("lease %d still exists", id)
		}
	}
}

func (m *member) wantTimeToLive(id, granted, remaining int64) {
	m.t.Helper()
	g, r, err := m.l.TimeToLive(m.t.Context(), id)
	if err != nil || g != granted || r != remaining {
		m.t.Errorf("TimeToLive(%d) = %d, %d, %v, want %d, %d", id, g, r, err, granted, remaining)
	}
}

func (m *member) wantRenewed(id, ttl int64) {
	m.t.Helper()
	if got, err := m.l.Renew(m.t.Context(), id); err != nil || got != ttl {
		m.t.Errorf("Renew(%d) = %d, %v, want %d", id, got, err, ttl)
	}
}

func TestExpiresOnTimeAndNotBefore(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 5)
		m.grant(2, 10)
		pass(5*time.Second - time.Millisecond)
		m.wantAlive(1, 2)
		pass(50 * time.Millisecond)
		m.wantGone(1)
		m.wantAlive(2)
		pass(5 * time.Second)
		m.wantGone(2)
		if s := m.l.Stats(); s.Expired != 2 {
			t.Errorf("%d leases expired, want 2", s.Expired)
		}
	})
}

func TestKeepAlive(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 5)
		for range 10 {
			pass(4 * time.Second)
			m.wantRenewed(1, 5)
		}
		pass(4900 * time.Millisecond)
		m.wantAlive(1)
		pass(200 * time.Millisecond)
		m.wantGone(1)
		if _, err := m.l.Renew(m.t.Context(), 1); !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("Renew of an expired lease returned %v", err)
		}
		if s := m.l.Stats(); s.Renewed != 10 {
			t.Errorf("%d renewals, want 10", s.Renewed)
		}
	})
}

func TestTimeToLive(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 10)
		m.wantTimeToLive(1, 10, 10)
		pass(time.Millisecond)
		m.wantTimeToLive(1, 10, 9)
		pass(9500 * time.Millisecond)
		m.wantTimeToLive(1, 10, 0)
		m.mu.Lock()
		m.stuck = 1
		m.mu.Unlock()
		pass(2 * time.Second)
		m.wantTimeToLive(1, 10, -1)
		if g, r, err := m.l.TimeToLive(m.t.Context(), 99); g != 0 || r != -1 || !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("TimeToLive of an unknown lease = %d, %d, %v", g, r, err)
		}
		m.wantNoOverflow(2, lease.MaxTTL)
		deposed := errors.New("a later term")
		m.setFail(deposed)
		if _, _, err := m.l.TimeToLive(m.t.Context(), 1); !errors.Is(err, deposed) {
			t.Errorf("TimeToLive without a quorum: %v", err)
		}
		m.setFail(nil)
	})
}

// wantNoOverflow grants the longest lease there is, to see that nothing overflows.
func (m *member) wantNoOverflow(id, ttl int64) {
	m.setFail(nil)
	m.grant(id, ttl)
	m.wantTimeToLive(id, ttl, ttl)
	m.l.Demote()
	m.l.Promote(m)
	if _, r, err := m.l.TimeToLive(m.t.Context(), id); err != nil || r < ttl {
		m.t.Errorf("after another promotion %d s remain, %v", r, err)
	}
}

func TestRevokedByClient(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 5)
		m.revoke(1)
		m.grant(1, 60) // another lease, by the same name
		pass(30 * time.Second)
		m.wantAlive(1)
		m.wantTimeToLive(1, 60, 30)
		m.revoke(1)
		pass(60 * time.Second)
		if attempts, _ := m.counts(); attempts != 0 {
			t.Errorf("%d revocations of leases that were revoked by their owner", attempts)
		}
	})
}

func TestExpiredIsNotRenewable(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 5)
		m.setDelay(3 * time.Second)
		pass(6 * time.Second) // expired, and on its way to be revoked
		m.wantAlive(1)
		begin := time.Now()
		if ttl, err := m.l.Renew(m.t.Context(), 1); !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("Renew = %d, %v, want ErrNotFound", ttl, err)
		}
		if d := time.Since(begin); d < time.Second || d > 3*time.Second {
			t.Errorf("Renew returned after %v, want it to wait for the revocation", d)
		}
		m.wantGone(1)
	})
}

func TestRenewOfExpiredGivesUp(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 1)
		m.setFail(errors.New("no quorum"))
		pass(2 * time.Second)
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Second)
		defer cancel()
		if _, err := m.l.Renew(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Renew = %v, want the context's error", err)
		}
		got := make(chan error, 1)
		go func() {
			_, err := m.l.Renew(m.t.Context(), 1)
			got <- err
		}()
		synctest.Wait()
		m.l.Demote()
		if err := <-got; !errors.Is(err, ErrNotPrimary) {
			t.Errorf("Renew = %v, want ErrNotPrimary", err)
		}
	})
}

func TestFailedRevocationIsRepeated(t *testing.T) {
	bubble(t, Options{RetryInterval: time.Second}, func(m *member) {
		m.grant(1, 5)
		m.setFail(errors.New("no quorum"))
		pass(10100 * time.Millisecond)
		if attempts, _ := m.counts(); attempts < 5 || attempts > 6 {
			t.Errorf("%d attempts in 5 s, want one each second", attempts)
		}
		m.wantAlive(1)
		m.setFail(nil)
		pass(1100 * time.Millisecond)
		m.wantGone(1)
	})
}

func TestDemotedDoesNothing(t *testing.T) {
	bubble(t, Options{Extend: time.Second}, func(m *member) {
		m.grant(1, 5)
		m.l.Demote()
		pass(time.Hour)
		m.wantAlive(1)
		if _, err := m.l.Renew(m.t.Context(), 1); !errors.Is(err, ErrNotPrimary) {
			t.Errorf("Renew = %v, want ErrNotPrimary", err)
		}
		if _, _, err := m.l.TimeToLive(m.t.Context(), 1); !errors.Is(err, ErrNotPrimary) {
			t.Errorf("TimeToLive = %v, want ErrNotPrimary", err)
		}
		m.grant(2, 3)
		if got := fmt.Sprint(m.l.Leases()); got != "[1 2]" {
			t.Errorf("leases %s, want [1 2]", got)
		}

		m.l.Promote(m) // everyone starts anew, and gets an election timeout more
		if got := fmt.Sprint(m.l.Leases()); got != "[2 1]" {
			t.Errorf("leases %s, want those first that expire first", got)
		}
		pass(3900 * time.Millisecond)
		m.wantAlive(1, 2)
		pass(200 * time.Millisecond)
		m.wantGone(2)
		pass(2 * time.Second)
		m.wantGone(1)
	})
}

func TestProposalsEndWithTheReign(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 1)
		m.setDelay(time.Hour)
		pass(2 * time.Second)
		begin := time.Now()
		m.l.Demote()
		m.l.Close()
		if d := time.Since(begin); d > time.Second {
			t.Errorf("Close took %v", d)
		}
		m.wantAlive(1)
		m.l.Promote(m) // too late
		pass(time.Hour)
		m.wantAlive(1)
	})
}

func TestReset(t *testing.T) {
	other := newEngine(t)
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 5)
		table, err := lease.Open(other)
		if err != nil {
			t.Fatal(err)
		}
		m.l.Reset(table)
		if _, _, err := m.l.TimeToLive(m.t.Context(), 1); !errors.Is(err, ErrNotPrimary) {
			t.Errorf("TimeToLive = %v, want ErrNotPrimary", err)
		}
		m.l.Promote(m)
		if _, _, err := m.l.TimeToLive(m.t.Context(), 1); !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("TimeToLive = %v, want ErrNotFound in the other table", err)
		}
	})
}

func TestCheckpoints(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 900) // checkpointed after 5 minutes, the most a change of leaders may give back
		m.grant(2, 300) // after half its time
		pass(149 * time.Second)
		m.wantCheckpoints("[]")
		pass(1100 * time.Millisecond)
		m.wantCheckpoints("[2:150]")
		pass(150 * time.Second)
		m.wantCheckpoints("[2:150 1:600]")
		pass(100 * time.Second)
		m.wantTimeToLive(1, 900, 499)
		m.wantGone(2)

		// A restart forgets the time since the clock was last moved on, no more.
		m.l.Close()
		m.start(Options{})
		m.wantTimeToLive(1, 900, 500)

		// Renewing makes the full time known before it says so.
		m.wantRenewed(1, 900)
		m.wantCheckpoints("[2:150 1:600 1:0]")
		m.wantTimeToLive(1, 900, 900)
		m.l.Close()
		m.start(Options{})
		m.wantTimeToLive(1, 900, 900)
	})
}

// TestClockRunsOnlyForCheckpoints: it costs a proposal a second while leases
// live by it, and nothing when none does.
func TestClockRunsOnlyForCheckpoints(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 100)
		pass(49 * time.Second)
		m.wantClocks(0, 0)
		pass(11 * time.Second) // checkpointed after 50 seconds
		m.wantClocks(10, 11)
		m.wantRenewed(1, 100)
		pass(30 * time.Second)
		m.wantClocks(10, 11)
		m.wantRenewed(1, 100)
		pass(55 * time.Second)
		m.wantClocks(15, 17)
		m.revoke(1)
		pass(time.Hour)
		m.wantClocks(15, 17)
	})
}

func (m *member) wantClocks(least, most int) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clocks < least || m.clocks > most {
		m.t.Errorf("the clock was moved %d times, want %d to %d", m.clocks, least, most)
	}
}

// TestChangesOfLeaders: however leaders come and go, a lease lives as long as
// its owner was promised, and longer by no more than was said: half its time
// to live or the interval, and for each change the extension and what that
// leader could not record.
func TestChangesOfLeaders(t *testing.T) {
	const extend = time.Second
	for _, c := range []struct {
		ttl     int64
		reign   time.Duration
		renewed time.Duration // since the grant, in the first reign
		first   time.Duration // how long after that the first change is
	}{
		{60, 3 * time.Second, 0, 29 * time.Second},
		{60, 3 * time.Second, 20 * time.Second, 29 * time.Second},
		{60, 3 * time.Second, 40 * time.Second, 29 * time.Second}, // a checkpoint has been cleared
		{60, 29 * time.Second, 0, 29 * time.Second},
		{60, 7300 * time.Millisecond, 0, 35 * time.Second},
		{10, 2500 * time.Millisecond, 0, 4900 * time.Millisecond},
		{5, 5 * time.Second, 0, 2 * time.Second},
		{3600, 10 * time.Second, 0, 299 * time.Second},
		{3600, 299 * time.Second, 0, 299 * time.Second},
		{2, 3 * time.Second, 0, 900 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			bubble(t, Options{Extend: extend}, func(m *member) {
				m.grant(1, c.ttl)
				if c.renewed > 0 {
					pass(c.renewed)
					m.wantRenewed(1, c.ttl)
				}
				ttl := seconds(c.ttl)
				promised := time.Now()
				pass(c.first)
				changes := 0
				for ; m.table.Has(1); changes++ {
					m.succeed()
					pass(c.reign)
					if changes > 10_000 {
						t.Error("it does not end")
						return
					}
				}
				m.mu.Lock()
				lived := m.revoked[1].Sub(promised)
				m.mu.Unlock()
				most := ttl + min(ttl/2, DefaultCheckpointInterval) +
					time.Duration(changes)*(extend+tick+2*granularity) + time.Second
				if lived < ttl || lived > most {
					t.Errorf("with %d changes it lived %v, want %v to %v", changes, lived, ttl, most)
				}
			})
		})
	}
}

// TestNewLeaderChecksSoon: what it inherits without a checkpoint gets one within
// a tick, in proposals of bounded size, one at a time; what is renewed before
// gets none.
func TestNewLeaderChecksSoon(t *testing.T) {
	const n = 2500
	bubble(t, Options{}, func(m *member) {
		for id := int64(1); id <= n; id++ {
			m.grant(id, 60)
		}
		m.succeed()
		for id := int64(1); id <= 100; id++ {
			m.wantRenewed(id, 60)
		}
		m.setDelay(100 * time.Millisecond)
		pass(tick + 50*time.Millisecond)
		m.wantClocks(1, 1)
		pass(200 * time.Millisecond)
		m.wantClocks(3, 3)
		pass(100 * time.Millisecond)
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.checkpoints) != n-100 {
			t.Errorf("%d checkpoints, want %d", len(m.checkpoints), n-100)
		}
		if m.confirmed != 100 {
			t.Errorf("%d renewals were confirmed, want 100", m.confirmed)
		}
	})
}

// TestRenewalIsConfirmed: a leader that has been deposed without knowing must
// not promise anything.
func TestRenewalIsConfirmed(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 60)
		deposed := errors.New("a later term")
		m.setFail(deposed)
		if _, err := m.l.Renew(m.t.Context(), 1); !errors.Is(err, deposed) {
			t.Errorf("Renew = %v, want %v", err, deposed)
		}
	})
}

// TestRenewNow: what Renew would have to wait for, or to explain, is left to it.
func TestRenewNow(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		want := func(id int64, wantTTL int64, wantOK bool) {
			m.t.Helper()
			if ttl, ok := m.l.RenewNow(id); ttl != wantTTL || ok != wantOK {
				m.t.Errorf("RenewNow(%d) = %d, %t; want %d, %t", id, ttl, ok, wantTTL, wantOK)
			}
		}
		m.grant(1, 60)
		pass(40 * time.Second) // there is a checkpoint now
		want(1, 0, false)
		m.wantRenewed(1, 60)
		pass(20 * time.Second)
		want(1, 60, true)
		m.wantTimeToLive(1, 60, 60)
		want(2, 0, false)

		m.setFail(errors.New("a later term"))
		want(1, 0, false)
		m.setFail(nil)
		if got := m.l.Stats().Renewed; got != 2 {
			m.t.Errorf("%d renewals, want 2", got)
		}

		// Another member has answered a revocation that comes in the meantime.
		m.mu.Lock()
		m.late = func() {
			if err := m.applyLocked(&pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: 1}}); err != nil {
				m.t.Error(err)
			}
		}
		m.mu.Unlock()
		want(1, 0, false)

		m.grant(3, 5)
		pass(5 * time.Second) // expired
		want(3, 0, false)
		m.l.Demote()
		want(3, 0, false)
	})
}

// TestCommittedButNotApplied: another member may have applied, and answered, what
// the leader has committed and not applied yet.
func TestCommittedButNotApplied(t *testing.T) {
	commitLate := func(m *member, r *pb.InternalRaftRequest) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.late = func() {
			if err := m.applyLocked(r); err != nil {
				m.t.Error(err)
			}
		}
	}
	grant := func(id int64) *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: 60}}
	}
	revoke := func(id int64) *pb.InternalRaftRequest {
		return &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: id}}
	}
	bubble(t, Options{}, func(m *member) {
		commitLate(m, grant(1))
		m.wantRenewed(1, 60)
		commitLate(m, grant(2))
		m.wantTimeToLive(2, 60, 60)
		commitLate(m, revoke(1))
		if _, err := m.l.Renew(m.t.Context(), 1); !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("Renew of a lease whose revocation was answered: %v", err)
		}
		commitLate(m, revoke(2))
		if _, _, err := m.l.TimeToLive(m.t.Context(), 2); !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("TimeToLive of a lease whose revocation was answered: %v", err)
		}
	})
}

// TestReignsHaveTheirProposers: what a term proposes goes to that term.
func TestReignsHaveTheirProposers(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 5)
		old := &lostTerm{}
		m.l.Promote(old)
		pass(6 * time.Second)
		m.wantAlive(1)
		if old.asked.Load() == 0 {
			t.Error("the expired lease was not proposed for revocation")
		}
		m.l.Promote(m)
		asked := old.asked.Load()
		pass(6 * time.Second)
		m.wantGone(1)
		if now := old.asked.Load(); now != asked {
			t.Errorf("%d proposals to a term that is over", now-asked)
		}
	})
}

// lostTerm is a term that another leader has ended.
type lostTerm struct{ asked atomic.Int64 }

func (p *lostTerm) Propose(context.Context, *pb.InternalRaftRequest) error {
	p.asked.Add(1)
	return errors.New("not the leader of this term")
}

func (p *lostTerm) Confirm(context.Context) error { return errors.New("not the leader of this term") }
func (p *lostTerm) Confirmed() bool               { return false }

// TestOneLeaseThatCannotBeRevoked holds up no other.
func TestOneLeaseThatCannotBeRevoked(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.stuck = 1
		for id := int64(1); id <= 60; id++ {
			m.grant(id, id)
		}
		for id := int64(2); id < 60; id++ {
			pass(time.Duration(id)*time.Second + 50*time.Millisecond - time.Since(m.granted[id]))
			m.wantGone(id)
			m.wantAlive(1, id+1)
		}
		m.mu.Lock()
		m.stuck = 0
		m.mu.Unlock()
		pass(time.Second)
		m.wantGone(1)
	})
}

// TestFailingRevocationsAreProbed: while none succeeds, those who wait do not
// all try again and again.
func TestFailingRevocationsAreProbed(t *testing.T) {
	const n = 5000
	bubble(t, Options{RetryInterval: time.Second, MaxInFlight: 100}, func(m *member) {
		for id := int64(1); id <= n; id++ {
			m.grant(id, 5)
		}
		m.setFail(errors.New("a member's state is damaged"))
		pass(6 * time.Second)
		before, _ := m.counts()
		pass(10 * time.Second)
		if after, _ := m.counts(); after-before > 11 {
			t.Errorf("%d attempts in 10 s, want one each second", after-before)
		}
		m.setFail(nil)
		pass(3 * time.Second)
		if left := m.table.Len(); left != 0 {
			t.Errorf("%d leases are left", left)
		}
	})
}

func (m *member) wantCheckpoints(want string) {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := fmt.Sprint(m.checkpoints); got != want {
		m.t.Errorf("checkpoints %s, want %s", got, want)
	}
}

func TestKeptAliveIsNotCheckpointed(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 900)
		for range 100 {
			pass(299 * time.Second)
			m.wantRenewed(1, 900)
		}
		m.wantCheckpoints("[]")
	})
}

func TestCheckpointsCanBeOff(t *testing.T) {
	bubble(t, Options{CheckpointInterval: -1}, func(m *member) {
		m.grant(1, 900)
		pass(899 * time.Second)
		m.wantCheckpoints("[]")
		m.wantAlive(1)
	})
}

func TestFailedCheckpointIsRepeated(t *testing.T) {
	bubble(t, Options{RetryInterval: time.Second}, func(m *member) {
		m.grant(1, 900)
		m.setFail(errors.New("no quorum"))
		pass(301500 * time.Millisecond)
		m.setFail(nil)
		pass(time.Second)
		m.wantCheckpoints("[1:600 1:599 1:598]")
		if l, _ := m.table.Get(1); l.RemainingTTL != 598 {
			t.Errorf("stored remaining time %d, want 598", l.RemainingTTL)
		}
		m.wantRenewed(1, 900)
		m.wantCheckpoints("[1:600 1:599 1:598 1:0]")

		// One that failed may have been agreed on after all; so it counts as
		// there, to be cleared.
		m.setFail(errors.New("no quorum"))
		pass(300500 * time.Millisecond)
		m.setFail(nil)
		m.wantRenewed(1, 900)
		m.wantCheckpoints("[1:600 1:599 1:598 1:0 1:600 1:0]")
		m.wantRenewed(1, 900)
		m.wantCheckpoints("[1:600 1:599 1:598 1:0 1:600 1:0]")
	})
}

// TestRenewalBeatsCheckpointUnderWay: the owner was told 900 seconds, so no
// crash after that may leave fewer.
func TestRenewalBeatsCheckpointUnderWay(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 900)
		m.setDelay(10 * time.Second)
		pass(301 * time.Second) // the checkpoint is under way
		m.wantCheckpoints("[1:600]")
		m.wantRenewed(1, 900)
		m.wantCheckpoints("[1:600 1:0]")
		m.l.Close()
		m.setDelay(0)
		m.start(Options{})
		m.wantTimeToLive(1, 900, 900)
	})
}

func TestRenewalFailsIfItCannotBeKept(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 900)
		pass(301 * time.Second)
		broken := errors.New("no quorum")
		m.setFail(broken)
		if _, err := m.l.Renew(m.t.Context(), 1); !errors.Is(err, broken) {
			t.Errorf("Renew = %v, want %v", err, broken)
		}
	})
}

// TestMassExpiry: 100,000 leases end within one second. All are revoked soon
// after, none before its time, and never too many at once.
func TestMassExpiry(t *testing.T) {
	const n = 100_000
	bubble(t, Options{MaxInFlight: 100}, func(m *member) {
		m.setDelay(2 * time.Millisecond)
		for id := int64(1); id <= n; id++ {
			m.grant(id, 10)
			if id%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		pass(12500 * time.Millisecond)
		if left := m.table.Len(); left != 0 {
			t.Errorf("%d leases are left", left)
		}
		attempts, most := m.counts()
		if attempts != n || most != 100 {
			t.Errorf("%d revocations with up to %d at a time, want %d with 100", attempts, most, n)
		}
		for id, at := range m.revoked {
			if lived := at.Sub(m.granted[id]); lived < 10*time.Second {
				t.Fatalf("lease %d lived only %v", id, lived)
			}
		}
	})
}

// TestFeedOverflow: when too much happens for the feed, the lessor compares
// everything and misses nothing.
func TestFeedOverflow(t *testing.T) {
	const n = 70_000
	bubble(t, Options{}, func(m *member) {
		m.grant(n+1, 60)
		synctest.Wait()
		m.l.mu.Lock() // keeps the lessor from reading the feed
		for id := int64(1); id <= n; id++ {
			m.grant(id, 60)
		}
		m.revoke(n + 1)
		m.l.mu.Unlock()
		m.wantTimeToLive(n, 60, 60)
		if _, _, err := m.l.TimeToLive(m.t.Context(), n+1); !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("TimeToLive of a revoked lease: %v", err)
		}
		if got := len(m.l.Leases()); got != n {
			t.Errorf("%d leases, want %d", got, n)
		}
	})
}

func BenchmarkRenew(b *testing.B) {
	eng, err := engine.Open(engine.Options{Dir: "db", FS: vfs.NewMem()})
	if err != nil {
		b.Fatal(err)
	}
	defer eng.Close()
	table, err := lease.Open(eng)
	if err != nil {
		b.Fatal(err)
	}
	const n = 100_000
	batch := eng.NewBatch()
	for id := int64(1); id <= n; id++ {
		if err := table.Grant(batch, id, 3600); err != nil {
			b.Fatal(err)
		}
	}
	if err := eng.Commit(batch); err != nil {
		b.Fatal(err)
	}
	l := New(table, Options{})
	defer l.Close()
	l.Promote(&member{})
	b.ReportAllocs()
	id := int64(0)
	for b.Loop() {
		id = id%n + 1
		if _, err := l.Renew(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}
