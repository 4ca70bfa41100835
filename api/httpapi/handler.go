package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/coteriedb/coterie/api"
)

// Config configures New and NewMetrics. Node and Metrics are required.
type Config struct {
	Node    Node
	Metrics *api.Metrics
	Logger  *zap.Logger
	// Version is the server's own version, which /version shows beside that of the API.
	Version string
	// Gateway is the connection that /v3/ calls the gRPC API on. Nil: there is no gateway. The
	// caller closes it.
	Gateway grpc.ClientConnInterface
	// MaxRequestBytes is the limit on requests to the API; JSON may be larger by its overhead.
	MaxRequestBytes uint
	// RequestTimeout bounds the read that /health tries.
	RequestTimeout time.Duration
	// CORS are the origins whose scripts may read answers; Hosts the Host headers that are
	// accepted without TLS. Empty, or "*" in it: any.
	CORS, Hosts []string
	// Profiles serves /debug/pprof/.
	Profiles bool
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.RequestTimeout <= 0 {
		c.RequestTimeout = 7 * time.Second
	}
	return c
}

// New returns the handler for ports that clients use.
func New(ctx context.Context, c Config) (http.Handler, error) {
	c = c.withDefaults()
	mux := http.NewServeMux()
	handleMetrics(mux, c)
	mux.Handle("/version", NewVersion(c.Version))
	mux.HandleFunc("/debug/vars", only(http.MethodGet, vars(c.Node)))
	if c.Profiles {
		handleProfiles(mux)
	}
	if c.Gateway != nil {
		g, err := gateway(ctx, c)
		if err != nil {
			return nil, err
		}
		mux.Handle("/v3/", g)
	}
	return access{log: c.Logger, origins: newAllowed(c.CORS), hosts: newAllowed(c.Hosts), next: mux}, nil
}

// NewMetrics returns the handler for ports that serve metrics and health alone.
func NewMetrics(c Config) http.Handler {
	mux := http.NewServeMux()
	handleMetrics(mux, c.withDefaults())
	return mux
}

func handleMetrics(mux *http.ServeMux, c Config) {
	mux.Handle("/metrics", promhttp.HandlerFor(c.Metrics.Registry(), promhttp.HandlerOpts{}))
	h := health{node: c.Node, metrics: c.Metrics, log: c.Logger, timeout: c.RequestTimeout}
	h.register(mux)
}

func handleProfiles(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index) // and the named profiles
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

// gateway translates JSON requests with the handlers that etcd generates from its definitions.
func gateway(ctx context.Context, c Config) (http.Handler, error) {
	// Names as in the .proto files, zero values left out, unknown fields ignored: what etcd does.
	json := &runtime.JSONPb{
		MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
		UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
	}
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{Marshaler: json}))
	if err := errors.Join(
		gw.RegisterKVHandlerClient(ctx, mux, pb.NewKVClient(c.Gateway)),
		gw.RegisterWatchHandlerClient(ctx, mux, pb.NewWatchClient(c.Gateway)),
		gw.RegisterLeaseHandlerClient(ctx, mux, pb.NewLeaseClient(c.Gateway)),
		gw.RegisterClusterHandlerClient(ctx, mux, pb.NewClusterClient(c.Gateway)),
		gw.RegisterMaintenanceHandlerClient(ctx, mux, pb.NewMaintenanceClient(c.Gateway)),
		gw.RegisterAuthHandlerClient(ctx, mux, pb.NewAuthClient(c.Gateway)),
	); err != nil {
		return nil, err
	}
	limit := jsonOverhead * int64(api.MaxRecvBytes(c.MaxRequestBytes))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		mux.ServeHTTP(w, r)
	}), nil
}

// jsonOverhead is by how much a request in JSON may be larger than in protobuf: bytes are in
// base64 and every field has its name. Beyond it a body is not read.
const jsonOverhead = 4

// only refuses other methods than m.
func only(m string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != m {
			w.Header().Set("Allow", m)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	}
}

// access is passed by every request first: it knows old paths, turns away hosts that are not
// ours, and answers browsers that ask what they may do.
type access struct {
	log            *zap.Logger
	origins, hosts allowed
	next           http.Handler
}

// ServeHTTP implements http.Handler.
func (a access) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v3beta/"); ok {
		r.URL.Path = "/v3/" + rest
	}
	if r.TLS == nil {
		// A page in a browser can reach this port under a name of its own choice, but cannot
		// have a certificate for the name.
		if host := hostname(r.Host); !a.hosts.has(host) {
			a.log.Warn("HTTP request refused: its host is not whitelisted", zap.String("host", host))
			http.Error(w, fmt.Sprintf("This server does not answer to the name %q. Use TLS, or add the name to --host-whitelist.", host), http.StatusMisdirectedRequest)
			return
		}
	}
	if a.origins.any {
		allowOrigin(w, "*")
	} else if origin := r.Header.Get("Origin"); a.origins.has(origin) {
		allowOrigin(w, origin)
	}
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK)
		return
	}
	a.next.ServeHTTP(w, r)
}

func allowOrigin(w http.ResponseWriter, origin string) {
	w.Header().Add("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
	w.Header().Add("Access-Control-Allow-Origin", origin)
	w.Header().Add("Access-Control-Allow-Headers", "accept, content-type, authorization")
}

func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return hostport
}

// allowed is a list of names, or all.
type allowed struct {
	any   bool
	names []string
}

func newAllowed(names []string) allowed {
	return allowed{any: len(names) == 0 || slices.Contains(names, "*"), names: names}
}

func (a allowed) has(name string) bool { return a.any || slices.Contains(a.names, name) }
