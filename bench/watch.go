package bench

import (
	"context"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/bench/light"
)

// maxWatchers bounds the watchers of a load.
const maxWatchers = 1_000_000

// watchers are the watchers of one stream.
type watchers struct {
	n  int
	of func(n int) (key, end []byte) // what each watches
}

func (w watchers) request(n int) *pb.WatchRequest {
	key, end := w.of(n)
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: key, RangeEnd: end},
	}}
}

// openWatch opens one stream of grpc-go and returns when the server has confirmed each watcher.
func openWatch(ctx context.Context, c pb.WatchClient, w watchers) (pb.Watch_WatchClient, error) {
	stream, err := c.Watch(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening a watch stream: %w", err)
	}
	for n := range w.n {
		if err := stream.Send(w.request(n)); err != nil {
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

// openLightWatch opens one light stream and returns when the server has confirmed each watcher. After that, value is called
// with the value of every put that a watcher is told of, and ended when the stream is over. Both run on the goroutine that
// reads the connection.
func openLightWatch(ctx context.Context, conn *light.Conn, w watchers, value func([]byte), ended func(error)) error {
	var (
		confirmed = make(chan error, 1) // how the creation went, once
		created   int
		opened    bool
	)
	tell := func(err error) {
		opened = true
		confirmed <- err
	}
	call := &light.Call{
		Method: pb.Watch_Watch_FullMethodName, Streaming: true,
		Message: func(answer []byte) {
			isCreated, refused := scanWatch(answer, value)
			if refused != nil && opened {
				ended(refused)
			} else if refused != nil {
				tell(refused)
			}
			if isCreated {
				if created++; created == w.n && !opened {
					tell(nil)
				}
			}
		},
		End: func(err error) {
			if opened {
				ended(err)
			} else {
				tell(fmt.Errorf("the stream ended: %w", err))
			}
		},
	}
	var request []byte
	for n := range w.n {
		var err error
		if request, err = (proto.MarshalOptions{}).MarshalAppend(request[:0], w.request(n)); err != nil {
			return err
		}
		if n > 0 {
			conn.Send(call, request)
		} else if err := conn.Begin(call, request); err != nil {
			return fmt.Errorf("opening a watch stream: %w", err)
		}
	}
	select {
	case err := <-confirmed:
		if err != nil {
			return fmt.Errorf("creating a watcher: %w", err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// scanWatch reads an answer of a watch stream straight from its bytes: whether it confirms a watcher or ends one, and the
// values of the keys in its events, for which it calls put.
func scanWatch(answer []byte, put func([]byte)) (created bool, canceled error) {
	var isCanceled bool
	var reason string
	for len(answer) > 0 {
		field, v, n := consume(answer)
		answer = answer[n:]
		switch text := v.content != nil; {
		case field == 3 && !text:
			created = v.number != 0
		case field == 4 && !text:
			isCanceled = v.number != 0
		case field == 6 && text:
			reason = string(v.content)
		case field == 11:
			scanEvent(v.content, put)
		}
	}
	if isCanceled {
		return false, fmt.Errorf("the server cancelled a watcher: %s", reason)
	}
	return created, nil
}

func scanEvent(event []byte, put func([]byte)) {
	for len(event) > 0 {
		field, v, n := consume(event)
		event = event[n:]
		if field != 2 {
			continue
		}
		for kv := v.content; len(kv) > 0; {
			field, v, n := consume(kv)
			kv = kv[n:]
			if field == 5 && v.content != nil {
				put(v.content)
			}
		}
	}
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

// NewIdleWatchers returns the load with so many watchers beside it, on keys that it does not touch.
func NewIdleWatchers(load Starter, n int) (Load, error) {
	if n < 1 || n > maxWatchers {
		return nil, fmt.Errorf("%d watchers: must be between 1 and %d", n, maxWatchers)
	}
	return &idleWatchers{Starter: load, n: n}, nil
}

type idleWatchers struct {
	Starter
	n        int
	failures errorTally // of streams that were lost meanwhile

	receivers sync.WaitGroup // of grpc-go's streams: begun by Prepare, ended by its context, awaited by Close
}

func (l *idleWatchers) Prepare(ctx context.Context, pool *Pool) error {
	streams := min(pool.Size(), l.n)
	g, opening := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i := range streams {
		w := watchers{n: (l.n + i) / streams, of: func(n int) (key, end []byte) { return fmt.Appendf(nil, "idle/%d/%d", i, n), nil }}
		g.Go(func() error {
			if pool.light != nil {
				return openLightWatch(opening, pool.lightConn(i), w, func([]byte) {}, l.lost)
			}
			stream, err := openWatch(ctx, pool.conn(i).watch, w)
			if err != nil {
				return err
			}
			l.receivers.Go(func() {
				_, err := stream.Recv()
				if ctx.Err() == nil {
					l.lost(err)
				}
			})
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.Starter.Prepare(ctx, pool)
}

func (l *idleWatchers) lost(err error) {
	l.failures.add(fmt.Errorf("a stream of idle watchers: %w", err))
}

func (l *idleWatchers) Close(ctx context.Context) error {
	l.receivers.Wait()
	return l.Starter.Close(ctx)
}
