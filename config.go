package coterie

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/compactor"
)

// The values of Config.InitialClusterState.
const (
	ClusterStateNew      = "new"      // an empty data directory becomes the first start of a cluster
	ClusterStateExisting = "existing" // an empty data directory belongs to a member that joins a cluster
)

// The values of Config.Metrics.
const (
	MetricsBasic     = "basic"     // counters and gauges
	MetricsExtensive = "extensive" // and a latency histogram of every gRPC method
)

const (
	defaultQuotaBytes              = 2 << 30
	defaultSnapshotCount           = 10_000
	defaultSnapshotCatchUpEntries  = 5_000
	defaultCompactionBatchLimit    = 1_000
	defaultCompactionSleepInterval = 10 * time.Millisecond
	defaultWatchProgressInterval   = 10 * time.Minute
	defaultUnaryRequestWarning     = 300 * time.Millisecond

	// maxElectionTimeout is etcd's: a cluster that needs longer has other troubles.
	maxElectionTimeout = 50 * time.Second
	// maxRequestBytes bounds what one client may make the server hold for a request. Raft entries, batches and
	// messages to peers are sized for requests far smaller than that.
	maxRequestBytes = 512 << 20
)

// Config says how one member runs. DefaultConfig returns one that works as it is; a zero Config does not.
//
// Names, meanings and defaults are etcd's, so that what is known of etcd's flags holds here; where a field has a
// flag, the flag is named. URLs have the forms http://host:port, https://host:port, unix://path and unixs://path.
type Config struct {
	// Name tells members of a cluster apart for people (--name). Default "default".
	Name string
	// DataDir is the directory that this member owns (--data-dir). It is made if it does not exist; a second
	// process that opens it is refused. Default "<Name>.coterie" in the working directory.
	DataDir string
	// WALDir holds the raft log if it is not to be under DataDir (--wal-dir), say on a disk of its own.
	WALDir string

	// ListenClientURLs are where clients are served: gRPC, and HTTP unless ListenClientHTTPURLs is set
	// (--listen-client-urls). A host must be an IP address or "localhost". Default http://localhost:2379.
	ListenClientURLs []string
	// ListenClientHTTPURLs, if set, are where HTTP is served instead: the JSON gateway, /health, /metrics,
	// /version (--listen-client-http-urls).
	ListenClientHTTPURLs []string
	// ListenMetricsURLs are further places for /metrics and /health alone (--listen-metrics-urls).
	ListenMetricsURLs []string
	// ListenPeerURLs are where other members are served (--listen-peer-urls). Default http://localhost:2380.
	ListenPeerURLs []string
	// AdvertiseClientURLs are what the member list tells clients to dial (--advertise-client-urls). Empty means
	// that clients cannot find this member by the list. Default http://localhost:2379.
	AdvertiseClientURLs []string
	// InitialAdvertisePeerURLs are what other members dial (--initial-advertise-peer-urls).
	// Default http://localhost:2380.
	InitialAdvertisePeerURLs []string

	// InitialCluster lists the members of a new cluster as "name=peerURL,..." (--initial-cluster); a member with
	// several URLs is listed once for each. It is read when DataDir is empty, and may name only this member: clusters
	// of more than one are not supported yet. Default: Name with each of InitialAdvertisePeerURLs.
	InitialCluster string
	// InitialClusterToken goes into the ids of a new cluster and its members, so that members of clusters with
	// different tokens never mistake one another (--initial-cluster-token). Default "etcd-cluster".
	InitialClusterToken string
	// InitialClusterState is ClusterStateNew or ClusterStateExisting (--initial-cluster-state). It is read when
	// DataDir is empty; then only ClusterStateNew is supported yet. Default ClusterStateNew.
	InitialClusterState string

	// HeartbeatInterval is the time between a leader's heartbeats, in whole milliseconds (--heartbeat-interval).
	// Default 100ms.
	HeartbeatInterval time.Duration
	// ElectionTimeout is how long a follower waits for a heartbeat before it stands for election, in whole
	// milliseconds (--election-timeout): at least five heartbeats, at most 50s. Default 1s.
	ElectionTimeout time.Duration
	// PreVote asks for votes provisionally first, so that a member that was cut off does not depose a working
	// leader (--pre-vote). Default true.
	PreVote bool

	// SnapshotCount is after how many applied entries the log is cut (--snapshot-count). 0 means 10,000, the default.
	SnapshotCount uint64
	// SnapshotCatchUpEntries is how many entries are kept behind a cut for followers that lag
	// (--snapshot-catchup-entries). 0 means 5,000, the default.
	SnapshotCatchUpEntries uint64

	// QuotaBackendBytes is how large the data may grow before writes that add to it are refused
	// (--quota-backend-bytes). 0 means 2 GiB, the default; a negative value means no quota. Large values are as
	// good as small ones: there is no size at which the store slows down or has to be defragmented.
	QuotaBackendBytes int64
	// MaxTxnOps is the most operations in a transaction, and the most comparisons (--max-txn-ops). Default 128.
	MaxTxnOps uint
	// MaxRequestBytes is the largest request of a client (--max-request-bytes), at most 512 MiB. Default 1.5 MiB.
	MaxRequestBytes uint
	// MaxConcurrentStreams is the most gRPC streams of one connection at a time (--max-concurrent-streams).
	// Default: 4,294,967,295.
	MaxConcurrentStreams uint32

	// AutoCompactionMode is "periodic" or "revision" (--auto-compaction-mode). Default "periodic".
	AutoCompactionMode string
	// AutoCompactionRetention is how much history to keep (--auto-compaction-retention): for "periodic" a duration
	// such as "30m" or a number of hours, for "revision" a number of revisions. "0", the default, keeps everything.
	AutoCompactionRetention string
	// CompactionBatchLimit is how many revisions one step of a compaction deletes (--compaction-batch-limit).
	// 0 means 1,000, the default.
	CompactionBatchLimit int
	// CompactionSleepInterval is the pause between two steps (--compaction-sleep-interval). 0 means 10ms, the default.
	CompactionSleepInterval time.Duration

	// WatchProgressNotifyInterval is how often an idle watcher that asked for it hears of the current revision
	// (--watch-progress-notify-interval). 0 means 10m, the default.
	WatchProgressNotifyInterval time.Duration
	// WarningApplyDuration is how long applying a request may take before the log says so
	// (--warning-apply-duration). Default 100ms.
	WarningApplyDuration time.Duration
	// WarningUnaryRequestDuration is how long answering a request may take before the log says so
	// (--warning-unary-request-duration). 0 means 300ms, the default.
	WarningUnaryRequestDuration time.Duration

	// GRPCKeepAliveMinTime is the least time between two pings of a client; one that pings more often is
	// disconnected (--grpc-keepalive-min-time). Default 5s.
	GRPCKeepAliveMinTime time.Duration
	// GRPCKeepAliveInterval is after what silence the server pings a client; 0 means never
	// (--grpc-keepalive-interval). Default 2h.
	GRPCKeepAliveInterval time.Duration
	// GRPCKeepAliveTimeout is how long the server waits for the answer before it hangs up; 0 means that it does not
	// ping (--grpc-keepalive-timeout). Default 20s.
	GRPCKeepAliveTimeout time.Duration
	// SocketReusePort sets SO_REUSEPORT on listeners (--socket-reuse-port).
	SocketReusePort bool
	// SocketReuseAddress sets SO_REUSEADDR on listeners (--socket-reuse-address).
	SocketReuseAddress bool

	// ClientTLS is used on https:// and unixs:// client and metrics URLs.
	ClientTLS ClientTLS

	// BcryptCost is the strength at which passwords of users are hashed, 4 to 31; each step doubles the time
	// (--bcrypt-cost). Default 10.
	BcryptCost uint

	// EnableGRPCGateway serves the JSON API under /v3/ (--enable-grpc-gateway). Default true.
	EnableGRPCGateway bool
	// EnablePprof serves Go's profiles under /debug/pprof/ (--enable-pprof).
	EnablePprof bool
	// Metrics is MetricsBasic or MetricsExtensive (--metrics). Default MetricsBasic.
	Metrics string
	// CORS are the origins that browsers may call HTTP from; empty or "*" means all (--cors). Default "*".
	CORS []string
	// HostWhitelist are the Host values that plain HTTP requests may have, which defends against DNS rebinding;
	// empty or "*" means all (--host-whitelist). Default "*".
	HostWhitelist []string

	// UnsafeNoFsync leaves out the fsync of every write to the raft log (--unsafe-no-fsync). A crash of the machine
	// then loses acknowledged writes, and may leave a log that is refused. For tests.
	UnsafeNoFsync bool

	// Logger takes the member's log. Nil means none.
	Logger *zap.Logger
}

// ClientTLS says how the server proves itself to clients, and clients to it. Files are read again for every
// connection, so that they can be replaced at any time.
type ClientTLS struct {
	// CertFile and KeyFile are the server's certificate and its key, PEM (--cert-file, --key-file).
	CertFile, KeyFile string
	// TrustedCAFile holds the authorities that sign clients' certificates, PEM (--trusted-ca-file). If it is set,
	// clients must have a certificate.
	TrustedCAFile string
	// ClientCertAuth requires certificates of clients (--client-cert-auth).
	ClientCertAuth bool
	// CRLFile lists certificates that are no longer accepted, DER (--client-crl-file).
	CRLFile string
	// AllowedHostnames, if set, is what a client's certificate must be for: one of these (--client-cert-allowed-hostname).
	AllowedHostnames []string
	// CipherSuites are Go's names of the suites to offer (--cipher-suites). Empty means Go's choice.
	CipherSuites []string
	// MinVersion and MaxVersion are "TLS1.2", "TLS1.3" or empty for Go's choice (--tls-min-version,
	// --tls-max-version). Default "TLS1.2" and empty.
	MinVersion, MaxVersion string
	// Auto makes a certificate under DataDir if CertFile and KeyFile are empty (--auto-tls).
	Auto bool
	// SelfSignedCertValidityYears is how long that certificate is valid (--self-signed-cert-validity). Default 1.
	SelfSignedCertValidityYears uint
}

// DefaultConfig returns the configuration of a member that serves clients on localhost:2379 and is alone.
func DefaultConfig() Config {
	return Config{
		Name:                        "default",
		ListenClientURLs:            []string{"http://localhost:2379"},
		ListenPeerURLs:              []string{"http://localhost:2380"},
		AdvertiseClientURLs:         []string{"http://localhost:2379"},
		InitialAdvertisePeerURLs:    []string{"http://localhost:2380"},
		InitialClusterToken:         "etcd-cluster",
		InitialClusterState:         ClusterStateNew,
		HeartbeatInterval:           100 * time.Millisecond,
		ElectionTimeout:             time.Second,
		PreVote:                     true,
		SnapshotCount:               defaultSnapshotCount,
		SnapshotCatchUpEntries:      defaultSnapshotCatchUpEntries,
		MaxTxnOps:                   128,
		MaxRequestBytes:             1.5 * (1 << 20),
		MaxConcurrentStreams:        math.MaxUint32,
		AutoCompactionMode:          compactor.ModePeriodic,
		AutoCompactionRetention:     "0",
		CompactionBatchLimit:        defaultCompactionBatchLimit,
		CompactionSleepInterval:     defaultCompactionSleepInterval,
		WatchProgressNotifyInterval: defaultWatchProgressInterval,
		WarningApplyDuration:        100 * time.Millisecond,
		WarningUnaryRequestDuration: defaultUnaryRequestWarning,
		GRPCKeepAliveMinTime:        5 * time.Second,
		GRPCKeepAliveInterval:       2 * time.Hour,
		GRPCKeepAliveTimeout:        20 * time.Second,
		ClientTLS:                   ClientTLS{MinVersion: string(tlsutil.TLSVersion12), SelfSignedCertValidityYears: 1},
		BcryptCost:                  10,
		EnableGRPCGateway:           true,
		Metrics:                     MetricsBasic,
		CORS:                        []string{"*"},
		HostWhitelist:               []string{"*"},
	}
}

// Validate reports everything that is wrong with the configuration. It touches neither disk nor network.
func (c *Config) Validate() error {
	return errors.Join(
		c.validateURLs(),
		c.validateCluster(),
		c.validateTimes(),
		c.validateLimits(),
		c.ClientTLS.validate(),
	)
}

func (c *Config) validateURLs() error {
	var errs []error
	for _, l := range []struct {
		flag     string
		urls     []string
		bind     bool // a listener: the host must be an address
		required bool
	}{
		{"listen-client-urls", c.ListenClientURLs, true, true},
		{"listen-client-http-urls", c.ListenClientHTTPURLs, true, false},
		{"listen-metrics-urls", c.ListenMetricsURLs, true, false},
		{"listen-peer-urls", c.ListenPeerURLs, true, true},
		{"advertise-client-urls", c.AdvertiseClientURLs, false, false},
		{"initial-advertise-peer-urls", c.InitialAdvertisePeerURLs, false, true},
	} {
		if l.required && len(l.urls) == 0 {
			errs = append(errs, fmt.Errorf("%s: at least one URL is needed", l.flag))
		}
		for _, raw := range l.urls {
			if err := checkURL(raw, l.bind); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", l.flag, err))
			}
		}
	}
	secure := func(raw string) bool { return strings.HasPrefix(raw, "https://") || strings.HasPrefix(raw, "unixs://") }
	served := slices.Concat(c.ListenClientURLs, c.ListenClientHTTPURLs, c.ListenMetricsURLs)
	if i := slices.IndexFunc(served, secure); i >= 0 && c.ClientTLS.CertFile == "" && !c.ClientTLS.Auto {
		errs = append(errs, fmt.Errorf("%s needs a certificate: set cert-file and key-file, or auto-tls", served[i]))
	}
	for _, raw := range slices.Concat(c.ListenPeerURLs, c.InitialAdvertisePeerURLs) {
		if secure(raw) {
			errs = append(errs, fmt.Errorf("peer URL %s: TLS between members is not supported yet", raw))
		}
	}
	return errors.Join(errs...)
}

func checkURL(raw string, bind bool) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("%q is not a URL: %w", raw, err)
	}
	switch u.Scheme {
	case "unix", "unixs":
		if u.Host+u.Path == "" {
			return fmt.Errorf("%q names no socket", raw)
		}
		return nil
	case "http", "https":
	default:
		return fmt.Errorf("%q must begin with http://, https://, unix:// or unixs://", raw)
	}
	host, _, err := net.SplitHostPort(u.Host)
	switch {
	case err != nil:
		return fmt.Errorf("%q must have the form scheme://host:port", raw)
	case u.Path != "":
		return fmt.Errorf("%q must not have a path", raw)
	case host == "" && !bind:
		return fmt.Errorf("%q must have a host that others can dial", raw)
	case bind && host != "localhost" && net.ParseIP(host) == nil:
		return fmt.Errorf("%q must have an IP address or localhost as its host, for it is listened on", raw)
	}
	return nil
}

func (c *Config) validateCluster() error {
	var errs []error
	if c.Name == "" {
		errs = append(errs, errors.New("name: must not be empty"))
	}
	if strings.ContainsAny(c.Name, "=,") {
		errs = append(errs, fmt.Errorf("name: %q must not contain '=' or ',', which initial-cluster is written with", c.Name))
	}
	if c.InitialClusterState != ClusterStateNew && c.InitialClusterState != ClusterStateExisting {
		errs = append(errs, fmt.Errorf("initial-cluster-state: %q is neither %q nor %q",
			c.InitialClusterState, ClusterStateNew, ClusterStateExisting))
	}
	members, err := parseCluster(c.InitialCluster)
	if err != nil {
		errs = append(errs, err)
	}
	if len(members) > 1 {
		errs = append(errs, fmt.Errorf("initial-cluster: multi-member clusters are not supported yet; it names %d members", len(members)))
	}
	return errors.Join(errs...)
}

// parseCluster reads "name=url,name=url" into the URLs of each name.
func parseCluster(s string) (map[string][]string, error) {
	members := make(map[string][]string)
	if s == "" {
		return members, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		name, raw, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("initial-cluster: %q does not have the form name=url", part)
		}
		if err := checkURL(raw, false); err != nil {
			return nil, fmt.Errorf("initial-cluster: %w", err)
		}
		members[name] = append(members[name], raw)
	}
	return members, nil
}

// checkBootstrap reports why no cluster may be made from the configuration. It concerns empty data directories
// alone: a member that has been made keeps its cluster, whatever the initial-… settings say.
func (c *Config) checkBootstrap() error {
	if c.InitialClusterState == ClusterStateExisting {
		return fmt.Errorf("initial-cluster-state is %q and the data directory %s is empty: joining a cluster is not supported yet",
			ClusterStateExisting, c.DataDir)
	}
	members, err := parseCluster(c.InitialCluster)
	if err != nil {
		return err
	}
	mine, ok := members[c.Name]
	if !ok {
		return fmt.Errorf("initial-cluster %q does not name this member, %q", c.InitialCluster, c.Name)
	}
	mine, advertised := slices.Clone(mine), slices.Clone(c.InitialAdvertisePeerURLs)
	slices.Sort(mine)
	slices.Sort(advertised)
	if !slices.Equal(slices.Compact(mine), slices.Compact(advertised)) {
		return fmt.Errorf("initial-cluster gives this member the peer URLs %s, but initial-advertise-peer-urls are %s",
			strings.Join(mine, ","), strings.Join(advertised, ","))
	}
	return nil
}

func (c *Config) validateTimes() error {
	var errs []error
	switch {
	case c.HeartbeatInterval <= 0 || c.HeartbeatInterval%time.Millisecond != 0:
		errs = append(errs, fmt.Errorf("heartbeat-interval: %v must be a positive number of milliseconds", c.HeartbeatInterval))
	case c.ElectionTimeout <= 0 || c.ElectionTimeout%time.Millisecond != 0:
		errs = append(errs, fmt.Errorf("election-timeout: %v must be a positive number of milliseconds", c.ElectionTimeout))
	case c.ElectionTimeout > maxElectionTimeout:
		errs = append(errs, fmt.Errorf("election-timeout: %v must be at most %v", c.ElectionTimeout, maxElectionTimeout))
	case c.ElectionTimeout < 5*c.HeartbeatInterval:
		errs = append(errs, fmt.Errorf("election-timeout: %v must be at least 5 times heartbeat-interval, %v", c.ElectionTimeout, c.HeartbeatInterval))
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{
		{"compaction-sleep-interval", c.CompactionSleepInterval},
		{"watch-progress-notify-interval", c.WatchProgressNotifyInterval},
		{"warning-apply-duration", c.WarningApplyDuration},
		{"warning-unary-request-duration", c.WarningUnaryRequestDuration},
		{"grpc-keepalive-min-time", c.GRPCKeepAliveMinTime},
		{"grpc-keepalive-interval", c.GRPCKeepAliveInterval},
		{"grpc-keepalive-timeout", c.GRPCKeepAliveTimeout},
	} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("%s: %v must not be negative", d.flag, d.value))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) validateLimits() error {
	var errs []error
	if c.BcryptCost < 4 || c.BcryptCost > 31 {
		errs = append(errs, fmt.Errorf("bcrypt-cost: %d must be between 4 and 31", c.BcryptCost))
	}
	if c.MaxTxnOps == 0 {
		errs = append(errs, errors.New("max-txn-ops: must be at least 1"))
	}
	if c.MaxRequestBytes == 0 || c.MaxRequestBytes > maxRequestBytes {
		errs = append(errs, fmt.Errorf("max-request-bytes: %d must be between 1 and %d", c.MaxRequestBytes, maxRequestBytes))
	}
	if c.MaxConcurrentStreams == 0 {
		errs = append(errs, errors.New("max-concurrent-streams: must be at least 1"))
	}
	if c.CompactionBatchLimit < 0 {
		errs = append(errs, fmt.Errorf("compaction-batch-limit: %d must not be negative", c.CompactionBatchLimit))
	}
	if _, err := compactor.ParsePolicy(c.AutoCompactionMode, c.AutoCompactionRetention); err != nil {
		errs = append(errs, err)
	}
	if c.Metrics != MetricsBasic && c.Metrics != MetricsExtensive {
		errs = append(errs, fmt.Errorf("metrics: %q is neither %q nor %q", c.Metrics, MetricsBasic, MetricsExtensive))
	}
	return errors.Join(errs...)
}

func (t *ClientTLS) validate() error {
	var errs []error
	if (t.CertFile == "") != (t.KeyFile == "") {
		errs = append(errs, errors.New("cert-file and key-file: one needs the other"))
	}
	if t.ClientCertAuth && t.CertFile == "" && !t.Auto {
		errs = append(errs, errors.New("client-cert-auth: needs cert-file and key-file, or auto-tls"))
	}
	if t.Auto && t.SelfSignedCertValidityYears == 0 {
		errs = append(errs, errors.New("self-signed-cert-validity: must be at least 1 year"))
	}
	least, err := tlsutil.GetTLSVersion(t.MinVersion)
	if err != nil {
		errs = append(errs, fmt.Errorf("tls-min-version: %w", err))
	}
	most, err := tlsutil.GetTLSVersion(t.MaxVersion)
	if err != nil {
		errs = append(errs, fmt.Errorf("tls-max-version: %w", err))
	}
	if most != 0 && least > most {
		errs = append(errs, fmt.Errorf("tls-min-version %s is above tls-max-version %s", t.MinVersion, t.MaxVersion))
	}
	if least == tls.VersionTLS13 && len(t.CipherSuites) > 0 {
		errs = append(errs, errors.New("cipher-suites: TLS 1.3 alone has no suites to choose from"))
	}
	if _, err := tlsutil.GetCipherSuites(t.CipherSuites); err != nil {
		errs = append(errs, fmt.Errorf("cipher-suites: %w", err))
	}
	return errors.Join(errs...)
}

// resolved returns the configuration with every value in place for which a zero stands. Open works on its result.
func (c *Config) resolved() Config {
	r := *c
	if r.DataDir == "" {
		r.DataDir = r.Name + ".coterie"
	}
	if r.InitialCluster == "" {
		parts := make([]string, 0, len(r.InitialAdvertisePeerURLs))
		for _, u := range r.InitialAdvertisePeerURLs {
			parts = append(parts, r.Name+"="+u)
		}
		r.InitialCluster = strings.Join(parts, ",")
	}
	orDefault(&r.QuotaBackendBytes, defaultQuotaBytes)
	orDefault(&r.SnapshotCount, defaultSnapshotCount)
	orDefault(&r.SnapshotCatchUpEntries, defaultSnapshotCatchUpEntries)
	orDefault(&r.CompactionBatchLimit, defaultCompactionBatchLimit)
	orDefault(&r.CompactionSleepInterval, defaultCompactionSleepInterval)
	orDefault(&r.WatchProgressNotifyInterval, defaultWatchProgressInterval)
	orDefault(&r.WarningUnaryRequestDuration, defaultUnaryRequestWarning)
	if r.Logger == nil {
		r.Logger = zap.NewNop()
	}
	return r
}

func orDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// An endpoint is a URL in the terms of package net.
type endpoint struct {
	network string // "tcp" or "unix"
	address string // host:port, or the socket's path
	secure  bool   // TLS
}

// endpoints translates URLs that Validate has seen, each once, in order.
func endpoints(urls []string) []endpoint {
	var list []endpoint
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			panic("coterie: a URL that was not validated: " + raw)
		}
		e := endpoint{network: "tcp", address: u.Host, secure: u.Scheme == "https" || u.Scheme == "unixs"}
		if u.Scheme == "unix" || u.Scheme == "unixs" {
			e.network, e.address = "unix", u.Host+u.Path
		}
		if !slices.Contains(list, e) {
			list = append(list, e)
		}
	}
	return list
}
