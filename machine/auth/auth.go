// Package auth is the table of users, roles and permissions, a part of the
// deterministic state machine, with etcd's meaning of each command: what it
// changes, what it answers, and what it does to the auth revision.
//
// It promises that equal sequences of commands leave equal tables, that what a
// command changes is written to the batch it is given and nowhere else, and
// that readers on any goroutine see whole states: each command replaces the
// state by a new one.
//
// It hashes no passwords while applying, for a hash is salted: who proposes a
// command hashes first. It knows neither tokens nor connections, and it checks
// permissions only when it is asked to; whether every request asks is the
// business of the layers above, which say so in Options.Enforced.
package auth

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/authpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/engine"
)

// The user and the role that may do everything.
const (
	RootUser = "root"
	RootRole = "root"
)

// maxNameLen bounds the names of users and roles. It is the longest key of the
// file format that snapshots have; etcd ends its process on a longer one.
const maxNameLen = 32768

// The errors that clients see. Texts are etcd's.
var (
	ErrRootUserNotExist     = errors.New("auth: root user does not exist")
	ErrRootRoleNotExist     = errors.New("auth: root user does not have root role")
	ErrUserAlreadyExist     = errors.New("auth: user already exists")
	ErrUserEmpty            = errors.New("auth: user name is empty")
	ErrUserNotFound         = errors.New("auth: user not found")
	ErrRoleAlreadyExist     = errors.New("auth: role already exists")
	ErrRoleNotFound         = errors.New("auth: role not found")
	ErrRoleEmpty            = errors.New("auth: role name is empty")
	ErrPermissionNotGiven   = errors.New("auth: permission not given")
	ErrAuthFailed           = errors.New("auth: authentication failed, invalid user ID or password")
	ErrNoPasswordUser       = errors.New("auth: authentication failed, password was given for no password user")
	ErrPermissionDenied     = errors.New("auth: permission denied")
	ErrRoleNotGranted       = errors.New("auth: role is not granted to the user")
	ErrPermissionNotGranted = errors.New("auth: permission is not granted to the role")
	ErrAuthNotEnabled       = errors.New("auth: authentication is not enabled")
	ErrAuthOldRevision      = errors.New("auth: revision in header is old")
	ErrInvalidAuthMgmt      = errors.New("auth: invalid auth management")
)

// Errors that etcd does not have.
var (
	// ErrEnforcementUnsupported refuses to enable authentication, and to open
	// a state in which it is enabled, while Options.Enforced is false: keys
	// that look protected and are not would be worse than an error.
	ErrEnforcementUnsupported = errors.New("coterie: enabling authentication is not supported by this version")
	// ErrPasswordNotHashed refuses a password that was proposed in plain text.
	ErrPasswordNotHashed = errors.New("coterie: a password was proposed without being hashed")
)

// Options configures Open.
type Options struct {
	// Enforced says that the layers above check the permissions of every
	// request and hand out tokens. Only then can authentication be enabled.
	Enforced bool
	// Logger hears of every change, for whoever audits access; nil is silent.
	Logger *zap.Logger
}

// Store is the open table. Apply belongs to the apply goroutine; the other
// methods may be called from any and never wait for it.
type Store struct {
	enforced bool
	logger   *zap.Logger
	// state is replaced by each change and never changed itself.
	state atomic.Pointer[state]
}

// Open reads the state stored in eng. It fails on a record that it does not
// understand, and on a state that it could not enforce, and changes nothing.
func Open(eng *engine.Engine, o Options) (*Store, error) {
	it, err := eng.NewIter([]byte{prefix}, []byte{prefix + 1})
	if err != nil {
		return nil, fmt.Errorf("read users and roles: %w", err)
	}
	st, err := load(it)
	if err != nil {
		return nil, fmt.Errorf("read users and roles: %w", err)
	}
	if st.enabled && !o.Enforced {
		return nil, fmt.Errorf("authentication is enabled in the data directory; open it with the version that enabled it, or disable authentication there first: %w", ErrEnforcementUnsupported)
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	s := &Store{enforced: o.Enforced, logger: o.Logger}
	s.state.Store(st)
	return s, nil
}

// Enabled reports whether authentication is on.
func (s *Store) Enabled() bool { return s.state.Load().enabled }

// Revision counts the changes of users, roles and permissions, from 1. What was
// decided at one revision does not hold at the next.
func (s *Store) Revision() uint64 { return s.state.Load().revision }

// PermitRead returns nil if user may read [key, rangeEnd) as etcd reads that
// pair: no rangeEnd is the single key, "\x00" is no upper bound. The
// authRevision is the one at which the user was authenticated; 0 says that
// nobody was. While authentication is off everything is permitted. Of a range
// without keys, such as from "b" to "a", the first key decides.
func (s *Store) PermitRead(user string, authRevision uint64, key, rangeEnd []byte) error {
	return s.state.Load().permit(user, authRevision, key, rangeEnd, (*role).readable)
}

// PermitWrite is PermitRead for writing, deletion included.
func (s *Store) PermitWrite(user string, authRevision uint64, key, rangeEnd []byte) error {
	return s.state.Load().permit(user, authRevision, key, rangeEnd, (*role).writable)
}

// PermitAdmin returns nil if user may administer: it has the root role, or
// authentication is off.
func (s *Store) PermitAdmin(user string) error {
	st := s.state.Load()
	if !st.enabled {
		return nil
	}
	if user == "" {
		return ErrUserEmpty
	}
	u := st.user(user)
	if u == nil {
		return ErrUserNotFound
	}
	if !u.has(RootRole) {
		return ErrPermissionDenied
	}
	return nil
}

// HasRole reports whether user exists and has the role.
func (s *Store) HasRole(user, role string) bool {
	u := s.state.Load().user(user)
	return u != nil && u.has(role)
}

// Export is a whole state in the messages that etcd stores, users and roles in
// the order of their names. It is the receiver's to change.
type Export struct {
	Enabled  bool
	Revision uint64
	Users    []*authpb.User
	Roles    []*authpb.Role
}

// Export returns the state as of now.
func (s *Store) Export() *Export { return s.state.Load().export() }

// ExportSnapshot returns the state that snap holds.
func ExportSnapshot(snap *pebble.Snapshot) (*Export, error) {
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: []byte{prefix}, UpperBound: []byte{prefix + 1}})
	if err != nil {
		return nil, fmt.Errorf("read users and roles: %w", err)
	}
	st, err := load(it)
	if err != nil {
		return nil, fmt.Errorf("read users and roles: %w", err)
	}
	return st.export(), nil
}
