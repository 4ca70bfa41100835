package coterie

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/coteriedb/coterie/internal/loopback"
)

// An authority signs certificates for a test.
type authority struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	file   string // its own certificate
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.key = key
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.file = filepath.Join(a.dir, "ca.pem")
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// sign makes a certificate for the common name, the addresses and the DNS names, and returns its files.
func (a *authority) sign(t *testing.T, cn string, names ...string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.serial), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(a.dir, fmt.Sprintf("%s-%d", cn, a.serial))
	writePEM(t, base+".pem", "CERTIFICATE", der)
	writePEM(t, base+".key", "PRIVATE KEY", private8)
	return base + ".pem", base + ".key"
}

// revoke writes a list of revoked certificates, and returns its file.
func (a *authority) revoke(t *testing.T, certs ...string) string {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, file := range certs {
		block, _ := pem.Decode(readFile(t, file))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(a.dir, "revoked.crl")
	if err := os.WriteFile(file, der, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// handshake returns what the two ends agreed on, or the error of the one who refused. The client dials 127.0.0.1.
func handshake(t *testing.T, server, client *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	result := make(chan error, 1)
	var agreed string
	go func() { // ends with the handshake, or with the listener
		raw, err := l.Accept()
		if err != nil {
			result <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if err = conn.Handshake(); err == nil {
			s := conn.ConnectionState()
			agreed = s.NegotiatedProtocol + " " + tls.VersionName(s.Version)
		}
		result <- err
	}()
	client = client.Clone()
	if client.ServerName == "" {
		client.ServerName = "127.0.0.1"
	}
	conn, clientErr := tls.Dial("tcp", l.Addr().String(), client)
	if clientErr == nil {
		_, _ = io.Copy(io.Discard, conn) // until the server is through
		conn.Close()
	}
	var remote *net.OpError // an alert that the other end sent
	switch serverErr := <-result; {
	case serverErr != nil && !(errors.As(serverErr, &remote) && remote.Op == "remote error"):
		return "server: " + serverErr.Error()
	case clientErr != nil:
		return "client: " + clientErr.Error()
	case serverErr != nil:
		return "server: " + serverErr.Error()
	}
	return agreed
}

// withTLS is a resolved configuration with some settings.
func withTLS(t *testing.T, change func(*Config)) *Config {
	t.Helper()
	c := DefaultConfig()
	c.DataDir = t.TempDir()
	c.ListenClientURLs = []string{"https://127.0.0.1:1"}
	c.ListenPeerURLs = []string{"https://127.0.0.1:2"}
	c.ClientTLS.Auto = true
	change(&c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c = c.resolved()
	return &c
}

// TestClientTLS makes a certificate as auto-tls does, uses it as a given one, and requires client certificates.
func TestClientTLS(t *testing.T) {
	none := DefaultConfig()
	if config, err := none.clientServerTLS(); config != nil || err != nil {
		t.Fatalf("without certificate: %v, %v", config, err)
	}
	c := withTLS(t, func(c *Config) { c.PeerTLS.Auto = true })
	auto, err := c.clientServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(c.DataDir, "fixtures", "client", "cert.pem"), filepath.Join(c.DataDir, "fixtures", "client", "key.pem")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(readFile(t, cert))

	strict, err := withTLS(t, func(c *Config) {
		c.ClientTLS = ClientTLS{CertFile: cert, KeyFile: key, TrustedCAFile: cert}
		c.PeerTLS.Auto = true
		c.TLSMaxVersion, c.CipherSuites = "TLS1.2", []string{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}
	}).clientServerTLS()
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
	broken := *c
	broken.ClientTLS = ClientTLS{CertFile: key, KeyFile: key}
	if _, err := broken.clientServerTLS(); err == nil {
		t.Error("a file without certificate was accepted")
	}
	if err := os.WriteFile(cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := handshake(t, auto, client); !strings.HasPrefix(got, "server: client TLS: tls: failed to find any PEM data") {
		t.Errorf("the certificate is not read again: %s", got)
	}
}

func TestClientTLSServesHTTP1(t *testing.T) {
	config, err := withTLS(t, func(c *Config) { c.PeerTLS.Auto = true }).clientServerTLS()
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

// peerHandshake lets one member dial another.
func peerHandshake(t *testing.T, dialled, dials *Config) string {
	t.Helper()
	server, err := dialled.peerServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	client, err := dials.peerDialTLS()
	if err != nil {
		t.Fatal(err)
	}
	return handshake(t, server, client)
}

func TestPeerTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	good := func(names ...string) PeerTLS {
		cert, key := ours.sign(t, "member", names...)
		return PeerTLS{CertFile: cert, KeyFile: key, TrustedCAFile: ours.file, ClientCertAuth: true}
	}
	with := func(p PeerTLS, change func(*PeerTLS)) PeerTLS {
		change(&p)
		return p
	}
	member := good("127.0.0.1")
	strange := member
	strange.CertFile, strange.KeyFile = others.sign(t, "stranger", "127.0.0.1")
	second := good("127.0.0.1")
	revoked := ours.revoke(t, second.CertFile)
	clientCert, clientKey := ours.sign(t, "client", "127.0.0.1")
	for _, tt := range []struct {
		name           string
		dialled, dials PeerTLS
		want           string // the beginning of the outcome
	}{
		{"members", member, second, " TLS 1.3"},
		{"a member without certificate", member, PeerTLS{TrustedCAFile: ours.file}, "server: tls: client didn't provide a certificate"},
		{"a stranger dials", member, strange, "server: tls: failed to verify certificate"},
		{"a stranger is dialled", strange, member, "client: tls: failed to verify certificate"},
		{"nobody is asked for a certificate", with(member, func(p *PeerTLS) { p.ClientCertAuth, p.TrustedCAFile = false, "" }),
			PeerTLS{TrustedCAFile: ours.file}, " TLS 1.3"},
		{"a certificate for another host is dialled", good("127.0.0.2"), member, "client: tls: failed to verify certificate"},
		{"a certificate for another host dials", member, good("127.0.0.2"),
			"server: the certificate is for 127.0.0.2, not for 127.0.0.1, where the connection comes from: set peer-skip-client-san-verification"},
		{"a certificate for another host may dial", with(member, func(p *PeerTLS) { p.SkipClientSANVerification = true }), good("127.0.0.2"), " TLS 1.3"},
		{"a certificate for no host dials", member, good(), " TLS 1.3"},
		{"another certificate to dial with", with(member, func(p *PeerTLS) { p.AllowedCNs = []string{"client"} }),
			with(member, func(p *PeerTLS) { p.ClientCertFile, p.ClientKeyFile = clientCert, clientKey }), " TLS 1.3"},
		{"a name that is allowed", with(member, func(p *PeerTLS) { p.AllowedCNs = []string{"x", "member"} }), second, " TLS 1.3"},
		{"a name that is not allowed dials", with(member, func(p *PeerTLS) { p.AllowedCNs = []string{"x"} }), second,
			"server: client certificate authentication failed"},
		{"a name that is not allowed is dialled", member, with(second, func(p *PeerTLS) { p.AllowedCNs = []string{"x"} }),
			"client: client certificate authentication failed"},
		{"a host that is allowed", with(member, func(p *PeerTLS) { p.AllowedHostnames = []string{"127.0.0.1"} }), second, " TLS 1.3"},
		{"a host that is not allowed", with(member, func(p *PeerTLS) { p.AllowedHostnames = []string{"h"} }), second,
			"server: client certificate authentication failed"},
		{"revoked, dials", with(member, func(p *PeerTLS) { p.CRLFile = revoked }), second, "server: transport: certificate serial"},
		{"revoked, is dialled", second, with(member, func(p *PeerTLS) { p.CRLFile = revoked }), "client: transport: certificate serial"},
		{"not revoked", with(member, func(p *PeerTLS) { p.CRLFile = revoked }), member, " TLS 1.3"},
		{"made certificates", PeerTLS{Auto: true}, PeerTLS{Auto: true}, " TLS 1.3"},
		{"made certificates are not verified", strange, PeerTLS{Auto: true}, "server: tls: client didn't provide a certificate"}, // but they verify
		{"given certificates go before made ones", with(member, func(p *PeerTLS) { p.Auto = true }), strange, "server: tls: failed to verify certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dialled := withTLS(t, func(c *Config) { c.PeerTLS = tt.dialled })
			dials := withTLS(t, func(c *Config) {
				c.ListenPeerURLs, c.PeerTLS = []string{"http://127.0.0.1:2"}, tt.dials
			})
			if got := peerHandshake(t, dialled, dials); !strings.HasPrefix(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestPeerTLSFilesAreReadAgain replaces a certificate and an authority while both ends are configured.
func TestPeerTLSFilesAreReadAgain(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	cert, key := first.sign(t, "member", "127.0.0.1")
	c := withTLS(t, func(c *Config) {
		c.PeerTLS = PeerTLS{CertFile: cert, KeyFile: key, TrustedCAFile: first.file, ClientCertAuth: true}
	})
	server, err := c.peerServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	dial := func() string {
		client, err := c.peerDialTLS()
		if err != nil {
			t.Fatal(err)
		}
		return handshake(t, server, client)
	}
	if got := dial(); got != " TLS 1.3" {
		t.Fatalf("at first: %s", got)
	}
	newCert, newKey := second.sign(t, "member", "127.0.0.1")
	for from, to := range map[string]string{newCert: cert, newKey: key} {
		if err := os.WriteFile(to, readFile(t, from), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := dial(); !strings.Contains(got, "failed to verify certificate") {
		t.Errorf("with a new certificate and the old authority: %s", got)
	}
	if err := os.WriteFile(first.file, readFile(t, second.file), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := dial(); got != " TLS 1.3" {
		t.Errorf("with the new authority: %s", got)
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if _, err := c.peerDialTLS(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without certificate: %v", err)
	}
}

func TestPeerTLSOfRecords(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.sign(t, "member", "example.com")
	for _, tt := range []struct{ authority, want string }{{"", "example.com"}, {a.file, ""}} {
		c := withTLS(t, func(c *Config) {
			c.DiscoverySRV, c.PeerTLS = "example.com", PeerTLS{CertFile: cert, KeyFile: key, TrustedCAFile: tt.authority}
		})
		config, err := c.peerDialTLS()
		if err != nil {
			t.Fatal(err)
		}
		if config.ServerName != tt.want {
			t.Errorf("with the authority %q certificates must be for %q, want %q", tt.authority, config.ServerName, tt.want)
		}
	}
}

func TestPeerAutoTLS(t *testing.T) {
	c := withTLS(t, func(c *Config) { c.PeerTLS.Auto = true })
	if _, err := c.peerDialTLS(); err != nil {
		t.Fatal(err)
	}
	if made := tree(t, c.DataDir); len(made) != 0 { // others are asked before the directory is this member's
		t.Errorf("dialling has made %v", made)
	}
	if _, err := c.peerServerTLS(); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(readFile(t, filepath.Join(c.DataDir, "fixtures", "peer", "cert.pem")))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
	none := DefaultConfig()
	if config, err := none.peerServerTLS(); config != nil || err != nil {
		t.Errorf("without certificate: %v, %v", config, err)
	}
}

// fakeNames resolve names and addresses from a table.
type fakeNames map[string][]string

func (f fakeNames) LookupAddr(_ context.Context, addr string) ([]string, error) {
	return f.lookUp(addr)
}
func (f fakeNames) LookupHost(_ context.Context, host string) ([]string, error) {
	return f.lookUp(host)
}

func (f fakeNames) lookUp(what string) ([]string, error) {
	if found, ok := f[what]; ok {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: what, IsNotFound: true}
}

func TestAddressCheck(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 1} }
	names := fakeNames{
		"10.0.0.1": {"a.example.com."}, "10.0.0.2": {"example.com."}, "b.example.com": {"10.0.0.3", "fd00::3"}, "10.0.0.4": {"x.org."},
	}
	for _, tt := range []struct {
		name  string
		from  net.Addr
		certs []string
		ok    bool
	}{
		{"nothing", tcp("10.0.0.9"), nil, true},
		{"a socket", &net.UnixAddr{Name: "x"}, []string{"10.0.0.1"}, true},
		{"the address", tcp("10.0.0.9"), []string{"10.0.0.8", "10.0.0.9"}, true},
		{"another address", tcp("10.0.0.9"), []string{"10.0.0.8"}, false},
		{"an address of IPv6", tcp("fd00::1"), []string{"fd00::1"}, true},
		{"an address with a zone", &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, []string{"fe80::1"}, true},
		{"the name of the address", tcp("10.0.0.1"), []string{"A.example.com"}, true},
		{"a name besides an address", tcp("10.0.0.1"), []string{"10.0.0.8", "a.example.com"}, true},
		{"a name for all below it", tcp("10.0.0.1"), []string{"*.example.com"}, true},
		{"the name above it", tcp("10.0.0.2"), []string{"*.example.com"}, false},
		{"a name that has the address", tcp("10.0.0.3"), []string{"b.example.com"}, true},
		{"one of its addresses", tcp("fd00::3"), []string{"nowhere.example.com", "b.example.com"}, true},
		{"a name that has it not", tcp("10.0.0.1"), []string{"b.example.com"}, false},
		{"another name of the address", tcp("10.0.0.4"), []string{"*.example.com"}, false},
		{"no name at all", tcp("10.0.0.9"), []string{"a.example.com"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cert := &x509.Certificate{}
			for _, name := range tt.certs {
				if ip := net.ParseIP(name); ip != nil {
					cert.IPAddresses = append(cert.IPAddresses, ip)
				} else {
					cert.DNSNames = append(cert.DNSNames, name)
				}
			}
			if err := (&addressCheck{names}).verify(t.Context(), cert, tt.from); (err == nil) != tt.ok {
				t.Errorf("verify: %v", err)
			}
		})
	}
}

// openTogether founds a cluster of three with settings for what is between its members.
func openTogether(t *testing.T, change func(i int, c *Config)) []*Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	configs := make([]Config, 3)
	addresses, err := loopback.Addresses(len(configs))
	must(t, err)
	var cluster []string
	for i := range configs {
		c := testConfig(t)
		c.Name = fmt.Sprintf("m%d", i)
		c.ListenPeerURLs = []string{fmt.Sprintf("https://%s", addresses[i])}
		c.InitialAdvertisePeerURLs = c.ListenPeerURLs
		c.HeartbeatInterval, c.ElectionTimeout = 20*time.Millisecond, 200*time.Millisecond
		cluster = append(cluster, c.Name+"="+c.ListenPeerURLs[0])
		change(i, &c)
		configs[i] = c
	}
	nodes := make([]*Node, len(configs))
	errs := make([]error, len(configs))
	var group sync.WaitGroup
	for i, c := range configs {
		c.InitialCluster = strings.Join(cluster, ",")
		group.Go(func() { nodes[i], errs[i] = Open(ctx, c) })
	}
	group.Wait()
	t.Cleanup(func() {
		for _, n := range nodes {
			if n != nil {
				must(t, n.Close())
			}
		}
	})
	must(t, errors.Join(errs...))
	return nodes
}

// TestRefusedMembersAreTold dials as no member would: the log says once why that was refused.
func TestRefusedMembersAreTold(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	cfg := testConfig(t)
	a := newAuthority(t)
	cert, key := a.sign(t, "member", "127.0.0.1")
	cfg.PeerTLS = PeerTLS{CertFile: cert, KeyFile: key, TrustedCAFile: a.file, ClientCertAuth: true}
	cfg.Logger = zap.New(core)
	cfg.ListenPeerURLs[0] = strings.Replace(cfg.ListenPeerURLs[0], "unix:", "unixs:", 1)
	cfg.InitialAdvertisePeerURLs = cfg.ListenPeerURLs
	n := openNode(t, cfg)
	socket := strings.TrimPrefix(cfg.ListenPeerURLs[0], "unixs://")
	for range 3 {
		if c, err := net.Dial("unix", socket); err == nil { // as a probe does
			c.Close()
		}
		c, err := tls.Dial("unix", socket, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a member without a certificate is answered")
		}
		c.Close()
	}
	must(t, n.Close()) // which waits for the connections
	told := logs.FilterMessage("refused a connection to a peer URL").All()
	if len(told) != 1 || !strings.Contains(fmt.Sprint(told[0].ContextMap()["error"]), "didn't provide a certificate") {
		t.Errorf("told %v", told)
	}
}

// TestMembersWithTLS founds clusters whose members talk by TLS.
func TestMembersWithTLS(t *testing.T) {
	for name, change := range map[string]func(i int, c *Config){
		"auto": func(_ int, c *Config) { c.PeerTLS.Auto = true },
		"given": func() func(int, *Config) {
			a := newAuthority(t)
			return func(i int, c *Config) {
				cert, key := a.sign(t, "member", "127.0.0.1")
				c.PeerTLS = PeerTLS{CertFile: cert, KeyFile: key, TrustedCAFile: a.file, ClientCertAuth: true, AllowedCNs: []string{"member"}}
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			nodes := openTogether(t, change)
			_, err := nodes[0].Client().Put(t.Context(), "k", "v")
			must(t, err)
			for _, n := range nodes {
				got, err := n.Client().Get(t.Context(), "k")
				must(t, err)
				if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "v" {
					t.Errorf("a member holds %v", got.Kvs)
				}
			}
		})
	}
}

// unanswered is a DNS that knows names and never answers for addresses.
type unanswered struct{ fakeNames }

func (unanswered) LookupAddr(ctx context.Context, _ string) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (u unanswered) LookupHost(ctx context.Context, host string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // as net.Resolver
	}
	return u.fakeNames.LookupHost(ctx, host)
}

// A member whose certificate is for a name that has its address is accepted, also
// where nobody answers what names the address has.
func TestUnansweredReverseLookup(t *testing.T) {
	names := unanswered{fakeNames{"b.example.com": {"10.0.0.3"}}}
	began := time.Now()
	err := (&addressCheck{names}).verify(t.Context(), &x509.Certificate{DNSNames: []string{"b.example.com"}}, &net.TCPAddr{IP: net.ParseIP("10.0.0.3"), Port: 1})
	took := time.Since(began)
	if err != nil || took > DefaultConfig().ElectionTimeout { // who dials has no more patience
		t.Errorf("after %v: %v", took, err)
	}
}
