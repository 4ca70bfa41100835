package coterie

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
)

// addressLookupTimeout bounds how long the names in a certificate are looked up while its owner waits.
const addressLookupTimeout = 5 * time.Second

// clientServerTLS loads what listeners for clients are secured with. It returns nil if no certificate is configured,
// in which case Validate has made sure that no URL asks for TLS.
func (c *Config) clientServerTLS() (*tls.Config, error) {
	t := &c.ClientTLS
	info := transport.TLSInfo{
		CertFile:         t.CertFile,
		KeyFile:          t.KeyFile,
		TrustedCAFile:    t.TrustedCAFile,
		ClientCertAuth:   t.ClientCertAuth,
		CRLFile:          t.CRLFile,
		AllowedCNs:       t.AllowedCNs,
		AllowedHostnames: t.AllowedHostnames,
	}
	if info.Empty() && t.Auto {
		made, err := c.makeCert("client", slices.Concat(c.ListenClientURLs, c.ListenClientHTTPURLs, c.ListenMetricsURLs))
		if err != nil {
			return nil, fmt.Errorf("make a certificate (auto-tls): %w", err)
		}
		info.CertFile, info.KeyFile = made.CertFile, made.KeyFile
	}
	return c.serverTLS(info, "client TLS", nil)
}

// peerServerTLS loads what listeners for members are secured with. It returns nil if no certificate is configured, in
// which case Validate has made sure that no URL asks for TLS.
func (c *Config) peerServerTLS() (*tls.Config, error) {
	info := c.peerInfo()
	if info.Empty() && c.PeerTLS.Auto {
		made, err := c.makeCert("peer", c.ListenPeerURLs)
		if err != nil {
			return nil, fmt.Errorf("make a certificate (peer-auto-tls): %w", err)
		}
		info.CertFile, info.KeyFile = made.CertFile, made.KeyFile
	}
	var check func(context.Context, *x509.Certificate, net.Addr) error
	if !c.PeerTLS.SkipClientSANVerification {
		check = (&addressCheck{net.DefaultResolver}).verify
	}
	return c.serverTLS(info, "peer TLS", check)
}

// peerDialTLS loads what a connection to a member is secured with, if the member's URL asks for TLS. It is called for
// every connection. With Auto nobody vouches for the others' certificates, so they are not verified, and this member
// needs none to dial, for it would not be asked for it.
func (c *Config) peerDialTLS() (*tls.Config, error) {
	info := c.peerInfo()
	info.InsecureSkipVerify = info.Empty() && c.PeerTLS.Auto
	// The records' domain is what certificates are for, unless an authority vouches for each host.
	if info.TrustedCAFile == "" {
		info.ServerName = c.DiscoverySRV
	}
	if err := c.limit(&info); err != nil {
		return nil, err
	}
	config, err := info.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("peer TLS: %w", err)
	}
	config.MinVersion, config.MaxVersion, config.CipherSuites = info.MinVersion, info.MaxVersion, info.CipherSuites
	info.ConfigureCRLVerification(config)
	return config, nil
}

func (c *Config) peerInfo() transport.TLSInfo {
	t := &c.PeerTLS
	return transport.TLSInfo{
		CertFile:         t.CertFile,
		KeyFile:          t.KeyFile,
		ClientCertFile:   t.ClientCertFile,
		ClientKeyFile:    t.ClientKeyFile,
		TrustedCAFile:    t.TrustedCAFile,
		ClientCertAuth:   t.ClientCertAuth,
		CRLFile:          t.CRLFile,
		AllowedCNs:       t.AllowedCNs,
		AllowedHostnames: t.AllowedHostnames,
	}
}

// makeCert makes a certificate in the data directory for the hosts of the URLs, if there is none yet.
func (c *Config) makeCert(whose string, served []string) (transport.TLSInfo, error) {
	dir := filepath.Join(c.DataDir, "fixtures", whose)
	return transport.SelfCert(c.Logger, dir, certHosts(endpoints(served)), c.SelfSignedCertValidityYears)
}

// limit sets the versions and cipher suites, which clients and members share.
func (c *Config) limit(info *transport.TLSInfo) (err error) {
	if info.MinVersion, err = tlsutil.GetTLSVersion(c.TLSMinVersion); err != nil {
		return err
	}
	if info.MaxVersion, err = tlsutil.GetTLSVersion(c.TLSMaxVersion); err != nil {
		return err
	}
	info.CipherSuites, err = tlsutil.GetCipherSuites(c.CipherSuites)
	return err
}

// serverTLS returns a configuration that reads the files of info again for every connection, and that gives the first
// certificate of who dials to check, if that is not nil.
func (c *Config) serverTLS(info transport.TLSInfo, what string, check func(context.Context, *x509.Certificate, net.Addr) error) (*tls.Config, error) {
	if info.Empty() {
		return nil, nil
	}
	if err := c.limit(&info); err != nil {
		return nil, err
	}
	load := func() (*tls.Config, error) {
		config, err := info.ServerConfig()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		config.NextProtos = []string{"h2", "http/1.1"}
		info.ConfigureCRLVerification(config)
		return config, nil
	}
	config, err := load() // what is wrong now is told now
	if err != nil {
		return nil, err
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		config, err := load()
		if err != nil || check == nil {
			return config, err
		}
		verify := config.VerifyConnection
		config.VerifyConnection = func(s tls.ConnectionState) error {
			if verify != nil {
				if err := verify(s); err != nil {
					return err
				}
			}
			if len(s.PeerCertificates) == 0 {
				return nil
			}
			return check(hello.Context(), s.PeerCertificates[0], hello.Conn.RemoteAddr())
		}
		return config, nil
	}
	return config, nil
}

// certHosts are the host:port addresses of the endpoints that are dialled with TLS.
func certHosts(served []endpoint) []string {
	hosts := []string{net.JoinHostPort("localhost", "0")}
	for _, e := range served {
		if e.secure && e.network == "tcp" {
			hosts = append(hosts, e.address)
		}
	}
	return hosts
}

// An addressCheck compares the address that a member dials from with its certificate, as etcd does: a certificate
// that was stolen is of no use elsewhere.
type addressCheck struct {
	names interface {
		LookupAddr(ctx context.Context, addr string) (names []string, err error)
		LookupHost(ctx context.Context, host string) (addrs []string, err error)
	}
}

// verify accepts a certificate that is for no address and no name, for the address, or for a name that the address has.
func (a *addressCheck) verify(ctx context.Context, cert *x509.Certificate, from net.Addr) error {
	if len(cert.IPAddresses) == 0 && len(cert.DNSNames) == 0 {
		return nil
	}
	if _, ok := from.(*net.UnixAddr); ok {
		return nil // who can open the socket was decided by its permissions
	}
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		return err
	}
	host, _, _ = strings.Cut(host, "%") // certificates know no zones
	if len(cert.IPAddresses) > 0 && cert.VerifyHostname(host) == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, addressLookupTimeout)
	defer cancel()
	if a.named(ctx, host, cert.DNSNames) {
		return nil
	}
	return fmt.Errorf("the certificate is for %s, not for %s, where the connection comes from: set peer-skip-client-san-verification if members are to dial from there",
		strings.Join(certNames(cert), ", "), host)
}

// named reports whether the address has one of the names: by what the address resolves to, or what the names do. A
// name that begins with "*." is for all below it. All is looked up at once: what nobody answers keeps nothing waiting.
func (a *addressCheck) named(ctx context.Context, host string, dnsNames []string) bool {
	if len(dnsNames) == 0 {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lookups := []func() bool{func() bool {
		found, _ := a.names.LookupAddr(ctx, host) // an address need not have names
		return slices.ContainsFunc(found, func(name string) bool {
			name = strings.TrimSuffix(name, ".")
			return slices.ContainsFunc(dnsNames, func(d string) bool { return coversName(d, name) })
		})
	}}
	if address, err := netip.ParseAddr(host); err == nil {
		for _, d := range dnsNames {
			if strings.HasPrefix(d, "*.") {
				continue
			}
			lookups = append(lookups, func() bool {
				addrs, _ := a.names.LookupHost(ctx, d) // a name that does not resolve is not this address's
				return slices.ContainsFunc(addrs, func(s string) bool { return sameAddress(s, address) })
			})
		}
	}
	answers := make(chan bool, len(lookups))
	for _, look := range lookups {
		go func() { answers <- look() }() // ends with the context
	}
	for range lookups {
		if <-answers {
			return true
		}
	}
	return false
}

// coversName reports whether a name in a certificate is for a host.
func coversName(inCert, host string) bool {
	if below, ok := strings.CutPrefix(inCert, "*"); ok && strings.HasPrefix(below, ".") {
		return len(host) > len(below) && strings.EqualFold(host[len(host)-len(below):], below)
	}
	return strings.EqualFold(inCert, host)
}

func sameAddress(s string, address netip.Addr) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Unmap() == address.Unmap()
}

func certNames(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
