package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/coteriedb/coterie/bench/light"
)

// MaxConns bounds the connections of one pool.
const MaxConns = 10_000

// Target says which server to load and how to reach it.
type Target struct {
	// Endpoints share the connections out: connection i goes to endpoint i modulo their number,
	// and to no other, so that the number of connections is exactly Conns.
	Endpoints   []string
	Conns       int
	TLS         *tls.Config // nil: plain text unless an endpoint says https
	User        string
	Password    string
	DialTimeout time.Duration // for each connection, until its first answer; 0 means 5 s
	// Light has the load put on by package light's client: Conns connections of it, and a few of grpc-go's beside them,
	// which prepare the run and clean up. Otherwise all are grpc-go's.
	Light bool
}

// preparingConns is how many connections of grpc-go's there are beside light ones.
const preparingConns = 4

// Pool is the set of open connections that the clients of a run share.
type Pool struct {
	conns []*conn
	light []*light.Conn // nil: the load is put on by conns
}

// conn is one connection. The stubs sit directly on it: clientv3 dials, authenticates and encrypts,
// but its translation of operations and its hidden retries stay out of the measured path.
type conn struct {
	client *clientv3.Client
	kv     pb.KVClient
	watch  pb.WatchClient
	lease  pb.LeaseClient
}

// Dial opens every connection of the target and waits until each one has answered a request.
func Dial(ctx context.Context, t Target) (*Pool, error) {
	if len(t.Endpoints) == 0 {
		return nil, errors.New("no endpoint given")
	}
	if t.Conns < 1 || t.Conns > MaxConns {
		return nil, fmt.Errorf("%d connections: must be between 1 and %d", t.Conns, MaxConns)
	}
	if t.DialTimeout == 0 {
		t.DialTimeout = 5 * time.Second
	}
	grpcConns := t.Conns
	if t.Light {
		grpcConns = min(grpcConns, preparingConns)
	}
	p := &Pool{conns: make([]*conn, grpcConns)}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(32)
	for i := range p.conns {
		g.Go(func() (err error) {
			p.conns[i], err = dialOne(gctx, t, t.Endpoints[i%len(t.Endpoints)])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		p.Close()
		return nil, err
	}
	if t.Light {
		if err := p.dialLight(ctx, t); err != nil {
			p.Close()
			return nil, err
		}
	}
	return p, nil
}

func dialOne(ctx context.Context, t Target, endpoint string) (*conn, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:       []string{endpoint},
		DialTimeout:     t.DialTimeout,
		TLS:             t.TLS,
		Username:        t.User,
		Password:        t.Password,
		MaxUnaryRetries: 1, // one attempt: an error is a result, never a slow success
		Logger:          zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", endpoint, err)
	}
	cc := client.ActiveConnection()
	c := &conn{client: client, kv: pb.NewKVClient(cc), watch: pb.NewWatchClient(cc), lease: pb.NewLeaseClient(cc)}

	ctx, cancel := context.WithTimeout(ctx, t.DialTimeout)
	defer cancel()
	probe := &pb.RangeRequest{Key: []byte{0}, Serializable: true, CountOnly: true}
	// An answer that refuses the probe is still an answer: the load will say what it may not do.
	_, err = c.kv.Range(ctx, probe, grpc.WaitForReady(true))
	if err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrPermissionDenied) && !errors.Is(rpctypes.Error(err), rpctypes.ErrUserEmpty) {
		client.Close()
		return nil, fmt.Errorf("no answer from %s: %w", endpoint, err)
	}
	return c, nil
}

// Size is the number of connections that the load is put on by.
func (p *Pool) Size() int {
	if p.light != nil {
		return len(p.light)
	}
	return len(p.conns)
}

// conn is the connection of client i: clients are dealt out round robin.
func (p *Pool) conn(i int) *conn { return p.conns[i%len(p.conns)] }

// Close closes the connections.
func (p *Pool) Close() {
	for _, c := range p.light {
		if c != nil {
			c.Close()
		}
	}
	for _, c := range p.conns {
		if c != nil {
			c.client.Close()
		}
	}
}

// newRand is client i's own source, so that a run's choices depend on the seed and on the client but
// not on how clients interleave.
func newRand(seed uint64, i int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(i))) }
