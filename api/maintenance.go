package api

import (
	"context"
	"crypto/sha256"
	"io"
	"sync/atomic"
	"time"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type maintenanceServer struct {
	s *Server
	pb.UnsafeMaintenanceServer
}

// Alarm implements pb.MaintenanceServer. Also a question goes through consensus, so that the
// answer is as new as the question.
func (ms maintenanceServer) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	resp, err := ms.s.propose(ctx, &pb.InternalRaftRequest{Alarm: r})
	if err != nil {
		return nil, err
	}
	alarm := resp.(*pb.AlarmResponse)
	alarm.Header = ms.s.complete(alarm.Header)
	return alarm, nil
}

// Status implements pb.MaintenanceServer.
func (ms maintenanceServer) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	s := ms.s
	st := s.node.Status()
	resp := &pb.StatusResponse{
		Header:           s.complete(nil),
		Version:          Version(),
		StorageVersion:   ClusterVersion(),
		Leader:           st.Leader,
		RaftIndex:        st.Committed,
		RaftAppliedIndex: st.Applied,
		RaftTerm:         st.Term,
		IsLearner:        st.IsLearner,
		DbSize:           s.node.DBSize(),
		DbSizeInUse:      s.node.KV().SizeInUse(),
		DbSizeQuota:      s.cfg.QuotaBackendBytes,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}
	if st.Leader == 0 {
		resp.Errors = append(resp.Errors, rpctypes.ErrNoLeader.Error())
	}
	for _, a := range s.node.Alarms() {
		resp.Errors = append(resp.Errors, a.String())
	}
	return resp, nil
}

// Defragment implements pb.MaintenanceServer. The engine gives space back by itself, so nothing
// stops for this.
func (ms maintenanceServer) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := ms.s.node.Defragment(ctx); err != nil {
		return nil, statusError(err)
	}
	return &pb.DefragmentResponse{}, nil
}

// Hash implements pb.MaintenanceServer.
func (ms maintenanceServer) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	h, err := ms.s.node.KV().Hash(ctx)
	if err != nil {
		return nil, statusError(err)
	}
	return &pb.HashResponse{Header: ms.s.complete(nil), Hash: h}, nil
}

// HashKV implements pb.MaintenanceServer.
func (ms maintenanceServer) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	h, hashRev, compactRev, err := ms.s.node.KV().HashKV(ctx, r.Revision)
	if err != nil {
		return nil, statusError(err)
	}
	return &pb.HashKVResponse{Header: ms.s.complete(nil), Hash: h, CompactRevision: compactRev, HashRevision: hashRev}, nil
}

const (
	// snapshotChunk is the size of the parts in which a snapshot is sent.
	snapshotChunk = 32 << 10
	// maxSnapshots bounds the snapshots that are sent at a time: each is a copy of all data on the member's disk.
	maxSnapshots = 2
	// snapshotPatience is for how long a client may take nothing of its snapshot. It is noticed within as long again.
	snapshotPatience = 5 * time.Minute
)

var (
	errManySnapshots = status.Errorf(codes.ResourceExhausted, "%d snapshots are being sent already, each of which is a copy of the data on this member's disk: "+
		"try again when one is done, or ask another member", maxSnapshots)
	errSnapshotStalled = status.Errorf(codes.DeadlineExceeded, "the client has taken nothing of the snapshot for %v", snapshotPatience)
)

// Snapshot implements pb.MaintenanceServer.
func (ms maintenanceServer) Snapshot(_ *pb.SnapshotRequest, stream pb.Maintenance_SnapshotServer) error {
	s := ms.s
	select {
	case s.snapshots <- struct{}{}:
	default:
		return errManySnapshots
	}
	ctx := stream.Context()
	snap, err := s.node.Snapshot(ctx)
	if err != nil {
		<-s.snapshots
		return statusError(err)
	}
	s.log.Info("sending a snapshot", zap.Int64("bytes", snap.Size))
	var (
		done  = make(chan error, 1)
		taken atomic.Int64 // messages
	)
	// Ends with the stream, which ends with this handler; Server.Wait waits for it.
	s.group.Go(func() {
		err := sendSnapshot(snap, stream, &taken)
		snap.Close()
		<-s.snapshots
		done <- err
	})
	look := time.NewTicker(s.snapshotPatience)
	defer look.Stop()
	for seen := int64(-1); ; {
		select {
		case err := <-done:
			if err == nil {
				s.log.Info("snapshot sent", zap.Int64("bytes", snap.Size))
			}
			return statusError(err)
		case <-ctx.Done():
			return statusError(context.Cause(ctx))
		case <-look.C:
			now := taken.Load()
			if now == seen {
				s.log.Warn("a snapshot's client takes nothing", zap.Duration("for", s.snapshotPatience))
				return errSnapshotStalled
			}
			seen = now
		}
	}
}

// sendSnapshot sends a snapshot. The sum at the end of the file is a message of its own, after one that says that nothing
// remains.
func sendSnapshot(snap Snapshot, stream pb.Maintenance_SnapshotServer, taken *atomic.Int64) error {
	send := func(n, remaining int64) error {
		// A message keeps its bytes until it has been written to the connection.
		blob := make([]byte, n)
		if _, err := io.ReadFull(snap, blob); err != nil {
			return err
		}
		defer taken.Add(1)
		return stream.Send(&pb.SnapshotResponse{RemainingBytes: uint64(remaining), Blob: blob, Version: ClusterVersion()})
	}
	for left := snap.Size - sha256.Size; left > 0; {
		n := min(left, snapshotChunk)
		left -= n
		if err := send(n, left); err != nil {
			return err
		}
	}
	return send(sha256.Size, 0)
}

// MoveLeader implements pb.MaintenanceServer.
func (ms maintenanceServer) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	s := ms.s
	if s.node.Status().Leader != s.cfg.MemberID {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	if !s.votes(r.TargetID) {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	if r.TargetID != s.cfg.MemberID {
		if err := s.node.MoveLeader(ctx, r.TargetID); err != nil {
			return nil, statusError(err)
		}
	}
	return &pb.MoveLeaderResponse{}, nil
}

func (s *Server) votes(id uint64) bool {
	for _, m := range s.node.Members() {
		if m.ID == id {
			return !m.IsLearner
		}
	}
	return false
}

// Downgrade implements pb.MaintenanceServer. There is no older release of Coterie's data to go
// back to, so no version is a valid target, and there is never a downgrade to cancel.
func (ms maintenanceServer) Downgrade(_ context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	switch r.Action {
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
		if !isVersion(r.Version) {
			return nil, rpctypes.ErrGRPCWrongDowngradeVersionFormat
		}
		return nil, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	case pb.DowngradeRequest_CANCEL:
		return &pb.DowngradeResponse{Header: ms.s.complete(nil), Version: version.Cluster(ClusterVersion())}, nil
	}
	return nil, status.Error(codes.Unknown, "etcdserver: unknown method")
}

// isVersion accepts major.minor and semantic versions.
func isVersion(v string) bool {
	_, err := semver.NewVersion(v)
	if err != nil {
		_, err = semver.NewVersion(v + ".0")
	}
	return err == nil
}
