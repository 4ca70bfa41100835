package target

import (
	"context"
	"fmt"
	"net/url"
	"os"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Etcd is real etcd in this process, its log discarded.
type Etcd struct {
	cfg    Config
	server *embed.Etcd // nil when closed
}

// StartEtcd starts etcd on a directory that is empty or holds the data of an earlier run.
func StartEtcd(ctx context.Context, cfg Config) (*Etcd, error) {
	e := &Etcd{cfg: cfg}
	if err := e.start(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Etcd) start(ctx context.Context) error {
	c := embed.NewConfig()
	c.Dir = e.cfg.Dir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(lastWords())
	c.UnsafeNoFsync = e.cfg.UnsafeNoFsync
	c.EnableGRPCGateway = false
	if e.cfg.MaxTxnOps != 0 {
		c.MaxTxnOps = e.cfg.MaxTxnOps
	}
	if e.cfg.MaxRequestBytes != 0 {
		c.MaxRequestBytes = e.cfg.MaxRequestBytes
	}
	c.WatchProgressNotifyInterval = e.cfg.WatchProgress

	anyPort := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c.ListenClientUrls = []url.URL{anyPort}
	c.ListenPeerUrls = []url.URL{anyPort}
	// What is advertised is only remembered: a single member has nobody to tell. It stays the same over
	// restarts and over data directories restored from snapshots.
	c.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2379"}}
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)

	if err := os.MkdirAll(e.cfg.Dir, 0o700); err != nil {
		return err
	}
	forking.Lock() // so that nobody has the files of the run before, locked: etcd would end the process
	server, err := embed.StartEtcd(c)
	forking.Unlock()
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-server.Server.ReadyNotify():
		e.server = server
		return nil
	case err := <-server.Err():
		server.Close()
		return fmt.Errorf("start etcd: %w", err)
	case <-ctx.Done():
		server.Close()
		return fmt.Errorf("start etcd: %w", ctx.Err())
	}
}

// Name implements Server.
func (e *Etcd) Name() string { return "etcd" }

// Endpoint implements Server.
func (e *Etcd) Endpoint() string { return "http://" + e.server.Clients[0].Addr().String() }

// Restart implements Server. Etcd in this process is always closed in order.
func (e *Etcd) Restart(ctx context.Context, _ Stop) error {
	if err := e.Close(); err != nil {
		return err
	}
	return e.start(ctx)
}

// Close implements Server.
func (e *Etcd) Close() error {
	if e.server != nil {
		e.server.Close()
		e.server = nil
	}
	return nil
}

// lastWords is a logger that prints only what etcd says before it ends the process, behind a mark that .ci/run looks for.
func lastWords() *zap.Logger {
	c := zap.NewDevelopmentEncoderConfig()
	encoder := zapcore.NewConsoleEncoder(c)
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(os.Stderr), zapcore.DPanicLevel)).Named("the reference etcd ends the process")
}
