package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestStatus(t *testing.T) {
	s := newTestServer(t, nil)
	s.mustPut(t, "k", "v")
	s.node.set(func(n *testNode) {
		n.dbSize = 4711
		n.status = Status{Leader: testMember, Term: 7, Committed: 12, Applied: 11}
	})
	got, err := s.maint.Status(t.Context(), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, got.Header, 2)
	want := &pb.StatusResponse{
		Header: got.Header, Version: "3.7.3", StorageVersion: "3.7.0", Leader: testMember,
		RaftIndex: 12, RaftAppliedIndex: 11, RaftTerm: 7, DbSize: 4711, DbSizeInUse: s.node.KV().SizeInUse(),
		DbSizeQuota: 2 << 30, DowngradeInfo: &pb.DowngradeInfo{},
	}
	if !proto.Equal(got, want) || got.DbSizeInUse == 0 {
		t.Errorf("got %v, want %v", got, want)
	}

	s.node.set(func(n *testNode) { n.status.Leader = 0 })
	if _, err := s.maint.Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: 3}); err != nil {
		t.Fatal(err)
	}
	got, err = s.maint.Status(t.Context(), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	alarm := (&pb.AlarmMember{MemberID: 3, Alarm: pb.AlarmType_NOSPACE}).String()
	if len(got.Errors) != 2 || got.Errors[0] != "etcdserver: no leader" || got.Errors[1] != alarm {
		t.Errorf("errors are %q", got.Errors)
	}
}

func TestAlarm(t *testing.T) {
	s := newTestServer(t, nil)
	for _, tt := range []struct {
		action pb.AlarmRequest_AlarmAction
		want   int
	}{
		{pb.AlarmRequest_GET, 0}, {pb.AlarmRequest_ACTIVATE, 1}, {pb.AlarmRequest_GET, 1},
		{pb.AlarmRequest_DEACTIVATE, 1}, {pb.AlarmRequest_DEACTIVATE, 0}, {pb.AlarmRequest_GET, 0},
	} {
		got, err := s.maint.Alarm(t.Context(), &pb.AlarmRequest{Action: tt.action, Alarm: pb.AlarmType_NOSPACE, MemberID: testMember})
		if err != nil {
			t.Fatal(err)
		}
		wantHeader(t, got.Header, 1)
		if len(got.Alarms) != tt.want {
			t.Errorf("%s returned %v, want %d", tt.action, got.Alarms, tt.want)
		}
	}
}

func TestHashes(t *testing.T) {
	s := newTestServer(t, nil)
	s.mustPut(t, "k", "1")
	s.mustPut(t, "k", "2")
	h, err := s.maint.Hash(t.Context(), &pb.HashRequest{})
	if err != nil || h.Hash == 0 {
		t.Fatal(h, err)
	}
	wantHeader(t, h.Header, 3)
	kv, err := s.maint.HashKV(t.Context(), &pb.HashKVRequest{Revision: 2})
	if err != nil || kv.Hash == 0 || kv.HashRevision != 2 {
		t.Fatal(kv, err)
	}
	wantHeader(t, kv.Header, 3)
	_, err = s.maint.HashKV(t.Context(), &pb.HashKVRequest{Revision: 9})
	wantError(t, err, rpctypes.ErrGRPCFutureRev)
}

func TestSnapshot(t *testing.T) {
	s := newTestServer(t, nil)
	for _, size := range []int{0, 1, snapshotChunk, 3*snapshotChunk + 5} {
		s.node.snapshot = bytes.Repeat([]byte{'x'}, size)
		stream, err := s.maint.Snapshot(t.Context(), &pb.SnapshotRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var all []byte
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r.Blob...)
			if want := max(0, size-len(all)); r.RemainingBytes != uint64(want) || r.Version != "3.7.0" {
				t.Errorf("after %d of %d bytes: remaining %d, version %q", len(all), size, r.RemainingBytes, r.Version)
			}
		}
		sum := sha256.Sum256(s.node.snapshot)
		if want := append(bytes.Clone(s.node.snapshot), sum[:]...); !bytes.Equal(all, want) {
			t.Errorf("snapshot of %d bytes arrived as %d", size, len(all))
		}
	}
}

// untaken is a server with a snapshot that is larger than what is on its way to a client.
func untaken(t *testing.T, patience time.Duration) (s *testServer, begin func(context.Context) (pb.Maintenance_SnapshotClient, error), allGone func()) {
	s = newTestServer(t, nil)
	s.snapshotPatience = patience
	s.node.snapshot = make([]byte, 64<<20)
	begin = func(ctx context.Context) (pb.Maintenance_SnapshotClient, error) {
		stream, err := s.maint.Snapshot(ctx, &pb.SnapshotRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return stream, err
	}
	allGone = func() {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); len(s.snapshots) > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a snapshot stays")
			}
		}
	}
	return s, begin, allGone
}

// A snapshot is a copy of everything on the member's disk: few are made at a time.
func TestMaxSnapshots(t *testing.T) {
	_, begin, allGone := untaken(t, snapshotPatience)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxSnapshots {
		if _, err := begin(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := begin(ctx); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	cancel()
	allGone()
	if _, err := begin(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// None stays for a client that takes nothing of it.
func TestSnapshotThatIsNotTaken(t *testing.T) {
	_, begin, allGone := untaken(t, 50*time.Millisecond)
	stream, err := begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	allGone()
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a client that took nothing is told %v", err)
	}
}

func TestMoveLeader(t *testing.T) {
	s := newTestServer(t, nil)
	move := func(to uint64) error {
		_, err := s.maint.MoveLeader(t.Context(), &pb.MoveLeaderRequest{TargetID: to})
		return err
	}
	wantError(t, move(99), rpctypes.ErrGRPCBadLeaderTransferee)
	wantError(t, move(2), rpctypes.ErrGRPCBadLeaderTransferee) // a learner
	wantError(t, move(testMember), nil)
	if s.node.movedTo != 0 {
		t.Error("moved to where it was")
	}
	wantError(t, move(3), nil)
	if s.node.movedTo != 3 {
		t.Error("not moved")
	}
	s.node.set(func(n *testNode) { n.status.Leader = 3 })
	wantError(t, move(3), rpctypes.ErrGRPCNotLeader)
}

func TestDowngrade(t *testing.T) {
	s := newTestServer(t, nil)
	for _, tt := range []struct {
		action  pb.DowngradeRequest_DowngradeAction
		version string
		want    error
	}{
		{pb.DowngradeRequest_VALIDATE, "x", rpctypes.ErrGRPCWrongDowngradeVersionFormat},
		{pb.DowngradeRequest_VALIDATE, "3", rpctypes.ErrGRPCWrongDowngradeVersionFormat},
		{pb.DowngradeRequest_VALIDATE, "3.6", rpctypes.ErrGRPCInvalidDowngradeTargetVersion},
		{pb.DowngradeRequest_ENABLE, "3.6.0", rpctypes.ErrGRPCInvalidDowngradeTargetVersion},
		{pb.DowngradeRequest_CANCEL, "", nil},
		{7, "", status.Error(codes.Unknown, "etcdserver: unknown method")},
	} {
		got, err := s.maint.Downgrade(t.Context(), &pb.DowngradeRequest{Action: tt.action, Version: tt.version})
		wantError(t, err, tt.want)
		if err == nil && got.Version != "3.7" {
			t.Errorf("version is %q", got.Version)
		}
	}
}

func TestDefragment(t *testing.T) {
	s := newTestServer(t, nil)
	got, err := s.maint.Defragment(t.Context(), &pb.DefragmentRequest{})
	if err != nil || got.Header != nil || s.node.defragged != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestCluster(t *testing.T) {
	s := newTestServer(t, nil)
	ctx := t.Context()
	list, err := s.clus.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil || len(list.Members) != 3 {
		t.Fatal(list, err)
	}
	wantHeader(t, list.Header, 0)
	for _, urls := range [][]string{nil, {"nonsense"}, {"ftp://a:1"}, {"http://a:1/path"}} {
		_, err := s.clus.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: urls})
		wantError(t, err, rpctypes.ErrGRPCMemberBadURLs)
	}
	added, err := s.clus.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}, IsLearner: true})
	if err != nil || added.Member.ID != 4 || !added.Member.IsLearner || len(added.Members) != 4 {
		t.Error(added, err)
	}
	_, err = s.clus.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 2})
	wantError(t, err, status.Error(codes.Unknown, "not to be removed"))
	updated, err := s.clus.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 2, PeerURLs: []string{"http://b:1"}})
	if err != nil || updated.Members[0].PeerURLs[0] != "http://b:1" {
		t.Error(updated, err)
	}
	if promoted, err := s.clus.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 2}); err != nil || promoted.Members[0].ID != 2 {
		t.Error(promoted, err)
	}
}

func TestAuth(t *testing.T) {
	s := newTestServer(t, func(c *Config) { c.BcryptCost = 4 })
	ctx := t.Context()
	st, err := s.auth.AuthStatus(ctx, &pb.AuthStatusRequest{})
	if err != nil || st.Enabled || st.AuthRevision != 1 {
		t.Error(st, err)
	}
	wantHeader(t, st.Header, 1)
	_, err = s.auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: "secret"})
	wantError(t, err, rpctypes.ErrGRPCAuthNotEnabled)

	if _, err := s.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "u", Password: "secret"}); err != nil {
		t.Fatal(err)
	}
	if r, _ := s.node.lastProposed(); r.AuthUserAdd.Password != "" || r.AuthUserAdd.HashedPassword == "" {
		t.Error("a password was proposed as it is")
	}
	if _, err := s.auth.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: "u", Password: "other"}); err != nil {
		t.Fatal(err)
	}
	if r, _ := s.node.lastProposed(); r.AuthUserChangePassword.Password != "" || r.AuthUserChangePassword.HashedPassword == "" {
		t.Error("a password was proposed as it is")
	}
	_, err = s.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "u", Options: nil})
	wantError(t, err, rpctypes.ErrGRPCUserAlreadyExist)
	_, err = s.auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "long", Password: string(make([]byte, 100))})
	wantError(t, err, status.Error(codes.Unknown, "bcrypt: password length exceeds 72 bytes"))

	if _, err := s.auth.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.auth.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"}); err != nil {
		t.Fatal(err)
	}
	users, err := s.auth.UserList(ctx, &pb.AuthUserListRequest{})
	if err != nil || len(users.Users) != 1 {
		t.Error(users, err)
	}
	user, err := s.auth.UserGet(ctx, &pb.AuthUserGetRequest{Name: "u"})
	if err != nil || len(user.Roles) != 1 {
		t.Error(user, err)
	}
	_, err = s.auth.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "none"})
	wantError(t, err, rpctypes.ErrGRPCRoleNotFound)
	_, err = s.auth.AuthEnable(ctx, &pb.AuthEnableRequest{})
	if err == nil {
		t.Error("authentication was enabled, and nothing checks it")
	}
	if _, err := s.auth.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: "u"}); err != nil {
		t.Error(err)
	}
}
