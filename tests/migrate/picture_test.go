package migrate

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// picture is all that a server serves of a state, as text.
func picture(t *testing.T, cli *clientv3.Client, members bool) string {
	t.Helper()
	p := &painter{t: t, cli: cli}
	last := p.hash()
	compacted := p.ranges(last)
	p.events(max(compacted, 1), last)
	p.leases()
	p.auth()
	p.alarms()
	if members {
		p.members()
	}
	return p.String()
}

type painter struct {
	strings.Builder
	t   *testing.T
	cli *clientv3.Client
}

func (p *painter) fail(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *painter) printf(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

func (p *painter) hash() (revision int64) {
	p.t.Helper()
	resp, err := pb.NewMaintenanceClient(p.cli.ActiveConnection()).HashKV(p.t.Context(), &pb.HashKVRequest{})
	p.fail(err)
	p.printf("revision %d, compacted %d, hash %08x", resp.Header.Revision, resp.CompactRevision, resp.Hash)
	return resp.Header.Revision
}

// ranges reads every revision that can be read and returns the one below.
func (p *painter) ranges(last int64) (compacted int64) {
	p.t.Helper()
	for rev := last; rev > 0; rev-- {
		resp, err := p.cli.Get(p.t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithRev(rev))
		if err != nil {
			p.printf("range at %d: %v", rev, err)
			return rev + 1
		}
		for _, kv := range resp.Kvs {
			p.printf("at %d: %q created %d modified %d version %d lease %x value %q", rev, kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease, kv.Value)
		}
	}
	return 1
}

func (p *painter) events(from, last int64) {
	p.t.Helper()
	if from >= last { // the last may be no change of a key: a restore can raise the revision
		return
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	w := p.cli.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from), clientv3.WithPrevKV())
	for resp := range w {
		p.fail(resp.Err())
		for _, e := range resp.Events {
			p.printf("event %v %q at %d: %q before %q", e.Type, e.Kv.Key, e.Kv.ModRevision, e.Kv.Value, e.PrevKv.GetValue())
			if e.Kv.ModRevision >= last {
				return // others of the same revision are in the ranges
			}
		}
	}
	p.t.Fatalf("the watch ended before revision %d: %v", last, ctx.Err())
}

func (p *painter) leases() {
	p.t.Helper()
	resp, err := p.cli.Leases(p.t.Context())
	p.fail(err)
	slices.SortFunc(resp.Leases, func(a, b clientv3.LeaseStatus) int { return int(a.ID>>1 - b.ID>>1) })
	for _, l := range resp.Leases {
		ttl, err := p.cli.TimeToLive(p.t.Context(), l.ID, clientv3.WithAttachedKeys())
		p.fail(err)
		slices.SortFunc(ttl.Keys, bytes.Compare)
		if ttl.TTL < ttl.GrantedTTL-600 || ttl.TTL > ttl.GrantedTTL {
			p.t.Errorf("lease %x has %d of %d seconds left", l.ID, ttl.TTL, ttl.GrantedTTL)
		}
		p.printf("lease %x of %d seconds: %q", l.ID, ttl.GrantedTTL, ttl.Keys)
	}
}

func (p *painter) auth() {
	p.t.Helper()
	ctx := p.t.Context()
	status, err := p.cli.AuthStatus(ctx)
	p.fail(err)
	p.printf("auth %v, revision %d", status.Enabled, status.AuthRevision)
	users, err := p.cli.UserList(ctx)
	p.fail(err)
	for _, u := range users.Users {
		user, err := p.cli.UserGet(ctx, u)
		p.fail(err)
		p.printf("user %s: %v", u, user.Roles)
	}
	roles, err := p.cli.RoleList(ctx)
	p.fail(err)
	for _, r := range roles.Roles {
		role, err := p.cli.RoleGet(ctx, r)
		p.fail(err)
		for _, perm := range role.Perm {
			p.printf("role %s: %v from %q to %q", r, perm.PermType, perm.Key, perm.RangeEnd)
		}
	}
}

func (p *painter) alarms() {
	p.t.Helper()
	resp, err := p.cli.AlarmList(p.t.Context())
	p.fail(err)
	for _, a := range resp.Alarms {
		p.printf("alarm %v of %x", a.Alarm, a.MemberID)
	}
}

func (p *painter) members() {
	p.t.Helper()
	resp, err := p.cli.MemberList(p.t.Context())
	p.fail(err)
	for _, m := range resp.Members {
		p.printf("member %x of cluster %x: %v", m.ID, resp.Header.ClusterId, m.PeerURLs)
	}
}

// same compares pictures and shows where they part.
func same(t *testing.T, what, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(a), len(b)) {
		x, y := "nothing", "nothing"
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			t.Fatalf("%s: line %d of %d and %d:\nwant %s\ngot  %s", what, i+1, len(a), len(b), x, y)
		}
	}
}
