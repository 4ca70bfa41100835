package coterie

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	"github.com/coteriedb/coterie/api"
	"github.com/coteriedb/coterie/api/httpapi"
	"github.com/coteriedb/coterie/rpc"
)

// catchUpTimeout bounds how long another member waits for a list of members that
// is not old.
const catchUpTimeout = 500 * time.Millisecond

// front is what faces the network: the listeners and what answers on them.
type front struct {
	cfg     *Config
	metrics *api.Metrics

	clients, probes, peers []socket

	api         *api.Server
	service     *service
	servers     []*rpc.Server // of clients and probes, in the order they are stopped
	peerServing *rpc.Server
	conn        *grpc.ClientConn
	client      *clientv3.Client
	group       sync.WaitGroup // serving loops; end when the servers stop
}

// socket is a bound socket, not yet served.
type socket struct {
	rpc.Listener
	secure bool // clients must speak TLS
}

// listen binds all sockets.
func listen(ctx context.Context, cfg *Config) (_ *front, err error) {
	f := &front{cfg: cfg, metrics: api.NewMetrics(cfg.Metrics == MetricsExtensive)}
	defer func() {
		if err != nil {
			f.unbind()
		}
	}()
	if cfg.ClientTLS.CertFile != "" {
		// Certificates that were given are tried now, so that a mistake is told before anything is made.
		if _, err := f.serverTLS(); err != nil {
			return nil, err
		}
	}
	bind := func(to *[]socket, what string, protocols rpc.Protocols, urls []string) error {
		for _, raw := range slices.Compact(slices.Clone(urls)) {
			u, err := url.Parse(raw)
			if err != nil {
				return err
			}
			l, err := rpc.Listen(ctx, *u, rpc.ListenOptions{ReusePort: cfg.SocketReusePort, ReuseAddress: cfg.SocketReuseAddress})
			if err != nil {
				return fmt.Errorf("listen for %s on %s: %w", what, raw, err)
			}
			*to = append(*to, socket{rpc.Listener{Listener: l, Protocols: protocols}, rpc.Secure(*u)})
		}
		return nil
	}
	mixed := rpc.GRPCAndHTTP
	if len(cfg.ListenClientHTTPURLs) > 0 {
		mixed = rpc.GRPCOnly
	}
	return f, errors.Join(
		bind(&f.clients, "clients", mixed, cfg.ListenClientURLs),
		bind(&f.clients, "HTTP clients", rpc.HTTPOnly, cfg.ListenClientHTTPURLs),
		bind(&f.probes, "metrics", rpc.HTTPOnly, cfg.ListenMetricsURLs),
		bind(&f.peers, "peers", rpc.HTTPOnly, cfg.ListenPeerURLs),
	)
}

// serverTLS loads what sockets are secured with. With auto-tls it makes a
// certificate in the data directory, which must be this member's by then.
func (f *front) serverTLS() (*tls.Config, error) {
	return f.cfg.clientServerTLS()
}

// unbind closes the sockets that are not served.
func (f *front) unbind() {
	for _, l := range slices.Concat(f.clients, f.probes, f.peers) {
		l.Close() // nothing was accepted on it
	}
}

// observeCommit notes how long the engine took to commit a batch.
func (f *front) observeCommit(d time.Duration) { f.metrics.EngineCommit.Observe(d.Seconds()) }

// secureWith gives the sockets that need it their TLS.
func secureWith(security *tls.Config, sockets []socket) {
	for i := range sockets {
		if sockets[i].secure {
			sockets[i].TLS = security
		}
	}
}

// servePeers starts to answer other members. It comes first: without them there
// is nothing to tell clients.
func (f *front) servePeers(n *Node) error {
	security, err := f.cfg.peerServerTLS()
	if err != nil {
		return err
	}
	secureWith(security, f.peers)
	s := &service{Node: n}
	f.metrics.Watch(sources(n))
	f.api = api.New(api.Config{
		Node:              s,
		Metrics:           f.metrics,
		Logger:            n.log,
		ClusterID:         n.data.ClusterID,
		MemberID:          n.data.MemberID,
		MaxRequestBytes:   f.cfg.MaxRequestBytes,
		MaxTxnOps:         f.cfg.MaxTxnOps,
		QuotaBackendBytes: f.cfg.QuotaBackendBytes,
		ElectionTimeout:   f.cfg.ElectionTimeout,
		SlowRequest:       f.cfg.WarningUnaryRequestDuration,
		BcryptCost:        int(f.cfg.BcryptCost),
	})
	f.service = s
	f.start(n, f.peerServer(), peerHandler(s, n.peers.Handler()), f.peers)
	return nil
}

// serveClients starts to answer clients.
func (f *front) serveClients(n *Node) error {
	security, err := f.serverTLS()
	if err != nil {
		return err
	}
	secureWith(security, f.clients)
	secureWith(security, f.probes)
	s := f.service
	clients := f.server()
	f.api.Register(clients)
	if f.conn, err = clients.Dial(); err != nil {
		return err
	}
	f.client = inProcessClient(f.conn)
	h := httpapi.Config{
		Node:            s,
		Metrics:         f.metrics,
		Logger:          n.log,
		Version:         Version,
		MaxRequestBytes: f.cfg.MaxRequestBytes,
		RequestTimeout:  requestTimeout(f.cfg),
		CORS:            f.cfg.CORS,
		Hosts:           f.cfg.HostWhitelist,
		Profiles:        f.cfg.EnablePprof,
	}
	if f.cfg.EnableGRPCGateway {
		h.Gateway = f.conn
	}
	http, err := httpapi.New(n.ctx, h)
	if err != nil {
		return err
	}
	f.start(n, clients, http, f.clients)
	f.start(n, f.server(), httpapi.NewMetrics(h), f.probes)
	return nil
}

// server makes a server for clients.
func (f *front) server() *rpc.Server {
	s := rpc.NewServer(f.serverOptions())
	f.servers = append(f.servers, s)
	return s
}

// peerServer makes the server for other members.
func (f *front) peerServer() *rpc.Server {
	o := f.serverOptions()
	o.Refused = tellOfRefusals(f.cfg.Logger)
	f.peerServing = rpc.NewServer(o)
	return f.peerServing
}

// tellOfRefusals logs why a connection to the peer port was refused, once a minute:
// who dials is only told that it was. Whoever connects and leaves is not worth a word, nor
// what Close cuts off.
func tellOfRefusals(log *zap.Logger) func(net.Addr, error) {
	log = log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(c, time.Minute, 1, 0)
	}))
	return func(remote net.Addr, err error) {
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			log.Warn("refused a connection to a peer URL", zap.Stringer("remote", remote), zap.Error(err))
		}
	}
}

// serverOptions are what all servers have in common.
func (f *front) serverOptions() rpc.Options {
	transport := rpc.Coterie
	if f.cfg.Transport == TransportGRPCGo {
		transport = rpc.GRPCGo
	}
	return rpc.Options{
		Logger:               f.cfg.Logger,
		Transport:            transport,
		UnaryInterceptor:     f.api.InterceptUnary,
		StreamInterceptor:    f.api.InterceptStream,
		Traffic:              f.api.Traffic(),
		MaxRecvBytes:         api.MaxRecvBytes(f.cfg.MaxRequestBytes),
		MaxConcurrentStreams: f.cfg.MaxConcurrentStreams,
		KeepaliveMinTime:     f.cfg.GRPCKeepAliveMinTime,
		KeepaliveInterval:    f.cfg.GRPCKeepAliveInterval,
		KeepaliveTimeout:     f.cfg.GRPCKeepAliveTimeout,
	}
}

func (f *front) start(n *Node, s *rpc.Server, http http.Handler, sockets []socket) {
	s.Handle(http)
	s.Start()
	for _, l := range sockets {
		f.group.Go(func() {
			if err := s.Serve(l.Listener); err != nil {
				n.consensus.Fail(err)
			}
		})
	}
}

// close ends streams and stops answering; requests in flight may finish until ctx ends.
func (f *front) close(ctx context.Context) {
	if f.api != nil {
		f.api.Close()
	}
	for _, s := range f.servers {
		s.Stop(ctx)
	}
	if f.api != nil {
		f.api.Wait()
	}
	// Last, for gateway requests in flight went through it. Neither can fail: it is in process.
	if f.client != nil {
		f.client.Close()
	}
	if f.conn != nil {
		f.conn.Close()
	}
}

// closePeers stops answering other members. Their streams end with the transport.
func (f *front) closePeers() {
	if f.peerServing != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		f.peerServing.Stop(ctx)
		cancel()
	}
	f.unbind() // what was bound and never served
	f.group.Wait()
}

// peerHandler answers what members ask one another over HTTP: before anything
// else, who is there and what version runs.
func peerHandler(s *service, transport http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/coterie/v1/", transport)
	mux.Handle("/version", httpapi.NewVersion(Version))
	mux.HandleFunc("GET /members", func(w http.ResponseWriter, r *http.Request) {
		s.catchUp(r.Context())
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Etcd-Cluster-ID", fmt.Sprintf("%x", s.data.ClusterID))
		if err := json.NewEncoder(w).Encode(s.machine().Members.List()); err != nil {
			s.log.Debug("member list not sent", zap.Error(err))
		}
	})
	return mux
}

// catchUp waits a little for this member to have what the cluster has agreed on,
// if there is a leader to ask: who has just been added asks any member.
func (n *Node) catchUp(ctx context.Context) {
	if n.consensus.Status().Leader == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	if err := n.readIndex(ctx); err != nil {
		n.log.Debug("the member list may be old", zap.Error(err))
	}
}

// inProcessClient makes a client of a connection that uses no socket.
func inProcessClient(conn *grpc.ClientConn) *clientv3.Client {
	c := clientv3.NewCtxClient(context.Background())
	c.KV = clientv3.NewKVFromKVClient(pb.NewKVClient(conn), c)
	c.Lease = clientv3.NewLeaseFromLeaseClient(pb.NewLeaseClient(conn), c, time.Second)
	c.Watcher = clientv3.NewWatchFromWatchClient(pb.NewWatchClient(conn), c)
	c.Cluster = clientv3.NewClusterFromClusterClient(pb.NewClusterClient(conn), c)
	c.Maintenance = clientv3.NewMaintenanceFromMaintenanceClient(pb.NewMaintenanceClient(conn), c)
	return c
}

// Client returns a client of this member that uses no socket. It ends with the
// member.
func (n *Node) Client() *clientv3.Client { return n.front.client }

// ClientAddrs returns the addresses on which clients are served, as bound: for
// a configured port 0 they tell the port.
func (n *Node) ClientAddrs() []net.Addr {
	var out []net.Addr
	for _, l := range n.front.clients {
		out = append(out, l.Addr())
	}
	return out
}

// sources tells metrics where values come from.
func sources(n *Node) api.Sources {
	status := func(f func(*Node) float64) func() float64 { return func() float64 { return f(n) } }
	return api.Sources{
		LeaderChanges:    status(func(n *Node) float64 { return float64(n.consensus.Status().LeaderChanges) }),
		ProposalsPending: status(func(n *Node) float64 { return float64(n.consensus.Status().Pending) }),
		ProposalsFailed:  status(func(n *Node) float64 { return float64(n.consensus.FailedProposals()) }),
		Puts:             status(func(n *Node) float64 { return float64(n.machine().KV.Stats().Puts) }),
		Deletes:          status(func(n *Node) float64 { return float64(n.machine().KV.Stats().Deletes) }),
		Txns:             status(func(n *Node) float64 { return float64(n.machine().KV.Stats().Txns) }),
		Ranges:           status(func(n *Node) float64 { return float64(n.machine().KV.Stats().Ranges) }),
		Keys:             status(func(n *Node) float64 { return float64(n.machine().KV.Stats().Keys) }),
		CompactedKeys:    status(func(n *Node) float64 { return float64(n.machine().KV.Stats().Compacted) }),
		WatchStreams:     status(func(n *Node) float64 { return float64(n.machine().Watch.Stats().Streams) }),
		Watchers:         status(func(n *Node) float64 { return float64(n.machine().Watch.Stats().Watchers) }),
		SlowWatchers:     status(func(n *Node) float64 { return float64(n.machine().Watch.Stats().Lagging) }),
		PendingEvents:    status(func(n *Node) float64 { return float64(n.machine().Watch.Stats().Pending) }),
		Events:           status(func(n *Node) float64 { return float64(n.machine().Watch.Stats().Delivered) }),
		LeasesGranted:    status(func(n *Node) float64 { return float64(n.machine().Stats().LeasesGranted) }),
		LeasesRevoked:    status(func(n *Node) float64 { return float64(n.machine().Stats().LeasesRevoked) }),
		SlowApply:        status(func(n *Node) float64 { return float64(n.machine().Stats().SlowApplies) }),
		LogWrittenBytes:  status(func(n *Node) float64 { return float64(n.data.Log.Written()) }),
		LeasesRenewed:    status(func(n *Node) float64 { return float64(n.lessor.Stats().Renewed) }),
		LeasesExpired:    status(func(n *Node) float64 { return float64(n.lessor.Stats().Expired) }),

		SnapshotsApplying: status(func(n *Node) float64 { return oneIf(n.replica.Installing()) }),
		Peers:             n.peerTraffic,
		MemberID:          n.data.MemberID,
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
