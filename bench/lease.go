package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/bench/light"
)

const (
	maxLeasesPerClient = 10_000
	maxLeaseTTL        = 24 * time.Hour
)

// LeaseOptions say what leases are kept alive.
type LeaseOptions struct {
	PerClient int           // leases of each client, renewed in turn
	TTL       time.Duration // asked for, in whole seconds
}

// NewLeaseKeepAlive returns a load in which each client keeps leases of its own alive on one stream.
func NewLeaseKeepAlive(clients int, o LeaseOptions) (Load, error) {
	if err := validateClients(clients); err != nil {
		return nil, err
	}
	var err error
	if o.PerClient < 1 || o.PerClient > maxLeasesPerClient {
		err = fmt.Errorf("%d leases for each client: must be between 1 and %d", o.PerClient, maxLeasesPerClient)
	}
	if o.TTL < time.Second || o.TTL > maxLeaseTTL {
		err = errors.Join(err, fmt.Errorf("a time to live of %v: must be between 1 s and %v", o.TTL, maxLeaseTTL))
	}
	return &leaseLoad{opts: o, clients: make([]leaseClient, clients)}, err
}

type leaseLoad struct {
	opts    LeaseOptions
	pool    *Pool
	clients []leaseClient
}

type leaseClient struct {
	stub   pb.LeaseClient
	ids    []int64
	open   func() (pb.Lease_LeaseKeepAliveClient, error) // a stream that lives as long as the run
	stream pb.Lease_LeaseKeepAliveClient                 // nil after a failure: the next request opens another
}

func (l *leaseLoad) Name() string    { return "lease-keepalive" }
func (l *leaseLoad) Kinds() []string { return []string{"keep-alive"} }

func (l *leaseLoad) Prepare(ctx context.Context, pool *Pool) error {
	l.pool = pool
	g := errgroup.Group{}
	g.SetLimit(64)
	for i := range l.clients {
		c := &l.clients[i]
		c.stub = pool.conn(i).lease
		c.open = func() (pb.Lease_LeaseKeepAliveClient, error) { return c.stub.LeaseKeepAlive(ctx) }
		g.Go(func() error {
			for range l.opts.PerClient {
				resp, err := c.stub.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: int64(l.opts.TTL / time.Second)})
				if err != nil {
					return fmt.Errorf("granting a lease: %w", err)
				}
				c.ids = append(c.ids, resp.ID)
			}
			return nil
		})
	}
	return g.Wait()
}

func (l *leaseLoad) Client(i int) Operation {
	c, turn := &l.clients[i], 0
	req := &pb.LeaseKeepAliveRequest{}
	return func(context.Context, time.Time) (Outcome, error) {
		req.ID = c.ids[turn%len(c.ids)]
		turn++
		return Outcome{}, c.renew(req)
	}
}

func (c *leaseClient) renew(req *pb.LeaseKeepAliveRequest) error {
	if c.stream == nil {
		stream, err := c.open()
		if err != nil {
			return err
		}
		c.stream = stream
	}
	// A failed Send says only that the stream is over; Recv says why.
	_ = c.stream.Send(req)
	resp, err := c.stream.Recv()
	if err != nil {
		c.stream = nil
		return err
	}
	if resp.ID != req.ID || resp.TTL <= 0 {
		return fmt.Errorf("%w: lease %x was answered with lease %x, time to live %d", errWrongAnswer, req.ID, resp.ID, resp.TTL)
	}
	return nil
}

// Start keeps the client's leases alive on a stream of its own, which is opened anew when it has ended.
func (l *leaseLoad) Start(i int) Start {
	c, conn, turn := &l.clients[i], l.pool.lightConn(i), 0
	var (
		req     = &pb.LeaseKeepAliveRequest{}
		request []byte
		pending atomic.Pointer[func(Outcome, error)] // of the request under way
	)
	end := func(err error) {
		if done := pending.Swap(nil); done != nil {
			(*done)(Outcome{}, err)
		}
	}
	call := &light.Call{
		Method: pb.Lease_LeaseKeepAlive_FullMethodName, Streaming: true,
		Message: func(answer []byte) { end(checkKeepAlive(answer, req.ID)) },
		End: func(err error) {
			if err == nil {
				err = io.EOF
			}
			end(err)
		},
	}
	return func(_ time.Time, done func(Outcome, error)) {
		req.ID = c.ids[turn%len(c.ids)]
		turn++
		pending.Store(&done)
		var err error
		if request, err = (proto.MarshalOptions{}).MarshalAppend(request[:0], req); err == nil && !conn.Send(call, request) {
			err = conn.Begin(call, request)
		}
		if err != nil {
			end(err)
		}
	}
}

func checkKeepAlive(answer []byte, id int64) error {
	var gotID, ttl int64
	for len(answer) > 0 {
		field, v, n := consume(answer)
		answer = answer[n:]
		switch field {
		case 2:
			gotID = int64(v.number)
		case 3:
			ttl = int64(v.number)
		}
	}
	if gotID != id || ttl <= 0 {
		return fmt.Errorf("%w: lease %x was answered with lease %x, time to live %d", errWrongAnswer, id, gotID, ttl)
	}
	return nil
}

// Close revokes the leases: otherwise the next run would share its server with their expiry.
func (l *leaseLoad) Close(ctx context.Context) error {
	g := errgroup.Group{}
	g.SetLimit(64)
	for i := range l.clients {
		c := &l.clients[i]
		g.Go(func() error {
			for _, id := range c.ids {
				if _, err := c.stub.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id}); err != nil {
					return fmt.Errorf("revoking lease %x: %w", id, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}
