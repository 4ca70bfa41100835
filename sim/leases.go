package sim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/machine/lease"
)

// leaseOwner is a lease as its owner sees it.
type leaseOwner struct {
	id      int64
	ttl     time.Duration
	renewed time.Time // when the last renewal that was confirmed had been asked for
	tried   time.Time // when it was asked for
	ended   bool      // revoked, or seen to be gone
	left    bool      // its owner has left: it is not renewed
}

// aLease returns a lease that a client may use, sometimes one that has ended.
func (c *client) aLease() *leaseOwner {
	w := c.w
	if len(w.leaseIDs) == 0 {
		return nil
	}
	l := w.leases[w.leaseIDs[c.draw(len(w.leaseIDs))]]
	if l.ended && !c.chance(25) {
		return nil
	}
	return l
}

func (c *client) grant(p *process, op uint64) {
	w := c.w
	l := &leaseOwner{id: int64(1000 + op), ttl: time.Duration(1+c.draw(4)) * time.Second}
	if time.Since(w.began) < w.plan.Faults/2 && c.chance(30) {
		// Many leaders may come and go in its time, and it ends before the run does.
		l.ttl, l.left = time.Duration(5+c.draw(4))*time.Second, true
	}
	w.leases[l.id] = l
	w.leaseIDs = append(w.leaseIDs, l.id)
	l.tried = time.Now()
	c.propose(p, op, &pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: l.id, TTL: int64(l.ttl / time.Second)}})
}

// granted notes the answer to a grant.
func (w *world) granted(id int64) {
	l := w.leases[id]
	l.renewed = maxTime(l.renewed, l.tried)
}

func (c *client) revoke(p *process, op uint64) {
	l := c.aLease()
	if l == nil {
		c.later()
		return
	}
	c.propose(p, op, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: l.id}})
}

// renew keeps a lease alive, at the member that thinks it leads.
func (c *client) renew(op uint64) {
	w := c.w
	l := c.aLease()
	var to *process
	for _, m := range w.inOrder() {
		if m.serves() && m.p.node.Status().IsLeader && (to == nil || c.chance(50)) {
			to = m.p
		}
	}
	if l == nil || l.left || to == nil {
		c.later()
		return
	}
	asked, atOnce := time.Now(), c.chance(50)
	name := fmt.Sprintf("client %d", c.id)
	ended := l.ended
	done := w.reigns.renews(l.id)
	w.ending.Go(func() { // until answered, or the time is over
		ctx, cancel := context.WithTimeout(to.ctx, requestTime)
		defer cancel()
		var ttl int64
		var err error
		renewed := false
		if atOnce {
			ttl, renewed = to.lessor.RenewNow(l.id)
		}
		if !renewed {
			ttl, err = to.lessor.Renew(ctx, l.id)
		}
		done()
		w.post(name, func() {
			if c.busy != op || !to.alive() {
				return
			}
			defer c.later()
			if err != nil && w.canary == revivedLease && errors.Is(err, lease.ErrNotFound) {
				ttl, err = int64(l.ttl/time.Second), nil
			}
			if err != nil {
				if ended {
					w.tally.gone++
				}
				return
			}
			if ended {
				w.fail("member %d renews lease %d, whose end had been answered before", to.m.id, l.id)
			}
			if time.Duration(ttl)*time.Second != l.ttl {
				w.fail("member %d renews lease %d for %d s, not %v", to.m.id, l.id, ttl, l.ttl)
			}
			l.renewed = maxTime(l.renewed, asked)
		})
	})
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// clockTolerance is by how much the fastest clock may be ahead of time, and time of
// the slowest clock.
const clockTolerance = 1.03

// leaseEnded checks that a lease was not ended before its time by the clock, nor
// long after it.
func (w *world) leaseEnded(id int64, late string) {
	l := w.leases[id]
	w.tally.expired++
	if l == nil {
		w.fail("lease %d expires, which nobody has asked for", id)
		return
	}
	at := time.Now()
	lived := at.Sub(l.renewed)
	if !l.renewed.IsZero() && float64(lived)*clockTolerance < float64(l.ttl) {
		w.fail("lease %d of %v expires %v after it was renewed", id, l.ttl, lived)
	}
	if late != "" {
		w.fail("lease %d lives for too long: %s", id, late)
	}
	l.ended = true
}

// reigns counts the time that leaders have led, and how much of it each lease has
// lived: lessor/DESIGN.md bounds that.
//
// Let T be the time to live, P what a lease waits for its first checkpoint,
// min(T/2, the checkpoint interval), and x the last moment at which it may have been
// renewed, by an attempt whose answer nobody got too; but not before a leader knew
// of it. Time counts while the last reign that began lasts, except while a proposal
// of its lease clock is under way and shortly after one that failed: what cannot be
// recorded is not time that leaders have led.
//
//   - The reign in which x is gives a deadline x + T, and records what is left at
//     x + P. If it ends before, P has passed that nobody knows of.
//   - A reign that inherits a lease without a record gives T and the extension, and
//     records what is left, without the extension, after a tick, or P. If it ends
//     before, that has passed that nobody knows of.
//   - From the record on the clock of the table is moved each tick, and a reign that
//     ends has led for at most a tick that the clock was not told of. The next one
//     gives the extension and what is left by the table, in whole seconds: what was
//     recorded was rounded up, and what the clock has moved since is rounded down. One
//     that is left nothing gives a second, which is a tick.
//   - What was recorded was rounded up by a second only where P was not lost too, and
//     by no more than P where P is below a second, for T is in seconds; after a whole
//     tick it was hardly rounded. So of the two roundings a second is enough for one,
//     and P for the other.
//
// With n reigns begun since x, the counted time is at most T + P + 1 s +
// n × (extension + tick), by clocks that may be slow; and each reign looks at its
// deadlines and at what to record only so often.
type reigns struct {
	mu          sync.Mutex
	checkpoints time.Duration // the interval

	p        *process        // Guarded by mu, as all below. Whose reign it is, nil when it is over.
	term     uint64          // of the last reign
	begun    int             // so many have begun
	open     int             // proposals of its lease clock under way
	wait     time.Time       // nothing counts before this
	led      time.Duration   // the time counted
	at       time.Time       // up to here
	lives    map[int64]*life // the leases there are
	renewing map[int64]int   // attempts under way
}

// life is how long a lease has lived.
type life struct {
	ttl   time.Duration
	known bool          // to the leader
	led   time.Duration // when it may have been renewed last, by the time counted
	begun int           // so many reigns had begun then
}

// What the lessor's are, with what its clock may add to them.
const (
	leaseTick     = time.Second
	leaseLook     = 25 * time.Millisecond // between two looks
	leaseRounding = time.Second
	// A proposal that failed is repeated after half a second, or after another one
	// has shown by then that they succeed again.
	leaseRetry = 1100 * time.Millisecond
)

func newReigns(checkpoints time.Duration) *reigns {
	return &reigns{checkpoints: checkpoints, at: time.Now(), lives: map[int64]*life{}, renewing: map[int64]int{}}
}

// count brings the time that leaders have led up to date. With mu.
func (r *reigns) count() {
	now := time.Now()
	if from := maxTime(r.at, r.wait); r.p != nil && r.open == 0 && now.After(from) {
		r.led += now.Sub(from)
	}
	r.at = now
}

// begin notes that a process begins to lead in a term.
func (r *reigns) begin(p *process, term uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if term <= r.term {
		return
	}
	r.count()
	r.p, r.term, r.open, r.wait = p, term, 0, time.Time{}
	r.begun++
	for _, l := range r.lives {
		if !l.known {
			l.known = true
			r.renew(l)
		}
	}
}

// end notes that a process does not lead, or is no more.
func (r *reigns) end(p *process) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.p == p {
		r.count()
		r.p = nil
	}
}

// proposes notes that the lease clock of a process proposes something. Whoever
// calls calls what it returns with what came of it.
func (r *reigns) proposes(p *process, term uint64) func(error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.p != p || r.term != term {
		return func(error) {}
	}
	r.count()
	r.open++
	return func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.p != p || r.term != term {
			return
		}
		r.count()
		r.open--
		if err != nil {
			r.wait = time.Now().Add(leaseRetry)
		}
	}
}

// renew has a lease live anew. With mu.
func (r *reigns) renew(l *life) {
	r.count()
	l.led, l.begun = r.led, r.begun
}

// renews notes that somebody tries to renew a lease. Whoever calls calls what it
// returns when the attempt is over.
func (r *reigns) renews(id int64) (over func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renewing[id]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.renewing[id]--
		if l := r.lives[id]; l != nil {
			r.renew(l)
		}
	}
}

// agreed notes that it is agreed that there is a lease.
func (r *reigns) agreed(g *pb.LeaseGrantRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lives[g.ID] = &life{ttl: time.Duration(g.TTL) * time.Second}
}

// granted notes that a process has applied the grant of a lease.
func (r *reigns) granted(p *process, id int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.lives[id]; l != nil && !l.known && r.p == p {
		l.known = true
		r.renew(l)
	}
}

// ended notes the end of a lease, and says whether it has come too late.
func (r *reigns) ended(id int64) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lives[id]
	delete(r.lives, id)
	if l == nil || !l.known || r.renewing[id] > 0 {
		return ""
	}
	r.count()
	lived, n := r.led-l.led, time.Duration(r.begun-l.begun)
	most := l.ttl + min(l.ttl/2, r.checkpoints) + leaseRounding + n*(electionTicks*tick+leaseTick) + (2*n+2)*leaseLook
	if float64(lived) > float64(most)*clockTolerance {
		return fmt.Sprintf("leaders have led for %v since it may have been renewed last, for %v, and %d have begun to", lived, l.ttl, n)
	}
	return ""
}
