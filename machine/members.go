package machine

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/membershippb"

	"github.com/coteriedb/coterie/storage/engine"
)

// Member is one member of the cluster. Name and ClientURLs are empty until the
// member has first started.
type Member struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner,omitempty"`
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// Members is the membership as of the last entry applied. Apply changes it;
// anyone reads it.
type Members struct {
	now atomic.Pointer[membership]
}

// membership is one state of Members. It is never changed in place.
type membership struct {
	list    []Member // sorted by ID
	removed []uint64 // sorted; kept for ever, for an ID is never used again
}

// membersOf is a membership in which nobody was removed.
func membersOf(list []Member) *membership {
	list = slices.Clone(list)
	SortMembers(list)
	return &membership{list: list}
}

func openMembers(eng *engine.Engine) (*Members, error) {
	now, err := readMembership(eng)
	if err != nil {
		return nil, err
	}
	m := &Members{}
	m.now.Store(now)
	return m, nil
}

func readMembership(eng *engine.Engine) (*membership, error) {
	now := &membership{}
	if err := readJSON(eng, keyMembers, &now.list); err != nil {
		return nil, fmt.Errorf("read the members: %w", err)
	}
	// No record: none was ever removed.
	if err := readJSON(eng, keyRemoved, &now.removed); err != nil && !errors.Is(err, engine.ErrNotFound) {
		return nil, fmt.Errorf("read the removed members: %w", err)
	}
	for i, m := range now.list {
		if m.ID == 0 || i > 0 && m.ID <= now.list[i-1].ID {
			return nil, fmt.Errorf("read the members: they are damaged: member %x is number %d of the list", m.ID, i+1)
		}
	}
	if !slices.IsSorted(now.removed) {
		return nil, errors.New("read the removed members: they are damaged: they are not in order")
	}
	return now, nil
}

func readJSON(eng *engine.Engine, key []byte, into any) error {
	v, err := eng.Get(key, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(v, into)
}

// List returns the members, sorted by ID. The caller does not change it.
func (m *Members) List() []Member { return m.now.Load().list }

// Voters returns the IDs of the members that vote, sorted.
func (m *Members) Voters() []uint64 { return m.now.Load().ids(false) }

// Learners returns the IDs of the members that do not vote yet, sorted.
func (m *Members) Learners() []uint64 { return m.now.Load().ids(true) }

// Get returns the member with the ID.
func (m *Members) Get(id uint64) (Member, bool) { return m.now.Load().get(id) }

// Removed reports whether a member with the ID was removed. No member will ever
// have it again.
func (m *Members) Removed(id uint64) bool { return m.now.Load().wasRemoved(id) }

// Check returns the error that the change would be answered with if it were
// applied now, and changes nothing.
func (m *Members) Check(c *Change) error { return m.now.Load().check(c) }

func (s *membership) ids(learners bool) []uint64 {
	var ids []uint64
	for _, m := range s.list {
		if m.IsLearner == learners {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

func (s *membership) find(id uint64) (int, bool) {
	return slices.BinarySearchFunc(s.list, id, func(m Member, id uint64) int { return cmp.Compare(m.ID, id) })
}

func (s *membership) get(id uint64) (Member, bool) {
	i, found := s.find(id)
	if !found {
		return Member{}, false
	}
	return s.list[i], true
}

func (s *membership) wasRemoved(id uint64) bool {
	_, found := slices.BinarySearch(s.removed, id)
	return found
}

// apply applies a change. A rejected one changes nothing.
func (m *Members) apply(b *pebble.Batch, c *Change) error {
	now := m.now.Load()
	if err := now.check(c); err != nil {
		return err
	}
	next := now.after(c)
	if err := next.store(b); err != nil {
		return err
	}
	m.now.Store(next)
	return nil
}

// setAttributes stores what a member tells of itself when it starts. One that
// was removed meanwhile is not brought back.
func (m *Members) setAttributes(b *pebble.Batch, r *membershippb.ClusterMemberAttrSetRequest) error {
	now := m.now.Load()
	i, found := now.find(r.Member_ID)
	if !found {
		return nil
	}
	next := &membership{list: slices.Clone(now.list), removed: now.removed}
	next.list[i].Name = r.MemberAttributes.GetName()
	next.list[i].ClientURLs = r.MemberAttributes.GetClientUrls()
	if err := next.store(b); err != nil {
		return err
	}
	m.now.Store(next)
	return nil
}

// SortMembers sorts members the way Members lists them.
func SortMembers(list []Member) {
	slices.SortFunc(list, func(x, y Member) int { return cmp.Compare(x.ID, y.ID) })
}

func (s *membership) store(b *pebble.Batch) error {
	if err := setJSON(b, keyMembers, s.list); err != nil {
		return err
	}
	if len(s.removed) == 0 {
		return nil
	}
	return setJSON(b, keyRemoved, s.removed)
}

func setJSON(b *pebble.Batch, key []byte, v any) error {
	encoded, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Set(key, encoded, nil)
}
