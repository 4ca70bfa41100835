package coterie

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
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

	TransportCoterie = "coterie" // Coterie's own HTTP/2
	TransportGRPCGo  = "grpc-go" // that of grpc-go
)

const (
	defaultQuotaBytes              = 2 << 30
	defaultSnapshotCount           = 10_000
	defaultSnapshotCatchUpEntries  = 5_000
	defaultCompactionBatchLimit    = 1_000
	defaultCompactionSleepInterval = 10 * time.Millisecond
	defaultWatchProgressInterval   = 10 * time.Minute
	defaultUnaryRequestWarning     = 300 * time.Millisecond
	defaultRaftTimeout             = 5 * time.Second
	defaultSnapshotSendRate        = 64 << 20

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

	// InitialCluster lists the members of a new cluster, or those of the cluster that this member joins, as
	// "name=peerURL,..." (--initial-cluster); a member with several URLs is listed once for each. It is read when
	// DataDir is empty. Default: Name with each of InitialAdvertisePeerURLs, unless the members are to be discovered.
	InitialCluster string
	// InitialClusterToken goes into the ids of a new cluster and its members, so that members of clusters with
	// different tokens never mistake one another (--initial-cluster-token). Default "etcd-cluster".
	InitialClusterToken string
	// InitialClusterState is ClusterStateNew or ClusterStateExisting (--initial-cluster-state). It is read when
	// DataDir is empty. Default ClusterStateNew.
	InitialClusterState string
	// Discovery finds the members of a new cluster through another one, if it has endpoints. It is read when DataDir
	// is empty, and excludes InitialCluster and DiscoverySRV.
	Discovery Discovery
	// DiscoverySRV is the domain whose SRV records name the members (--discovery-srv). They are looked up when
	// DataDir is empty, and exclude InitialCluster and Discovery.
	DiscoverySRV string
	// DiscoverySRVName tells clusters in one domain apart (--discovery-srv-name): the services looked up are
	// "etcd-server-ssl" and "etcd-server", each with a dash and this name behind it.
	DiscoverySRVName string
	// StrictReconfigCheck refuses changes of the membership after which the members that are up would be no quorum
	// (--strict-reconfig-check). Default true.
	StrictReconfigCheck bool
	// MaxLearners is the most members without a vote (--max-learners). Default 1.
	MaxLearners int
	// ForceNewCluster makes this member the only one, with the data that it has (--force-new-cluster). It is for the
	// time after most of the others were lost for good; those that were not must never be started with their old data.
	ForceNewCluster bool

	// HeartbeatInterval is the time between a leader's heartbeats, in whole milliseconds (--heartbeat-interval).
	// Default 100ms.
	HeartbeatInterval time.Duration
	// ElectionTimeout is how long a follower waits for a heartbeat before it stands for election, in whole
	// milliseconds (--election-timeout): at least five heartbeats, at most 50s. Default 1s.
	ElectionTimeout time.Duration
	// PreVote asks for votes provisionally first, so that a member that was cut off does not depose a working
	// leader (--pre-vote). Default true.
	PreVote bool
	// InitialElectionTickAdvance shortens the wait for the first election after a start, in which a leader would
	// long have been heard from (--initial-election-tick-advance). Default true.
	InitialElectionTickAdvance bool
	// RaftReadTimeout is how long the other end of a connection between members may be silent
	// (--raft-read-timeout). 0 means 5s, the default.
	RaftReadTimeout time.Duration
	// RaftWriteTimeout is how long it may take nothing (--raft-write-timeout). 0 means 5s, the default.
	RaftWriteTimeout time.Duration
	// SnapshotSendRate bounds how fast a member's state is sent to another, in bytes per second
	// (--snapshot-send-rate). 0 means 64 MiB, the default; a negative value means no bound. It is
	// less, down to an eighth, while this member's log takes longer to sync than usual.
	SnapshotSendRate int64

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
	// MaxConcurrentStreams is the most gRPC streams of one connection at a time (--max-concurrent-streams); Coterie's own
	// transport has 65,536 at most.
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

	// Transport is what speaks HTTP/2 with clients: TransportCoterie, the default, or TransportGRPCGo, which does the
	// same at several times the cost (--transport).
	Transport string

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
	// PeerTLS is used between members, on https:// and unixs:// peer URLs.
	PeerTLS PeerTLS
	// CipherSuites are Go's names of the suites to offer (--cipher-suites). Empty means Go's choice.
	CipherSuites []string
	// TLSMinVersion and TLSMaxVersion are "TLS1.2", "TLS1.3" or empty for Go's choice (--tls-min-version,
	// --tls-max-version). Default "TLS1.2" and empty.
	TLSMinVersion, TLSMaxVersion string
	// SelfSignedCertValidityYears is how long certificates are valid that are made here
	// (--self-signed-cert-validity). Default 1.
	SelfSignedCertValidityYears uint

	// InitialCorruptCheck compares this member's data with the others' before it serves anybody
	// (--feature-gates=InitialCorruptCheck=true).
	InitialCorruptCheck bool
	// CorruptCheckTime is how often the leader compares the data of all members; 0, the default, means never
	// (--corrupt-check-time).
	CorruptCheckTime time.Duration
	// CompactHashCheck has the leader compare what the members' compactions have left
	// (--feature-gates=CompactHashCheck=true).
	CompactHashCheck bool
	// CompactHashCheckTime is how often it does (--compact-hash-check-time). Default 1m.
	CompactHashCheckTime time.Duration

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

	// For tests.
	keepLogBytes   int64         // consensus.Config.KeepBytes
	patience       time.Duration // see defaultPatience
	healthInterval time.Duration // see defaultHealthInterval
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
	// AllowedCNs, if set, are the common names one of which a client's certificate must have. They exclude
	// AllowedHostnames.
	AllowedCNs []string
	// AllowedHostnames, if set, is what a client's certificate must be for: one of these (--client-cert-allowed-hostname).
	AllowedHostnames []string
	// Auto makes a certificate under DataDir if CertFile and KeyFile are empty (--auto-tls).
	Auto bool
}

// PeerTLS says how members prove themselves to each other. Files are read again for every connection, so that they
// can be replaced at any time.
type PeerTLS struct {
	// CertFile and KeyFile are this member's certificate and its key, PEM (--peer-cert-file, --peer-key-file).
	CertFile, KeyFile string
	// ClientCertFile and ClientKeyFile are shown instead when this member is the one who dials
	// (--peer-client-cert-file, --peer-client-key-file).
	ClientCertFile, ClientKeyFile string
	// TrustedCAFile holds the authorities that sign members' certificates, PEM (--peer-trusted-ca-file). If it is
	// set, members that dial must have a certificate. Empty means the system's, for members that are dialled.
	TrustedCAFile string
	// ClientCertAuth requires certificates of members that dial (--peer-client-cert-auth).
	ClientCertAuth bool
	// CRLFile lists certificates that are no longer accepted, DER (--peer-crl-file).
	CRLFile string
	// AllowedCNs, if set, are the common names one of which a member's certificate must have
	// (--peer-cert-allowed-cn). They exclude AllowedHostnames.
	AllowedCNs []string
	// AllowedHostnames, if set, is what a member's certificate must be for: one of these
	// (--peer-cert-allowed-hostname).
	AllowedHostnames []string
	// SkipClientSANVerification accepts certificates that are for another address than the one that their member
	// dials from (--peer-skip-client-san-verification).
	SkipClientSANVerification bool
	// Auto makes a certificate under DataDir if CertFile and KeyFile are empty (--peer-auto-tls). What members say
	// to each other is encrypted then, but anybody can say that he is a member.
	Auto bool
}

// Discovery says where the members of a new cluster find each other: under a token in the key space of another
// cluster, of etcd or of Coterie. Who makes the token also writes there how many members there are to be.
type Discovery struct {
	// Token is the new cluster's (--discovery-token). It takes the place of InitialClusterToken.
	Token string
	// Endpoints are client URLs of the cluster that serves the discovery (--discovery-endpoints).
	Endpoints []string
	// DialTimeout bounds the log-in there (--discovery-dial-timeout). Default 2s.
	DialTimeout time.Duration
	// RequestTimeout bounds each request (--discovery-request-timeout). Default 5s.
	RequestTimeout time.Duration
	// KeepAliveTime is after what silence it is pinged (--discovery-keepalive-time). Default 2s.
	KeepAliveTime time.Duration
	// KeepAliveTimeout is how long its answer may take (--discovery-keepalive-timeout). Default 6s.
	KeepAliveTimeout time.Duration
	// InsecureTransport talks to it without TLS if neither files nor ServerName are set
	// (--discovery-insecure-transport). Default true.
	InsecureTransport bool
	// InsecureSkipVerify does not verify its certificate (--discovery-insecure-skip-tls-verify).
	InsecureSkipVerify bool
	// CertFile and KeyFile are the certificate to show it, PEM (--discovery-cert, --discovery-key).
	CertFile, KeyFile string
	// TrustedCAFile holds the authorities that sign its certificate, PEM (--discovery-cacert).
	TrustedCAFile string
	// ServerName is whom its certificate must be for. Empty means the host of the endpoint.
	ServerName string
	// Username and Password are for a service with authentication (--discovery-user, --discovery-password).
	Username, Password string
}

// DefaultConfig returns the configuration of a member that serves clients on localhost:2379 and is alone.
func DefaultConfig() Config {
	return Config{
		Name:                     "default",
		ListenClientURLs:         []string{"http://localhost:2379"},
		ListenPeerURLs:           []string{"http://localhost:2380"},
		AdvertiseClientURLs:      []string{"http://localhost:2379"},
		InitialAdvertisePeerURLs: []string{"http://localhost:2380"},
		InitialClusterToken:      "etcd-cluster",
		InitialClusterState:      ClusterStateNew,
		HeartbeatInterval:        100 * time.Millisecond,
		ElectionTimeout:          time.Second,
		Discovery: Discovery{
			DialTimeout:       2 * time.Second,
			RequestTimeout:    5 * time.Second,
			KeepAliveTime:     2 * time.Second,
			KeepAliveTimeout:  6 * time.Second,
			InsecureTransport: true,
		},
		StrictReconfigCheck:         true,
		MaxLearners:                 1,
		PreVote:                     true,
		InitialElectionTickAdvance:  true,
		RaftReadTimeout:             defaultRaftTimeout,
		RaftWriteTimeout:            defaultRaftTimeout,
		SnapshotSendRate:            defaultSnapshotSendRate,
		SnapshotCount:               defaultSnapshotCount,
		SnapshotCatchUpEntries:      defaultSnapshotCatchUpEntries,
		MaxTxnOps:                   128,
		MaxRequestBytes:             1.5 * (1 << 20),
		MaxConcurrentStreams:        math.MaxUint32,
		Transport:                   TransportCoterie,
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
		TLSMinVersion:               string(tlsutil.TLSVersion12),
		SelfSignedCertValidityYears: 1,
		CompactHashCheckTime:        time.Minute,
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
		c.validateDiscovery(),
		c.validateTimes(),
		c.validateLimits(),
		c.validateTLS(),
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
	if i := slices.IndexFunc(c.ListenPeerURLs, secure); i >= 0 && c.PeerTLS.CertFile == "" && !c.PeerTLS.Auto {
		errs = append(errs, fmt.Errorf("%s needs a certificate: set peer-cert-file and peer-key-file, or peer-auto-tls", c.ListenPeerURLs[i]))
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
	if _, err := parseCluster(c.InitialCluster); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// validateDiscovery checks how the members are found. The ways exclude each other, for their answers might differ.
func (c *Config) validateDiscovery() error {
	var errs []error
	ways := 0
	for _, set := range []bool{c.InitialCluster != "", len(c.Discovery.Endpoints) > 0, c.DiscoverySRV != ""} {
		if set {
			ways++
		}
	}
	if ways > 1 {
		errs = append(errs, errors.New(`multiple discovery or bootstrap flags are set: choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"`))
	}
	if c.DiscoverySRVName != "" && c.DiscoverySRV == "" {
		errs = append(errs, errors.New("discovery-srv-name: discovery-srv is not set, so no records are looked up"))
	}
	d := &c.Discovery
	if (d.Token != "") != (len(d.Endpoints) > 0) {
		errs = append(errs, errors.New("both discovery-token and discovery-endpoints must be set"))
	}
	if strings.ContainsRune(d.Token, '/') {
		errs = append(errs, fmt.Errorf("discovery-token: %q must not contain '/', which separates the parts of keys", d.Token))
	}
	if slices.ContainsFunc(d.Endpoints, func(e string) bool { return strings.TrimSpace(e) == "" }) {
		errs = append(errs, errors.New("discovery-endpoints: must not contain empty endpoints"))
	}
	if (d.CertFile == "") != (d.KeyFile == "") {
		errs = append(errs, errors.New("discovery-cert and discovery-key: one needs the other"))
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

// checkBootstrap reports why a member cannot be made from the configuration. It concerns empty data directories
// alone: a member that has been made keeps its cluster, whatever the initial-… settings say.
func (c *Config) checkBootstrap() error {
	members, err := parseCluster(c.InitialCluster)
	if err != nil {
		return err
	}
	mine, ok := members[c.Name]
	if !ok {
		return fmt.Errorf("couldn't find local name %q in the initial cluster configuration %q: list this member there, or set name to how it is listed",
			c.Name, c.InitialCluster)
	}
	if err := refuseDuplicateURLs(members); err != nil {
		return err
	}
	if c.InitialClusterState == ClusterStateExisting {
		// The cluster knows which URLs it has added this member with; those to advertise do not matter yet.
		if len(members) == 1 {
			return fmt.Errorf("initial-cluster-state is %q, but initial-cluster %q names nobody but this member: list the members of the cluster to join",
				ClusterStateExisting, c.InitialCluster)
		}
		return nil
	}
	return sameURLs(c.Name, mine, c.InitialAdvertisePeerURLs)
}

// refuseDuplicateURLs requires that every URL leads to one member, and is listed once.
func refuseDuplicateURLs(members map[string][]string) error {
	owner := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(members)) {
		for _, u := range members[name] {
			other, taken := owner[u]
			switch {
			case taken && other == name:
				return fmt.Errorf("initial cluster has duplicate url %s: %s is listed with it twice", u, name)
			case taken:
				return fmt.Errorf("initial cluster has duplicate url %s: both %s and %s are listed with it", u, other, name)
			}
			owner[u] = name
		}
	}
	return nil
}

// sameURLs requires that a member is listed in the cluster with the URLs that it advertises.
func sameURLs(name string, listed, advertised []string) error {
	without := func(list, from []string) string {
		var missing []string
		for _, u := range from {
			if !slices.Contains(list, u) {
				missing = append(missing, u)
			}
		}
		return strings.Join(missing, ",")
	}
	if missing := without(advertised, listed); missing != "" {
		return fmt.Errorf("--initial-cluster has %s=%s but missing from --initial-advertise-peer-urls=%s: make the two agree",
			name, missing, strings.Join(advertised, ","))
	}
	if missing := without(listed, advertised); missing != "" {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster, which lists %s=%s: make the two agree",
			missing, name, strings.Join(listed, ","))
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
		{"raft-read-timeout", c.RaftReadTimeout},
		{"raft-write-timeout", c.RaftWriteTimeout},
		{"corrupt-check-time", c.CorruptCheckTime},
		{"discovery-dial-timeout", c.Discovery.DialTimeout},
		{"discovery-keepalive-time", c.Discovery.KeepAliveTime},
		{"discovery-keepalive-timeout", c.Discovery.KeepAliveTimeout},
	} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("%s: %v must not be negative", d.flag, d.value))
		}
	}
	if c.CompactHashCheckTime <= 0 {
		errs = append(errs, fmt.Errorf("compact-hash-check-time: %v must be positive", c.CompactHashCheckTime))
	}
	if len(c.Discovery.Endpoints) > 0 && c.Discovery.RequestTimeout <= 0 {
		errs = append(errs, fmt.Errorf("discovery-request-timeout: %v must be positive", c.Discovery.RequestTimeout))
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
	if c.Transport != TransportCoterie && c.Transport != TransportGRPCGo {
		errs = append(errs, fmt.Errorf("transport: %q must be %s or %s", c.Transport, TransportCoterie, TransportGRPCGo))
	}
	if c.MaxLearners < 0 {
		errs = append(errs, fmt.Errorf("max-learners: %d must not be negative", c.MaxLearners))
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

// validateTLS checks what clients and members are served with.
func (c *Config) validateTLS() error {
	errs := []error{c.ClientTLS.validate(), c.PeerTLS.validate()}
	if (c.ClientTLS.Auto || c.PeerTLS.Auto) && c.SelfSignedCertValidityYears == 0 {
		errs = append(errs, errors.New("self-signed-cert-validity: must be at least 1 year"))
	}
	least, err := tlsutil.GetTLSVersion(c.TLSMinVersion)
	if err != nil {
		errs = append(errs, fmt.Errorf("tls-min-version: %w", err))
	}
	most, err := tlsutil.GetTLSVersion(c.TLSMaxVersion)
	if err != nil {
		errs = append(errs, fmt.Errorf("tls-max-version: %w", err))
	}
	if most != 0 && least > most {
		errs = append(errs, fmt.Errorf("tls-min-version %s is above tls-max-version %s", c.TLSMinVersion, c.TLSMaxVersion))
	}
	if least == tls.VersionTLS13 && len(c.CipherSuites) > 0 {
		errs = append(errs, errors.New("cipher-suites: TLS 1.3 alone has no suites to choose from"))
	}
	if _, err := tlsutil.GetCipherSuites(c.CipherSuites); err != nil {
		errs = append(errs, fmt.Errorf("cipher-suites: %w", err))
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
	if len(t.AllowedCNs) > 0 && len(t.AllowedHostnames) > 0 {
		errs = append(errs, errors.New("client-cert-allowed-hostname and allowed-cn of clients: choose one"))
	}
	return errors.Join(errs...)
}

func (t *PeerTLS) validate() error {
	var errs []error
	if (t.CertFile == "") != (t.KeyFile == "") {
		errs = append(errs, errors.New("peer-cert-file and peer-key-file: one needs the other"))
	}
	if (t.ClientCertFile == "") != (t.ClientKeyFile == "") {
		errs = append(errs, errors.New("peer-client-cert-file and peer-client-key-file: one needs the other"))
	}
	if t.ClientCertFile != "" && t.CertFile == "" {
		errs = append(errs, errors.New("peer-client-cert-file: needs peer-cert-file and peer-key-file too"))
	}
	if len(t.AllowedCNs) > 0 && len(t.AllowedHostnames) > 0 {
		errs = append(errs, errors.New("peer-cert-allowed-cn and peer-cert-allowed-hostname: choose one"))
	}
	if t.CertFile != "" {
		return errors.Join(errs...)
	}
	for _, needs := range []struct {
		flag string
		set  bool
	}{
		{"peer-client-cert-auth", t.ClientCertAuth},
		{"peer-trusted-ca-file", t.TrustedCAFile != "" && t.Auto},
		{"peer-crl-file", t.CRLFile != ""},
		{"peer-cert-allowed-cn", len(t.AllowedCNs) > 0},
		{"peer-cert-allowed-hostname", len(t.AllowedHostnames) > 0},
	} {
		switch {
		case needs.set && t.Auto:
			errs = append(errs, fmt.Errorf("%s: needs peer-cert-file and peer-key-file, for the certificates that peer-auto-tls makes prove nothing", needs.flag))
		case needs.set:
			errs = append(errs, fmt.Errorf("%s: needs peer-cert-file and peer-key-file", needs.flag))
		}
	}
	return errors.Join(errs...)
}

// resolved returns the configuration with every value in place for which a zero stands. Open works on its result.
func (c *Config) resolved() Config {
	r := *c
	if r.DataDir == "" {
		r.DataDir = r.Name + ".coterie"
	}
	if r.InitialCluster == "" && r.DiscoverySRV == "" && len(r.Discovery.Endpoints) == 0 {
		r.InitialCluster = listing(r.Name, r.InitialAdvertisePeerURLs)
	}
	orDefault(&r.QuotaBackendBytes, defaultQuotaBytes)
	orDefault(&r.patience, defaultPatience)
	orDefault(&r.healthInterval, defaultHealthInterval)
	orDefault(&r.SnapshotCount, defaultSnapshotCount)
	orDefault(&r.SnapshotCatchUpEntries, defaultSnapshotCatchUpEntries)
	orDefault(&r.CompactionBatchLimit, defaultCompactionBatchLimit)
	orDefault(&r.CompactionSleepInterval, defaultCompactionSleepInterval)
	orDefault(&r.WatchProgressNotifyInterval, defaultWatchProgressInterval)
	orDefault(&r.WarningUnaryRequestDuration, defaultUnaryRequestWarning)
	orDefault(&r.RaftReadTimeout, defaultRaftTimeout)
	orDefault(&r.RaftWriteTimeout, defaultRaftTimeout)
	orDefault(&r.SnapshotSendRate, defaultSnapshotSendRate)
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
