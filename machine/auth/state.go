package auth

import (
	"cmp"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
)

// state is one state of the table. It is immutable once published, with all
// that it points to.
type state struct {
	enabled  bool
	revision uint64
	users    []*user // ascending by name
	roles    []*role // ascending by name
}

type user struct {
	name string
	// password is the bcrypt hash. Invariant: empty if noPassword.
	password   []byte
	noPassword bool
	// roles are strictly ascending. Each names a role of the state, except
	// that the root role may be granted without existing.
	roles []string
}

type role struct {
	name string
	// perms are ascending by key; those with one key in the order granted.
	perms []permission
	// read and write are what perms add up to.
	read, write spans
}

// permission allows what kind says on [key, rangeEnd), in etcd's notation.
type permission struct {
	kind          authpb.Permission_Type
	key, rangeEnd string
}

func (u *user) id() string { return u.name }
func (r *role) id() string { return r.name }

func (u *user) has(role string) bool {
	_, found := slices.BinarySearch(u.roles, role)
	return found
}

// newRole returns a role with perms, which are in the order of role.perms.
func newRole(name string, perms []permission) *role {
	r := &role{name: name, perms: perms}
	for _, p := range perms {
		switch p.kind {
		case authpb.Permission_READ:
			r.read = append(r.read, p.span())
		case authpb.Permission_WRITE:
			r.write = append(r.write, p.span())
		case authpb.Permission_READWRITE:
			r.read = append(r.read, p.span())
			r.write = append(r.write, p.span())
		}
		// Other kinds are stored, as etcd does, and allow nothing.
	}
	r.read, r.write = r.read.merge(), r.write.merge()
	return r
}

func (r *role) readable() spans { return r.read }
func (r *role) writable() spans { return r.write }

func (st *state) user(name string) *user { return lookup(st.users, name) }
func (st *state) role(name string) *role { return lookup(st.roles, name) }

func lookup[T interface {
	*user | *role
	id() string
}](list []T, name string) T {
	if i, found := search(list, name); found {
		return list[i]
	}
	return nil
}

// search returns where in list the item of that name is, or belongs.
func search[T interface{ id() string }](list []T, name string) (int, bool) {
	return slices.BinarySearchFunc(list, name, func(item T, name string) int {
		return cmp.Compare(item.id(), name)
	})
}

func (st *state) export() *Export {
	e := &Export{Enabled: st.enabled, Revision: st.revision}
	for _, u := range st.users {
		e.Users = append(e.Users, u.message())
	}
	for _, r := range st.roles {
		e.Roles = append(e.Roles, r.message())
	}
	return e
}

func (u *user) message() *authpb.User {
	return &authpb.User{
		Name:     []byte(u.name),
		Password: slices.Clone(u.password),
		Roles:    slices.Clone(u.roles),
		Options:  &authpb.UserAddOptions{NoPassword: u.noPassword},
	}
}

func (r *role) message() *authpb.Role {
	return &authpb.Role{Name: []byte(r.name), KeyPermission: r.permissionMessages()}
}

func (r *role) permissionMessages() []*authpb.Permission {
	var ms []*authpb.Permission
	for _, p := range r.perms {
		ms = append(ms, &authpb.Permission{PermType: p.kind, Key: []byte(p.key), RangeEnd: []byte(p.rangeEnd)})
	}
	return ms
}
