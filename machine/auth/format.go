package auth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/authpb"
	"google.golang.org/protobuf/proto"
)

// The stored form of the table; docs/format-auth.md describes it.
const (
	prefix = 'u'

	kindConfig = 'c' // comes first
	kindRole   = 'r'
	kindUser   = 'u'

	formatVersion = 1
	configLen     = 1 + 1 + 8
)

func configKey() []byte          { return []byte{prefix, kindConfig} }
func roleKey(name string) []byte { return append([]byte{prefix, kindRole}, name...) }
func userKey(name string) []byte { return append([]byte{prefix, kindUser}, name...) }

func encodeConfig(enabled bool, revision uint64) []byte {
	b := []byte{formatVersion, 0}
	if enabled {
		b[1] = 1
	}
	return binary.BigEndian.AppendUint64(b, revision)
}

func encodeMessage(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{formatVersion}, m)
	if err != nil {
		// Names and roles came in messages of their own; they fit again.
		panic(fmt.Sprintf("auth: encode %T: %v", m, err))
	}
	return b
}

// load reads a state from it, which ranges over the records of the table, and
// closes it.
func load(it *pebble.Iterator) (*state, error) {
	st := &state{}
	for it.First(); it.Valid(); it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, errors.Join(err, it.Close())
		}
		if err := st.decode(it.Key(), value); err != nil {
			return nil, errors.Join(fmt.Errorf("record %q: %w", it.Key(), err), it.Close())
		}
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return nil, err
	}
	if st.revision == 0 {
		st.revision = 1 // nothing was ever changed
	}
	return st, nil
}

// decode adds one record to st. Records come in the order of their keys.
func (st *state) decode(key, value []byte) error {
	if len(key) < 2 || key[0] != prefix {
		return errors.New("unknown kind of record")
	}
	if len(value) == 0 {
		return errors.New("empty")
	}
	if value[0] != formatVersion {
		return fmt.Errorf("format version %d, this release reads version %d", value[0], formatVersion)
	}
	name := string(key[2:])
	switch {
	case key[1] == kindConfig && name == "":
		return st.decodeConfig(value)
	case key[1] != kindRole && key[1] != kindUser:
		return errors.New("unknown kind of record")
	case st.revision == 0:
		return errors.New("the record of the auth revision, which precedes all others, is missing")
	case name == "":
		return errors.New("empty name")
	case key[1] == kindRole:
		return st.decodeRole(name, value)
	default:
		return st.decodeUser(name, value)
	}
}

func (st *state) decodeConfig(value []byte) error {
	if len(value) != configLen {
		return fmt.Errorf("%d bytes long, want %d", len(value), configLen)
	}
	if value[1] > 1 {
		return fmt.Errorf("flag %d, want 0 or 1", value[1])
	}
	st.enabled = value[1] == 1
	st.revision = binary.BigEndian.Uint64(value[2:])
	if st.revision == 0 {
		return errors.New("auth revision 0, the first is 1")
	}
	return nil
}

func (st *state) decodeRole(name string, value []byte) error {
	m := &authpb.Role{}
	if err := proto.Unmarshal(value[1:], m); err != nil {
		return err
	}
	if string(m.Name) != name {
		return fmt.Errorf("it is of a role named %q", m.Name)
	}
	var perms []permission
	for _, p := range m.KeyPermission {
		if !validRange(p.Key, p.RangeEnd) {
			return fmt.Errorf("permission on the range from %q to %q, which is none", p.Key, p.RangeEnd)
		}
		perms = append(perms, permission{p.PermType, string(p.Key), string(p.RangeEnd)})
	}
	if !slices.IsSortedFunc(perms, compareKeys) {
		return errors.New("permissions are not in the order of their keys")
	}
	st.roles = append(st.roles, newRole(name, perms))
	return nil
}

func (st *state) decodeUser(name string, value []byte) error {
	m := &authpb.User{}
	if err := proto.Unmarshal(value[1:], m); err != nil {
		return err
	}
	if string(m.Name) != name {
		return fmt.Errorf("it is of a user named %q", m.Name)
	}
	for i, r := range m.Roles {
		if i > 0 && m.Roles[i-1] >= r {
			return errors.New("roles are not in the order of their names")
		}
		if r != RootRole && st.role(r) == nil {
			return fmt.Errorf("it has the role %q, which does not exist", r)
		}
	}
	u := &user{name: name, password: m.Password, noPassword: m.Options.GetNoPassword(), roles: m.Roles}
	if u.noPassword && len(u.password) > 0 {
		return errors.New("it has a password and the option to have none")
	}
	st.users = append(st.users, u)
	return nil
}

// compareKeys is the order of the permissions of a role.
func compareKeys(a, b permission) int { return strings.Compare(a.key, b.key) }
