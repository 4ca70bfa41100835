package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/coteriedb/coterie"
)

const (
	// maxDemoMembers is what one key can name.
	maxDemoMembers     = 9
	defaultDemoMembers = 3

	// A demo looks for ports from etcd's on, in steps, and below those that systems give to outgoing connections: a
	// member that was stopped must find its own free again.
	firstDemoPort, demoPortStep, lastDemoPort = 2379, 10, 32_000

	// maxDemoPlan bounds what is read as a plan.
	maxDemoPlan = 16 << 10
)

// demoPlan says where the members of a demo listen. It is kept with their data, for they know each other by that.
type demoPlan struct {
	Members []demoAddress `json:"members"`
}

// demoAddress is where one member listens, as host:port.
type demoAddress struct {
	Client string `json:"client"`
	Peer   string `json:"peer"`
}

func demoPlanFile(dir string) string { return filepath.Join(dir, "demo.json") }

// planDemo returns the plan that a directory has, or makes one for a directory that is empty. No members means as
// many as there are, or else the default.
func planDemo(dir string, members int) (*demoPlan, error) {
	content, err := os.ReadFile(demoPlanFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return newDemoPlan(dir, cmp.Or(members, defaultDemoMembers))
	}
	if err != nil {
		return nil, err
	}
	p, err := decodeDemoPlan(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; choose another --data-dir", demoPlanFile(dir), err)
	}
	if members != 0 && members != len(p.Members) {
		return nil, usageError{fmt.Errorf("%s holds a demo of %d members: leave --members out, or choose another --data-dir", dir, len(p.Members))}
	}
	return p, p.checkFree(dir)
}

func decodeDemoPlan(content []byte) (*demoPlan, error) {
	if len(content) > maxDemoPlan {
		return nil, fmt.Errorf("%d bytes are no plan of a demo", len(content))
	}
	p := new(demoPlan)
	if err := json.Unmarshal(content, p); err != nil {
		return nil, err
	}
	if n := len(p.Members); n < 1 || n > maxDemoMembers {
		return nil, fmt.Errorf("a demo of %d members", n)
	}
	taken := map[netip.AddrPort]bool{}
	for _, m := range p.Members {
		for _, address := range []string{m.Client, m.Peer} {
			a, err := netip.ParseAddrPort(address)
			if err != nil || !a.Addr().IsLoopback() || a.Addr().Zone() != "" || a.Port() == 0 || taken[a] {
				return nil, fmt.Errorf("%q is no address for a demo's member alone", address)
			}
			taken[a] = true
		}
	}
	return p, nil
}

// newDemoPlan makes a plan and keeps it. A directory with anything in it is somebody's.
func newDemoPlan(dir string, members int) (*demoPlan, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty, and holds no demo: choose another --data-dir", dir)
	}
	p := &demoPlan{freeAddresses(members)}
	if len(p.Members) < members {
		return nil, fmt.Errorf("the ports from %d to %d are taken but for %d pairs", firstDemoPort, lastDemoPort, len(p.Members))
	}
	content, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return nil, err
	}
	return p, os.WriteFile(demoPlanFile(dir), append(content, '\n'), 0o600)
}

// freeAddresses finds ports, first those that clients and etcd's other members expect.
func freeAddresses(members int) (free []demoAddress) {
	for port := firstDemoPort; port < lastDemoPort && len(free) < members; port += demoPortStep {
		m := demoAddress{loopback(port), loopback(port + 1)}
		if canListen(m.Client) == nil && canListen(m.Peer) == nil {
			free = append(free, m)
		}
	}
	return free
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func canListen(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

// checkFree tells early, and of all members, what would keep them from listening.
func (p *demoPlan) checkFree(dir string) error {
	var errs []error
	for i, m := range p.Members {
		for _, address := range []string{m.Client, m.Peer} {
			if err := canListen(address); err != nil {
				errs = append(errs, fmt.Errorf("member %d of the demo in %s listens on %s, which cannot be had: %w", i+1, dir, address, err))
			}
		}
	}
	if errs == nil {
		return nil
	}
	return errors.Join(append(errs, errors.New("stop what listens there, which may be the same demo; or begin another one with another --data-dir"))...)
}

// configs returns the members' configurations.
func (p *demoPlan) configs(dir string, log *zap.Logger) []coterie.Config {
	var configs []coterie.Config
	var cluster []string
	for i, m := range p.Members {
		c := coterie.DefaultConfig()
		c.Name = fmt.Sprintf("m%d", i+1)
		c.DataDir = filepath.Join(dir, c.Name)
		c.ListenClientURLs, c.ListenPeerURLs = []string{"http://" + m.Client}, []string{"http://" + m.Peer}
		c.AdvertiseClientURLs, c.InitialAdvertisePeerURLs = c.ListenClientURLs, c.ListenPeerURLs
		c.InitialClusterToken = "coterie-demo"
		c.Logger = log.Named(c.Name)
		configs, cluster = append(configs, c), append(cluster, c.Name+"=http://"+m.Peer)
	}
	for i := range configs {
		configs[i].InitialCluster = strings.Join(cluster, ",")
	}
	return configs
}

// endpoints are where clients find the members.
func (p *demoPlan) endpoints() string {
	var all []string
	for _, m := range p.Members {
		all = append(all, m.Client)
	}
	return strings.Join(all, ",")
}
