package machine

import (
	"cmp"
	"encoding/json"
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

// Members is the membership as of the last entry applied, sorted by ID. Apply
// changes it; anyone reads it.
type Members struct {
	list atomic.Pointer[[]Member] // never changed in place
}

func openMembers(eng *engine.Engine) (*Members, error) {
	v, err := eng.Get(keyMembers, nil)
	if err != nil {
		return nil, fmt.Errorf("read the members: %w", err)
	}
	var list []Member
	if err := json.Unmarshal(v, &list); err != nil {
		return nil, fmt.Errorf("read the members: %w", err)
	}
	m := &Members{}
	m.list.Store(&list)
	return m, nil
}

// List returns the members, sorted by ID. The caller does not change it.
func (m *Members) List() []Member { return *m.list.Load() }

// Voters returns the IDs of the members that vote.
func (m *Members) Voters() []uint64 {
	var ids []uint64
	for _, member := range m.List() {
		if !member.IsLearner {
			ids = append(ids, member.ID)
		}
	}
	return ids
}

// Get returns the member with the ID.
func (m *Members) Get(id uint64) (Member, bool) {
	list := m.List()
	i := slices.IndexFunc(list, func(m Member) bool { return m.ID == id })
	if i < 0 {
		return Member{}, false
	}
	return list[i], true
}

// setAttributes stores what a member tells of itself when it starts.
func (m *Members) setAttributes(b *pebble.Batch, r *membershippb.ClusterMemberAttrSetRequest) error {
	list := slices.Clone(m.List())
	i := slices.IndexFunc(list, func(m Member) bool { return m.ID == r.Member_ID })
	if i < 0 {
		return nil // removed meanwhile
	}
	list[i].Name = r.MemberAttributes.GetName()
	list[i].ClientURLs = r.MemberAttributes.GetClientUrls()
	if err := setMembers(b, list); err != nil {
		return err
	}
	m.list.Store(&list)
	return nil
}

// SortMembers sorts members the way Members lists them.
func SortMembers(list []Member) {
	slices.SortFunc(list, func(x, y Member) int { return cmp.Compare(x.ID, y.ID) })
}

func setMembers(b *pebble.Batch, list []Member) error {
	v, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return b.Set(keyMembers, v, nil)
}
