package api

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine/lease"
)

type leaseServer struct {
	s *Server
	pb.UnsafeLeaseServer
}

// LeaseGrant implements pb.LeaseServer.
func (ls leaseServer) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return write[*pb.LeaseGrantResponse](ctx, ls.s, &pb.InternalRaftRequest{LeaseGrant: r})
}

// LeaseRevoke implements pb.LeaseServer.
func (ls leaseServer) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return write[*pb.LeaseRevokeResponse](ctx, ls.s, &pb.InternalRaftRequest{LeaseRevoke: r})
}

// LeaseTimeToLive implements pb.LeaseServer. A lease that does not exist has -1 seconds left.
func (ls leaseServer) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	resp := &pb.LeaseTimeToLiveResponse{ID: r.ID}
	err := ls.s.onLeader(ctx, func() (err error) {
		resp.GrantedTTL, resp.TTL, err = ls.s.node.Lessor().TimeToLive(ctx, r.ID)
		return err
	})
	switch {
	case errors.Is(err, lease.ErrNotFound):
		resp.GrantedTTL, resp.TTL = 0, -1
	case err != nil:
		return nil, err
	case r.Keys:
		// The leader has answered; this member may not have applied as much.
		if err := ls.s.node.ReadIndex(ctx); err != nil {
			return nil, statusError(err)
		}
		for _, k := range ls.s.node.LeaseKeys(r.ID) {
			resp.Keys = append(resp.Keys, []byte(k))
		}
	}
	resp.Header = ls.s.complete(nil)
	return resp, nil
}

// LeaseLeases implements pb.LeaseServer.
func (ls leaseServer) LeaseLeases(context.Context, *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	resp := &pb.LeaseLeasesResponse{Header: ls.s.complete(nil)}
	for _, id := range ls.s.node.Lessor().Leases() {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: id})
	}
	return resp, nil
}

// catchUp is how long a question about a lease waits for this member to have applied what the
// cluster has agreed on.
const catchUp = time.Second

// onLeader asks the lessor something. An answer that may only mean that this member is about to
// lead is asked for again once it has caught up. The error is lease.ErrNotFound or one for the
// client.
func (s *Server) onLeader(ctx context.Context, ask func() error) error {
	err := ask()
	if errors.Is(err, lessor.ErrNotPrimary) {
		wait, cancel := context.WithTimeout(ctx, catchUp)
		defer cancel()
		if werr := s.node.ReadIndex(wait); werr != nil {
			if ctx.Err() == nil && wait.Err() != nil {
				return rpctypes.ErrGRPCTimeoutWaitAppliedIndex
			}
			return statusError(werr)
		}
		err = ask()
	}
	switch {
	case err == nil, errors.Is(err, lease.ErrNotFound):
		return err
	case errors.Is(err, lessor.ErrNotPrimary):
		return rpctypes.ErrGRPCLeaderChanged // which clients answer by trying again
	}
	return statusError(err)
}
