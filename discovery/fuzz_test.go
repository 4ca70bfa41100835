package discovery

import (
	"context"
	"net"
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// answers is a DNS that answers every question with the same.
type answers struct {
	records []*net.SRV
	hosts   map[string][]string
}

func (a *answers) LookupSRV(_ context.Context, service, _, _ string) (string, []*net.SRV, error) {
	if service != "etcd-server" {
		return "", nil, &net.DNSError{Err: "no such host", IsNotFound: true}
	}
	return "", a.records, nil
}

func (a *answers) LookupHost(_ context.Context, host string) ([]string, error) {
	if found := a.hosts[host]; found != nil {
		return found, nil
	}
	return []string{host}, nil
}

// FuzzSRV reads answers of DNS. What is made of them lists this member under its name and each address once, and is the same
// whatever the order of the answers.
func FuzzSRV(f *testing.F) {
	f.Add("a.example.com.", uint16(2380), "b.example.com.", uint16(2380), "10.0.0.1", "10.0.0.2")
	f.Add("a.example.com.", uint16(2380), "a.example.com.", uint16(0), "::1", "")
	f.Add(".", uint16(1), "x=y,z=http://h:1", uint16(2380), "10.0.0.1", "10.0.0.1")
	f.Fuzz(func(t *testing.T, host1 string, port1 uint16, host2 string, port2 uint16, addr1, addr2 string) {
		found := func(records ...*net.SRV) (string, error) {
			return SRV(t.Context(), Records{
				Domain: "example.com", Self: "self", PeerURLs: []string{"http://10.0.0.1:2380"},
				Resolver: &answers{records, map[string][]string{host1: {addr1}, host2: {addr2}}}, Logger: zap.NewNop(),
			})
		}
		first, second := &net.SRV{Target: host1, Port: port1}, &net.SRV{Target: host2, Port: port2}
		list, err := found(first, second)
		turned, turnedErr := found(second, first)
		if list != turned || (err == nil) != (turnedErr == nil) {
			t.Fatalf("in one order it is %q, %v, in the other %q, %v", list, err, turned, turnedErr)
		}
		if err != nil {
			return
		}
		if !strings.HasPrefix(list, "self=http://") && !strings.Contains(list, ",self=http://") {
			t.Errorf("%q does not list this member", list)
		}
		members := strings.Split(list, ",")
		for _, m := range members {
			name, raw, _ := strings.Cut(m, "=")
			if u, err := url.Parse(raw); err != nil || name == "" || u.Host == "" {
				t.Errorf("%q of %q is no member: %v", m, list, err)
			}
		}
		if len(members) > 2 {
			t.Errorf("two records became %d members: %q", len(members), list)
		}
	})
}
