package api

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// What etcd charges against the quota beyond the bytes of keys and values.
const (
	keyCost   = 256
	leaseCost = 64
)

func putCost(r *pb.PutRequest) int { return keyCost + len(r.GetKey()) + len(r.GetValue()) }

// txnCost is the cost of the dearer branch.
func txnCost(r *pb.TxnRequest) int { return max(opsCost(r.GetSuccess()), opsCost(r.GetFailure())) }

func opsCost(ops []*pb.RequestOp) int {
	cost := 0
	for _, op := range ops {
		switch o := op.GetRequest().(type) {
		case *pb.RequestOp_RequestPut:
			cost += putCost(o.RequestPut)
		case *pb.RequestOp_RequestTxn:
			cost += txnCost(o.RequestTxn)
		}
	}
	return cost
}

// writeCost is what a request is charged with.
func writeCost(r *pb.InternalRaftRequest) int {
	switch {
	case r.Put != nil:
		return putCost(r.Put)
	case r.Txn != nil:
		return txnCost(r.Txn)
	case r.LeaseGrant != nil:
		return leaseCost
	}
	return 0
}

// hasRoom tells whether there is room for a write. There always is for one that costs nothing.
//
// What counts is the history that is retained, not the size of files: it is known exactly at
// every moment, and a compaction makes room at once.
func (s *Server) hasRoom(cost int) bool {
	quota := s.cfg.QuotaBackendBytes
	return cost == 0 || quota < 0 || s.node.KV().SizeInUse()+int64(cost) < quota
}

// refuseFull refuses a write for which there is no room, after it has raised the alarm that makes
// all members refuse writes.
func (s *Server) refuseFull(ctx context.Context) error {
	if !s.alarmRaised(pb.AlarmType_NOSPACE) {
		res := s.node.Propose(ctx, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
			MemberID: s.cfg.MemberID, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE,
		}})
		if res.Err != nil {
			s.log.Warn("cannot raise the alarm for lack of space", zap.Error(res.Err))
		}
	}
	return rpctypes.ErrGRPCNoSpace
}

// alarmRaised tells whether this member has raised the alarm.
func (s *Server) alarmRaised(t pb.AlarmType) bool {
	for _, a := range s.node.Alarms() {
		if a.Alarm == t && a.MemberID == s.cfg.MemberID {
			return true
		}
	}
	return false
}

// envelopeBytes is what etcd's encoding of a command adds to a request: the request's tag and
// length, and a header with an id.
const envelopeBytes = 20

// tooLarge tells whether r, whose encoding has size bytes or fewer, is above the size that may be
// replicated. The exact size is computed only when that bound does not settle it.
func (s *Server) tooLarge(r *pb.InternalRaftRequest, size int) bool {
	limit := int(s.cfg.MaxRequestBytes)
	return size+envelopeBytes > limit && proto.Size(r)+envelopeBytes > limit
}
