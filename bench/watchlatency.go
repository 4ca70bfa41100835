package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
)

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
			stream, err := openWatch(ctx, pool.conn(i).watch, watchers{n: 1, of: func(int) (key, end []byte) { return c.key, nil }})
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
