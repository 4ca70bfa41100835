// Package target runs the servers that the black-box suites talk to: real etcd inside the test
// process, and Coterie as a child process built from this repository. Both are configured by one
// Config, listen on loopback ports of their own and keep their data below a directory that the caller
// gives, so any number of them run side by side. A Cluster is several child processes of either binary,
// which take the same flags.
//
// The package owns starting, stopping, killing and restarting. It promises that a started server answers
// requests, and that Close leaves no process and no listener behind. It knows nothing of what is tested.
package target

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Config is what a suite may choose about a server. The zero value means etcd's defaults.
type Config struct {
	Dir             string // data directory; exclusive to one server
	UnsafeNoFsync   bool
	MaxTxnOps       uint
	MaxRequestBytes uint
	WatchProgress   time.Duration // interval of watch progress notifications
}

// Stop is the way in which a server goes down.
type Stop int

const (
	// Graceful asks the server to finish: SIGTERM, or Close for a server in this process.
	Graceful Stop = iota
	// Kill gives the server no chance to finish: kill -9. A server in this process cannot be killed, it is
	// closed instead.
	Kill
)

func (s Stop) String() string {
	if s == Kill {
		return "kill"
	}
	return "graceful"
}

// Server is one running single-member server.
type Server interface {
	// Name says which implementation this is.
	Name() string
	// Endpoint is the address for clients, in a form that clientv3 and etcdctl take.
	Endpoint() string
	// Restart stops the server and starts it again on the same data. The endpoint may change.
	Restart(ctx context.Context, how Stop) error
	// Close stops the server for good. It may be called more than once.
	Close() error
}

// ErrNotOurs is returned by operations that need a server which this package has started.
var ErrNotOurs = errors.New("target: a server given by its endpoint cannot be restarted")

// External is a server that somebody else has started.
type External struct{ Addr string }

// Name implements Server.
func (e External) Name() string { return "server at " + e.Addr }

// Endpoint implements Server.
func (e External) Endpoint() string { return e.Addr }

// Restart implements Server; it always fails.
func (e External) Restart(context.Context, Stop) error { return ErrNotOurs }

// Close implements Server; the server stays up.
func (e External) Close() error { return nil }

// Dial connects a client to a server and returns when the server has answered. The extra options see every
// message, which lets a suite alter answers on purpose.
func Dial(ctx context.Context, s Server, opts ...grpc.DialOption) (*clientv3.Client, error) {
	opts = append(append(soonAgain(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30))), opts...)
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:          []string{s.Endpoint()},
		DialOptions:        opts,
		Logger:             zap.NewNop(),
		MaxCallSendMsgSize: 1 << 30,
		MaxCallRecvMsgSize: 1 << 30,
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", s.Name(), err)
	}
	if err := awaitAnswer(ctx, cli); err != nil {
		cli.Close()
		return nil, fmt.Errorf("%s at %s does not answer: %w", s.Name(), s.Endpoint(), err)
	}
	return cli, nil
}

// soonAgain makes a client dial again soon, not after gRPC's default second: a server that is just starting refuses
// connections.
func soonAgain() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond},
		MinConnectTimeout: 5 * time.Second,
	})}
}

// awaitAnswer returns when a linearizable read succeeds, so that a leader exists.
func awaitAnswer(ctx context.Context, cli *clientv3.Client) error {
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := cli.Get(attempt, "\x00", clientv3.WithLimit(1))
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last answer: %w)", ctx.Err(), err)
		case <-retry.C:
		}
	}
}
