package api

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine"
)

// errFull says that there is no room for a write. What the client is told is refuseFull's to say.
var errFull = errors.New("api: the quota is used up")

// write answers a request that is replicated.
func write[R proto.Message](ctx context.Context, s *Server, r *pb.InternalRaftRequest) (R, error) {
	var none R
	err := s.checkWrite(r, proto.Size(r))
	if errors.Is(err, errFull) {
		err = s.refuseFull(ctx)
	}
	if err != nil {
		return none, err
	}
	if r.LeaseGrant != nil {
		s.completeGrant(r.LeaseGrant)
	}
	resp, err := s.outcome(s.node.Propose(ctx, r))
	if err != nil {
		return none, err
	}
	return resp.(R), nil
}

// checkWrite checks what can be checked of a write before it is replicated. Its encoding has size
// bytes, or fewer. As in etcd room is asked for before anything else.
func (s *Server) checkWrite(r *pb.InternalRaftRequest, size int) error {
	if !s.hasRoom(writeCost(r)) {
		return errFull
	}
	if err := s.checkContent(r); err != nil {
		return err
	}
	if s.tooLarge(r, size) {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}

func (s *Server) checkContent(r *pb.InternalRaftRequest) error {
	switch {
	case r.Put != nil:
		return checkPut(r.Put)
	case r.DeleteRange != nil:
		return checkDelete(r.DeleteRange)
	case r.Txn != nil:
		return checkTxn(r.Txn, int(s.cfg.MaxTxnOps))
	}
	return nil
}

// completeGrant gives a lease what its request leaves to the server. That is here and not in the
// machine, because it depends on this member's configuration.
func (s *Server) completeGrant(r *pb.LeaseGrantRequest) {
	if r.ID == 0 {
		r.ID = newLeaseID()
	}
	r.TTL = max(r.TTL, s.minLeaseTTL)
}

// outcome is what the client of a proposal gets.
func (s *Server) outcome(res machine.Result) (proto.Message, error) {
	if res.Err != nil {
		return nil, proposalError(res.Err)
	}
	switch resp := res.Response.(type) {
	case *pb.PutResponse:
		resp.Header = s.complete(resp.Header)
	case *pb.DeleteRangeResponse:
		resp.Header = s.complete(resp.Header)
	case *pb.TxnResponse:
		resp.Header = s.complete(resp.Header)
	case *pb.LeaseGrantResponse:
		resp.Header = s.complete(resp.Header)
	case *pb.LeaseRevokeResponse:
		resp.Header = s.complete(resp.Header)
	}
	return res.Response, nil
}
