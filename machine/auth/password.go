package auth

import (
	"encoding/base64"

	"golang.org/x/crypto/bcrypt"
)

// HashPassword returns what a command carries as its hashed password: base64
// of bcrypt's hash. A cost that bcrypt does not know becomes its default, as
// in etcd. It takes tens of milliseconds and more, by design. The errors are
// bcrypt's own, whose text clients of etcd see: the password is too long.
func HashPassword(password string, cost int) (string, error) {
	if cost < bcrypt.MinCost || cost > bcrypt.MaxCost {
		cost = bcrypt.DefaultCost
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(hash), nil
}

// storedPassword returns the hash in a command. Both arguments may be empty: no
// password equals an empty hash.
func storedPassword(password, hashedPassword string) ([]byte, error) {
	if password != "" && hashedPassword == "" {
		return nil, ErrPasswordNotHashed
	}
	hash, err := base64.StdEncoding.DecodeString(hashedPassword)
	if err != nil {
		return nil, ErrNoPasswordUser // etcd's answer, odd as it is
	}
	return hash, nil
}

// CheckPassword returns the auth revision at which password was found to be
// that of user. It is as slow as HashPassword, and works on one state: who
// proposes an authentication afterwards compares the revision again.
func (s *Store) CheckPassword(user, password string) (revision uint64, err error) {
	st := s.state.Load()
	if !st.enabled {
		return 0, ErrAuthNotEnabled
	}
	u := st.user(user)
	if u == nil {
		return 0, ErrAuthFailed
	}
	if u.noPassword {
		return 0, ErrNoPasswordUser
	}
	if bcrypt.CompareHashAndPassword(u.password, []byte(password)) != nil {
		return 0, ErrAuthFailed
	}
	return st.revision, nil
}
