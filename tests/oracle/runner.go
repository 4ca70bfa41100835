package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/tests/target"
)

// Bounds on what a sequence keeps open at once.
const (
	maxStreams        = 3
	maxWatchers       = 8 // per stream
	maxClientWatchers = 4
)

// runner runs one sequence. One goroutine uses it.
type runner struct {
	opts  Options
	gen   *generator
	plan  plan
	board *board
	stats Stats
	step  int

	ref     *side
	members []*side // the subject: one server, or the members of a cluster
	turns   *rand.Rand
	away    absence
	streams []*streamPair
	clients []*clientWatchPair
	// clientsLag is whether a watcher of clientv3's may still be reading history.
	clientsLag bool
}

// action is one kind of step.
type action struct {
	weight int
	do     func(*runner, context.Context) error
}

// plan is what a sequence is made of: the actions with their weights, and the steps at which special ones
// come.
type plan struct {
	actions  []action
	total    int
	check    int                 // a comparison of the whole state every so many steps
	restarts map[int]target.Stop // by step
	expiry   int                 // step at which a lease is left to expire; -1 for none
	oversize int                 // step at which a watch response must be fragmented; -1 for none
}

// plan draws the weights anew for each seed: a sequence that does little of one thing does much of another,
// which reaches states that an average mixture never does.
func (g *generator) plan(o Options) plan {
	p := plan{check: 400, restarts: map[int]target.Stop{}, expiry: -1, oversize: -1}
	add := func(weight int, do func(*runner, context.Context) error) {
		weight *= pick(g, []int{0, 1, 3, 10})
		p.actions = append(p.actions, action{weight, do})
		p.total += weight
	}
	p.actions = append(p.actions, action{600, (*runner).put})
	p.total += 600
	add(60, (*runner).ranges)
	add(20, (*runner).rangeStream)
	add(20, (*runner).deleteRange)
	add(80, (*runner).txn)
	add(4, (*runner).compact)
	add(8, (*runner).grant)
	add(4, (*runner).revoke)
	add(8, (*runner).timeToLive)
	add(3, (*runner).listLeases)
	add(4, (*runner).keepAlive)
	add(1, (*runner).grantChosen)
	add(4, (*runner).hashKV)
	add(2, (*runner).tooLarge)
	add(6, (*runner).createWatcher)
	add(4, (*runner).cancelWatcher)
	add(3, (*runner).requestProgress)
	add(1, (*runner).endStream)
	add(1, (*runner).openClientWatcher)
	add(1, (*runner).closeClientWatcher)
	add(4, (*runner).awaitWatchers)

	switch {
	case o.NoRestarts:
	case o.clustered():
		for range 2 + g.IntN(3) {
			p.restarts[g.IntN(1+o.Ops/2)] = target.Stop(g.IntN(2))
		}
	case g.chance(500):
		for range 1 + g.IntN(2) {
			p.restarts[g.IntN(o.Ops)] = target.Stop(g.IntN(2))
		}
	}
	if g.chance(200) {
		p.expiry = g.IntN(o.Ops)
	}
	if g.chance(200) {
		p.oversize = g.IntN(o.Ops)
	}
	return p
}

func (p *plan) pick(g *generator) func(*runner, context.Context) error {
	n := g.IntN(p.total)
	for _, a := range p.actions {
		if n < a.weight {
			return a.do
		}
		n -= a.weight
	}
	panic("unreachable: the weights add up to the total")
}

// run makes the steps and looks at the whole state at intervals and at the end.
func (r *runner) run(ctx context.Context) error {
	for r.step = 0; r.stats.Ops < r.opts.Ops; r.step++ {
		if err := r.oneStep(ctx); err != nil {
			return err
		}
	}
	if err := r.comeBack(ctx); err != nil {
		return err
	}
	return r.checkState(ctx)
}

func (r *runner) oneStep(ctx context.Context) error {
	if r.away.member != nil && r.step == r.away.until {
		if err := r.comeBack(ctx); err != nil {
			return err
		}
	}
	if how, ok := r.plan.restarts[r.step]; ok {
		if err := r.restart(ctx, how); err != nil {
			return err
		}
	}
	if r.step == r.plan.expiry {
		if err := r.expire(ctx); err != nil {
			return err
		}
	}
	if r.step == r.plan.oversize {
		if err := r.fragments(ctx); err != nil {
			return err
		}
	}
	if r.step%r.plan.check == r.plan.check-1 {
		if err := r.checkState(ctx); err != nil {
			return err
		}
	}
	return r.plan.pick(r.gen)(r, ctx)
}

// compare sends an operation to both servers at once and returns the answer that they share.
func (r *runner) compare(ctx context.Context, o operation) (answer, error) {
	return r.compareAt(ctx, r.turn(), o)
}

// compareAt is compare through the given member of the subject.
func (r *runner) compareAt(ctx context.Context, m *side, o operation) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if local(o.req) {
		if err := r.catchUp(ctx, m); err != nil {
			return answer{}, err
		}
	}
	subject := make(chan answer, 1)
	go func() { // ends with the call, which ctx bounds; the receive below waits for it
		subject <- newAnswer(o.send(ctx, m))
	}()
	ref := newAnswer(o.send(ctx, r.ref))
	sub := <-subject
	r.stats.Ops++
	r.stats.ByName[o.name]++
	if ref.err != "" {
		r.stats.Refused[o.name]++
	}
	if r.opts.Trace != nil {
		r.opts.Trace(r.step, o.String()+r.through(m), ref.String())
	}
	if !ref.equal(sub) {
		diff := r.difference(o.String()+r.through(m), ref.String(), sub.String())
		if _, hashes := o.req.(*pb.HashKVRequest); hashes && ref.err == "" && sub.err == "" {
			r.explainHash(ctx, m, diff)
		}
		return answer{}, diff
	}
	if rev := revisionOf(ref.msg); rev != 0 {
		r.gen.rev = rev
	}
	return ref, nil
}

func (r *runner) difference(operation, ref, sub string) *Difference {
	return &Difference{Options: r.opts, Step: r.step, Operation: operation, Reference: ref, Subject: sub}
}

// revisionOf is the revision in a response's header. Responses to reads of the past name the current one too.
func revisionOf(m proto.Message) int64 {
	if m, ok := m.(interface{ GetHeader() *pb.ResponseHeader }); ok && m != nil {
		return m.GetHeader().GetRevision()
	}
	return 0
}

func (r *runner) send(ctx context.Context, o operation) error {
	_, err := r.compare(ctx, o)
	return err
}

func (r *runner) put(ctx context.Context) error {
	return r.send(ctx, r.gen.maybeThroughClient(putCall(r.gen.putRequest())))
}

func (r *runner) ranges(ctx context.Context) error {
	return r.send(ctx, r.gen.maybeThroughClient(rangeCall(r.gen.rangeRequest())))
}

func (r *runner) rangeStream(ctx context.Context) error {
	return r.send(ctx, rangeStreamCall(r.gen.rangeStreamRequest()))
}

func (r *runner) deleteRange(ctx context.Context) error {
	return r.send(ctx, r.gen.maybeThroughClient(deleteCall(r.gen.deleteRequest())))
}

func (r *runner) txn(ctx context.Context) error {
	req := r.gen.safeTxnRequest()
	err := r.send(ctx, r.gen.maybeThroughClient(txnCall(req)))
	if deletesToEnd(req) {
		r.gen.refilled[r.gen.rev] = true
	}
	return err
}

func (r *runner) hashKV(ctx context.Context) error {
	// Until background compaction has ended etcd counts what it will delete, where nothing is left to keep.
	if err := r.settleCompaction(ctx); err != nil {
		return err
	}
	return r.send(ctx, hashKVCall(&pb.HashKVRequest{Revision: r.gen.hashableRevision()}))
}

// tooLarge sends a put that is beyond etcd's limit, or beyond what its transport takes, or just below.
func (r *runner) tooLarge(ctx context.Context) error {
	const transport = maxRequestBytes + 512<<10
	size := pick(r.gen, []int{maxRequestBytes - 100, maxRequestBytes, maxRequestBytes + 1, maxRequestBytes + 10_000, transport + 1})
	o := putCall(&pb.PutRequest{Key: r.gen.ordinaryKey(), Value: make([]byte, size)})
	o.name = "Put (large)"
	err := r.send(ctx, o)
	var diff *Difference
	if errors.As(err, &diff) {
		diff.Operation = fmt.Sprintf("Put of %d bytes", size) // the value would drown what matters
	}
	return err
}

// compact waits for all watchers first: what a watcher that reads history still sees depends on whether it is
// quicker than the compaction.
func (r *runner) compact(ctx context.Context) error {
	if err := r.awaitWatchers(ctx); err != nil {
		return err
	}
	req := r.gen.compactRequest()
	got, err := r.compare(ctx, compactCall(req))
	if err == nil && got.err == "" {
		r.gen.compacted = req.Revision
		r.gen.compactions[req.Revision] = true
	}
	return err
}

// settleCompaction returns when both servers have finished compacting: a physical compaction at a compacted
// revision is refused, but not before the ones in progress are done.
func (r *runner) settleCompaction(ctx context.Context) error {
	if r.gen.compacted < 0 {
		return nil
	}
	return r.send(ctx, compactCall(&pb.CompactionRequest{Revision: r.gen.compacted, Physical: true}))
}

// checkState compares everything that the servers hold, and the watchers.
func (r *runner) checkState(ctx context.Context) error {
	if err := r.awaitWatchers(ctx); err != nil {
		return err
	}
	// After this put the current revision is not a compacted one, for whose hash see hashableRevision.
	if err := r.send(ctx, putCall(&pb.PutRequest{Key: []byte("check"), Value: fmt.Append(nil, r.step)})); err != nil {
		return err
	}
	if err := r.settleCompaction(ctx); err != nil {
		return err
	}
	r.stats.Checks++
	for _, m := range r.present() {
		for _, o := range []operation{
			rangeCall(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}),
			hashKVCall(&pb.HashKVRequest{Revision: r.gen.rev}),
		} {
			if _, err := r.compareAt(ctx, m, o); err != nil {
				return err
			}
		}
	}
	return r.listLeases(ctx)
}

// restart stops both servers and starts them on their data. Watchers end with the servers. Of a cluster one member
// leaves.
func (r *runner) restart(ctx context.Context, how target.Stop) error {
	if r.opts.clustered() {
		return r.leave(ctx, how)
	}
	if err := r.awaitWatchers(ctx); err != nil {
		return err
	}
	r.closeWatchers()
	subject := make(chan error, 1)
	go func() { subject <- r.members[0].restart(ctx, how) }() // ends with the restart; the receive below waits
	refErr := r.ref.restart(ctx, target.Graceful)
	if err := errors.Join(refErr, <-subject); err != nil {
		return fmt.Errorf("restart (%s): %w", how, err)
	}
	r.stats.Restarts++
	return r.checkState(ctx)
}

// close ends everything that is still open; a failure has been reported already.
func (r *runner) close() {
	r.closeWatchers()
	for _, s := range append([]*side{r.ref}, r.members...) {
		if s != nil {
			_ = s.disconnect()
			_ = s.server.Close()
		}
	}
}

// closeServers ends everything in order after a sequence that went well.
func (r *runner) closeServers() error {
	r.closeWatchers()
	errs := []error{r.ref.disconnect()}
	for _, m := range r.members {
		errs = append(errs, m.disconnect())
	}
	for _, m := range r.members {
		errs = append(errs, m.server.Close())
	}
	return errors.Join(append(errs, r.ref.server.Close())...)
}

func (r *runner) closeWatchers() {
	for _, p := range r.streams {
		p.close()
	}
	for _, p := range r.clients {
		p.close()
	}
	r.streams, r.clients, r.clientsLag = nil, nil, false
}
