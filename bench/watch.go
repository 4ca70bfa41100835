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
)

const (
	// maxWatchers bounds the watchers of a fan-out.
	maxWatchers = 1_000_000
	// stampBytes at the start of a fanned-out value say when its put was due.
	stampBytes = 8
)

// openWatch opens one stream with the given number of watchers on a range and returns when the
// server has confirmed each of them.
func openWatch(ctx context.Context, c pb.WatchClient, key, end []byte, watchers int) (pb.Watch_WatchClient, error) {
	stream, err := c.Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening a watch stream: %w", err)
	}
	create := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: key, RangeEnd: end},
	}}
	for range watchers {
		if err := stream.Send(create); err != nil {
			return nil, fmt.Errorf("creating a watcher: %w", err)
		}
		resp, err := stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("creating a watcher: %w", err)
		}
		if !resp.Created || resp.Canceled {
			return nil, fmt.Errorf("creating a watcher: refused: %s", resp.CancelReason)
		}
	}
	return stream, nil
}

// FanoutOptions say how many watchers a fan-out has and how they share streams.
type FanoutOptions struct {
	Watchers int
	Streams  int // 0: one per connection
}

// NewWatchFanout returns a load of puts which every one of many watchers receives.
func NewWatchFanout(d Data, o FanoutOptions) (Load, error) {
	d.ValueSize = max(d.ValueSize, stampBytes)
	m, err := newMaterial(d)
	if o.Watchers < 1 || o.Watchers > maxWatchers {
		err = errors.Join(err, fmt.Errorf("%d watchers: must be between 1 and %d", o.Watchers, maxWatchers))
	}
	if o.Streams < 0 || o.Streams > o.Watchers {
		err = errors.Join(err, fmt.Errorf("%d watch streams: must be between 0 and the number of watchers", o.Streams))
	}
	return &fanoutLoad{material: m, opts: o, epoch: time.Now(), arrived: make(chan struct{}, 1)}, err
}

type fanoutLoad struct {
	material *material
	opts     FanoutOptions
	pool     *Pool
	epoch    time.Time // stamps count from here, on the monotonic clock

	from      atomic.Int64 // stamp at which the measuring begins
	expected  atomic.Int64 // events that the measured puts cause, in all watchers together
	delivered atomic.Int64
	last      atomic.Int64  // stamp of the latest delivery
	alive     atomic.Int64  // streams still being received from
	arrived   chan struct{} // tells Drain that a counter has moved

	receivers sync.WaitGroup // begun by Prepare, ended by its context, awaited by Close
	recorder  *recorder
	failures  errorTally
}

func (l *fanoutLoad) Name() string    { return "watch-fanout" }
func (l *fanoutLoad) Kinds() []string { return []string{"put"} }

func (l *fanoutLoad) Prepare(ctx context.Context, pool *Pool) error {
	l.pool = pool
	streams := l.opts.Streams
	if streams == 0 {
		streams = min(pool.Size(), l.opts.Watchers)
	}
	l.recorder = newRecorder(1, streams, false)
	l.from.Store(int64(1) << 62)
	key := []byte(l.material.Prefix)
	end := prefixEnd(key)

	g := errgroup.Group{}
	g.SetLimit(32)
	for i := range streams {
		watchers := l.opts.Watchers / streams
		if i < l.opts.Watchers%streams {
			watchers++
		}
		g.Go(func() error {
			stream, err := openWatch(ctx, pool.conn(i).watch, key, end, watchers)
			if err != nil {
				return err
			}
			l.alive.Add(1)
			l.receivers.Go(func() { l.receive(ctx, stream, i) })
			return nil
		})
	}
	return g.Wait()
}

// prefixEnd is the end of the range of all keys with the prefix; for none it is etcd's "from key on".
func prefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

func (l *fanoutLoad) receive(ctx context.Context, stream pb.Watch_WatchClient, shard int) {
	defer l.signal()
	defer l.alive.Add(-1)
	for {
		resp, err := stream.Recv()
		if err == nil && resp.Canceled {
			err = fmt.Errorf("the server cancelled a watcher: %s", resp.CancelReason)
		}
		if err != nil {
			if ctx.Err() == nil {
				l.failures.add(err)
			}
			return
		}
		at := time.Now()
		now := int64(at.Sub(l.epoch))
		from, measured := l.from.Load(), int64(0)
		for _, ev := range resp.Events {
			if len(ev.Kv.GetValue()) < stampBytes {
				continue // a deletion, or someone else's key
			}
			if stamp := int64(binary.BigEndian.Uint64(ev.Kv.Value)); stamp >= from && stamp <= now {
				l.recorder.succeed(shard, 0, at, time.Duration(now-stamp), 0)
				measured++
			}
		}
		if measured > 0 {
			l.last.Store(now)
			l.delivered.Add(measured)
			l.signal()
		}
	}
}

func (l *fanoutLoad) signal() {
	select {
	case l.arrived <- struct{}{}:
	default: // Drain has yet to look at what an earlier signal announced
	}
}

func (l *fanoutLoad) Client(i int) Operation {
	kv, pick := l.pool.conn(i).kv, l.material.picker(i)
	req := &pb.PutRequest{Value: append([]byte(nil), pick.nextValue()...)}
	return func(ctx context.Context, due time.Time) (Outcome, error) {
		stamp := int64(due.Sub(l.epoch))
		req.Key = pick.nextKey()
		binary.BigEndian.PutUint64(req.Value, uint64(stamp))
		_, err := kv.Put(ctx, req)
		if err == nil && stamp >= l.from.Load() {
			l.expected.Add(int64(l.opts.Watchers))
		}
		return Outcome{}, err
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

// NewWatchLatency returns a load in which each client puts a key of its own and waits until its own
// watcher on that key has the event: one request at a time.
func NewWatchLatency(d Data, clients int) (Load, error) {
	if err := validateClients(clients); err != nil {
		return nil, err
	}
	d.Keys = clients
	m, err := newMaterial(d)
	return &watchLatencyLoad{material: m, clients: make([]watchLatencyClient, clients)}, err
}

type watchLatencyLoad struct {
	material  *material
	pool      *Pool
	clients   []watchLatencyClient
	receivers sync.WaitGroup // begun by Prepare, ended by its context, awaited by Close
}

type watchLatencyClient struct {
	key      []byte
	arrivals chan arrival // closed when the stream has ended
	failure  error        // why it ended; readable once arrivals is closed
}

type arrival struct {
	revision int64
	at       time.Time
}

func (l *watchLatencyLoad) Name() string    { return "watch-latency" }
func (l *watchLatencyLoad) Kinds() []string { return []string{"put to event"} }

func (l *watchLatencyLoad) Prepare(ctx context.Context, pool *Pool) error {
	l.pool = pool
	g := errgroup.Group{}
	g.SetLimit(32)
	for i := range l.clients {
		c := &l.clients[i]
		c.key = l.material.appendKey(nil, i)
		// One put is under way at a time; what a failed put left behind fits too, and a client that
		// lags further than that stops its own stream only.
		c.arrivals = make(chan arrival, 16)
		g.Go(func() error {
			stream, err := openWatch(ctx, pool.conn(i).watch, c.key, nil, 1)
			if err != nil {
				return err
			}
			l.receivers.Go(func() { c.receive(ctx, stream) })
			return nil
		})
	}
	return g.Wait()
}

func (c *watchLatencyClient) receive(ctx context.Context, stream pb.Watch_WatchClient) {
	defer close(c.arrivals)
	for {
		resp, err := stream.Recv()
		if err == nil && resp.Canceled {
			err = fmt.Errorf("the server cancelled a watcher: %s", resp.CancelReason)
		}
		if err != nil {
			c.failure = err
			return
		}
		now := time.Now()
		for _, ev := range resp.Events {
			select {
			case c.arrivals <- arrival{ev.Kv.ModRevision, now}:
			case <-ctx.Done():
				c.failure = ctx.Err()
				return
			}
		}
	}
}

func (l *watchLatencyLoad) Client(i int) Operation {
	kv, pick, c := l.pool.conn(i).kv, l.material.picker(i), &l.clients[i]
	req := &pb.PutRequest{Key: c.key}
	return func(ctx context.Context, _ time.Time) (Outcome, error) {
		req.Value = pick.nextValue()
		resp, err := kv.Put(ctx, req)
		if err != nil {
			return Outcome{}, err
		}
		revision := resp.GetHeader().GetRevision()
		for {
			select {
			case a, ok := <-c.arrivals:
				switch {
				case !ok:
					return Outcome{}, fmt.Errorf("the watch stream ended: %w", c.failure)
				case a.revision == revision:
					return Outcome{Done: a.at}, nil
				case a.revision > revision:
					return Outcome{}, fmt.Errorf("%w: the event of revision %d came before that of %d", errWrongAnswer, a.revision, revision)
				}
			case <-ctx.Done():
				return Outcome{}, ctx.Err()
			}
		}
	}
}

func (l *watchLatencyLoad) Close(context.Context) error {
	l.receivers.Wait()
	return nil
}
