package main

import (
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/coteriedb/coterie"
)

// A support says what becomes of an option's value.
type support int

const (
	supported support = iota
	noEffect          // accepted, and the log says why it changes nothing here
	refused           // any value but the default is refused by name
)

// An option is one setting of the server: a flag, its ETCD_… variable, its key in the configuration file.
type option struct {
	name    string
	section string
	value   flag.Value
	support support
	// reason completes the sentence "… has no effect: <reason>" or "… is not supported yet: <reason>".
	reason string
	usage  string
	// file is the key in the configuration file, with dots between levels. Empty means the flag's name.
	file string
	// from says which of the two an option belongs to, where it is not both.
	from source
	// show is the default as the documentation gives it, where the value's own is not telling.
	show string
	// def is the default. options fills it in.
	def string
}

// A source is where an option can be set.
type source int

const (
	anywhere source = iota
	flagOnly
	fileOnly
)

func (o *option) fileKey() string {
	if o.file != "" {
		return o.file
	}
	return o.name
}

// settings is what the options write to.
type settings struct {
	config coterie.Config
	log    logSettings

	configFile  string
	showVersion bool
}

func newSettings() *settings {
	return &settings{
		config: coterie.DefaultConfig(),
		log: logSettings{
			outputs:  []string{"default"},
			level:    "info",
			format:   "json",
			rotation: `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`,
		},
	}
}

// Reasons that several options share.
const (
	noTracing  = "there is no tracing"
	tracingOff = "it matters with --enable-distributed-tracing alone, which is not supported yet"
	noBolt     = "the storage engine is not bbolt"
	noAuth     = "authentication cannot be enabled"
	ancient    = "etcd ignores it too"
)

// options lists every option, bound to s. The order is that of the documentation.
func options(s *settings) []option {
	c, log := &s.config, &s.log
	var list []option
	section := func(name string, opts ...option) {
		for _, o := range opts {
			o.section, o.def = name, o.value.String()
			list = append(list, o)
		}
	}
	section("Member",
		option{name: "name", value: text(&c.Name), usage: "Name of this member, for people."},
		option{name: "data-dir", value: text(&c.DataDir), show: "${name}.coterie", usage: "Directory that holds everything this member keeps."},
		option{name: "wal-dir", value: text(&c.WALDir), usage: "Directory for the raft log, if it is not to be under the data directory."},
		option{name: "snapshot-count", value: unsigned(&c.SnapshotCount), usage: "Applied entries after which the raft log is cut."},
		option{name: "snapshot-catchup-entries", value: unsigned(&c.SnapshotCatchUpEntries), usage: "Entries kept behind a cut for followers that lag."},
		option{name: "heartbeat-interval", value: milliseconds(&c.HeartbeatInterval), usage: "Milliseconds between a leader's heartbeats."},
		option{name: "election-timeout", value: milliseconds(&c.ElectionTimeout), usage: "Milliseconds without a heartbeat after which an election starts."},
		option{name: "initial-election-tick-advance", value: boolean(&c.InitialElectionTickAdvance), usage: "Shorten the wait for the first election after a start."},
		option{name: "listen-peer-urls", value: urls(&c.ListenPeerURLs), usage: "URLs to serve other members on."},
		option{name: "listen-client-urls", value: urls(&c.ListenClientURLs), usage: "URLs to serve clients on: gRPC, and HTTP unless --listen-client-http-urls is set."},
		option{name: "listen-client-http-urls", value: urls(&c.ListenClientHTTPURLs), usage: "URLs to serve HTTP on instead of the client URLs."},
		option{name: "quota-backend-bytes", value: signed(&c.QuotaBackendBytes), usage: "Bytes of data at which the member raises an alarm and refuses writes that add to it. 0 is 2 GiB, negative is no limit."},
		option{name: "max-txn-ops", value: unsigned(&c.MaxTxnOps), usage: "Most operations in a transaction."},
		option{name: "max-request-bytes", value: unsigned(&c.MaxRequestBytes), usage: "Most bytes in a client's request."},
		option{name: "max-concurrent-streams", value: unsigned(&c.MaxConcurrentStreams), usage: "Most gRPC streams of one connection at a time; more than 65536 only with --transport=grpc-go."},
		option{name: "grpc-keepalive-min-time", value: duration(&c.GRPCKeepAliveMinTime), usage: "Least time between two pings of a client."},
		option{name: "grpc-keepalive-interval", value: duration(&c.GRPCKeepAliveInterval), usage: "Silence after which the server pings a client. 0 is never."},
		option{name: "grpc-keepalive-timeout", value: duration(&c.GRPCKeepAliveTimeout), usage: "Wait for the answer to such a ping before the connection is closed."},
		option{name: "transport", value: oneOf(&c.Transport, coterie.TransportCoterie, coterie.TransportGRPCGo), usage: "What speaks HTTP/2 with clients: 'coterie', or 'grpc-go', which does the same at several times the cost. Coterie's own."},
		option{name: "socket-reuse-port", file: "socket-options.reuse-port", value: boolean(&c.SocketReusePort), usage: "Set SO_REUSEPORT on listeners."},
		option{name: "socket-reuse-address", file: "socket-options.reuse-address", value: boolean(&c.SocketReuseAddress), usage: "Set SO_REUSEADDR on listeners."},
		option{name: "enable-grpc-gateway", value: boolean(&c.EnableGRPCGateway), usage: "Serve the JSON API under /v3/."},
		option{name: "config-file", value: text(&s.configFile), from: flagOnly, usage: "YAML file to take the configuration from. All other flags and variables are then ignored. Durations in it are whole nanoseconds, as in etcd's."},
		option{name: "version", value: boolean(&s.showVersion), from: flagOnly, usage: "Print the version and exit."},
		option{name: "max-snapshots", value: unsigned(new(uint(5))), support: noEffect, reason: "state is kept in one engine, not in snapshot files", usage: "Snapshot files to keep."},
		option{name: "max-wals", value: unsigned(new(uint(5))), support: noEffect, reason: "segments of the log are deleted as soon as nothing needs them", usage: "Log files to keep."},
		option{name: "memory-mlock", value: boolean(new(bool)), support: refused, reason: "memory cannot be locked", usage: "Keep all memory out of swap."},
		option{name: "backend-bbolt-freelist-type", value: text(new(string)), show: "map", support: noEffect, reason: noBolt, usage: "Kind of bbolt's free list."},
		option{name: "backend-batch-interval", value: duration(new(time.Duration)), support: noEffect, reason: noBolt, usage: "Longest time between two commits of bbolt."},
		option{name: "backend-batch-limit", value: signed(new(int)), support: noEffect, reason: noBolt, usage: "Most operations in a commit of bbolt."},
		option{name: "bootstrap-defrag-threshold-megabytes", value: unsigned(new(uint)), support: noEffect, reason: "the storage engine gives space back by itself", usage: "Free space at which the start defragments."},
		option{name: "raft-read-timeout", value: duration(&c.RaftReadTimeout), from: flagOnly, usage: "Silence after which a connection between members is given up. At least 5s."},
		option{name: "raft-write-timeout", value: duration(&c.RaftWriteTimeout), from: flagOnly, usage: "Time for which such a connection may take nothing before it is given up. At least 5s."},
		option{name: "snapshot-send-rate", value: signed(&c.SnapshotSendRate), usage: "Most bytes per second of the state that is sent to a member which lags too far. 0 is 64 MiB, negative is no limit. Coterie's own."},
		option{name: "feature-gates", value: &featureGates{corruptCheck: &c.InitialCorruptCheck, hashCheck: &c.CompactHashCheck}, usage: "etcd's experimental features, as name=true,name=false. InitialCorruptCheck compares this member's data with the others' before it serves; CompactHashCheck has the leader compare what compactions left. Checkpoints of leases are always made and kept. The log says of each other gate that it changes nothing; unknown ones are refused."},
	)
	section("Clustering",
		option{name: "initial-advertise-peer-urls", value: urls(&c.InitialAdvertisePeerURLs), usage: "URLs that other members reach this one on."},
		option{name: "initial-cluster", value: text(&c.InitialCluster), show: "${name}=${initial-advertise-peer-urls}", usage: "Members of a new cluster, or of the one to join, as name=url,name=url; a member with several URLs is listed once for each. Read when the data directory is empty."},
		option{name: "initial-cluster-state", value: oneOf(&c.InitialClusterState, coterie.ClusterStateNew, coterie.ClusterStateExisting), usage: "'new' to found a cluster, 'existing' to join one. Read when the data directory is empty."},
		option{name: "initial-cluster-token", value: text(&c.InitialClusterToken), usage: "Text that goes into the ids of a new cluster, to keep clusters apart."},
		option{name: "advertise-client-urls", value: urls(&c.AdvertiseClientURLs), usage: "URLs that clients are told to use. Required with --listen-client-urls."},
		option{name: "strict-reconfig-check", value: boolean(&c.StrictReconfigCheck), usage: "Refuse changes of membership after which the members that are up would be no quorum."},
		option{name: "pre-vote", value: boolean(&c.PreVote), usage: "Ask provisionally before an election, so that a member that was cut off does not disturb."},
		option{name: "auto-compaction-mode", value: text(&c.AutoCompactionMode), usage: "What --auto-compaction-retention counts: 'periodic' for time, 'revision' for revisions."},
		option{name: "auto-compaction-retention", value: text(&c.AutoCompactionRetention), usage: "History to keep: a duration or a number of hours, or a number of revisions. 0 keeps all."},
		option{name: "max-learners", value: signed(&c.MaxLearners), usage: "Most members without a vote."},
		option{name: "discovery-token", file: "discovery-config.token", value: text(&c.Discovery.Token), usage: "Token of the new cluster at the discovery service. It takes the place of --initial-cluster-token."},
		option{name: "discovery-endpoints", file: "discovery-config.client.endpoints", value: words(&c.Discovery.Endpoints), usage: "Client URLs of the cluster, of etcd or Coterie, where the first members find each other."},
		option{name: "discovery-dial-timeout", file: "discovery-config.client.dial-timeout", value: duration(&c.Discovery.DialTimeout), usage: "Timeout of logging in there."},
		option{name: "discovery-request-timeout", file: "discovery-config.client.request-timeout", value: duration(&c.Discovery.RequestTimeout), usage: "Timeout of each request to it."},
		option{name: "discovery-keepalive-time", file: "discovery-config.client.keepalive-time", value: duration(&c.Discovery.KeepAliveTime), usage: "Silence after which it is pinged."},
		option{name: "discovery-keepalive-timeout", file: "discovery-config.client.keepalive-timeout", value: duration(&c.Discovery.KeepAliveTimeout), usage: "Wait for the answer to such a ping."},
		option{name: "discovery-insecure-transport", file: "discovery-config.client.secure.insecure-transport", value: boolean(&c.Discovery.InsecureTransport), usage: "Talk to it without TLS, unless a certificate or an authority is given."},
		option{name: "discovery-insecure-skip-tls-verify", file: "discovery-config.client.secure.insecure-skip-tls-verify", value: boolean(&c.Discovery.InsecureSkipVerify), usage: "Do not verify its certificate."},
		option{name: "discovery-cert", file: "discovery-config.client.secure.cert", value: text(&c.Discovery.CertFile), usage: "Certificate to show it."},
		option{name: "discovery-key", file: "discovery-config.client.secure.key", value: text(&c.Discovery.KeyFile), usage: "Key of that certificate."},
		option{name: "discovery-cacert", file: "discovery-config.client.secure.cacert", value: text(&c.Discovery.TrustedCAFile), usage: "Authorities that sign its certificate."},
		option{name: "discovery-config.client.secure.server-name", from: fileOnly, value: text(&c.Discovery.ServerName), usage: "Name that its certificate must be for, if not the endpoint's host."},
		option{name: "discovery-user", file: "discovery-config.client.auth.username", value: text(&c.Discovery.Username), usage: "User at the discovery service."},
		option{name: "discovery-password", file: "discovery-config.client.auth.password", value: text(&c.Discovery.Password), usage: "Password of that user."},
		option{name: "discovery-srv", value: text(&c.DiscoverySRV), usage: "Domain whose SRV records name the first members."},
		option{name: "discovery-srv-name", value: text(&c.DiscoverySRVName), usage: "Suffix of the services' names in those records, after a dash."},
		option{name: "discovery-fallback", value: text(new("exit")), from: flagOnly, support: refused, reason: "etcd 3.7 has removed proxies, so there is nothing to fall back to", usage: "What to do when discovery fails: exit."},
		option{name: "discovery", value: text(new(string)), from: flagOnly, support: refused, reason: "etcd 3.7 has removed it with its v2 API", usage: "URL of a v2 discovery service."},
		option{name: "discovery-proxy", value: text(new(string)), from: flagOnly, support: refused, reason: "etcd 3.7 has removed it with its v2 API", usage: "Proxy to the v2 discovery service."},
		option{name: "v2-deprecation", value: oneOf(new("write-only"), "write-only", "write-only-skip-check", "write-only-drop-data", "gone"), support: noEffect, reason: "there has never been a v2 store here, and " + ancient, usage: "Stage of the v2 store's removal."},
	)
	section("Security",
		option{name: "cert-file", file: "client-transport-security.cert-file", value: text(&c.ClientTLS.CertFile), usage: "Certificate that clients are shown, PEM."},
		option{name: "key-file", file: "client-transport-security.key-file", value: text(&c.ClientTLS.KeyFile), usage: "Key of that certificate, PEM."},
		option{name: "client-cert-auth", file: "client-transport-security.client-cert-auth", value: boolean(&c.ClientTLS.ClientCertAuth), usage: "Require certificates of clients."},
		option{name: "trusted-ca-file", file: "client-transport-security.trusted-ca-file", value: text(&c.ClientTLS.TrustedCAFile), usage: "Authorities that sign clients' certificates, PEM. If set, clients must have one."},
		option{name: "client-crl-file", from: flagOnly, value: text(&c.ClientTLS.CRLFile), usage: "Revoked certificates of clients, DER."},
		option{name: "client-cert-allowed-hostname", file: "client-transport-security.allowed-hostname", value: words(&c.ClientTLS.AllowedHostnames), usage: "Names one of which a client's certificate must be for."},
		option{name: "auto-tls", file: "client-transport-security.auto-tls", value: boolean(&c.ClientTLS.Auto), usage: "Make a certificate for clients if none is given."},
		option{name: "self-signed-cert-validity", value: unsigned(&c.SelfSignedCertValidityYears), usage: "Years for which such a certificate is valid."},
		option{name: "cipher-suites", value: words(&c.CipherSuites), usage: "TLS cipher suites to offer, under Go's names. Empty is Go's choice."},
		option{name: "tls-min-version", value: text(&c.TLSMinVersion), usage: "Oldest TLS to accept, 'TLS1.2' or 'TLS1.3'."},
		option{name: "tls-max-version", value: text(&c.TLSMaxVersion), usage: "Newest TLS to accept. Empty is Go's choice."},
		option{name: "cors", value: asText(words(&c.CORS)), usage: "Origins that browsers may call HTTP from. Empty or * is all."},
		option{name: "host-whitelist", value: asText(words(&c.HostWhitelist)), usage: "Hosts that plain HTTP requests may ask for. Empty or * is all."},
		option{name: "client-cert-file", file: "client-transport-security.client-cert-file", value: text(new(string)), support: noEffect, reason: "the JSON API calls the server in process and needs no certificate for it", usage: "Certificate of the JSON gateway as a client."},
		option{name: "client-key-file", file: "client-transport-security.client-key-file", value: text(new(string)), support: noEffect, reason: "the JSON API calls the server in process and needs no certificate for it", usage: "Key of that certificate."},
		option{name: "client-transport-security.allowed-cn", from: fileOnly, value: words(&c.ClientTLS.AllowedCNs), usage: "Common names one of which a client's certificate must have."},
		option{name: "client-transport-security.skip-client-san-verification", from: fileOnly, value: boolean(new(bool)), support: noEffect, reason: "addresses of clients are not compared with their certificates", usage: "Do not compare a client's address with its certificate."},
		option{name: "peer-cert-file", file: "peer-transport-security.cert-file", value: text(&c.PeerTLS.CertFile), usage: "Certificate that this member shows to others, PEM."},
		option{name: "peer-key-file", file: "peer-transport-security.key-file", value: text(&c.PeerTLS.KeyFile), usage: "Key of that certificate, PEM."},
		option{name: "peer-client-cert-auth", file: "peer-transport-security.client-cert-auth", value: boolean(&c.PeerTLS.ClientCertAuth), usage: "Require certificates of members that connect."},
		option{name: "peer-client-cert-file", file: "peer-transport-security.client-cert-file", value: text(&c.PeerTLS.ClientCertFile), usage: "Certificate to show when connecting to others, if another one, PEM."},
		option{name: "peer-client-key-file", file: "peer-transport-security.client-key-file", value: text(&c.PeerTLS.ClientKeyFile), usage: "Key of that certificate, PEM."},
		option{name: "peer-trusted-ca-file", file: "peer-transport-security.trusted-ca-file", value: text(&c.PeerTLS.TrustedCAFile), usage: "Authorities that sign members' certificates, PEM. If set, members that connect must have one."},
		option{name: "peer-cert-allowed-cn", file: "peer-transport-security.allowed-cn", value: words(&c.PeerTLS.AllowedCNs), usage: "Common names one of which a member's certificate must have."},
		option{name: "peer-cert-allowed-hostname", file: "peer-transport-security.allowed-hostname", value: words(&c.PeerTLS.AllowedHostnames), usage: "Names one of which a member's certificate must be for."},
		option{name: "peer-auto-tls", file: "peer-transport-security.auto-tls", value: boolean(&c.PeerTLS.Auto), usage: "Make a certificate for this member if none is given. Nobody verifies it: what members say is encrypted, but not who they are."},
		option{name: "peer-crl-file", from: flagOnly, value: text(&c.PeerTLS.CRLFile), usage: "Revoked certificates of members, DER."},
		option{name: "peer-skip-client-san-verification", file: "peer-transport-security.skip-client-san-verification", value: boolean(&c.PeerTLS.SkipClientSANVerification), usage: "Accept members that connect from another address than their certificate is for."},
	)
	section("Auth",
		option{name: "auth-token", value: text(new("simple")), support: refused, reason: noAuth, usage: "Kind of authentication tokens, and its options."},
		option{name: "auth-token-ttl", value: unsigned(new(uint(300))), support: refused, reason: noAuth, usage: "Seconds for which a token is good."},
		option{name: "bcrypt-cost", value: unsigned(&c.BcryptCost), usage: "Cost of hashing passwords, 4 to 31."},
	)
	section("Monitoring",
		option{name: "enable-pprof", value: boolean(&c.EnablePprof), usage: "Serve Go's profiles under /debug/pprof/."},
		option{name: "metrics", value: text(&c.Metrics), usage: "'basic', or 'extensive' for a latency histogram of every method."},
		option{name: "listen-metrics-urls", value: urls(&c.ListenMetricsURLs), usage: "Further URLs to serve /metrics and /health on."},
		option{name: "warning-apply-duration", value: duration(&c.WarningApplyDuration), usage: "Time of applying a request from which the log mentions it."},
		option{name: "warning-unary-request-duration", value: duration(&c.WarningUnaryRequestDuration), usage: "Time of answering a request from which the log mentions it."},
		option{name: "enable-distributed-tracing", value: boolean(new(bool)), support: refused, reason: noTracing, usage: "Send traces to a collector."},
		option{name: "distributed-tracing-address", value: text(new("localhost:4317")), support: noEffect, reason: tracingOff, usage: "Address of the collector."},
		option{name: "distributed-tracing-service-name", value: text(new("etcd")), support: noEffect, reason: tracingOff, usage: "Name of the service in traces."},
		option{name: "distributed-tracing-instance-id", value: text(new(string)), support: noEffect, reason: tracingOff, usage: "Name of this member in traces."},
		option{name: "distributed-tracing-sampling-rate", value: signed(new(int)), support: noEffect, reason: tracingOff, usage: "Traces to take of a million."},
	)
	section("Logging",
		option{name: "logger", value: oneOf(new("zap"), "zap"), usage: "Only 'zap'."},
		option{name: "log-outputs", value: words(&log.outputs), usage: "Where to log: 'default' or 'stderr', 'stdout', 'systemd/journal', or files; several with commas."},
		option{name: "log-level", value: text(&log.level), usage: "Least level to log: debug, info, warn, error, panic or fatal."},
		option{name: "log-format", value: text(&log.format), usage: "'json' or 'console'."},
		option{name: "enable-log-rotation", value: boolean(&log.rotate), usage: "Rotate the one file in --log-outputs."},
		option{name: "log-rotation-config-json", value: text(&log.rotation), usage: "When to rotate: maxsize in MB, maxage in days, maxbackups, localtime, compress."},
	)
	section("Features",
		option{name: "watch-progress-notify-interval", value: duration(&c.WatchProgressNotifyInterval), usage: "Time between progress notifications to idle watchers that asked for them."},
		option{name: "compaction-batch-limit", value: signed(&c.CompactionBatchLimit), usage: "Revisions deleted in one step of a compaction."},
		option{name: "compaction-sleep-interval", value: duration(&c.CompactionSleepInterval), usage: "Pause between two steps of a compaction."},
		option{name: "corrupt-check-time", value: duration(&c.CorruptCheckTime), usage: "Time between comparisons of all members' data. 0 is never."},
		option{name: "compact-hash-check-time", value: duration(&c.CompactHashCheckTime), usage: "Time between comparisons of what members' compactions left, with the feature gate CompactHashCheck."},
		option{name: "downgrade-check-time", value: duration(new(5 * time.Second)), support: noEffect, reason: "a downgrade is never in progress", usage: "Time between looks at a downgrade's progress."},
	)
	section("Unsafe",
		option{name: "unsafe-no-fsync", value: boolean(&c.UnsafeNoFsync), usage: "Leave out every fsync. A crash of the machine then loses acknowledged writes."},
		option{name: "force-new-cluster", value: boolean(&c.ForceNewCluster), usage: "Make this member the only one of its cluster, with the data it has. For when the quorum is lost for good."},
	)
	for _, name := range []string{"cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force",
		"max-result-buffer", "max-retry-attempts", "peer-heartbeat-interval", "peer-election-timeout", "retry-interval", "snapshot", "v", "vv"} {
		section(obsolete, option{name: name, value: new(anything), from: flagOnly, support: noEffect, reason: ancient})
	}
	for _, name := range []string{"discovery", "discovery-fallback", "discovery-proxy", "proxy", "proxy-failure-wait",
		"proxy-refresh-interval", "proxy-dial-timeout", "proxy-write-timeout", "proxy-read-timeout"} {
		section(obsolete, option{name: name, value: new(anything), from: fileOnly, support: noEffect, reason: ancient + " in a configuration file"})
	}
	return list
}

// obsolete is the section of options that are left out of the documentation: etcd takes them for the sake of old
// command lines and files, and ignores them.
const obsolete = ""

// flagSet returns a set of the options that can be flags. It has the grammar of etcd's: one dash or two, "=value" or
// a value after a space, and no space before the value of a boolean.
func flagSet(opts []option) *flag.FlagSet {
	fs := flag.NewFlagSet("coterie server", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	for i := range opts {
		if opts[i].from != fileOnly {
			fs.Var(opts[i].value, opts[i].name, opts[i].usage)
		}
	}
	return fs
}

// verdict turns options that were set into what the log or the user must hear of them.
func verdict(o *option, where string) (n *note, err error) {
	if g, ok := o.value.(*featureGates); ok {
		return g.verdict(where)
	}
	switch {
	case o.support == supported || o.value.String() == o.def:
		return nil, nil
	case o.support == refused:
		return nil, fmt.Errorf("%s is not supported yet: %s", where, o.reason)
	}
	return warn("setting has no effect", "setting", where, "reason", o.reason), nil
}
