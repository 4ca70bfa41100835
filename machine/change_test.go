package machine

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
)

// The harness begins with the voter 5 at http://a and the learner 6 at http://b.
func TestChangesOfMembers(t *testing.T) {
	type step struct {
		kind ChangeKind
		m    Member
		want error
	}
	url := func(id uint64, urls ...string) Member { return Member{ID: id, PeerURLs: urls} }
	for name, c := range map[string]struct {
		steps            []step
		voters, learners []uint64
	}{
		"add voters and learners": {[]step{
			{AddMember, Member{ID: 7, PeerURLs: []string{"http://c", "http://c2"}, IsLearner: true}, nil},
			{AddMember, url(3, "http://d"), nil},
		}, []uint64{3, 5}, []uint64{6, 7}},
		"add what is there": {[]step{
			{AddMember, url(6, "http://new"), ErrMemberExists},
			{AddMember, url(7, "http://new", "http://b"), ErrPeerURLExists},
		}, []uint64{5}, []uint64{6}},
		"promote": {[]step{
			{PromoteMember, Member{ID: 6}, nil},
			{PromoteMember, Member{ID: 6}, ErrMemberNotLearner},
			{PromoteMember, Member{ID: 7}, ErrMemberNotFound},
		}, []uint64{5, 6}, nil},
		"removed for ever": {[]step{
			{RemoveMember, Member{ID: 6}, nil},
			{RemoveMember, Member{ID: 6}, ErrMemberRemoved},
			{PromoteMember, Member{ID: 6}, ErrMemberRemoved},
			{UpdateMember, url(6, "http://new"), ErrMemberRemoved},
			{AddMember, url(6, "http://new"), ErrMemberRemoved},
			{AddMember, url(7, "http://b"), nil}, // its URL is free again
			{RemoveMember, Member{ID: 8}, ErrMemberNotFound},
		}, []uint64{5, 7}, nil},
		"the only voter stays": {[]step{
			{RemoveMember, Member{ID: 5}, ErrLastVoter},
			{PromoteMember, Member{ID: 6}, nil},
			{RemoveMember, Member{ID: 5}, nil},
		}, []uint64{6}, nil},
		"update": {[]step{
			{UpdateMember, url(6, "http://a"), ErrPeerURLExists},
			{UpdateMember, url(6, "http://b", "http://c"), nil}, // its own
			{UpdateMember, url(7, "http://d"), ErrMemberNotFound},
			{AddMember, url(7, "http://c"), ErrPeerURLExists},
		}, []uint64{5}, []uint64{6}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			defer func() { h.close() }()
			for i, s := range c.steps {
				before := h.Members.List()
				err := h.change(s.kind, s.m)
				if !errors.Is(err, s.want) {
					t.Errorf("step %d: %v, want %v", i, err, s.want)
				}
				if err != nil && !reflect.DeepEqual(h.Members.List(), before) {
					t.Errorf("step %d was rejected and made %v of %v", i, h.Members.List(), before)
				}
			}
			if !slices.Equal(h.Members.Voters(), c.voters) || !slices.Equal(h.Members.Learners(), c.learners) {
				t.Errorf("voters %v, learners %v", h.Members.Voters(), h.Members.Learners())
			}
			want := h.state()
			must(t, h.engine.Flush())
			h.crash()
			if got := h.state(); got != want {
				t.Errorf("from the records:\n%s\nbefore:\n%s", got, want)
			}
		})
	}
}

func TestRemovedMembersDoNotComeBack(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	h.apply(alarm(pb.AlarmRequest_ACTIVATE, 6, pb.AlarmType_NOSPACE))
	must(t, h.change(RemoveMember, Member{ID: 6}))
	h.apply(&pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{Member_ID: 6,
		MemberAttributes: &membershippb.Attributes{Name: "two"}}})
	if _, ok := h.Members.Get(6); ok || !h.Members.Removed(6) || h.Members.Removed(5) {
		t.Fatalf("members %v, 6 removed: %v", h.Members.List(), h.Members.Removed(6))
	}
	c, closer, err := h.Contents(t.Context())
	must(t, err)
	must(t, closer.Close())
	if !slices.Equal(c.RemovedMembers, []uint64{6}) || len(c.Members) != 1 {
		t.Errorf("exported are members %v, removed %v", c.Members, c.RemovedMembers)
	}
	// Its alarm stays until someone has seen to it, as in etcd.
	if !h.Alarms.On(pb.AlarmType_NOSPACE) {
		t.Error("the alarm went with its member")
	}
	if got := h.apply(alarm(pb.AlarmRequest_DEACTIVATE, 6, pb.AlarmType_NOSPACE))[0].Response.(*pb.AlarmResponse).Alarms; len(got) != 1 {
		t.Errorf("disarming it answers %v", got)
	}
}

func TestChangesThatAreNotUnderstood(t *testing.T) {
	for name, encoded := range map[string]string{
		"nothing":        "",
		"another kind":   `{"kind":"demote","member":{"id":5}}`,
		"another field":  `{"kind":"remove","member":{"id":5},"force":true}`,
		"no member":      `{"kind":"remove"}`,
		"more behind it": `{"kind":"remove","member":{"id":5}} {}`,
		"a list":         `[]`,
	} {
		if c, err := DecodeChange([]byte(encoded)); err == nil {
			t.Errorf("%s was decoded to %+v", name, c)
		}
	}
}

func FuzzDecodeChange(f *testing.F) {
	f.Add((&Change{Kind: AddMember, Member: Member{ID: 7, PeerURLs: []string{"http://c"}, IsLearner: true, Name: "n"}}).Encode())
	f.Add([]byte(`{"kind":"remove","member":{"id":18446744073709551615}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeChange(b)
		if err != nil {
			return
		}
		again, err := DecodeChange(c.Encode())
		if err != nil {
			t.Fatalf("%s was decoded, but not its encoding: %v", b, err)
		}
		if string(again.Encode()) != string(c.Encode()) {
			t.Fatalf("%s became %s", c.Encode(), again.Encode())
		}
	})
}
