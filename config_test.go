package coterie

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefaultConfigIsValid(t *testing.T) {
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	r := c.resolved()
	if err := r.checkBootstrap(); err != nil {
		t.Fatal(err)
	}
	if r.DataDir != "default.coterie" || r.InitialCluster != "default=http://localhost:2380" || r.QuotaBackendBytes != 2<<30 {
		t.Errorf("resolved to %q, %q, %d", r.DataDir, r.InitialCluster, r.QuotaBackendBytes)
	}
	if err := new(Config).Validate(); err == nil {
		t.Error("a zero Config passes")
	}
}

func TestResolvedFillsEveryDocumentedZero(t *testing.T) {
	c := DefaultConfig()
	want := c.resolved()
	c.SnapshotCount, c.SnapshotCatchUpEntries, c.CompactionBatchLimit = 0, 0, 0
	c.CompactionSleepInterval, c.WatchProgressNotifyInterval, c.WarningUnaryRequestDuration = 0, 0, 0
	c.RaftReadTimeout, c.RaftWriteTimeout, c.SnapshotSendRate = 0, 0, 0
	got := c.resolved()
	got.Logger = want.Logger
	if !reflect.DeepEqual(got, want) {
		t.Errorf("zeros resolve to\n%+v, want\n%+v", got, want)
	}
	c.QuotaBackendBytes = -1
	if q := c.resolved().QuotaBackendBytes; q != -1 {
		t.Errorf("no quota resolves to %d", q)
	}
	for _, discovered := range []func(*Config){
		func(c *Config) { c.DiscoverySRV = "example.com" },
		func(c *Config) { c.Discovery.Token, c.Discovery.Endpoints = "t", []string{"http://h:1"} },
	} {
		c := DefaultConfig()
		discovered(&c)
		if got := c.resolved().InitialCluster; got != "" {
			t.Errorf("a cluster that is to be discovered resolves to %q", got)
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string // "" if it is fine
	}{
		{"no name", func(c *Config) { c.Name = "" }, "name: must not be empty"},
		{"name with =", func(c *Config) { c.Name = "a=b" }, `name: "a=b" must not contain '=' or ',', which initial-cluster is written with`},
		{"unix socket", func(c *Config) { c.ListenClientURLs = []string{"unix:///run/c.sock", "unix://localhost:1"} }, ""},
		{"any address", func(c *Config) { c.ListenClientURLs = []string{"http://0.0.0.0:2379", "http://[::]:2379", "http://:1"} },
			`listen-client-urls: "http://:1" must have an IP address or localhost as its host, for it is listened on`},
		{"no listener", func(c *Config) { c.ListenClientURLs = nil }, "listen-client-urls: at least one URL is needed"},
		{"nothing advertised", func(c *Config) { c.AdvertiseClientURLs = nil }, ""},
		{"host name to listen on", func(c *Config) { c.ListenPeerURLs = []string{"http://example.com:1"} },
			`listen-peer-urls: "http://example.com:1" must have an IP address or localhost as its host, for it is listened on`},
		{"host name advertised", func(c *Config) { c.AdvertiseClientURLs = []string{"http://example.com:1"} }, ""},
		{"nobody advertised", func(c *Config) { c.AdvertiseClientURLs = []string{"http://:1"} },
			`advertise-client-urls: "http://:1" must have a host that others can dial`},
		{"no port", func(c *Config) { c.ListenMetricsURLs = []string{"http://127.0.0.1"} },
			`listen-metrics-urls: "http://127.0.0.1" must have the form scheme://host:port`},
		{"path", func(c *Config) { c.ListenClientHTTPURLs = []string{"http://127.0.0.1:1/x"} },
			`listen-client-http-urls: "http://127.0.0.1:1/x" must not have a path`},
		{"no scheme", func(c *Config) { c.ListenClientURLs = []string{"127.0.0.1:2379"} },
			`listen-client-urls: "127.0.0.1:2379" is not a URL: parse "127.0.0.1:2379": first path segment in URL cannot contain colon`},
		{"other scheme", func(c *Config) { c.ListenClientURLs = []string{"ftp://127.0.0.1:1"} },
			`listen-client-urls: "ftp://127.0.0.1:1" must begin with http://, https://, unix:// or unixs://`},
		{"no socket", func(c *Config) { c.ListenClientURLs = []string{"unix://"} }, `listen-client-urls: "unix://" names no socket`},
		{"TLS without certificate", func(c *Config) { c.ListenClientURLs = []string{"https://127.0.0.1:1"} },
			"https://127.0.0.1:1 needs a certificate: set cert-file and key-file, or auto-tls"},
		{"TLS with auto", func(c *Config) { c.ListenClientURLs = []string{"https://127.0.0.1:1"}; c.ClientTLS.Auto = true }, ""},
		{"peer TLS without certificate", func(c *Config) { c.ListenPeerURLs = []string{"https://127.0.0.1:1"} },
			"https://127.0.0.1:1 needs a certificate: set peer-cert-file and peer-key-file, or peer-auto-tls"},
		{"peer TLS on a socket", func(c *Config) { c.ListenPeerURLs = []string{"unixs://p.sock"} },
			"unixs://p.sock needs a certificate: set peer-cert-file and peer-key-file, or peer-auto-tls"},
		{"peer TLS", func(c *Config) {
			c.ListenPeerURLs, c.InitialAdvertisePeerURLs = []string{"https://127.0.0.1:1"}, []string{"https://h:1"}
			c.PeerTLS = PeerTLS{CertFile: "c", KeyFile: "k", ClientCertAuth: true, TrustedCAFile: "ca", AllowedCNs: []string{"m"}}
		}, ""},
		{"peer TLS with auto", func(c *Config) { c.ListenPeerURLs = []string{"unixs://p.sock"}; c.PeerTLS.Auto = true }, ""},
		{"TLS of others, ended before them", func(c *Config) { c.InitialAdvertisePeerURLs = []string{"https://h:1"} }, ""},
		{"peer certificate without key", func(c *Config) { c.PeerTLS.CertFile = "x" }, "peer-cert-file and peer-key-file: one needs the other"},
		{"peer key without certificate", func(c *Config) { c.PeerTLS.KeyFile = "x" }, "peer-cert-file and peer-key-file: one needs the other"},
		{"peer client key without certificate", func(c *Config) { c.PeerTLS = PeerTLS{CertFile: "c", KeyFile: "k", ClientKeyFile: "x"} },
			"peer-client-cert-file and peer-client-key-file: one needs the other"},
		{"peer client certificate alone", func(c *Config) { c.PeerTLS = PeerTLS{ClientCertFile: "c", ClientKeyFile: "k"} },
			"peer-client-cert-file: needs peer-cert-file and peer-key-file too"},
		{"common names and hosts of peers", func(c *Config) {
			c.PeerTLS = PeerTLS{CertFile: "c", KeyFile: "k", AllowedCNs: []string{"m"}, AllowedHostnames: []string{"h"}}
		}, "peer-cert-allowed-cn and peer-cert-allowed-hostname: choose one"},
		{"common names and hosts of clients", func(c *Config) {
			c.ClientTLS.AllowedCNs, c.ClientTLS.AllowedHostnames = []string{"m"}, []string{"h"}
		}, "client-cert-allowed-hostname and allowed-cn of clients: choose one"},
		{"peer client certificates without TLS", func(c *Config) { c.PeerTLS.ClientCertAuth = true },
			"peer-client-cert-auth: needs peer-cert-file and peer-key-file"},
		{"peer client certificates that are made", func(c *Config) { c.PeerTLS = PeerTLS{Auto: true, ClientCertAuth: true, TrustedCAFile: "ca"} },
			"peer-client-cert-auth: needs peer-cert-file and peer-key-file, for the certificates that peer-auto-tls makes prove nothing\n" +
				"peer-trusted-ca-file: needs peer-cert-file and peer-key-file, for the certificates that peer-auto-tls makes prove nothing"},
		{"authority of the members that are dialled", func(c *Config) { c.PeerTLS.TrustedCAFile = "ca" }, ""},
		{"three members", func(c *Config) { c.InitialCluster = "a=http://h:1,b=http://h:2,c=http://h:3" }, ""},
		{"joining", func(c *Config) {
			c.InitialCluster, c.InitialClusterState = "a=http://h:1,b=http://h:2", ClusterStateExisting
		}, ""},
		{"cluster and SRV", func(c *Config) { c.InitialCluster, c.DiscoverySRV = "a=http://h:1", "example.com" },
			`multiple discovery or bootstrap flags are set: choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"`},
		{"SRV and discovery", func(c *Config) {
			c.DiscoverySRV, c.Discovery.Token, c.Discovery.Endpoints = "example.com", "t", []string{"http://h:1"}
		}, `multiple discovery or bootstrap flags are set: choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"`},
		{"SRV", func(c *Config) { c.DiscoverySRV, c.DiscoverySRVName = "example.com", "x" }, ""},
		{"SRV name alone", func(c *Config) { c.DiscoverySRVName = "x" }, "discovery-srv-name: discovery-srv is not set, so no records are looked up"},
		{"discovery", func(c *Config) { c.Discovery.Token, c.Discovery.Endpoints = "t", []string{"http://h:1"} }, ""},
		{"discovery without token", func(c *Config) { c.Discovery.Endpoints = []string{"http://h:1"} },
			"both discovery-token and discovery-endpoints must be set"},
		{"discovery without endpoints", func(c *Config) { c.Discovery.Token = "t" }, "both discovery-token and discovery-endpoints must be set"},
		{"discovery with an empty endpoint", func(c *Config) { c.Discovery.Token, c.Discovery.Endpoints = "t", []string{"h:1", " "} },
			"discovery-endpoints: must not contain empty endpoints"},
		{"discovery with a path as token", func(c *Config) { c.Discovery.Token, c.Discovery.Endpoints = "a/b", []string{"h:1"} },
			`discovery-token: "a/b" must not contain '/', which separates the parts of keys`},
		{"discovery certificate without key", func(c *Config) { c.Discovery.CertFile = "x" }, "discovery-cert and discovery-key: one needs the other"},
		{"discovery without time", func(c *Config) {
			c.Discovery = Discovery{Token: "t", Endpoints: []string{"h:1"}}
		}, "discovery-request-timeout: 0s must be positive"},
		{"negative learners", func(c *Config) { c.MaxLearners = -1 }, "max-learners: -1 must not be negative"},
		{"negative timeout of members", func(c *Config) { c.RaftReadTimeout = -1 }, "raft-read-timeout: -1ns must not be negative"},
		{"no time between comparisons", func(c *Config) { c.CompactHashCheckTime = 0 }, "compact-hash-check-time: 0s must be positive"},
		{"no bound on snapshots", func(c *Config) { c.SnapshotSendRate = -1 }, ""},
		{"one member, two URLs", func(c *Config) { c.InitialCluster = "a=http://h:1,a=http://h:2" }, ""},
		{"bad cluster", func(c *Config) { c.InitialCluster = "http://h:1" },
			`initial-cluster: "http://h:1" does not have the form name=url`},
		{"bad URL in cluster", func(c *Config) { c.InitialCluster = "a=h:1" },
			`initial-cluster: "h:1" must begin with http://, https://, unix:// or unixs://`},
		{"cluster state", func(c *Config) { c.InitialClusterState = "old" }, `initial-cluster-state: "old" is neither "new" nor "existing"`},
		{"no heartbeat", func(c *Config) { c.HeartbeatInterval = 0 }, "heartbeat-interval: 0s must be a positive number of milliseconds"},
		{"fraction of a heartbeat", func(c *Config) { c.HeartbeatInterval = time.Microsecond },
			"heartbeat-interval: 1µs must be a positive number of milliseconds"},
		{"hasty election", func(c *Config) { c.ElectionTimeout = 499 * time.Millisecond },
			"election-timeout: 499ms must be at least 5 times heartbeat-interval, 100ms"},
		{"late election", func(c *Config) { c.ElectionTimeout = 50*time.Second + time.Millisecond },
			"election-timeout: 50.001s must be at most 50s"},
		{"negative time", func(c *Config) { c.GRPCKeepAliveTimeout = -1 }, "grpc-keepalive-timeout: -1ns must not be negative"},
		{"no operations", func(c *Config) { c.MaxTxnOps = 0 }, "max-txn-ops: must be at least 1"},
		{"huge requests", func(c *Config) { c.MaxRequestBytes = 1 << 40 }, "max-request-bytes: 1099511627776 must be between 1 and 536870912"},
		{"unknown transport", func(c *Config) { c.Transport = "tcp" }, `transport: "tcp" must be coterie or grpc-go`},
		{"no streams", func(c *Config) { c.MaxConcurrentStreams = 0 }, "max-concurrent-streams: must be at least 1"},
		{"compaction batch", func(c *Config) { c.CompactionBatchLimit = -1 }, "compaction-batch-limit: -1 must not be negative"},
		{"compaction mode", func(c *Config) { c.AutoCompactionMode = "x" }, `unknown auto-compaction-mode "x": want "periodic" or "revision"`},
		{"metrics", func(c *Config) { c.Metrics = "all" }, `metrics: "all" is neither "basic" nor "extensive"`},
		{"certificate without key", func(c *Config) { c.ClientTLS.CertFile = "x" }, "cert-file and key-file: one needs the other"},
		{"client certificates without TLS", func(c *Config) { c.ClientTLS.ClientCertAuth = true },
			"client-cert-auth: needs cert-file and key-file, or auto-tls"},
		{"no validity", func(c *Config) { c.PeerTLS.Auto = true; c.SelfSignedCertValidityYears = 0 },
			"self-signed-cert-validity: must be at least 1 year"},
		{"old TLS", func(c *Config) { c.TLSMinVersion = "TLS1.1" },
			`tls-min-version: unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)`},
		{"TLS range", func(c *Config) { c.TLSMinVersion, c.TLSMaxVersion = "TLS1.3", "TLS1.2" },
			"tls-min-version TLS1.3 is above tls-max-version TLS1.2"},
		{"suites of TLS 1.3", func(c *Config) {
			c.TLSMinVersion = "TLS1.3"
			c.CipherSuites = []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}
		}, "cipher-suites: TLS 1.3 alone has no suites to choose from"},
		{"unknown suite", func(c *Config) { c.CipherSuites = []string{"ROT13"} },
			`cipher-suites: unexpected TLS cipher suite "ROT13"`},
		{"two mistakes", func(c *Config) { c.Name, c.Metrics = "", "" }, "name: must not be empty\nmetrics: \"\" is neither \"basic\" nor \"extensive\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := DefaultConfig()
			tt.change(&c)
			got := ""
			if err := c.Validate(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestCheckBootstrap(t *testing.T) {
	// The static bootstrap of etcd's documentation, seen from its first member.
	const infra = "infra0=http://10.0.1.10:2380,infra1=http://10.0.1.11:2380,infra2=http://10.0.1.12:2380"
	static := func(c *Config) {
		c.Name, c.InitialCluster = "infra0", infra
		c.ListenPeerURLs, c.InitialAdvertisePeerURLs = []string{"http://10.0.1.10:2380"}, []string{"http://10.0.1.10:2380"}
	}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"named", func(c *Config) { c.Name = "a" }, ""},
		{"own peer URL", func(c *Config) { c.InitialAdvertisePeerURLs = []string{"http://b:1", "http://a:1"} }, ""},
		{"in another order", func(c *Config) {
			c.InitialAdvertisePeerURLs = []string{"http://b:1", "http://a:1"}
			c.InitialCluster = "default=http://a:1,default=http://b:1"
		}, ""},
		{"three members", static, ""},
		{"three members with TLS", func(c *Config) {
			c.Name, c.InitialCluster = "infra0", strings.ReplaceAll(infra, "http:", "https:")
			c.ListenPeerURLs, c.InitialAdvertisePeerURLs = []string{"https://10.0.1.10:2380"}, []string{"https://10.0.1.10:2380"}
			c.PeerTLS = PeerTLS{CertFile: "infra0.crt", KeyFile: "infra0.key", ClientCertAuth: true, TrustedCAFile: "ca.crt"}
		}, ""},
		{"forgotten in the cluster", func(c *Config) {
			static(c)
			c.InitialCluster = "infra1=http://10.0.1.11:2380,infra2=http://10.0.1.12:2380"
		}, `couldn't find local name "infra0" in the initial cluster configuration ` +
			`"infra1=http://10.0.1.11:2380,infra2=http://10.0.1.12:2380": list this member there, or set name to how it is listed`},
		{"another's name", func(c *Config) { c.InitialCluster = "a=http://localhost:2380" },
			`couldn't find local name "default" in the initial cluster configuration "a=http://localhost:2380": ` +
				"list this member there, or set name to how it is listed"},
		{"another URL", func(c *Config) { static(c); c.InitialAdvertisePeerURLs = []string{"http://127.0.0.1:2380"} },
			"--initial-cluster has infra0=http://10.0.1.10:2380 but missing from --initial-advertise-peer-urls=http://127.0.0.1:2380: make the two agree"},
		{"a URL more", func(c *Config) {
			static(c)
			c.InitialAdvertisePeerURLs = []string{"http://10.0.1.10:2380", "http://a:1"}
		},
			"--initial-advertise-peer-urls has http://a:1 but missing from --initial-cluster, which lists infra0=http://10.0.1.10:2380: make the two agree"},
		{"a URL less", func(c *Config) { static(c); c.InitialCluster += ",infra0=http://b:1" },
			"--initial-cluster has infra0=http://b:1 but missing from --initial-advertise-peer-urls=http://10.0.1.10:2380: make the two agree"},
		{"one URL, two members", func(c *Config) { static(c); c.InitialCluster += ",infra3=http://10.0.1.12:2380" },
			"initial cluster has duplicate url http://10.0.1.12:2380: both infra2 and infra3 are listed with it"},
		{"one member twice", func(c *Config) { static(c); c.InitialCluster += ",infra2=http://10.0.1.12:2380" },
			"initial cluster has duplicate url http://10.0.1.12:2380: infra2 is listed with it twice"},
		{"joining", func(c *Config) { static(c); c.InitialClusterState = ClusterStateExisting }, ""},
		{"joining with URLs that are not advertised", func(c *Config) {
			static(c)
			c.InitialClusterState, c.InitialAdvertisePeerURLs = ClusterStateExisting, []string{"http://a:1"}
		}, ""},
		{"joining without a name", func(c *Config) { c.InitialCluster, c.InitialClusterState = infra, ClusterStateExisting },
			`couldn't find local name "default" in the initial cluster configuration "` + infra + `": list this member there, or set name to how it is listed`},
		{"joining nobody", func(c *Config) { c.InitialClusterState = ClusterStateExisting },
			`initial-cluster-state is "existing", but initial-cluster "default=http://localhost:2380" names nobody but this member: list the members of the cluster to join`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := DefaultConfig()
			tt.change(&c)
			if err := c.Validate(); err != nil {
				t.Fatal(err)
			}
			r := c.resolved()
			got := ""
			if err := r.checkBootstrap(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	got := endpoints([]string{"http://127.0.0.1:1", "https://[::1]:2", "unix:///run/a.sock", "unixs://rel/b.sock", "http://127.0.0.1:1"})
	want := []endpoint{
		{"tcp", "127.0.0.1:1", false}, {"tcp", "[::1]:2", true}, {"unix", "/run/a.sock", false}, {"unix", "rel/b.sock", true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseCluster(t *testing.T) {
	got, err := parseCluster("a=http://h:1, b=https://h:2,a=unix://a.sock")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"a": {"http://h:1", "unix://a.sock"}, "b": {"https://h:2"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// FuzzParseCluster reads what others may have entered at a discovery service.
func FuzzParseCluster(f *testing.F) {
	f.Add("a=http://h:1,b=https://h:2,a=unix://a.sock")
	f.Add("a=http://[::1]:1, b=unixs://x/y")
	f.Add("=http://h:1")
	f.Add(",")
	f.Fuzz(func(t *testing.T, s string) {
		members, err := parseCluster(s)
		if err != nil {
			return
		}
		var parts []string
		for name, urls := range members {
			parts = append(parts, listing(name, urls))
			endpoints(urls) // must not panic
		}
		again, err := parseCluster(strings.Join(parts, ","))
		if err != nil || !reflect.DeepEqual(again, members) {
			t.Errorf("%q is read as %v, and that as %v: %v", s, members, again, err)
		}
		_ = refuseDuplicateURLs(members)
	})
}
