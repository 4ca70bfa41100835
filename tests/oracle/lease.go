package oracle

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

const (
	maxTTL     = 9_000_000_000 // what etcd grants at most, in seconds
	shortTTL   = 3             // for leases that are meant to expire, in seconds
	expiryTime = 15 * time.Second
)

func grantCall(req *pb.LeaseGrantRequest) operation {
	return callOf("LeaseGrant", req, func(s *side, ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
		return s.lease.LeaseGrant(ctx, r)
	})
}

func revokeCall(req *pb.LeaseRevokeRequest) operation {
	return callOf("LeaseRevoke", req, func(s *side, ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
		return s.lease.LeaseRevoke(ctx, r)
	})
}

func keepAliveCall(req *pb.LeaseKeepAliveRequest) operation {
	return callOf("LeaseKeepAlive", req, func(s *side, ctx context.Context, r *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
		return s.keepAliveOnce(ctx, r)
	})
}

// clientKeepAliveCall is KeepAliveOnce, which turns the answer for an unknown lease into an error.
func clientKeepAliveCall(req *pb.LeaseKeepAliveRequest) operation {
	o := callOf("LeaseKeepAlive", req, func(s *side, ctx context.Context, r *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
		resp, err := s.cli.KeepAliveOnce(ctx, clientv3.LeaseID(r.ID))
		if err != nil {
			return nil, err
		}
		return &pb.LeaseKeepAliveResponse{Header: resp.ResponseHeader, ID: int64(resp.ID), TTL: resp.TTL}, nil
	})
	o.via = "clientv3"
	return o
}

// timeToLiveCall asks for the remaining time, which is compared with what the clock allows instead of with the
// other server's answer; a new leader adds what an election may have taken. Attached keys have no order in etcd; they are
// compared sorted.
func timeToLiveCall(req *pb.LeaseTimeToLiveRequest, added time.Duration) operation {
	return callOf("LeaseTimeToLive", req, func(s *side, ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
		resp, err := s.lease.LeaseTimeToLive(ctx, r)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(resp.Keys, slices.Compare)
		if resp.TTL > 0 {
			// A sequence lasts a few minutes at most; no lease here has had more time to run down.
			if resp.TTL > resp.GrantedTTL+int64(added.Seconds()) || resp.TTL < resp.GrantedTTL-int64((10*time.Minute).Seconds()) {
				return nil, fmt.Errorf("%d s remain of %d s", resp.TTL, resp.GrantedTTL)
			}
			resp.TTL = resp.GrantedTTL
		}
		return resp, nil
	})
}

// leasesCall lists all leases. Etcd orders them by expiry; leases of one TTL, which expire within a moment of
// each other, are put in the order of their ids.
func leasesCall(ttl func(id int64) int64) operation {
	return callOf("LeaseLeases", &pb.LeaseLeasesRequest{}, func(s *side, ctx context.Context, r *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
		resp, err := s.lease.LeaseLeases(ctx, r)
		if err != nil {
			return nil, err
		}
		for rest := resp.Leases; len(rest) > 0; {
			same := 1
			for same < len(rest) && ttl(rest[same].ID) == ttl(rest[0].ID) {
				same++
			}
			slices.SortFunc(rest[:same], func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
			rest = rest[same:]
		}
		return resp, nil
	})
}

// grant makes a lease with a chosen id. Its TTL is one of a few that lie far apart, so that the order of
// expiry does not depend on the moment.
func (r *runner) grant(ctx context.Context) error {
	g := r.gen
	req := &pb.LeaseGrantRequest{ID: g.newLease(), TTL: 10_000 * (1 + g.Int64N(5))}
	switch n := g.IntN(100); {
	case n < 10 && len(g.leases) > 0:
		req.ID = g.someLease() // exists already
	case n < 13:
		req.TTL = maxTTL
	case n < 16:
		req.TTL = pick(g, []int64{maxTTL + 1, math.MaxInt64})
	}
	got, err := r.compare(ctx, grantCall(req))
	if err == nil && got.err == "" {
		g.leases[req.ID] = req.TTL
	}
	return err
}

func (r *runner) revoke(ctx context.Context) error {
	id := r.gen.someLease()
	if r.gen.chance(100) {
		id = r.gen.unknownLease()
	}
	if r.gen.chance(20) {
		id = 0
	}
	got, err := r.compare(ctx, revokeCall(&pb.LeaseRevokeRequest{ID: id}))
	if err == nil && got.err == "" {
		delete(r.gen.leases, id)
	}
	return err
}

func (r *runner) timeToLive(ctx context.Context) error {
	req := &pb.LeaseTimeToLiveRequest{ID: r.gen.someLease(), Keys: r.gen.chance(600)}
	if r.gen.chance(100) {
		req.ID = pick(r.gen, []int64{0, r.gen.unknownLease()})
	}
	var added time.Duration
	if r.opts.clustered() {
		added = electionTimeout
	}
	_, err := r.compare(ctx, timeToLiveCall(req, added))
	return err
}

func (r *runner) listLeases(ctx context.Context) error {
	order := func(id int64) int64 { return r.gen.leases[id] }
	if r.opts.clustered() {
		order = func(int64) int64 { return 0 } // only the leader knows when leases expire
	}
	_, err := r.compare(ctx, leasesCall(order))
	return err
}

func (r *runner) keepAlive(ctx context.Context) error {
	req := &pb.LeaseKeepAliveRequest{ID: r.gen.someLease()}
	if r.gen.chance(100) {
		req.ID = pick(r.gen, []int64{0, r.gen.unknownLease()})
	}
	call := keepAliveCall(req)
	if r.gen.chance(300) {
		call = clientKeepAliveCall(req)
	}
	_, err := r.compare(ctx, call)
	return err
}

// grantChosen lets the server choose an id, or asks for a TTL so short that the server raises it. Such a lease
// is revoked at once, on each server under the id that the server gave, and has no keys, so that nothing
// depends on when it would have expired.
func (r *runner) grantChosen(ctx context.Context) error {
	req := &pb.LeaseGrantRequest{TTL: pick(r.gen, []int64{math.MinInt64, -1, 0, 1, 5000})}
	_, err := r.compare(ctx, operation{name: "LeaseGrant with the server's id, LeaseRevoke", req: req, send: func(ctx context.Context, s *side) (proto.Message, error) {
		before := time.Now()
		granted, err := s.lease.LeaseGrant(ctx, req)
		if err != nil {
			return nil, err
		}
		if granted.ID <= 0 {
			return nil, fmt.Errorf("the server chose the id %d", granted.ID)
		}
		_, err = s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: granted.ID})
		expired := time.Since(before) > time.Duration(granted.TTL)*time.Second
		if err != nil && !expired {
			return nil, err
		}
		granted.ID = 0
		return granted, nil
	}})
	return err
}

// expire lets a lease with keys run out on both servers and waits for it.
func (r *runner) expire(ctx context.Context) error {
	id := r.gen.newLease()
	steps := []operation{grantCall(&pb.LeaseGrantRequest{ID: id, TTL: shortTTL})}
	for range 2 {
		steps = append(steps, putCall(&pb.PutRequest{Key: r.gen.ordinaryKey(), Value: []byte("short-lived"), Lease: id}))
	}
	for _, step := range steps {
		if got, err := r.compare(ctx, step); err != nil {
			return err
		} else if got.err != "" {
			return fmt.Errorf("%s: %s", step, got.err)
		}
	}
	_, err := r.compare(ctx, operation{name: "LeaseExpiry", req: &pb.LeaseTimeToLiveRequest{ID: id}, send: func(ctx context.Context, s *side) (proto.Message, error) {
		return s.awaitExpiry(ctx, id)
	}})
	return err
}

// awaitExpiry returns the server's answer for a lease once it is gone.
func (s *side) awaitExpiry(ctx context.Context, id int64) (proto.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, expiryTime)
	defer cancel()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		resp, err := s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id})
		if err != nil {
			return nil, err
		}
		if resp.TTL == -1 && resp.GrantedTTL == 0 {
			return s.expired(ctx, id)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the lease still exists %v after it was granted %d s: %s", expiryTime, shortTTL, show(resp))
		case <-poll.C:
		}
	}
}

// expired asks for a lease that is gone once more, when that must show in the revision of this server: whether a lease
// exists is the leader's answer, the revision is the member's own.
func (s *side) expired(ctx context.Context, id int64) (proto.Message, error) {
	if _, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, CountOnly: true}); err != nil {
		return nil, err
	}
	return s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id})
}
