package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
)

// A zone answers as DNS does: with SRV records by service, "host:port", and addresses by host.
type zone struct {
	records map[string][]string
	hosts   map[string][]string
	failing map[string]error
}

func (z *zone) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	full := fmt.Sprintf("_%s._%s.%s", service, proto, name)
	if err := z.failing[full]; err != nil {
		return "", nil, err
	}
	var list []*net.SRV
	for _, r := range z.records[full] {
		var port uint16
		host, number, _ := strings.Cut(r, ":")
		if _, err := fmt.Sscan(number, &port); err != nil {
			return "", nil, err
		}
		list = append(list, &net.SRV{Target: host, Port: port})
	}
	if list == nil {
		return "", nil, &net.DNSError{Err: "no such host", Name: full, IsNotFound: true}
	}
	return full, list, nil
}

func (z *zone) LookupHost(_ context.Context, host string) ([]string, error) {
	if net.ParseIP(host) != nil {
		return []string{host}, nil
	}
	if found := z.hosts[strings.TrimSuffix(host, ".")]; found != nil {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func TestSRV(t *testing.T) {
	hosts := map[string][]string{
		"infra0.example.com": {"10.0.1.10"}, "infra1.example.com": {"10.0.1.11"}, "infra2.example.com": {"fd00::12", "10.0.1.12"},
		"alias1.example.com": {"10.0.1.11"},
	}
	infra := []string{"infra1.example.com.:2380", "infra0.example.com.:2380", "infra2.example.com.:2380"}
	for _, tt := range []struct {
		name    string
		records map[string][]string
		failing map[string]error
		suffix  string
		urls    string // of this member
		want    string // or the error
	}{
		{name: "without TLS", records: map[string][]string{"_etcd-server._tcp.example.com": infra}, urls: "http://infra0.example.com:2380",
			want: "m=http://infra0.example.com:2380,0=http://infra1.example.com:2380,1=http://infra2.example.com:2380"},
		{name: "with TLS", records: map[string][]string{"_etcd-server-ssl._tcp.example.com": infra}, urls: "https://10.0.1.11:2380",
			want: "0=https://infra0.example.com:2380,m=https://infra1.example.com:2380,1=https://infra2.example.com:2380"},
		{name: "one address of several", records: map[string][]string{"_etcd-server._tcp.example.com": infra}, urls: "http://10.0.1.12:2380",
			want: "0=http://infra0.example.com:2380,1=http://infra1.example.com:2380,m=http://infra2.example.com:2380"},
		{name: "suffix", suffix: "x", urls: "http://infra0.example.com:2380",
			records: map[string][]string{"_etcd-server-x._tcp.example.com": infra[1:2], "_etcd-server._tcp.example.com": infra},
			want:    "m=http://infra0.example.com:2380"},
		{name: "suffix with TLS", suffix: "x", urls: "https://infra0.example.com:2380",
			records: map[string][]string{"_etcd-server-ssl-x._tcp.example.com": infra[1:2]}, want: "m=https://infra0.example.com:2380"},
		{name: "some with TLS", urls: "http://infra0.example.com:2380",
			records: map[string][]string{"_etcd-server-ssl._tcp.example.com": infra[:1], "_etcd-server._tcp.example.com": infra[1:]},
			want:    "0=https://infra1.example.com:2380,m=http://infra0.example.com:2380,1=http://infra2.example.com:2380"},
		{name: "both records of one place", urls: "https://infra0.example.com:2380",
			records: map[string][]string{"_etcd-server-ssl._tcp.example.com": infra, "_etcd-server._tcp.example.com": infra},
			want:    "m=https://infra0.example.com:2380,0=https://infra1.example.com:2380,1=https://infra2.example.com:2380"},
		{name: "two names of one place", urls: "http://infra0.example.com:2380",
			records: map[string][]string{"_etcd-server._tcp.example.com": append(slices.Clone(infra), "alias1.example.com.:2380")},
			want:    "0=http://alias1.example.com:2380,m=http://infra0.example.com:2380,1=http://infra2.example.com:2380"},
		{name: "two members on one host", urls: "http://infra0.example.com:2381",
			records: map[string][]string{"_etcd-server._tcp.example.com": {"infra0.example.com.:2380", "infra0.example.com.:2381"}},
			want:    "0=http://infra0.example.com:2380,m=http://infra0.example.com:2381"},
		{name: "a member with two URLs", urls: "http://infra0.example.com:2380,http://infra0.example.com:2381",
			records: map[string][]string{"_etcd-server._tcp.example.com": {"infra0.example.com.:2380", "infra0.example.com.:2381"}},
			want:    "m=http://infra0.example.com:2380,m=http://infra0.example.com:2381"},
		{name: "an address of IPv6", urls: "http://[fd00::1]:2380", records: map[string][]string{"_etcd-server._tcp.example.com": {"ip.example.com.:2380"}},
			want: "m=http://ip.example.com:2380"},
		{name: "a socket besides", urls: "http://infra0.example.com:2380,unix://m.sock",
			records: map[string][]string{"_etcd-server._tcp.example.com": infra[1:2]}, want: "m=http://infra0.example.com:2380"},
		{name: "no records", urls: "http://infra0.example.com:2380",
			want: "there are no SRV records _etcd-server-ssl._tcp.example.com or _etcd-server._tcp.example.com: publish them, or check --discovery-srv and --discovery-srv-name"},
		{name: "a service that is declared not to be", urls: "http://infra0.example.com:2380", records: map[string][]string{"_etcd-server._tcp.example.com": {".:0"}},
			want: "there are no SRV records _etcd-server-ssl._tcp.example.com or _etcd-server._tcp.example.com: publish them, or check --discovery-srv and --discovery-srv-name"},
		{name: "not among them", urls: "http://10.0.1.13:2380", records: map[string][]string{"_etcd-server._tcp.example.com": infra},
			want: `cannot find local etcd member "m" in SRV records: none of their targets has an address and port of http://10.0.1.13:2380`},
		{name: "another port", urls: "http://infra0.example.com:1", records: map[string][]string{"_etcd-server._tcp.example.com": infra},
			want: `cannot find local etcd member "m" in SRV records: none of their targets has an address and port of http://infra0.example.com:1`},
		{name: "another scheme", urls: "http://infra0.example.com:2380", records: map[string][]string{"_etcd-server-ssl._tcp.example.com": infra},
			want: "bootstrap at https://infra0.example.com:2380 from DNS for etcd-server-ssl has scheme mismatch with --initial-advertise-peer-urls=http://infra0.example.com:2380: change one of the two"},
		{name: "a target that is nowhere", urls: "http://infra0.example.com:2380",
			records: map[string][]string{"_etcd-server._tcp.example.com": append(slices.Clone(infra), "nowhere.example.com.:2380")},
			want:    "a target of the SRV records _etcd-server._tcp.example.com: resolve nowhere.example.com.: lookup nowhere.example.com.: no such host"},
		{name: "a target that is more than a name", urls: "http://infra0.example.com:2380",
			records: map[string][]string{"_etcd-server._tcp.example.com": append(slices.Clone(infra), "x,y=z.:2380")},
			want:    "a target of the SRV records _etcd-server._tcp.example.com is \"x,y=z.\", which is no name of a host"},
		{name: "own URL that is nowhere", urls: "http://nowhere:1", records: map[string][]string{"_etcd-server._tcp.example.com": infra},
			want: "--initial-advertise-peer-urls: resolve nowhere: lookup nowhere: no such host"},
		{name: "DNS that fails for half of it", urls: "http://infra0.example.com:2380", records: map[string][]string{"_etcd-server._tcp.example.com": infra},
			failing: map[string]error{"_etcd-server-ssl._tcp.example.com": errors.New("server misbehaving")},
			want:    "look up the SRV records _etcd-server-ssl._tcp.example.com: server misbehaving"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			z := &zone{tt.records, hosts, tt.failing}
			z.hosts["ip.example.com"] = []string{"fd00::1"}
			r := Records{Domain: "example.com", Suffix: tt.suffix, Self: "m", PeerURLs: strings.Split(tt.urls, ","), Resolver: z, Logger: zap.NewNop()}
			got, err := SRV(t.Context(), r)
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			reversed := make(map[string][]string) // in another order, the answer is the same
			for service, records := range z.records {
				reversed[service] = slices.Clone(records)
				slices.Reverse(reversed[service])
			}
			z.records = reversed
			again, err := SRV(t.Context(), r)
			if err != nil {
				again = err.Error()
			}
			if again != got {
				t.Errorf("from records in another order: %s", again)
			}
		})
	}
}
