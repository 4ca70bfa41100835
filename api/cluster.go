package api

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

type clusterServer struct {
	s *Server
	pb.UnsafeClusterServer
}

// MemberAdd implements pb.ClusterServer.
func (cs clusterServer) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := types.NewURLs(r.PeerURLs)
	if err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	added, all, err := cs.s.node.AddMember(ctx, urls.StringSlice(), r.IsLearner)
	if err != nil {
		return nil, proposalError(err)
	}
	return &pb.MemberAddResponse{Header: cs.s.identify(nil), Member: added, Members: all}, nil
}

// MemberRemove implements pb.ClusterServer.
func (cs clusterServer) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	all, err := cs.s.node.RemoveMember(ctx, r.ID)
	if err != nil {
		return nil, proposalError(err)
	}
	return &pb.MemberRemoveResponse{Header: cs.s.identify(nil), Members: all}, nil
}

// MemberUpdate implements pb.ClusterServer.
func (cs clusterServer) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	all, err := cs.s.node.UpdateMember(ctx, r.ID, r.PeerURLs)
	if err != nil {
		return nil, proposalError(err)
	}
	return &pb.MemberUpdateResponse{Header: cs.s.identify(nil), Members: all}, nil
}

// MemberList implements pb.ClusterServer.
func (cs clusterServer) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := cs.s.node.ReadIndex(ctx); err != nil {
			return nil, statusError(err)
		}
	}
	return &pb.MemberListResponse{Header: cs.s.identify(nil), Members: cs.s.node.Members()}, nil
}

// MemberPromote implements pb.ClusterServer.
func (cs clusterServer) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	all, err := cs.s.node.PromoteMember(ctx, r.ID)
	if err != nil {
		return nil, proposalError(err)
	}
	return &pb.MemberPromoteResponse{Header: cs.s.identify(nil), Members: all}, nil
}
