package consensus

import (
	"reflect"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/internal/footprint"
	"github.com/coteriedb/coterie/machine"
)

// FuzzDecodeEntry reads entries of all types as the log and other members bring them. A change of the membership that is
// understood is encoded as one with the same meaning and the same origin.
func FuzzDecodeEntry(f *testing.F) {
	f.Add(int32(pb.EntryNormal), appendCommand(appendBatchHeader(nil, 1, 2), []byte("one")))
	f.Add(int32(pb.EntryNormal), []byte{})
	f.Add(int32(pb.EntryConfChangeV2), []byte{})
	for _, c := range []machine.Change{
		{Kind: machine.AddMember, Member: machine.Member{ID: 7, PeerURLs: []string{"http://a"}, IsLearner: true}},
		{Kind: machine.AddMember, Member: machine.Member{ID: 8, PeerURLs: []string{"http://b"}, Name: "b"}},
		{Kind: machine.PromoteMember, Member: machine.Member{ID: 7}},
		{Kind: machine.RemoveMember, Member: machine.Member{ID: 1 << 63}},
		{Kind: machine.UpdateMember, Member: machine.Member{ID: 7, PeerURLs: []string{"http://c"}}},
	} {
		b, err := encodeChange(&c, 3, 4)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(int32(pb.EntryConfChange), b)
	}
	f.Fuzz(func(t *testing.T, kind int32, data []byte) {
		index := uint64(9)
		e := &pb.Entry{Index: &index, Type: pb.EntryType(kind).Enum(), Data: data}
		proposer, sequence, hasOrigin := entryOrigin(e)
		var (
			m   machine.Entry
			cc  *pb.ConfChange
			err error
		)
		if n := footprint.Of(func() { m, cc, err = decodeEntry(e) }); n > 1<<20+uint64(100*len(data)) {
			t.Errorf("%d bytes took %d", len(data), n)
		}
		if err != nil {
			return
		}
		if (cc != nil) != (m.Change != nil) || m.Change != nil && len(m.Commands) > 0 {
			t.Fatalf("raft's change %v, the machine's %v, %d commands", cc, m.Change, len(m.Commands))
		}
		if m.Change == nil {
			return
		}
		if !hasOrigin {
			t.Fatal("a change of the membership has no origin")
		}
		if raft, err := membershipChange(e); err != nil || !proto.Equal(raft, cc) {
			t.Errorf("to raft it is %v, to the machine %v: %v", raft, cc, err)
		}
		if e.Data, err = encodeChange(m.Change, proposer, sequence); err != nil {
			return // of a kind that is unknown here, which the machine refuses
		}
		again, _, err := decodeEntry(e)
		if err != nil || !reflect.DeepEqual(again.Change, m.Change) {
			t.Errorf("%+v, encoded and decoded, is %+v: %v", m.Change, again.Change, err)
		}
		if p, s, ok := entryOrigin(e); !ok || p != proposer || s != sequence {
			t.Errorf("origin %x/%x became %x/%x", proposer, sequence, p, s)
		}
	})
}
