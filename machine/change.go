package machine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Why a change of the membership is rejected. The API maps each to etcd's code
// and message.
var (
	ErrMemberExists   = errors.New("machine: a member with this ID exists")
	ErrMemberNotFound = errors.New("machine: no member has this ID")
	ErrMemberRemoved  = errors.New("machine: the member with this ID was removed, and no other can have the ID")
	ErrPeerURLExists  = errors.New("machine: another member has this peer URL")
	// ErrTooManyLearners: there are as many members without a vote as there may be.
	ErrTooManyLearners  = errors.New("machine: there are as many learners as there may be: promote or remove one first")
	ErrMemberNotLearner = errors.New("machine: only a learner can be promoted")
	// ErrLastVoter: without a voter nothing could be committed any more, and raft
	// does not survive applying such a change.
	ErrLastVoter = errors.New("machine: the only voting member cannot be removed: add or promote another first")
)

// ChangeKind says what a Change does.
type ChangeKind string

// The kinds of changes.
const (
	AddMember     ChangeKind = "add"
	PromoteMember ChangeKind = "promote" // a learner becomes a voter
	RemoveMember  ChangeKind = "remove"
	UpdateMember  ChangeKind = "update" // of the peer URLs
)

// Change is a change of the membership, as an entry carries it.
type Change struct {
	Kind ChangeKind `json:"kind"`
	// Member has only its ID in removals and promotions, and its ID and PeerURLs
	// in updates.
	Member Member `json:"member"`
	// MaxLearners, if it is not 0, is how many learners there may be when one more is
	// added. Members may be configured differently, so it is the proposer's that counts.
	MaxLearners int `json:"maxLearners,omitempty"`
}

// Encode returns the change as it stands in the log.
func (c *Change) Encode() []byte {
	b, err := json.Marshal(c)
	if err != nil {
		panic(fmt.Errorf("machine: encode a change of members: %w", err)) // strings and numbers always can be
	}
	return b
}

// DecodeChange decodes what Encode has returned. It is strict: what is not
// understood here may have a meaning for other members.
func DecodeChange(b []byte) (*Change, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	c := &Change{}
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("machine: undecodable change of members: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("machine: undecodable change of members: more follows it")
	}
	switch c.Kind {
	case AddMember, PromoteMember, RemoveMember, UpdateMember:
	default:
		return nil, fmt.Errorf("machine: change of members of unknown kind %q: the log was written by a newer version of Coterie", c.Kind)
	}
	if c.Member.ID == 0 {
		return nil, errors.New("machine: a change of members names the ID 0, which no member has")
	}
	return c, nil
}

// check holds etcd's rules, in etcd's order.
func (s *membership) check(c *Change) error {
	id := c.Member.ID
	if s.wasRemoved(id) {
		return ErrMemberRemoved
	}
	member, exists := s.get(id)
	switch {
	case c.Kind == AddMember && exists:
		return ErrMemberExists
	case c.Kind != AddMember && !exists:
		return ErrMemberNotFound
	}
	switch c.Kind {
	case AddMember, UpdateMember:
		if s.peerURLTaken(id, c.Member.PeerURLs) {
			return ErrPeerURLExists
		}
		if c.Member.IsLearner && c.MaxLearners > 0 && c.Kind == AddMember && len(s.ids(true)) >= c.MaxLearners {
			return ErrTooManyLearners
		}
	case PromoteMember:
		if !member.IsLearner {
			return ErrMemberNotLearner
		}
	case RemoveMember:
		if voters := s.ids(false); !member.IsLearner && len(voters) == 1 {
			return ErrLastVoter
		}
	default:
		panic(fmt.Sprintf("machine: change of members of kind %q", c.Kind)) // DecodeChange lets none through
	}
	return nil
}

// peerURLTaken reports whether a member other than the one with the ID has one
// of the URLs.
func (s *membership) peerURLTaken(id uint64, urls []string) bool {
	return slices.ContainsFunc(s.list, func(m Member) bool {
		return m.ID != id && slices.ContainsFunc(m.PeerURLs, func(u string) bool { return slices.Contains(urls, u) })
	})
}

// after returns the membership after a change that check accepts.
func (s *membership) after(c *Change) *membership {
	next := &membership{list: slices.Clone(s.list), removed: s.removed}
	i, _ := s.find(c.Member.ID)
	switch c.Kind {
	case AddMember:
		next.list = slices.Insert(next.list, i, c.Member)
	case PromoteMember:
		next.list[i].IsLearner = false
	case RemoveMember:
		next.list = slices.Delete(next.list, i, i+1)
		at, _ := slices.BinarySearch(s.removed, c.Member.ID)
		next.removed = slices.Insert(slices.Clone(s.removed), at, c.Member.ID)
	case UpdateMember:
		next.list[i].PeerURLs = c.Member.PeerURLs
	}
	return next
}
