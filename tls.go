package coterie

import (
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

// serverConfig loads what TLS listeners need. It returns nil if no certificate is configured, in which case Validate
// has made sure that no URL asks for TLS. A certificate that Auto makes is for the hosts of the given endpoints.
func (t *ClientTLS) serverConfig(dataDir string, served []endpoint, log *zap.Logger) (*tls.Config, error) {
	info := transport.TLSInfo{
		CertFile:         t.CertFile,
		KeyFile:          t.KeyFile,
		TrustedCAFile:    t.TrustedCAFile,
		ClientCertAuth:   t.ClientCertAuth,
		CRLFile:          t.CRLFile,
		AllowedHostnames: t.AllowedHostnames,
		Logger:           log,
	}
	if info.Empty() {
		if !t.Auto {
			return nil, nil
		}
		made, err := transport.SelfCert(log, filepath.Join(dataDir, "fixtures", "client"), certHosts(served), t.SelfSignedCertValidityYears)
		if err != nil {
			return nil, fmt.Errorf("make a certificate (auto-tls): %w", err)
		}
		info.CertFile, info.KeyFile = made.CertFile, made.KeyFile
	}
	var err error
	if info.MinVersion, err = tlsutil.GetTLSVersion(t.MinVersion); err != nil {
		return nil, err
	}
	if info.MaxVersion, err = tlsutil.GetTLSVersion(t.MaxVersion); err != nil {
		return nil, err
	}
	if info.CipherSuites, err = tlsutil.GetCipherSuites(t.CipherSuites); err != nil {
		return nil, err
	}
	config, err := info.ServerConfig()
	if err != nil {
		return nil, fmt.Errorf("client TLS: %w", err)
	}
	info.ConfigureCRLVerification(config)
	config.NextProtos = []string{"h2", "http/1.1"}
	return config, nil
}

// certHosts are the host:port addresses of the endpoints that TLS clients dial.
func certHosts(served []endpoint) []string {
	hosts := []string{net.JoinHostPort("localhost", "0")}
	for _, e := range served {
		if e.secure && e.network == "tcp" {
			hosts = append(hosts, e.address)
		}
	}
	return hosts
}
