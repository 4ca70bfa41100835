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
	draws
	w    *world
	id   int
	busy uint64 // the operation under way, 0 for none
	on   *process
	// What was answered before the operation under way began: no answer to it may be
	// from before that.
	position uint64
	known    known
}

func newClient(w *world, id int) *client {
	return &client{draws: drawsOf(w.seed, numbered(aClient, id)), w: w, id: id}
}

// answered is the last place in the order of things that any client was told of.
type answered struct {
	position uint64
	known    known
}

// someone returns a process that clients reach.
func (w *world) someone(d draws) *process {
	var up []*process
	for _, m := range w.inOrder() {
		if m.serves() {
			up = append(up, m.p)
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[d.draw(len(up))]
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

func (c *client) key() []byte { return c.w.key(c.draws) }

// span draws a range: one key, some, or all.
func (c *client) span() (key, end []byte) { return c.w.span(c.draws) }

func (w *world) key(d draws) []byte { return fmt.Appendf(nil, "k%02d", d.draw(w.plan.Keys)) }

func (w *world) span(d draws) (key, end []byte) {
	switch d.draw(3) {
	case 0:
		return w.key(d), nil
	case 1:
		a, b := w.key(d), w.key(d)
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
	c.w.after(c.between(0, 2*c.w.plan.Think), c.next)
}

// next begins an operation.
func (c *client) next() {
	w := c.w
	if w.finished {
		return
	}
	p := w.someone(c.draws)
	if p == nil {
		c.w.after(20*time.Millisecond, c.next)
		return
	}
	w.lastOp++
	c.busy, c.position, c.known = w.lastOp, w.answered.position, w.answered.known
	c.on = p
	op := w.lastOp
	w.after(requestTime+time.Second, func() {
		if c.busy == op { // whoever was asked is no more
			w.tally.unknown++
			c.later()
		}
	})
	n, kind := c.draw(100), clientKinds[0].name
	for _, k := range clientKinds {
		if n -= k.share; n < 0 {
			kind = k.name
			break
		}
	}
	if !w.has(kind) {
		c.later()
		return
	}
	c.do(kind, p, op)
}

// clientKinds is what clients do, and how often of a hundred times.
var clientKinds = []struct {
	name  string
	share int
}{
	{"put", 40}, {"delete", 8}, {"txn", 14}, {"read", 12}, {"readtxn", 4}, {"local", 10}, {"compact", 3}, {"grant", 4}, {"revoke", 1}, {"renew", 4},
}

func (c *client) do(kind string, p *process, op uint64) {
	switch kind {
	case "put":
		c.propose(p, op, &pb.InternalRaftRequest{Put: c.put(op)})
	case "delete":
		key, end := c.span()
		c.propose(p, op, &pb.InternalRaftRequest{DeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: c.chance(50)}})
	case "txn":
		c.propose(p, op, &pb.InternalRaftRequest{Txn: c.txn(op)})
	case "read", "local":
		c.read(p, op, c.reading(c.rangeRequest()), kind == "read")
	case "readtxn":
		c.read(p, op, c.readingAll(c.readTxn()), c.chance(70))
	case "compact":
		c.compact(p, op)
	case "grant":
		c.grant(p, op)
	case "revoke":
		c.revoke(p, op)
	case "renew":
		c.renew(op)
	}
}

func (c *client) compact(p *process, op uint64) {
	rev := c.w.truth.revision()
	rev -= int64(c.draw(int(min(rev, 60))))
	c.propose(p, op, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: max(rev, 1)}})
}

func (c *client) put(op uint64) *pb.PutRequest {
	r := &pb.PutRequest{Key: c.key(), Value: fmt.Appendf(nil, "v%d", op), PrevKv: c.chance(20)}
	if c.chance(5) {
		r.Value = append(r.Value, make([]byte, c.draw(c.w.plan.ValueBytes))...)
	}
	if l := c.aLease(); l != nil && c.chance(20) {
		r.Lease = l.id
	}
	return r
}

func (c *client) rangeRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{}
	r.Key, r.RangeEnd = c.span()
	switch c.draw(6) {
	case 0:
		r.Limit = int64(1 + c.draw(5))
	case 1:
		r.CountOnly = true
	case 2:
		r.KeysOnly = true
	}
	if rev := c.w.truth.revision(); c.chance(30) {
		r.Revision = max(1, rev+2-int64(c.draw(int(min(rev, 50)+2))))
	}
	return r
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
	if at.revision < c.known.revision {
		w.fail("command %d is of revision %d, and %d had been answered before it began", op, at.revision, c.known.revision)
		return
	}
	if at.position <= c.position {
		w.fail("command %d is at %x in the log, and what is at %x had been answered before it began", op, at.position, c.position)
		return
	}
	w.answered.position = max(w.answered.position, at.position)
	w.answered.known.revision = max(w.answered.known.revision, at.revision)
	if res.Err != nil {
		w.tally.refused++
		return
	}
	w.tally.acked++
	switch {
	case r.Compaction != nil:
		w.tally.compactions++
		w.answered.known.compacted = max(w.answered.known.compacted, r.Compaction.Revision)
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

// reading is something that is read of a process: it returns the revision that it was of, and what is wrong with it.
type reading func(p *process, k known) (rev int64, wrong string, err error)

func (c *client) reading(r *pb.RangeRequest) reading {
	return func(p *process, k known) (int64, string, error) {
		resp, err := p.replica.Machine().KV.Range(context.Background(), r)
		return resp.GetHeader().GetRevision(), c.w.truth.checkRead(r, resp, err, k), err
	}
}

func (c *client) readingAll(r *pb.TxnRequest) reading {
	return func(p *process, k known) (int64, string, error) {
		resp, err := p.replica.Machine().KV.ReadTxn(context.Background(), r)
		return resp.GetHeader().GetRevision(), c.w.truth.checkReadTxn(r, resp, err, k), err
	}
}

// read reads, linearizably or what the member has. That does not go back either, while its process lives.
func (c *client) read(p *process, op uint64, what reading, linearizable bool) {
	name := fmt.Sprintf("client %d", c.id)
	k := c.known
	if !linearizable {
		k = known{revision: p.shown}
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
		rev, wrong, err := what(p, k)
		if wrong != "" {
			c.w.fail("member %d, linearizable %v: %s", p.m.id, linearizable, wrong)
			return
		}
		p.shown = max(p.shown, rev)
		if err == nil && linearizable {
			c.w.answered.known.revision = max(c.w.answered.known.revision, rev)
		}
		c.w.tally.reads++
	}
	if !linearizable || c.w.canary == unaskedRead {
		finish(nil)
		return
	}
	p.node.ReadIndex(func(err error) { c.w.post(name, func() { finish(err) }) })
}
