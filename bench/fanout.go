package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// The beginning of a fanned-out value says when its put was due, and whose it is.
const stampBytes, clientBytes = 8, 4

// FanoutOptions say how many watchers a fan-out has and how they share streams.
type FanoutOptions struct {
	Watchers int
	Streams  int // 0: one per connection
	// Await has a put end when all watchers have received it, so that the server is not asked for more than it delivers.
	// Otherwise it ends with its answer.
	Await bool
}

// NewWatchFanout returns a load of puts which every one of many watchers receives. They watch all keys with the prefix, or
// the key itself if it is the only one.
func NewWatchFanout(d Data, o FanoutOptions) (Load, error) {
	d.ValueSize = max(d.ValueSize, stampBytes+clientBytes)
	m, err := newMaterial(d)
	if o.Watchers < 1 || o.Watchers > maxWatchers {
		err = errors.Join(err, fmt.Errorf("%d watchers: must be between 1 and %d", o.Watchers, maxWatchers))
	}
	if o.Streams < 0 || o.Streams > o.Watchers {
		err = errors.Join(err, fmt.Errorf("%d watch streams: must be between 0 and the number of watchers", o.Streams))
	}
	l := &fanoutLoad{material: m, opts: o, epoch: time.Now(), arrived: make(chan struct{}, 1)}
	if o.Await {
		l.awaited = make([]atomic.Pointer[fannedOut], MaxClients)
	}
	return l, err
}

type fanoutLoad struct {
	material *material
	opts     FanoutOptions
	pool     *Pool
	over     func() error // the error of Prepare's context: what is awaited when it has ended will not come
	epoch    time.Time    // stamps count from here, on the monotonic clock

	from      atomic.Int64 // stamp at which the measuring begins
	expected  atomic.Int64 // events that the measured puts cause, in all watchers together
	delivered atomic.Int64
	last      atomic.Int64                // stamp of the latest delivery
	alive     atomic.Int64                // streams still being received from
	arrived   chan struct{}               // tells Drain that a counter has moved
	awaited   []atomic.Pointer[fannedOut] // by client: its put under way

	receivers sync.WaitGroup // begun by Prepare, ended by its context, awaited by Close
	recorder  *recorder
	failures  errorTally
}

// fannedOut is a put under way whose client awaits its events.
type fannedOut struct {
	stamp int64
	left  atomic.Int64 // events and the answer, which have yet to come
	ended atomic.Bool
	over  func(error) // called once, by end
}

// some is called when so many of what has yet to come have.
func (p *fannedOut) some(n int64) {
	if p.left.Add(-n) == 0 {
		p.end(nil)
	}
}

func (p *fannedOut) end(err error) {
	if p.ended.CompareAndSwap(false, true) {
		p.over(err)
	}
}

func (l *fanoutLoad) Name() string    { return "watch-fanout" }
func (l *fanoutLoad) Kinds() []string { return []string{"put"} }

func (l *fanoutLoad) Prepare(ctx context.Context, pool *Pool) error {
	l.pool, l.over = pool, ctx.Err
	context.AfterFunc(ctx, l.giveUp)
	streams := l.opts.Streams
	if streams == 0 {
		streams = min(pool.Size(), l.opts.Watchers)
	}
	l.recorder = newRecorder(1, streams, false, false)
	l.from.Store(int64(1) << 62)
	key := []byte(l.material.Prefix)
	end := prefixEnd(key)
	if l.material.Keys == 1 {
		key, end = l.material.appendKey(nil, 0), nil
	}

	g, opening := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i := range streams {
		w := watchers{n: l.opts.Watchers / streams, of: func(int) ([]byte, []byte) { return key, end }}
		if i < l.opts.Watchers%streams {
			w.n++
		}
		g.Go(func() error {
			if pool.light != nil {
				conn, r := pool.lightConn(i), &receiver{l: l, shard: i}
				conn.Handled(func() { r.settle(conn.Arrived()) })
				err := openLightWatch(opening, conn, w, r.event, l.ended(ctx))
				if err == nil {
					l.alive.Add(1)
				}
				return err
			}
			stream, err := openWatch(ctx, pool.conn(i).watch, w)
			if err != nil {
				return err
			}
			l.alive.Add(1)
			l.receivers.Go(func() { l.receive(stream, i, l.ended(ctx)) })
			return nil
		})
	}
	return g.Wait()
}

// ended returns what is called when a stream is over, which may have more than one reason.
func (l *fanoutLoad) ended(ctx context.Context) func(error) {
	var once sync.Once
	return func(err error) {
		once.Do(func() {
			if ctx.Err() == nil {
				l.failures.add(err)
			}
			l.alive.Add(-1)
			l.signal()
		})
	}
}

func (l *fanoutLoad) receive(stream pb.Watch_WatchClient, shard int, ended func(error)) {
	r := &receiver{l: l, shard: shard}
	for {
		resp, err := stream.Recv()
		if err == nil && resp.Canceled {
			err = fmt.Errorf("the server cancelled a watcher: %s", resp.CancelReason)
		}
		if err != nil {
			ended(err)
			return
		}
		at := time.Now()
		for _, ev := range resp.Events {
			r.event(ev.Kv.GetValue())
		}
		r.settle(at)
	}
}

// receiver counts what the watchers of a stream are told. What comes at one time has one latency, and what all streams
// share is touched once for it: otherwise the processors of this machine would hand it to each other for every event.
type receiver struct {
	l     *fanoutLoad
	shard int
	puts  []received // what came since settle
}

// received says how many events of a put have come.
type received struct {
	stamp  int64
	client uint32
	n      int64
}

// event counts an event.
func (r *receiver) event(value []byte) {
	if len(value) < stampBytes+clientBytes {
		return // a deletion, or someone else's key
	}
	stamp, client := int64(binary.BigEndian.Uint64(value)), binary.BigEndian.Uint32(value[stampBytes:])
	if n := len(r.puts); n > 0 && r.puts[n-1].client == client && r.puts[n-1].stamp == stamp {
		r.puts[n-1].n++
		return
	}
	r.puts = append(r.puts, received{stamp, client, 1})
}

// settle hands on what was counted, all of which came at one time.
func (r *receiver) settle(at time.Time) {
	l := r.l
	now, delivered := l.stamp(at), int64(0)
	for _, p := range r.puts {
		if p.stamp > now {
			continue // someone else's
		}
		if p.stamp >= l.from.Load() {
			l.recorder.succeedAll(r.shard, 0, p.n, at, time.Duration(now-p.stamp))
			delivered += p.n
		}
		if p.client >= uint32(len(l.awaited)) {
			continue
		}
		if put := l.awaited[p.client].Load(); put != nil && put.stamp == p.stamp {
			put.some(p.n)
		}
	}
	r.puts = r.puts[:0]
	if delivered > 0 {
		l.last.Store(now)
		l.delivered.Add(delivered)
		l.signal()
	}
}

func (l *fanoutLoad) signal() {
	select {
	case l.arrived <- struct{}{}:
	default: // Drain has yet to look at what an earlier signal announced
	}
}

// request returns what makes the puts of client i; each is valid until the next.
func (l *fanoutLoad) request(i int) func(due time.Time) *pb.PutRequest {
	pick := l.material.picker(i)
	req := &pb.PutRequest{Value: append([]byte(nil), pick.nextValue()...)}
	binary.BigEndian.PutUint32(req.Value[stampBytes:], uint32(i))
	return func(due time.Time) *pb.PutRequest {
		req.Key = pick.nextKey()
		binary.BigEndian.PutUint64(req.Value, uint64(l.stamp(due)))
		return req
	}
}

func (l *fanoutLoad) stamp(due time.Time) int64 { return int64(due.Sub(l.epoch)) }

// begin registers the put of client i that was due. over is called when it has ended: with its answer, or when its events
// have come too if they are awaited. A put that fails is to be ended by the caller.
func (l *fanoutLoad) begin(i int, due time.Time, over func(error)) *fannedOut {
	put := &fannedOut{stamp: l.stamp(due), over: over}
	put.left.Store(1)
	if l.opts.Await {
		put.left.Store(int64(l.opts.Watchers) + 1)
		l.awaited[i].Store(put)
		if err := l.over(); err != nil { // giveUp may have been there before
			put.end(err)
		}
	}
	return put
}

// giveUp ends the puts that await events when there will be none.
func (l *fanoutLoad) giveUp() {
	for i := range l.awaited {
		if put := l.awaited[i].Load(); put != nil {
			put.end(l.over())
		}
	}
}

// answered counts the events that an answered put causes.
func (l *fanoutLoad) answered(due time.Time) {
	if l.stamp(due) >= l.from.Load() {
		l.expected.Add(int64(l.opts.Watchers))
	}
}

func (l *fanoutLoad) Client(i int) Operation {
	kv, next := l.pool.conn(i).kv, l.request(i)
	return func(ctx context.Context, due time.Time) (Outcome, error) {
		over := make(chan error, 1)
		put := l.begin(i, due, func(err error) { over <- err })
		if _, err := kv.Put(ctx, next(due)); err != nil {
			put.end(err)
		} else {
			l.answered(due)
			put.some(1)
		}
		return Outcome{}, <-over
	}
}

func (l *fanoutLoad) Start(i int) Start {
	next := l.request(i)
	start := unary{
		method: pb.KV_Put_FullMethodName,
		next:   func(due time.Time) proto.Message { return next(due) },
		check:  func([]byte) error { return nil },
	}.start(l.pool.lightConn(i))
	return func(due time.Time, done func(Outcome, error)) {
		put := l.begin(i, due, func(err error) { done(Outcome{}, err) })
		start(due, func(_ Outcome, err error) {
			if err != nil {
				put.end(err)
				return
			}
			l.answered(due)
			put.some(1)
		})
	}
}

func (l *fanoutLoad) Begin(from time.Time) { l.from.Store(int64(from.Sub(l.epoch))) }

func (l *fanoutLoad) Drain(ctx context.Context) Events {
	for l.delivered.Load() < l.expected.Load() && l.alive.Load() > 0 && ctx.Err() == nil {
		select {
		case <-l.arrived:
		case <-ctx.Done():
		}
	}
	e := Events{
		Watchers:  l.opts.Watchers,
		Expected:  l.expected.Load(),
		Delivered: l.delivered.Load(),
		Errors:    l.failures.counts(),
	}
	e.Latency = newLatency(l.recorder.merged(0))
	if took := time.Duration(l.last.Load() - l.from.Load()); took > 0 && e.Delivered > 0 {
		e.PerSecond = float64(e.Delivered) / took.Seconds()
	}
	return e
}

func (l *fanoutLoad) Close(context.Context) error {
	l.receivers.Wait()
	return nil
}
