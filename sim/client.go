package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/machine"
)

// client does one thing after another, on whichever member it finds.
type client struct {
	w    *world
	id   int
	busy uint64 // the operation under way, 0 for none
	on   *process
	// What was answered before the operation under way began: no answer to it may be
	// from before that.
	position uint64
	revision int64
}

// answered is the last place in the order of things that any client was told of.
type answered struct {
	position uint64
	revision int64
}

// leaseOwner is a lease as its owner sees it.
type leaseOwner struct {
	id      int64
	ttl     time.Duration
	renewed time.Time // when the last renewal that was confirmed had been asked for
	tried   time.Time // when the last one was asked for that may have been taken
	ended   bool      // revoked, or seen to be gone
}

func (w *world) someone() *process {
	var up []*process
	for _, m := range w.inOrder() {
		if m.serves() {
			up = append(up, m.p)
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[w.draw(len(up))]
}

// left has the clients of a process notice that it has ended.
func (w *world) left(p *process) {
	for _, c := range w.clients {
		if op := c.busy; op != 0 && c.on == p {
			w.after(w.between(0, 50*time.Millisecond), func() {
				if c.busy == op {
					w.tally.unknown++
					c.later()
				}
			})
		}
	}
	for _, x := range w.watchers {
		if x.p == p {
			x.leave(nil)
		}
	}
}

func (c *client) key() []byte { return fmt.Appendf(nil, "k%02d", c.w.draw(c.w.plan.Keys)) }

// span draws a range: one key, some, or all.
func (c *client) span() (key, end []byte) {
	switch c.w.draw(3) {
	case 0:
		return c.key(), nil
	case 1:
		a, b := c.key(), c.key()
		if string(a) > string(b) {
			a, b = b, a
		}
		if string(a) == string(b) {
			return a, nil
		}
		return a, b
	}
	return []byte("k"), []byte("l")
}

// later has the client go on.
func (c *client) later() {
	c.busy = 0
	c.w.after(c.w.between(0, 2*c.w.plan.Think), c.next)
}

// next begins an operation.
func (c *client) next() {
	w := c.w
	if w.finished {
		return
	}
	p := w.someone()
	if p == nil {
		c.w.after(20*time.Millisecond, c.next)
		return
	}
	w.lastOp++
	c.busy, c.position, c.revision = w.lastOp, w.answered.position, w.answered.revision
	c.on = p
	op := w.lastOp
	w.after(requestTime+time.Second, func() {
		if c.busy == op { // whoever was asked is no more
			w.tally.unknown++
			c.later()
		}
	})
	switch n := w.draw(100); {
	case n < 40:
		c.propose(p, op, &pb.InternalRaftRequest{Put: c.put(op)})
	case n < 48:
		key, end := c.span()
		c.propose(p, op, &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: w.chance(50)}})
	case n < 62:
		c.propose(p, op, &pb.InternalRaftRequest{Txn: c.txn(op)})
	case n < 77:
		c.read(p, op, c.rangeRequest(), true)
	case n < 88:
		c.read(p, op, c.rangeRequest(), false)
	case n < 91 && w.truth.revision() > 3:
		rev := w.truth.revision()
		rev -= int64(w.draw(int(min(rev, 60))))
		c.propose(p, op, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: max(rev, 1)}})
	case n < 95:
		c.grant(p, op)
	case n < 96:
		c.revoke(p, op)
	default:
		c.renew(op)
	}
}

func (c *client) put(op uint64) *pb.PutRequest {
	r := &pb.PutRequest{Key: c.key(), Value: fmt.Appendf(nil, "v%d", op), PrevKv: c.w.chance(20)}
	if c.w.chance(5) {
		r.Value = append(r.Value, make([]byte, c.w.draw(c.w.plan.ValueBytes))...)
	}
	if l := c.w.aLease(); l != nil && c.w.chance(20) {
		r.Lease = l.id
	}
	return r
}

func (c *client) rangeRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{}
	r.Key, r.RangeEnd = c.span()
	switch c.w.draw(6) {
	case 0:
		r.Limit = int64(1 + c.w.draw(5))
	case 1:
		r.CountOnly = true
	case 2:
		r.KeysOnly = true
	}
	if rev := c.w.truth.revision(); c.w.chance(30) {
		r.Revision = max(1, rev+2-int64(c.w.draw(int(min(rev, 50)+2))))
	}
	return r
}

func (c *client) txn(op uint64) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range c.w.draw(3) {
		r.Compare = append(r.Compare, c.compare())
	}
	r.Success, r.Failure = c.branch(op), c.branch(op)
	return r
}

func (c *client) compare() *pb.Compare {
	m := &pb.Compare{Key: c.key(), Result: pb.Compare_CompareResult(c.w.draw(4))}
	rev := c.w.truth.revision()
	switch c.w.draw(4) {
	case 0:
		m.Target, m.TargetUnion = pb.Compare_VERSION, &pb.Compare_Version{Version: int64(c.w.draw(3))}
	case 1:
		m.Target, m.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: max(0, rev-int64(c.w.draw(20)))}
	case 2:
		m.Target, m.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: max(0, rev-int64(c.w.draw(40)))}
	case 3:
		m.Target, m.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: fmt.Appendf(nil, "v%d", c.w.draw(int(c.w.lastOp)))}
	}
	return m
}

// branch draws what a transaction does, no key twice.
func (c *client) branch(op uint64) (ops []*pb.RequestOp) {
	first := c.w.draw(c.w.plan.Keys)
	for i := range c.w.draw(4) {
		key := fmt.Appendf(nil, "k%02d", (first+i)%c.w.plan.Keys)
		switch c.w.draw(3) {
		case 0:
			p := c.put(op)
			p.Key, p.Value = key, fmt.Appendf(nil, "v%d.%d", op, i)
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}})
		case 1:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}})
		case 2:
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: c.rangeRequest()}})
		}
	}
	return ops
}

// propose has a command replicated.
func (c *client) propose(p *process, op uint64, r *pb.InternalRaftRequest) {
	r.Header = &pb.RequestHeader{ID: op}
	command, err := proto.Marshal(r)
	if err != nil {
		c.w.fail("client %d: %v", c.id, err)
		return
	}
	name := fmt.Sprintf("client %d", c.id)
	p.node.Propose(command, func(res machine.Result) {
		c.w.post(name, func() {
			if c.busy == op && p.alive() {
				c.proposed(p, op, r, res)
			}
		})
	})
}

// proposed checks the answer to a command.
func (c *client) proposed(p *process, op uint64, r *pb.InternalRaftRequest, res machine.Result) {
	w := c.w
	at := w.truth.where(op)
	defer c.later()
	if at == nil {
		if res.Err == nil || !unknown(res.Err) {
			w.fail("member %d answers command %d, which nobody has applied, with %v, %v", p.m.id, op, res.Response, res.Err)
		}
		w.tally.unknown++
		return
	}
	if unknown(res.Err) {
		w.tally.unknown++
		return
	}
	if d := differs(res.Response, res.Err, at.resp, at.err); d != "" {
		w.fail("member %d, command %d: %s", p.m.id, op, d)
		return
	}
	if at.position <= c.position {
		w.fail("command %d is at %x in the log, and what is at %x had been answered before it began", op, at.position, c.position)
		return
	}
	w.answered.position = max(w.answered.position, at.position)
	w.answered.revision = max(w.answered.revision, at.revision)
	if res.Err != nil {
		w.tally.refused++
		return
	}
	w.tally.acked++
	switch {
	case r.Compaction != nil:
		w.tally.compactions++
	case r.LeaseGrant != nil:
		w.granted(r.LeaseGrant.ID)
	case r.LeaseRevoke != nil:
		if l := w.leases[r.LeaseRevoke.ID]; l != nil {
			l.ended = true
		}
	}
}

// unknown tells whether an error leaves open what comes of a command.
func unknown(err error) bool {
	return slices.ContainsFunc([]error{consensus.ErrStopped, consensus.ErrTimeout, consensus.ErrTooManyRequests, consensus.ErrNoLeader, consensus.ErrNotLeader},
		func(e error) bool { return errors.Is(err, e) })
}

// read reads, linearizably or what the member has.
func (c *client) read(p *process, op uint64, r *pb.RangeRequest, linearizable bool) {
	name := fmt.Sprintf("client %d", c.id)
	after := c.revision
	if !linearizable {
		after = 0
	}
	finish := func(err error) {
		if c.busy != op || !p.alive() {
			return
		}
		defer c.later()
		if err != nil {
			c.w.tally.unknown++
			return
		}
		resp, err := p.replica.Machine().KV.Range(context.Background(), r)
		if d := c.w.truth.checkRead(r, resp, err, after); d != "" {
			c.w.fail("member %d, linearizable %v, %v: %s", p.m.id, linearizable, r, d)
			return
		}
		if err == nil && linearizable {
			c.w.answered.revision = max(c.w.answered.revision, resp.Header.Revision)
		}
		c.w.tally.reads++
	}
	if !linearizable || c.w.canary == unaskedRead {
		finish(nil)
		return
	}
	p.node.ReadIndex(func(err error) { c.w.post(name, func() { finish(err) }) })
}

// aLease returns a lease that a client may use.
func (w *world) aLease() *leaseOwner {
	if len(w.leaseIDs) == 0 {
		return nil
	}
	l := w.leases[w.leaseIDs[w.draw(len(w.leaseIDs))]]
	if l.ended {
		return nil
	}
	return l
}

func (c *client) grant(p *process, op uint64) {
	w := c.w
	l := &leaseOwner{id: int64(1000 + op), ttl: time.Duration(1+w.draw(4)) * time.Second}
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
	l := c.w.aLease()
	if l == nil {
		c.later()
		return
	}
	c.propose(p, op, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: l.id}})
}

// renew keeps a lease alive, at the member that thinks it leads.
func (c *client) renew(op uint64) {
	w := c.w
	l := w.aLease()
	var to *process
	for _, m := range w.inOrder() {
		if m.serves() && m.p.node.Status().IsLeader && (to == nil || w.chance(50)) {
			to = m.p
		}
	}
	if l == nil || to == nil {
		c.later()
		return
	}
	asked := time.Now()
	name := fmt.Sprintf("client %d", c.id)
	ended := l.ended
	w.ending.Go(func() { // until answered, or the time is over
		ctx, cancel := context.WithTimeout(to.ctx, requestTime)
		defer cancel()
		ttl, err := to.lessor.Renew(ctx, l.id)
		w.post(name, func() {
			if c.busy != op || !to.alive() {
				return
			}
			defer c.later()
			if err != nil {
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

// clockTolerance is by how much the fastest clock may be ahead of time.
const clockTolerance = 1.03

// leaseEnded checks that a lease was not ended before its time by the clock.
func (w *world) leaseEnded(id int64) {
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
	l.ended = true
}
