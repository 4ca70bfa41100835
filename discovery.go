package coterie

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/discovery"
)

// resolveTimeout bounds how long names are looked up before a first start.
const resolveTimeout = 30 * time.Second

// resolveCluster finds the members with which an empty data directory is made, and reports why none may be made. It
// works on a resolved configuration and leaves the members in InitialCluster. It may wait for members that are yet to
// be started, until the context ends.
func (c *Config) resolveCluster(ctx context.Context) error {
	return c.resolveClusterWith(ctx, net.DefaultResolver)
}

func (c *Config) resolveClusterWith(ctx context.Context, resolver discovery.Resolver) error {
	switch {
	case len(c.Discovery.Endpoints) > 0:
		if err := c.discover(ctx); err != nil {
			return err
		}
	case c.DiscoverySRV != "":
		if err := c.lookUpRecords(ctx, resolver); err != nil {
			return err
		}
	}
	if err := c.adoptListedURLs(ctx, resolver); err != nil {
		return err
	}
	return c.checkBootstrap()
}

func (c *Config) lookUpRecords(ctx context.Context, resolver discovery.Resolver) error {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := discovery.SRV(ctx, discovery.Records{
		Domain:   c.DiscoverySRV,
		Suffix:   c.DiscoverySRVName,
		Self:     c.Name,
		PeerURLs: c.InitialAdvertisePeerURLs,
		Resolver: resolver,
		Logger:   c.Logger,
	})
	if err != nil {
		return fmt.Errorf("discovery-srv: %w", err)
	}
	return c.found(found)
}

// discover enters this member at the discovery service and waits for the others.
func (c *Config) discover(ctx context.Context) error {
	if c.InitialClusterState == ClusterStateExisting {
		return fmt.Errorf("discovery-endpoints: discovery must not be used when joining an existing cluster: set initial-cluster to its members, or initial-cluster-state to %q",
			ClusterStateNew)
	}
	cfg, err := c.Discovery.clientConfig(ctx, c.Logger)
	if err != nil {
		return fmt.Errorf("discovery-endpoints: %w", err)
	}
	registry := discovery.Registry{
		Token:          c.Discovery.Token,
		RequestTimeout: c.Discovery.RequestTimeout,
		Logger:         c.Logger.With(zap.Strings("discovery-endpoints", c.Discovery.Endpoints)),
	}
	client, err := discovery.Connect(ctx, registry, func() (*clientv3.Client, error) { return clientv3.New(*cfg) })
	if err != nil {
		return fmt.Errorf("discovery-endpoints: %w", err)
	}
	defer client.Close()
	registry.KV, registry.Watcher = client, client
	c.InitialClusterToken = c.Discovery.Token
	found, err := discovery.Join(ctx, registry, memberID(c.InitialAdvertisePeerURLs, c.InitialClusterToken), listing(c.Name, c.InitialAdvertisePeerURLs))
	if err != nil {
		return err
	}
	return c.found(found)
}

// clientConfig is how the discovery service is connected to.
func (d *Discovery) clientConfig(ctx context.Context, log *zap.Logger) (*clientv3.Config, error) {
	cfg, err := clientv3.NewClientConfig(&clientv3.ConfigSpec{
		Endpoints:        d.Endpoints,
		DialTimeout:      d.DialTimeout,
		KeepAliveTime:    d.KeepAliveTime,
		KeepAliveTimeout: d.KeepAliveTimeout,
		Secure: &clientv3.SecureConfig{
			Cert:               d.CertFile,
			Key:                d.KeyFile,
			Cacert:             d.TrustedCAFile,
			ServerName:         d.ServerName,
			InsecureTransport:  d.InsecureTransport,
			InsecureSkipVerify: d.InsecureSkipVerify,
		},
		Auth: &clientv3.AuthConfig{Username: d.Username, Password: d.Password},
	}, log)
	if err != nil {
		return nil, err
	}
	cfg.Context, cfg.Logger = ctx, log
	return cfg, nil
}

// found takes over a cluster that was discovered.
func (c *Config) found(cluster string) error {
	if _, err := parseCluster(cluster); err != nil {
		return fmt.Errorf("what was discovered is no cluster: %w", err)
	}
	c.Logger.Info("discovered the members", zap.String("initial-cluster", cluster))
	c.InitialCluster = cluster
	return nil
}

// adoptListedURLs takes the URLs that this member is listed with as those that it advertises, if they only differ in
// how the addresses are written.
func (c *Config) adoptListedURLs(ctx context.Context, resolver discovery.Resolver) error {
	members, err := parseCluster(c.InitialCluster)
	if err != nil {
		return err
	}
	listed := members[c.Name]
	if c.InitialClusterState == ClusterStateExisting || listed == nil || sameURLs(c.Name, listed, c.InitialAdvertisePeerURLs) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	same, err := equivalent(ctx, resolver, listed, c.InitialAdvertisePeerURLs)
	if err != nil {
		return errors.Join(sameURLs(c.Name, listed, c.InitialAdvertisePeerURLs), err)
	}
	if same {
		c.Logger.Info("the URLs in initial-cluster lead to the same addresses as those to advertise; advertising the former",
			zap.Strings("listed", listed), zap.Strings("advertised", c.InitialAdvertisePeerURLs))
		c.InitialAdvertisePeerURLs = slices.Clone(listed)
	}
	return nil
}

// equivalent reports whether two lists of URLs lead to the same addresses.
func equivalent(ctx context.Context, resolver discovery.Resolver, a, b []string) (bool, error) {
	if len(a) != len(b) {
		return false, nil
	}
	left, err := destinations(ctx, resolver, a)
	if err != nil {
		return false, err
	}
	right, err := destinations(ctx, resolver, b)
	if err != nil {
		return false, err
	}
	return allMeet(left, right) && allMeet(right, left), nil
}

// allMeet reports whether each of some URLs has a destination in common with one of the others.
func allMeet(some, others [][]string) bool {
	return !slices.ContainsFunc(some, func(one []string) bool {
		return !slices.ContainsFunc(others, func(other []string) bool {
			return slices.ContainsFunc(one, func(d string) bool { return slices.Contains(other, d) })
		})
	})
}

// destinations are the URLs with each of the addresses of their hosts.
func destinations(ctx context.Context, resolver discovery.Resolver, urls []string) ([][]string, error) {
	var list [][]string
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, err
		}
		if u.Port() == "" {
			list = append(list, []string{raw}) // a socket
			continue
		}
		addrs, err := resolver.LookupHost(ctx, u.Hostname())
		if err != nil {
			return nil, fmt.Errorf("resolve %s: %w", raw, err)
		}
		found := make([]string, len(addrs))
		for i, a := range addrs {
			found[i] = u.Scheme + "://" + net.JoinHostPort(a, u.Port())
		}
		list = append(list, found)
	}
	return list, nil
}

// listing is how a member stands in InitialCluster.
func listing(name string, urls []string) string {
	parts := make([]string, len(urls))
	for i, u := range urls {
		parts[i] = name + "=" + u
	}
	return strings.Join(parts, ",")
}
