package coterie

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/discovery"
)

// fakeDNS has one set of SRV records, and addresses by host.
type fakeDNS struct {
	discovery.Resolver
	service string
	records []*net.SRV
	hosts   fakeNames
}

func (f *fakeDNS) LookupSRV(_ context.Context, service, _, name string) (string, []*net.SRV, error) {
	if service+"."+name != f.service {
		return "", nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return "", f.records, nil
}

func (f *fakeDNS) LookupHost(ctx context.Context, host string) ([]string, error) {
	if net.ParseIP(host) != nil {
		return []string{host}, nil
	}
	return f.hosts.LookupHost(ctx, strings.TrimSuffix(host, "."))
}

func TestResolveCluster(t *testing.T) {
	dns := &fakeDNS{
		service: "etcd-server-ssl-x.example.com",
		records: []*net.SRV{{Target: "a.example.com.", Port: 2380}, {Target: "b.example.com.", Port: 2380}},
		hosts: fakeNames{
			"a.example.com": {"10.0.0.1", "fd00::1"}, "b.example.com": {"10.0.0.2"}, "localhost": {"127.0.0.1", "::1"}, "a": {"10.0.0.1"},
		},
	}
	records := func(c *Config) {
		c.Name, c.DiscoverySRV, c.DiscoverySRVName = "m", "example.com", "x"
		c.InitialAdvertisePeerURLs = []string{"https://10.0.0.1:2380"}
	}
	for _, tt := range []struct {
		name       string
		change     func(*Config)
		want       string // InitialCluster, or the error
		advertised string
	}{
		{"nothing said", func(*Config) {}, "default=http://localhost:2380", "http://localhost:2380"},
		{"said", func(c *Config) { c.InitialCluster = "default=http://localhost:2380,b=http://b:1" },
			"default=http://localhost:2380,b=http://b:1", "http://localhost:2380"},
		{"said by address", func(c *Config) { c.InitialCluster = "default=http://127.0.0.1:2380,b=http://b:1" },
			"default=http://127.0.0.1:2380,b=http://b:1", "http://127.0.0.1:2380"},
		{"said by other names", func(c *Config) {
			c.InitialCluster = "default=http://a:1,default=http://localhost:2"
			c.InitialAdvertisePeerURLs = []string{"http://127.0.0.1:2", "http://a.example.com:1"}
		}, "default=http://a:1,default=http://localhost:2", "http://a:1,http://localhost:2"},
		{"another address", func(c *Config) { c.InitialCluster = "default=http://10.0.0.9:2380" },
			"--initial-cluster has default=http://10.0.0.9:2380 but missing from --initial-advertise-peer-urls=http://localhost:2380: make the two agree", ""},
		{"another scheme", func(c *Config) { c.InitialCluster = "default=https://localhost:2380" },
			"--initial-cluster has default=https://localhost:2380 but missing from --initial-advertise-peer-urls=http://localhost:2380: make the two agree", ""},
		{"another port", func(c *Config) { c.InitialCluster = "default=http://127.0.0.1:1" },
			"--initial-cluster has default=http://127.0.0.1:1 but missing from --initial-advertise-peer-urls=http://localhost:2380: make the two agree", ""},
		{"a name that is nowhere", func(c *Config) { c.InitialCluster = "default=http://nowhere:2380" },
			"--initial-cluster has default=http://nowhere:2380 but missing from --initial-advertise-peer-urls=http://localhost:2380: make the two agree\n" +
				"resolve http://nowhere:2380: lookup nowhere: no such host", ""},
		{"not listed", func(c *Config) { c.InitialCluster = "b=http://b:1" },
			`couldn't find local name "default" in the initial cluster configuration "b=http://b:1": list this member there, or set name to how it is listed`, ""},
		{"joining", func(c *Config) {
			c.InitialCluster, c.InitialClusterState = "default=http://nowhere:1,b=http://b:1", ClusterStateExisting
		}, "default=http://nowhere:1,b=http://b:1", "http://localhost:2380"},
		{"records", records, "m=https://a.example.com:2380,0=https://b.example.com:2380", "https://a.example.com:2380"},
		{"records, joining", func(c *Config) { records(c); c.InitialClusterState = ClusterStateExisting },
			"m=https://a.example.com:2380,0=https://b.example.com:2380", "https://10.0.0.1:2380"},
		{"records of others", func(c *Config) { records(c); c.DiscoverySRVName = "" },
			"discovery-srv: there are no SRV records _etcd-server-ssl._tcp.example.com or _etcd-server._tcp.example.com: publish them, or check --discovery-srv and --discovery-srv-name", ""},
		{"discovery, joining", func(c *Config) {
			c.Discovery.Token, c.Discovery.Endpoints, c.InitialClusterState = "t", []string{"http://h:1"}, ClusterStateExisting
		}, `discovery-endpoints: discovery must not be used when joining an existing cluster: set initial-cluster to its members, or initial-cluster-state to "new"`, ""},
		{"discovery with files that are not there", func(c *Config) {
			c.Discovery.Token, c.Discovery.Endpoints, c.Discovery.TrustedCAFile = "t", []string{"http://h:1"}, "/nowhere/ca.pem"
		}, "discovery-endpoints: open /nowhere/ca.pem: no such file or directory", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := DefaultConfig()
			tt.change(&c)
			must(t, c.Validate())
			r := c.resolved()
			err := r.resolveClusterWith(t.Context(), dns)
			got := r.InitialCluster
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if urls := strings.Join(r.InitialAdvertisePeerURLs, ","); err == nil && urls != tt.advertised {
				t.Errorf("advertises %s, want %s", urls, tt.advertised)
			}
		})
	}
}

// TestDiscover has three members find each other in a cluster that runs here, and refuses a fourth.
func TestDiscover(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	service := testConfig(t)
	n := openNode(t, service)
	defer func() { must(t, n.Close()) }()
	cfg, err := (&Discovery{Endpoints: service.ListenClientURLs, DialTimeout: time.Second, InsecureTransport: true}).clientConfig(ctx, zap.NewNop())
	must(t, err)
	client, err := clientv3.New(*cfg)
	must(t, err)
	defer client.Close()
	_, err = client.Put(ctx, "/_etcd/registry/t/_config/size", "3")
	must(t, err)

	member := func(i int) Config {
		c := DefaultConfig()
		c.Name, c.InitialAdvertisePeerURLs = fmt.Sprintf("m%d", i), []string{fmt.Sprintf("http://h%d:1", i)}
		c.Discovery.Token, c.Discovery.Endpoints = "t", service.ListenClientURLs
		must(t, c.Validate())
		return c.resolved()
	}
	members := []Config{member(0), member(1), member(2)}
	var group sync.WaitGroup
	errs := make([]error, len(members))
	for i := range members {
		group.Go(func() { errs[i] = members[i].resolveCluster(ctx) })
	}
	group.Wait()
	must(t, errors.Join(errs...))
	for _, m := range members {
		if m.InitialCluster != members[0].InitialCluster || !strings.Contains(m.InitialCluster, m.Name+"="+m.InitialAdvertisePeerURLs[0]) {
			t.Errorf("%s found %s, %s found %s", m.Name, m.InitialCluster, members[0].Name, members[0].InitialCluster)
		}
		if m.InitialClusterToken != "t" {
			t.Errorf("%s has the token %q", m.Name, m.InitialClusterToken)
		}
	}
	fourth := member(3)
	if err := fourth.resolveCluster(ctx); !errors.Is(err, discovery.ErrFull) {
		t.Errorf("the fourth: %v", err)
	}
	again := member(1)
	must(t, again.resolveCluster(ctx))
	if again.InitialCluster != members[0].InitialCluster {
		t.Errorf("again: %s", again.InitialCluster)
	}
}

// Members try for as long as the meeting place does not answer, say the docs.
func TestDiscoveryWithAUserWaitsForTheMeetingPlace(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "http://" + l.Addr().String()
	l.Close() // nobody listens there yet
	for _, user := range []string{"", "someone"} {
		c := DefaultConfig()
		c.Logger = zap.NewNop()
		c.Discovery.Token, c.Discovery.Endpoints = "token", []string{endpoint}
		c.Discovery.DialTimeout = 300 * time.Millisecond
		c.Discovery.RequestTimeout = 300 * time.Millisecond
		if user != "" {
			c.Discovery.Username, c.Discovery.Password = user, "secret"
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		began := time.Now()
		err := c.discover(ctx)
		if took := time.Since(began); took < 1200*time.Millisecond {
			t.Errorf("user %q: gave up after %v: %v", user, took, err)
		}
		cancel()
	}
}
