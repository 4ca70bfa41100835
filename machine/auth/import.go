package auth

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/authpb"
	"google.golang.org/protobuf/proto"
)

// Import adds to b a state that comes from elsewhere, for Open to find it. It
// refuses what Open would refuse, but for a state with authentication enabled,
// which is the caller's to judge. What etcd may have left in another order, or
// without the message that says so, is put right; what it means stays.
func Import(b *pebble.Batch, e *Export) error {
	st := &state{}
	set := func(key, value []byte) error {
		if err := st.decode(key, value); err != nil {
			return fmt.Errorf("import users and roles: %q: %w", key, err)
		}
		return b.Set(key, value, nil)
	}
	errs := []error{set(configKey(), encodeConfig(e.Enabled, e.Revision))}
	for _, r := range e.Roles {
		errs = append(errs, checkName(r.Name), set(roleKey(string(r.Name)), encodeMessage(tidyRole(r))))
	}
	for _, u := range e.Users {
		errs = append(errs, checkName(u.Name), set(userKey(string(u.Name)), encodeMessage(tidyUser(u))))
	}
	return errors.Join(errs...)
}

func checkName(name []byte) error {
	if len(name) == 0 || len(name) > maxNameLen {
		return fmt.Errorf("import users and roles: a name has %d bytes", len(name))
	}
	return nil
}

func tidyRole(r *authpb.Role) *authpb.Role {
	r = proto.CloneOf(r)
	slices.SortStableFunc(r.KeyPermission, func(x, y *authpb.Permission) int { return slices.Compare(x.Key, y.Key) })
	return r
}

func tidyUser(u *authpb.User) *authpb.User {
	u = proto.CloneOf(u)
	slices.Sort(u.Roles)
	u.Roles = slices.Compact(u.Roles)
	if u.Options == nil {
		u.Options = &authpb.UserAddOptions{}
	}
	return u
}
