package coterie

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
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
	got := c.resolved()
	got.Logger = want.Logger
	if !reflect.DeepEqual(got, want) {
		t.Errorf("zeros resolve to\n%+v, want\n%+v", got, want)
	}
	c.QuotaBackendBytes = -1
	if q := c.resolved().QuotaBackendBytes; q != -1 {
		t.Errorf("no quota resolves to %d", q)
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
		{"peer TLS", func(c *Config) { c.ListenPeerURLs = []string{"https://127.0.0.1:1"} },
			"peer URL https://127.0.0.1:1: TLS between members is not supported yet"},
		{"two members", func(c *Config) { c.InitialCluster = "a=http://h:1,b=http://h:2" },
			"initial-cluster: multi-member clusters are not supported yet; it names 2 members"},
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
		{"no streams", func(c *Config) { c.MaxConcurrentStreams = 0 }, "max-concurrent-streams: must be at least 1"},
		{"compaction batch", func(c *Config) { c.CompactionBatchLimit = -1 }, "compaction-batch-limit: -1 must not be negative"},
		{"compaction mode", func(c *Config) { c.AutoCompactionMode = "x" }, `unknown auto-compaction-mode "x": want "periodic" or "revision"`},
		{"metrics", func(c *Config) { c.Metrics = "all" }, `metrics: "all" is neither "basic" nor "extensive"`},
		{"certificate without key", func(c *Config) { c.ClientTLS.CertFile = "x" }, "cert-file and key-file: one needs the other"},
		{"client certificates without TLS", func(c *Config) { c.ClientTLS.ClientCertAuth = true },
			"client-cert-auth: needs cert-file and key-file, or auto-tls"},
		{"no validity", func(c *Config) { c.ClientTLS.Auto = true; c.ClientTLS.SelfSignedCertValidityYears = 0 },
			"self-signed-cert-validity: must be at least 1 year"},
		{"old TLS", func(c *Config) { c.ClientTLS.MinVersion = "TLS1.1" },
			`tls-min-version: unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)`},
		{"TLS range", func(c *Config) { c.ClientTLS.MinVersion, c.ClientTLS.MaxVersion = "TLS1.3", "TLS1.2" },
			"tls-min-version TLS1.3 is above tls-max-version TLS1.2"},
		{"suites of TLS 1.3", func(c *Config) {
			c.ClientTLS.MinVersion = "TLS1.3"
			c.ClientTLS.CipherSuites = []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}
		}, "cipher-suites: TLS 1.3 alone has no suites to choose from"},
		{"unknown suite", func(c *Config) { c.ClientTLS.CipherSuites = []string{"ROT13"} },
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
		{"another's name", func(c *Config) { c.InitialCluster = "a=http://localhost:2380" },
			`initial-cluster "a=http://localhost:2380" does not name this member, "default"`},
		{"another URL", func(c *Config) { c.InitialCluster = "default=http://h:1" },
			"initial-cluster gives this member the peer URLs http://h:1, but initial-advertise-peer-urls are http://localhost:2380"},
		{"joining", func(c *Config) { c.InitialClusterState = ClusterStateExisting },
			`initial-cluster-state is "existing" and the data directory default.coterie is empty: joining a cluster is not supported yet`},
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

// TestClientTLS makes a certificate as auto-tls does, uses it as a given one, and requires client certificates.
func TestClientTLS(t *testing.T) {
	dir := t.TempDir()
	served := endpoints([]string{"https://127.0.0.1:1"})
	none, err := new(ClientTLS).serverConfig(dir, served, zap.NewNop())
	if none != nil || err != nil {
		t.Fatalf("without certificate: %v, %v", none, err)
	}
	auto, err := (&ClientTLS{Auto: true, SelfSignedCertValidityYears: 1}).serverConfig(dir, served, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "fixtures", "client", "cert.pem"), filepath.Join(dir, "fixtures", "client", "key.pem")
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)

	given := ClientTLS{CertFile: cert, KeyFile: key, TrustedCAFile: cert, MaxVersion: "TLS1.2",
		CipherSuites: []string{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}}
	strict, err := given.serverConfig(dir, served, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	client := &tls.Config{RootCAs: pool, NextProtos: []string{"h2"}}
	if got := handshake(t, auto, client); got != "h2 TLS 1.3" {
		t.Errorf("with a made certificate: %s", got)
	}
	if got := handshake(t, strict, client); !strings.HasPrefix(got, "server: tls: client didn't provide a certificate") {
		t.Errorf("client without certificate: %s", got)
	}
	client.Certificates = []tls.Certificate{pair}
	if got := handshake(t, strict, client); !strings.HasPrefix(got, "server: tls: failed to verify certificate") {
		t.Errorf("client with a server's certificate: %s", got) // it lacks the client's usage
	}
	if _, err := (&ClientTLS{CertFile: key, KeyFile: key}).serverConfig(dir, served, zap.NewNop()); err == nil {
		t.Error("a file without certificate was accepted")
	}
	if err := os.WriteFile(cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := handshake(t, auto, client); !strings.HasPrefix(got, "server: tls: failed to find any PEM data") {
		t.Errorf("the certificate is not read again: %s", got)
	}
}

// handshake returns what client and server agreed on, or the server's error.
func handshake(t *testing.T, server, client *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	result := make(chan string, 1)
	go func() { // ends with the handshake, or with the listener
		raw, err := l.Accept()
		if err != nil {
			result <- err.Error()
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if err := conn.Handshake(); err != nil {
			result <- "server: " + err.Error()
			return
		}
		s := conn.ConnectionState()
		result <- s.NegotiatedProtocol + " " + tls.VersionName(s.Version)
	}()
	client = client.Clone()
	client.ServerName = "127.0.0.1"
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, _ = io.Copy(io.Discard, conn) // until the server is through
		conn.Close()
	}
	return <-result
}

func TestClientTLSServesHTTP1(t *testing.T) {
	config, err := (&ClientTLS{Auto: true, SelfSignedCertValidityYears: 1}).serverConfig(t.TempDir(), nil, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })}
	done := make(chan struct{})
	go func() { // ends with server.Close
		defer close(done)
		_ = server.Serve(l)
	}()
	defer func() { server.Close(); <-done }()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); string(body) != "HTTP/1.1" {
		t.Errorf("served as %q", body)
	}
}
