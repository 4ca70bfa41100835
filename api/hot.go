package api

import (
	"context"
	"runtime"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/rpc"
	"github.com/coteriedb/coterie/wire"
)

// The requests that clients send most are answered without a goroutine that waits for each. One
// is checked on the goroutine that reads its connection, handed on as the bytes that came, and
// answered by whoever learns the outcome. What may take long, a large read or the alarm for
// lack of space, gets a goroutine and goes the way of the other methods, which is what the
// services' generated methods do with every request.

// hotMethods are those methods, and which field of a command their request is.
var hotMethods = []struct {
	name  string
	field protowire.Number
}{
	{pb.KV_Range_FullMethodName, 3},
	{pb.KV_Put_FullMethodName, 4},
	{pb.KV_DeleteRange_FullMethodName, 5},
	{pb.KV_Txn_FullMethodName, 6},
	{pb.Lease_LeaseGrant_FullMethodName, 8},
	{pb.Lease_LeaseRevoke_FullMethodName, 9},
}

// handleHot gives the hot methods to a transport that takes handlers.
func (s *Server) handleHot(to grpc.ServiceRegistrar) {
	t, ok := to.(interface{ HandleUnary(string, rpc.Handler) })
	if !ok {
		return
	}
	for _, m := range hotMethods {
		method := &hotMethod{s: s, name: m.name, field: m.field, calls: s.metrics.rpc.of(m.name)}
		method.idle.New = func() any { return newRequest(method) }
		t.HandleUnary(m.name, func(c *rpc.Call) { method.idle.Get().(*request).begin(c) })
	}
}

type hotMethod struct {
	s     *Server
	name  string
	field protowire.Number
	calls *callMetrics
	idle  sync.Pool // of *request
}

// maxIdleBytes is how large a buffer may be that a request keeps for the next one.
const maxIdleBytes = 64 << 10

// request is one request to a hot method, from its arrival until it is answered. It is used
// again for the next one.
type request struct {
	*hotMethod
	call    *rpc.Call
	start   time.Time
	command []byte                  // as it is proposed
	r       *pb.InternalRaftRequest // what command encodes; shares its memory
	decoder wire.Decoder            // owns r
	resp    proto.Message

	// The methods that are called back, made once.
	proposed  func(machine.Result)
	confirmed func(error)
	alone     func(late func())
}

func newRequest(m *hotMethod) *request {
	q := &request{hotMethod: m}
	q.proposed = func(res machine.Result) { q.end(m.s.outcome(res)) }
	q.confirmed = q.readOn
	q.alone = func(late func()) { m.s.node.ProposeCommandHere(q.command, q.proposed, late) }
	return q
}

// begin takes a request as far as it goes without waiting.
func (q *request) begin(c *rpc.Call) {
	raw := c.Request()
	q.call = c
	q.command = wire.AppendCommand(q.command[:0], nil, q.field, raw)
	var err error
	q.r, err = q.decoder.Request(q.field, q.command[len(q.command)-len(raw):])
	if err != nil {
		// As gRPC answers before it asks anybody else.
		c.Fail(status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err))
		q.forget()
		return
	}
	q.start = time.Now()
	q.calls.begin()
	if err := q.s.admit(c, "unary", q.message(), q.name); err != nil {
		q.end(nil, err)
		return
	}
	if q.r.Range != nil || q.r.Txn != nil && mvcc.IsReadOnly(q.r.Txn) {
		q.read()
		return
	}
	q.write()
}

// message is the request itself.
func (q *request) message() proto.Message {
	switch r := q.r; {
	case r.Range != nil:
		return r.Range
	case r.Put != nil:
		return r.Put
	case r.DeleteRange != nil:
		return r.DeleteRange
	case r.Txn != nil:
		return r.Txn
	case r.LeaseGrant != nil:
		return r.LeaseGrant
	}
	return q.r.LeaseRevoke
}

func (q *request) write() {
	// What is decoded may encode to more bytes than came, but not to twice as many.
	if err := q.s.checkWrite(q.r, 2*len(q.command)); err != nil {
		if err == errFull { //nolint:errorlint // it is never wrapped
			q.call.Go(func(ctx context.Context) { q.end(nil, q.s.refuseFull(ctx)) })
			return
		}
		q.end(nil, err)
		return
	}
	if q.r.LeaseGrant != nil {
		q.s.completeGrant(q.r.LeaseGrant)
		var err error
		if q.command, err = wire.Append(q.command[:0], q.r); err != nil {
			q.end(nil, statusError(err))
			return
		}
	}
	if !q.call.After(q.alone) {
		q.s.node.ProposeCommand(q.command, q.proposed)
	}
}

func (q *request) read() {
	linearizable, err := q.s.checkRead(q.r)
	switch {
	case err != nil:
		q.end(nil, err)
	case !isLight(q.r):
		q.call.Go(func(ctx context.Context) { q.end(q.s.read(ctx, q.r)) })
	case linearizable && !q.s.node.UpToDate():
		q.s.node.ReadIndexAsync(q.confirmed)
	default:
		q.end(q.s.readNow(context.Background(), q.r))
	}
}

// readOn takes a read on that has been confirmed, on another goroutine: the one that confirms
// must not be held up.
func (q *request) readOn(err error) {
	if err == nil {
		err = q.s.readers.add(q)
	}
	if err != nil {
		q.end(nil, statusError(err))
	}
}

// end answers the request. Nothing of it may be used afterwards.
func (q *request) end(resp proto.Message, err error) {
	q.s.finish(q.calls, q.call, q.name, q.message(), resp, q.start, err)
	if err != nil {
		q.call.Fail(err)
	} else {
		q.resp = resp
		q.call.Reply(q)
	}
	q.forget()
}

// AppendMessage implements rpc.Appender: the request is its own answer.
func (q *request) AppendMessage(dst []byte) ([]byte, error) { return wire.Append(dst, q.resp) }

// forget makes the request ready for another.
func (q *request) forget() {
	q.call, q.r, q.resp = nil, nil, nil
	if cap(q.command) > maxIdleBytes {
		return // and with it what was decoded from it
	}
	q.idle.Put(q)
}

// maxLightKeys is how many keys a read may return that is answered beside others, on a goroutine
// that has more to do.
const maxLightKeys = 16

// isLight tells whether a read takes little time, for sure.
func isLight(r *pb.InternalRaftRequest) bool {
	if r.Range != nil {
		return lightRange(r.Range) <= maxLightKeys
	}
	n := len(r.Txn.Compare)
	for _, c := range r.Txn.Compare {
		if len(c.RangeEnd) > 0 {
			return false
		}
	}
	for _, ops := range [2][]*pb.RequestOp{r.Txn.Success, r.Txn.Failure} {
		for _, op := range ops {
			n += lightRange(op.GetRequestRange())
		}
	}
	return n <= maxLightKeys
}

// lightRange returns how many keys a range looks at, at most; more than maxLightKeys if it may be
// many.
func lightRange(r *pb.RangeRequest) int {
	if len(r.RangeEnd) == 0 {
		return 1
	}
	if r.CountOnly && r.Revision == 0 && !hasFilter(r) {
		return 1 // it looks at none: the index counts
	}
	if r.Limit <= 0 || r.Limit > maxLightKeys || r.Revision != 0 || !inKeyOrder(r) || hasFilter(r) {
		return maxLightKeys + 1
	}
	return int(r.Limit)
}

// maxConfirmed is how many confirmed reads may wait to be executed.
const maxConfirmed = 100_000

// readers execute confirmed reads, which come many at once, on a few goroutines: as many as can
// run, and none when there is nothing to read.
type readers struct {
	mu      sync.Mutex
	idle    sync.Cond  // signalled when running becomes 0; of mu
	waiting []*request // guarded by mu
	running int        // guarded by mu
	closed  bool       // guarded by mu
}

// readsAtOnce is how many reads a goroutine takes at a time.
const readsAtOnce = 32

func (rs *readers) init() { rs.idle.L = &rs.mu }

// add has q executed, or says why it will not be.
func (rs *readers) add(q *request) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.closed {
		return consensus.ErrStopped
	}
	if len(rs.waiting) >= maxConfirmed {
		return consensus.ErrTooManyRequests
	}
	rs.waiting = append(rs.waiting, q)
	// One goroutine begins; it is helped when there is enough to do.
	if len(rs.waiting) > rs.running*readsAtOnce && rs.running < runtime.GOMAXPROCS(0) {
		rs.running++
		go rs.run() // ends when nothing waits; close waits for it
	}
	return nil
}

func (rs *readers) run() {
	var mine [readsAtOnce]*request
	for {
		n := rs.take(mine[:])
		if n == 0 {
			return
		}
		for i, q := range mine[:n] {
			mine[i] = nil
			q.end(q.s.readNow(context.Background(), q.r))
		}
	}
}

// take moves some of what waits into to. If that is nothing, the goroutine must end.
func (rs *readers) take(to []*request) int {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	n := copy(to, rs.waiting)
	rs.waiting = rs.waiting[n:]
	if n == 0 {
		if rs.running--; rs.running == 0 {
			rs.waiting = nil
			rs.idle.Broadcast()
		}
	}
	return n
}

// close refuses further reads and waits for those that are executed.
func (rs *readers) close() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.closed = true
	for rs.running > 0 {
		rs.idle.Wait()
	}
}
