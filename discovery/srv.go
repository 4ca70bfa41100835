package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// Resolver is what SRV needs of DNS. *net.Resolver implements it.
type Resolver interface {
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, records []*net.SRV, err error)
	LookupHost(ctx context.Context, host string) (addrs []string, err error)
}

// Records says which SRV records name the members, and which of them is this one.
type Records struct {
	Domain string
	Suffix string // of the services, after a dash; may be empty
	// Self is this member's name, and PeerURLs is what it advertises. Its record is the one that leads to the
	// same address.
	Self     string
	PeerURLs []string

	Resolver Resolver
	Logger   *zap.Logger
}

// SRV looks up the members. This one has its name, the others are numbered: nothing else depends on their names.
// Members with TLS are listed as the service etcd-server-ssl, others as etcd-server.
//
// A target that does not resolve is an error, where etcd leaves it out: members that left out different ones would
// found different clusters.
func SRV(ctx context.Context, r Records) (initialCluster string, err error) {
	s := &survey{Records: r, own: make(map[string]string), seen: make(map[string]bool)}
	if err := s.locateSelf(ctx); err != nil {
		return "", err
	}
	records := 0
	for _, service := range []struct{ scheme, name string }{{"https", "etcd-server-ssl"}, {"http", "etcd-server"}} {
		n, err := s.addService(ctx, service.scheme, service.name)
		if err != nil {
			return "", err
		}
		records += n
	}
	switch {
	case records == 0:
		return "", fmt.Errorf("there are no SRV records %s or %s: publish them, or check --discovery-srv and --discovery-srv-name",
			r.record("etcd-server-ssl"), r.record("etcd-server"))
	case s.mismatch != nil && !s.found:
		return "", s.mismatch
	case !s.found:
		return "", fmt.Errorf("cannot find local etcd member %q in SRV records: none of their targets has an address and port of %s",
			r.Self, strings.Join(r.PeerURLs, ","))
	}
	return strings.Join(s.parts, ","), nil
}

// service is the name of a service with the suffix.
func (r *Records) service(name string) string {
	if r.Suffix != "" {
		name += "-" + r.Suffix
	}
	return name
}

func (r *Records) record(service string) string {
	return fmt.Sprintf("_%s._tcp.%s", r.service(service), r.Domain)
}

// survey is what SRV has found so far.
type survey struct {
	Records
	own      map[string]string // the scheme of each address that this member advertises
	seen     map[string]bool   // addresses that are listed
	parts    []string
	others   int
	found    bool  // this member is listed
	mismatch error // it is listed, but with another scheme
}

func (s *survey) locateSelf(ctx context.Context) error {
	for _, raw := range s.PeerURLs {
		u, err := url.Parse(raw)
		if err != nil {
			return fmt.Errorf("--initial-advertise-peer-urls: %w", err)
		}
		if u.Port() == "" {
			continue // a socket has no record
		}
		addrs, err := s.addresses(ctx, u.Hostname(), u.Port())
		if err != nil {
			return fmt.Errorf("--initial-advertise-peer-urls: %w", err)
		}
		for _, a := range addrs {
			s.own[a] = u.Scheme
		}
	}
	return nil
}

// addService adds the members that the records of a service name, and returns the number of records.
func (s *survey) addService(ctx context.Context, scheme, name string) (int, error) {
	_, records, err := s.Resolver.LookupSRV(ctx, s.service(name), "tcp", s.Domain)
	var notFound *net.DNSError
	switch {
	case errors.As(err, &notFound) && notFound.IsNotFound:
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("look up the SRV records %s: %w", s.record(name), err)
	}
	records = slices.DeleteFunc(slices.Clone(records), func(r *net.SRV) bool { return r.Target == "." }) // there is no such service
	// They come in random order, but members must agree on which of two names of one address is taken.
	slices.SortFunc(records, func(a, b *net.SRV) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Port, b.Port))
	})
	for _, r := range records {
		if err := s.addRecord(ctx, scheme, name, r); err != nil {
			return 0, err
		}
	}
	return len(records), nil
}

func (s *survey) addRecord(ctx context.Context, scheme, service string, r *net.SRV) error {
	if !isHost(r.Target) {
		return fmt.Errorf("a target of the SRV records %s is %q, which is no name of a host", s.record(service), r.Target)
	}
	port := strconv.Itoa(int(r.Port))
	addrs, err := s.addresses(ctx, r.Target, port)
	if err != nil {
		return fmt.Errorf("a target of the SRV records %s: %w", s.record(service), err)
	}
	listed := scheme + "://" + net.JoinHostPort(strings.TrimSuffix(r.Target, "."), port)
	if slices.ContainsFunc(addrs, func(a string) bool { return s.seen[a] }) {
		s.Logger.Warn("an SRV record leads to an address that another one leads to; it is left out", zap.String("peer-url", listed))
		return nil
	}
	own := ""
	for _, a := range addrs {
		s.seen[a] = true
		own = cmp.Or(own, s.own[a])
	}
	switch own {
	case "":
		s.parts = append(s.parts, strconv.Itoa(s.others)+"="+listed)
		s.others++
	case scheme:
		s.parts = append(s.parts, s.Self+"="+listed)
		s.found = true
	default:
		s.mismatch = fmt.Errorf("bootstrap at %s from DNS for %s has scheme mismatch with --initial-advertise-peer-urls=%s: change one of the two",
			listed, s.service(service), strings.Join(s.PeerURLs, ","))
		s.Logger.Warn("an SRV record of this member has another scheme than what it advertises", zap.Error(s.mismatch))
	}
	s.Logger.Info("found a member in DNS", zap.String("peer-url", listed), zap.Bool("self", own == scheme))
	return nil
}

// isHost reports whether a target is a name of a host. It becomes a part of a list of URLs, in which other characters have a
// meaning; a resolver need not refuse them.
func isHost(target string) bool {
	return strings.Trim(target, ".") != "" && !strings.ContainsFunc(target, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}

// addresses are all that a host has, with the port.
func (s *survey) addresses(ctx context.Context, host, port string) ([]string, error) {
	found, err := s.Resolver.LookupHost(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	addrs := make([]string, len(found))
	for i, a := range found {
		addrs[i] = net.JoinHostPort(a, port)
	}
	return addrs, nil
}
