package api

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/machine/auth"
)

// authServer proposes every request, questions too, as etcd does.
type authServer struct {
	s *Server
	pb.UnsafeAuthServer
}

// proposeAuth replicates one request and returns the machine's answer.
func proposeAuth[T responseWithHeader](as authServer, ctx context.Context, r *pb.InternalRaftRequest) (T, error) {
	resp, err := as.s.propose(ctx, r)
	if err != nil {
		var none T
		return none, err
	}
	answer := resp.(T)
	if h := answer.GetHeader(); h != nil {
		as.s.complete(h)
	}
	return answer, nil
}

type responseWithHeader interface{ GetHeader() *pb.ResponseHeader }

// Authenticate implements pb.AuthServer.
func (as authServer) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	if err := as.s.node.ReadIndex(ctx); err != nil {
		return nil, statusError(err)
	}
	store := as.s.node.Auth()
	// The password goes no further than this: not into the log, which is kept on disk.
	password := r.Password
	r.Password = ""
	for {
		checked, err := store.CheckPassword(r.Name, password)
		if err != nil {
			return nil, statusError(err)
		}
		resp, err := proposeAuth[*pb.AuthenticateResponse](as, ctx, &pb.InternalRaftRequest{
			Authenticate: &pb.InternalAuthenticateRequest{Name: r.Name},
		})
		if err != nil {
			return nil, err
		}
		if checked == store.Revision() {
			return resp, nil
		}
		// Users have changed between check and command: the password may be another now.
	}
}

// hash makes of a password what may be replicated.
func (as authServer) hash(password string) (string, error) {
	h, err := auth.HashPassword(password, as.s.cfg.BcryptCost)
	return h, statusError(err)
}

// AuthEnable implements pb.AuthServer.
func (as authServer) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	return proposeAuth[*pb.AuthEnableResponse](as, ctx, &pb.InternalRaftRequest{AuthEnable: r})
}

// AuthDisable implements pb.AuthServer.
func (as authServer) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	return proposeAuth[*pb.AuthDisableResponse](as, ctx, &pb.InternalRaftRequest{AuthDisable: r})
}

// AuthStatus implements pb.AuthServer.
func (as authServer) AuthStatus(ctx context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return proposeAuth[*pb.AuthStatusResponse](as, ctx, &pb.InternalRaftRequest{AuthStatus: r})
}

// UserAdd implements pb.AuthServer.
func (as authServer) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	if !r.GetOptions().GetNoPassword() {
		hashed, err := as.hash(r.Password)
		if err != nil {
			return nil, err
		}
		r.HashedPassword = hashed
	}
	r.Password = "" // what is proposed is kept on disks
	return proposeAuth[*pb.AuthUserAddResponse](as, ctx, &pb.InternalRaftRequest{AuthUserAdd: r})
}

// UserGet implements pb.AuthServer.
func (as authServer) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	return proposeAuth[*pb.AuthUserGetResponse](as, ctx, &pb.InternalRaftRequest{AuthUserGet: r})
}

// UserList implements pb.AuthServer.
func (as authServer) UserList(ctx context.Context, r *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	return proposeAuth[*pb.AuthUserListResponse](as, ctx, &pb.InternalRaftRequest{AuthUserList: r})
}

// UserDelete implements pb.AuthServer.
func (as authServer) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	return proposeAuth[*pb.AuthUserDeleteResponse](as, ctx, &pb.InternalRaftRequest{AuthUserDelete: r})
}

// UserChangePassword implements pb.AuthServer.
func (as authServer) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	if r.Password != "" {
		hashed, err := as.hash(r.Password)
		if err != nil {
			return nil, err
		}
		r.HashedPassword, r.Password = hashed, ""
	}
	return proposeAuth[*pb.AuthUserChangePasswordResponse](as, ctx, &pb.InternalRaftRequest{AuthUserChangePassword: r})
}

// UserGrantRole implements pb.AuthServer.
func (as authServer) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	return proposeAuth[*pb.AuthUserGrantRoleResponse](as, ctx, &pb.InternalRaftRequest{AuthUserGrantRole: r})
}

// UserRevokeRole implements pb.AuthServer.
func (as authServer) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	return proposeAuth[*pb.AuthUserRevokeRoleResponse](as, ctx, &pb.InternalRaftRequest{AuthUserRevokeRole: r})
}

// RoleAdd implements pb.AuthServer.
func (as authServer) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	return proposeAuth[*pb.AuthRoleAddResponse](as, ctx, &pb.InternalRaftRequest{AuthRoleAdd: r})
}

// RoleGet implements pb.AuthServer.
func (as authServer) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	return proposeAuth[*pb.AuthRoleGetResponse](as, ctx, &pb.InternalRaftRequest{AuthRoleGet: r})
}

// RoleList implements pb.AuthServer.
func (as authServer) RoleList(ctx context.Context, r *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	return proposeAuth[*pb.AuthRoleListResponse](as, ctx, &pb.InternalRaftRequest{AuthRoleList: r})
}

// RoleDelete implements pb.AuthServer.
func (as authServer) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	return proposeAuth[*pb.AuthRoleDeleteResponse](as, ctx, &pb.InternalRaftRequest{AuthRoleDelete: r})
}

// RoleGrantPermission implements pb.AuthServer.
func (as authServer) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	return proposeAuth[*pb.AuthRoleGrantPermissionResponse](as, ctx, &pb.InternalRaftRequest{AuthRoleGrantPermission: r})
}

// RoleRevokePermission implements pb.AuthServer.
func (as authServer) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	return proposeAuth[*pb.AuthRoleRevokePermissionResponse](as, ctx, &pb.InternalRaftRequest{AuthRoleRevokePermission: r})
}
