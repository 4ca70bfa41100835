package auth

import (
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Apply evaluates the command in r if it is one of this package's, which
// handled reports. What it changes is written to b and seen at once, by readers
// as by the next command, before b is committed: a node that cannot commit
// stops. After an error nothing has changed. The response has no header.
func (s *Store) Apply(b *pebble.Batch, r *pb.InternalRaftRequest) (resp proto.Message, err error, handled bool) {
	switch {
	case r.AuthEnable != nil:
		resp, err = answer(&pb.AuthEnableResponse{}, s.enable(b))
	case r.AuthDisable != nil:
		s.disable(b)
		resp = &pb.AuthDisableResponse{}
	case r.AuthStatus != nil:
		st := s.state.Load()
		resp = &pb.AuthStatusResponse{Enabled: st.enabled, AuthRevision: st.revision}
	case r.Authenticate != nil:
		resp, err = answer(s.authenticate(r.Authenticate))

	case r.AuthUserAdd != nil:
		resp, err = answer(&pb.AuthUserAddResponse{}, s.addUser(b, r.AuthUserAdd))
	case r.AuthUserDelete != nil:
		resp, err = answer(&pb.AuthUserDeleteResponse{}, s.deleteUser(b, r.AuthUserDelete))
	case r.AuthUserGet != nil:
		resp, err = answer(s.getUser(r.AuthUserGet))
	case r.AuthUserChangePassword != nil:
		resp, err = answer(&pb.AuthUserChangePasswordResponse{}, s.changePassword(b, r.AuthUserChangePassword))
	case r.AuthUserGrantRole != nil:
		resp, err = answer(&pb.AuthUserGrantRoleResponse{}, s.grantRole(b, r.AuthUserGrantRole))
	case r.AuthUserRevokeRole != nil:
		resp, err = answer(&pb.AuthUserRevokeRoleResponse{}, s.revokeRole(b, r.AuthUserRevokeRole))
	case r.AuthUserList != nil:
		resp = &pb.AuthUserListResponse{Users: names(s.state.Load().users)}

	case r.AuthRoleAdd != nil:
		resp, err = answer(&pb.AuthRoleAddResponse{}, s.addRole(b, r.AuthRoleAdd))
	case r.AuthRoleDelete != nil:
		resp, err = answer(&pb.AuthRoleDeleteResponse{}, s.deleteRole(b, r.AuthRoleDelete))
	case r.AuthRoleGet != nil:
		resp, err = answer(s.getRole(r.AuthRoleGet))
	case r.AuthRoleGrantPermission != nil:
		resp, err = answer(&pb.AuthRoleGrantPermissionResponse{}, s.grantPermission(b, r.AuthRoleGrantPermission))
	case r.AuthRoleRevokePermission != nil:
		resp, err = answer(&pb.AuthRoleRevokePermissionResponse{}, s.revokePermission(b, r.AuthRoleRevokePermission))
	case r.AuthRoleList != nil:
		resp = &pb.AuthRoleListResponse{Roles: names(s.state.Load().roles)}

	default:
		return nil, nil, false
	}
	return resp, err, true
}

// answer drops the response of a failed command.
func answer(resp proto.Message, err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func names[T interface{ id() string }](list []T) []string {
	ns := make([]string, len(list))
	for i, item := range list {
		ns[i] = item.id()
	}
	return ns
}

func (s *Store) enable(b *pebble.Batch) error {
	st := s.state.Load()
	if st.enabled {
		return nil
	}
	root := st.user(RootUser)
	if root == nil {
		return ErrRootUserNotExist
	}
	if !root.has(RootRole) {
		return ErrRootRoleNotExist
	}
	if !s.enforced {
		return ErrEnforcementUnsupported
	}
	e := s.edit(b)
	e.next.enabled = true
	s.publish(e, "enabled authentication") // at the same revision, as etcd
	return nil
}

func (s *Store) disable(b *pebble.Batch) {
	if !s.Enabled() {
		return
	}
	e := s.edit(b)
	e.next.enabled = false
	s.commit(e, "disabled authentication")
}

// authenticate answers with the token that was proposed, if the user can have
// one. The password was checked before the proposal.
func (s *Store) authenticate(r *pb.InternalAuthenticateRequest) (*pb.AuthenticateResponse, error) {
	st := s.state.Load()
	if !st.enabled {
		return nil, ErrAuthNotEnabled
	}
	if u := st.user(r.Name); u == nil || u.noPassword {
		return nil, ErrAuthFailed
	}
	return &pb.AuthenticateResponse{Token: r.SimpleToken}, nil
}

func (s *Store) addUser(b *pebble.Batch, r *pb.AuthUserAddRequest) error {
	if r.Name == "" {
		return ErrUserEmpty
	}
	if len(r.Name) > maxNameLen {
		return ErrInvalidAuthMgmt
	}
	if s.state.Load().user(r.Name) != nil {
		return ErrUserAlreadyExist
	}
	u := &user{name: r.Name, noPassword: r.Options.GetNoPassword()}
	if !u.noPassword {
		var err error
		if u.password, err = storedPassword(r.Password, r.HashedPassword); err != nil {
			return err
		}
	}
	e := s.edit(b)
	e.putUser(u)
	s.commit(e, "added a user", zap.String("user", r.Name))
	return nil
}

func (s *Store) deleteUser(b *pebble.Batch, r *pb.AuthUserDeleteRequest) error {
	st := s.state.Load()
	if st.enabled && r.Name == RootUser {
		return ErrInvalidAuthMgmt
	}
	if st.user(r.Name) == nil {
		return ErrUserNotFound
	}
	e := s.edit(b)
	e.deleteUser(r.Name)
	s.commit(e, "deleted a user", zap.String("user", r.Name))
	return nil
}

func (s *Store) getUser(r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	u := s.state.Load().user(r.Name)
	if u == nil {
		return nil, ErrUserNotFound
	}
	return &pb.AuthUserGetResponse{Roles: slices.Clone(u.roles)}, nil
}

func (s *Store) changePassword(b *pebble.Batch, r *pb.AuthUserChangePasswordRequest) error {
	u := s.state.Load().user(r.Name)
	if u == nil {
		return ErrUserNotFound
	}
	changed := *u
	if !u.noPassword {
		var err error
		if changed.password, err = storedPassword(r.Password, r.HashedPassword); err != nil {
			return err
		}
	}
	e := s.edit(b)
	e.putUser(&changed)
	s.commit(e, "changed a password", zap.String("user", r.Name))
	return nil
}

func (s *Store) grantRole(b *pebble.Batch, r *pb.AuthUserGrantRoleRequest) error {
	st := s.state.Load()
	u := st.user(r.User)
	if u == nil {
		return ErrUserNotFound
	}
	if r.Role != RootRole && st.role(r.Role) == nil {
		return ErrRoleNotFound
	}
	i, granted := slices.BinarySearch(u.roles, r.Role)
	if granted {
		return nil // and the revision stays
	}
	changed := *u
	changed.roles = slices.Insert(slices.Clone(u.roles), i, r.Role)
	e := s.edit(b)
	e.putUser(&changed)
	s.commit(e, "granted a role", zap.String("user", r.User), zap.String("role", r.Role))
	return nil
}

func (s *Store) revokeRole(b *pebble.Batch, r *pb.AuthUserRevokeRoleRequest) error {
	st := s.state.Load()
	if st.enabled && r.Name == RootUser && r.Role == RootRole {
		return ErrInvalidAuthMgmt
	}
	u := st.user(r.Name)
	if u == nil {
		return ErrUserNotFound
	}
	if !u.has(r.Role) {
		return ErrRoleNotGranted
	}
	e := s.edit(b)
	e.putUser(u.without(r.Role))
	s.commit(e, "revoked a role", zap.String("user", r.Name), zap.String("role", r.Role))
	return nil
}

// without returns u stripped of a role that it has.
func (u *user) without(role string) *user {
	changed := *u
	i, _ := slices.BinarySearch(u.roles, role)
	changed.roles = slices.Delete(slices.Clone(u.roles), i, i+1)
	return &changed
}

func (s *Store) addRole(b *pebble.Batch, r *pb.AuthRoleAddRequest) error {
	if r.Name == "" {
		return ErrRoleEmpty
	}
	if len(r.Name) > maxNameLen {
		return ErrInvalidAuthMgmt
	}
	if s.state.Load().role(r.Name) != nil {
		return ErrRoleAlreadyExist
	}
	e := s.edit(b)
	e.putRole(newRole(r.Name, nil))
	s.commit(e, "added a role", zap.String("role", r.Name))
	return nil
}

// deleteRole takes the role from every user who has it, too.
func (s *Store) deleteRole(b *pebble.Batch, r *pb.AuthRoleDeleteRequest) error {
	st := s.state.Load()
	if st.enabled && r.Role == RootRole {
		return ErrInvalidAuthMgmt
	}
	if st.role(r.Role) == nil {
		return ErrRoleNotFound
	}
	e := s.edit(b)
	e.deleteRole(r.Role)
	for _, u := range st.users {
		if u.has(r.Role) {
			e.putUser(u.without(r.Role))
		}
	}
	s.commit(e, "deleted a role", zap.String("role", r.Role))
	return nil
}

// getRole shows the root role as what it may do, whatever was granted to it.
func (s *Store) getRole(r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	found := s.state.Load().role(r.Role)
	if found == nil {
		return nil, ErrRoleNotFound
	}
	if found.name == RootRole {
		everything := &authpb.Permission{PermType: authpb.Permission_READWRITE, RangeEnd: []byte(unbounded)}
		return &pb.AuthRoleGetResponse{Perm: []*authpb.Permission{everything}}, nil
	}
	return &pb.AuthRoleGetResponse{Perm: found.permissionMessages()}, nil
}

func (s *Store) grantPermission(b *pebble.Batch, r *pb.AuthRoleGrantPermissionRequest) error {
	if r.Perm == nil {
		return ErrPermissionNotGiven
	}
	if !validRange(r.Perm.Key, r.Perm.RangeEnd) {
		return ErrInvalidAuthMgmt
	}
	old := s.state.Load().role(r.Name)
	if old == nil {
		return ErrRoleNotFound
	}
	p := permission{r.Perm.PermType, string(r.Perm.Key), string(r.Perm.RangeEnd)}
	e := s.edit(b)
	e.putRole(newRole(r.Name, old.permsWith(p)))
	s.commit(e, "granted a permission", zap.String("role", r.Name), zap.Stringer("permission", p.kind),
		zap.String("key", p.key), zap.String("range-end", p.rangeEnd))
	return nil
}

// permsWith returns the permissions of r and p. One on the same range is
// replaced, but only if it is the first of its key: etcd looks no further, and
// what it lists in the end, two of the same range included, is what we list.
func (r *role) permsWith(p permission) []permission {
	perms := slices.Clone(r.perms)
	i, found := slices.BinarySearchFunc(perms, p, compareKeys)
	if found && perms[i].rangeEnd == p.rangeEnd {
		perms[i].kind = p.kind
		return perms
	}
	for i < len(perms) && perms[i].key == p.key {
		i++
	}
	return slices.Insert(perms, i, p)
}

func (s *Store) revokePermission(b *pebble.Batch, r *pb.AuthRoleRevokePermissionRequest) error {
	old := s.state.Load().role(r.Role)
	if old == nil {
		return ErrRoleNotFound
	}
	perms := slices.DeleteFunc(slices.Clone(old.perms), func(p permission) bool {
		return p.key == string(r.Key) && p.rangeEnd == string(r.RangeEnd)
	})
	if len(perms) == len(old.perms) {
		return ErrPermissionNotGranted
	}
	e := s.edit(b)
	e.putRole(newRole(r.Role, perms))
	s.commit(e, "revoked a permission", zap.String("role", r.Role),
		zap.ByteString("key", r.Key), zap.ByteString("range-end", r.RangeEnd))
	return nil
}

// edit is a state in the making, with the batch that takes its records. It
// begins as a copy of the current one.
type edit struct {
	b    *pebble.Batch
	next state
	// copiedUsers and copiedRoles tell whether the lists in next are its own.
	copiedUsers, copiedRoles bool
}

func (s *Store) edit(b *pebble.Batch) *edit {
	return &edit{b: b, next: *s.state.Load()}
}

// commit publishes the state that e has made as a new revision.
func (s *Store) commit(e *edit, what string, fields ...zap.Field) {
	e.next.revision++
	s.publish(e, what, fields...)
}

func (s *Store) publish(e *edit, what string, fields ...zap.Field) {
	e.set(configKey(), encodeConfig(e.next.enabled, e.next.revision))
	s.state.Store(&e.next)
	s.logger.Info(what, append(fields, zap.Uint64("auth-revision", e.next.revision))...)
}

func (e *edit) putUser(u *user) {
	e.copyUsers()
	e.next.users = put(e.next.users, u)
	e.set(userKey(u.name), encodeMessage(u.message()))
}

func (e *edit) deleteUser(name string) {
	e.copyUsers()
	i, _ := search(e.next.users, name)
	e.next.users = slices.Delete(e.next.users, i, i+1)
	e.delete(userKey(name))
}

func (e *edit) putRole(r *role) {
	e.copyRoles()
	e.next.roles = put(e.next.roles, r)
	e.set(roleKey(r.name), encodeMessage(r.message()))
}

func (e *edit) deleteRole(name string) {
	e.copyRoles()
	i, _ := search(e.next.roles, name)
	e.next.roles = slices.Delete(e.next.roles, i, i+1)
	e.delete(roleKey(name))
}

func (e *edit) copyUsers() {
	if !e.copiedUsers {
		e.next.users, e.copiedUsers = slices.Clone(e.next.users), true
	}
}

func (e *edit) copyRoles() {
	if !e.copiedRoles {
		e.next.roles, e.copiedRoles = slices.Clone(e.next.roles), true
	}
}

// put inserts item into list, or replaces the one of its name.
func put[T interface{ id() string }](list []T, item T) []T {
	i, found := search(list, item.id())
	if found {
		list[i] = item
		return list
	}
	return slices.Insert(list, i, item)
}

// set and delete write to the batch. It is open and in memory, so they cannot
// fail; a state that went on without its record would differ after a restart.

func (e *edit) set(key, value []byte) {
	if err := e.b.Set(key, value, nil); err != nil {
		panic(fmt.Sprintf("auth: write record %q: %v", key, err))
	}
}

func (e *edit) delete(key []byte) {
	if err := e.b.Delete(key, nil); err != nil {
		panic(fmt.Sprintf("auth: delete record %q: %v", key, err))
	}
}
