package api

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/rpc"
)

// Version is the release of etcd whose API this package speaks.
func Version() string { return version.Version }

// ClusterVersion is the level of the API that all members have, and of the data that a
// snapshot carries: major and minor of Version.
func ClusterVersion() string { return version.Cluster(version.Version) + ".0" }

// The defaults of Config, which are etcd's.
const (
	DefaultMaxRequestBytes   = 1536 << 10
	DefaultMaxTxnOps         = 128
	DefaultQuotaBackendBytes = 2 << 30
	defaultElectionTimeout   = time.Second
	defaultSlowRequest       = 300 * time.Millisecond

	// overheadBytes is added to the size of a request for the limit on a gRPC message.
	overheadBytes = 512 << 10
)

// Config configures New. Node and Metrics are required; the zero value of another field means
// its default.
type Config struct {
	Node    Node
	Metrics *Metrics
	Logger  *zap.Logger

	ClusterID, MemberID uint64

	// MaxRequestBytes bounds a request that is replicated.
	MaxRequestBytes uint
	// MaxTxnOps bounds the operations in each part of a transaction.
	MaxTxnOps uint
	// QuotaBackendBytes is the size of the retained history at which writes are refused;
	// negative: none.
	QuotaBackendBytes int64
	// ElectionTimeout sets the shortest lease and how long a stream that requires a leader
	// survives without.
	ElectionTimeout time.Duration
	// BcryptCost is what hashing a password costs; 0: bcrypt's default.
	BcryptCost int
	// SlowRequest is the time after which a request is logged as slow.
	SlowRequest time.Duration
}

// MaxRecvBytes is the limit on a received gRPC message that belongs to maxRequestBytes.
func MaxRecvBytes(maxRequestBytes uint) int {
	if maxRequestBytes == 0 {
		maxRequestBytes = DefaultMaxRequestBytes
	}
	return int(min(uint64(maxRequestBytes)+overheadBytes, math.MaxInt32))
}

// Server implements the services.
type Server struct {
	cfg     Config
	node    Node
	log     *zap.Logger
	metrics *Metrics

	minLeaseTTL int64 // seconds
	streams     streams
	readers     readers
	health      *health.Server

	snapshots        chan struct{} // those being sent
	snapshotPatience time.Duration

	stop  chan struct{}
	once  sync.Once
	group sync.WaitGroup // watchLeader, the receiving halves of streams, and snapshots being sent
}

// New returns a server that answers for cfg.Node. Close and Wait end it.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.MaxRequestBytes == 0 {
		cfg.MaxRequestBytes = DefaultMaxRequestBytes
	}
	if cfg.MaxTxnOps == 0 {
		cfg.MaxTxnOps = DefaultMaxTxnOps
	}
	if cfg.QuotaBackendBytes == 0 {
		cfg.QuotaBackendBytes = DefaultQuotaBackendBytes
	}
	if cfg.ElectionTimeout <= 0 {
		cfg.ElectionTimeout = defaultElectionTimeout
	}
	if cfg.SlowRequest <= 0 {
		cfg.SlowRequest = defaultSlowRequest
	}
	s := &Server{
		cfg:     cfg,
		node:    cfg.Node,
		log:     cfg.Logger,
		metrics: cfg.Metrics,
		// A lease must outlive the election of a leader that can renew it.
		minLeaseTTL: int64(math.Ceil((3 * cfg.ElectionTimeout / 2).Seconds())),
		health:      health.NewServer(),
		snapshots:   make(chan struct{}, maxSnapshots),
		stop:        make(chan struct{}),

		snapshotPatience: snapshotPatience,
	}
	s.streams.init()
	s.readers.init()
	s.metrics.watchNode(s)
	s.group.Go(s.watchLeader) // ended by Close
	return s
}

// Register registers the services of etcd and gRPC's own health service. A transport that takes
// handlers, as rpc.Server does, is given some for the methods that are called most.
func (s *Server) Register(to grpc.ServiceRegistrar) {
	defer s.handleHot(to)
	to = s.metrics.rpc.registrar(to)
	pb.RegisterKVServer(to, kvServer{s: s})
	pb.RegisterWatchServer(to, watchServer{s: s})
	pb.RegisterLeaseServer(to, leaseServer{s: s})
	pb.RegisterClusterServer(to, clusterServer{s: s})
	pb.RegisterAuthServer(to, authServer{s: s})
	pb.RegisterMaintenanceServer(to, maintenanceServer{s: s})
	grpc_health_v1.RegisterHealthServer(to, s.health)
}

// Close ends all streams, with an error upon which clients try another member, and refuses new
// ones. Requests still work: the transport is stopped after this, the node after the transport.
// It does not wait, because a stream whose client reads nothing ends only with its connection.
func (s *Server) Close() {
	s.once.Do(func() {
		close(s.stop)
		s.health.Shutdown()
		s.streams.close(rpctypes.ErrGRPCStopped)
	})
}

// Wait returns when nothing of the server runs. It is called after Close, when the transport has
// stopped.
func (s *Server) Wait() {
	s.group.Wait()
	s.readers.close()
}

// Traffic returns what the transport reports message sizes to.
func (s *Server) Traffic() rpc.Traffic { return s.metrics }

// propose replicates a request that has passed the static checks.
func (s *Server) propose(ctx context.Context, r *pb.InternalRaftRequest) (any, error) {
	if s.tooLarge(r, proto.Size(r)) {
		return nil, rpctypes.ErrGRPCRequestTooLarge
	}
	res := s.node.Propose(ctx, r)
	if res.Err != nil {
		return nil, proposalError(res.Err)
	}
	return res.Response, nil
}

// newLeaseID draws a positive id.
func newLeaseID() int64 { return rand.Int64N(math.MaxInt64) + 1 }
