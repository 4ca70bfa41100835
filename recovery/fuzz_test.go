package recovery

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/internal/footprint"
	"github.com/coteriedb/coterie/machine"
)

// FuzzEntry reads entries of etcd's log. What they become is what a machine understands: commands that it can decode, with no
// lease shorter than etcd makes them and no checkpoint of lease 0, and changes of members with an id.
func FuzzEntry(f *testing.F) {
	id := uint64(7)
	for _, m := range []proto.Message{
		&pb.InternalRaftRequest{ID: 7, Put: &pb.PutRequest{Key: []byte("k")}},
		&pb.InternalRaftRequest{LeaseGrant: &pb.LeaseGrantRequest{ID: 1, TTL: -5}},
		&pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 0}, {ID: 5, Remaining_TTL: 9}}}},
		&pb.InternalRaftRequest{Range: &pb.RangeRequest{Key: []byte("k")}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(int32(raftpb.EntryNormal), b)
	}
	f.Add(int32(raftpb.EntryNormal), v2Request("PUT", "/0/members/1/attributes"))
	for _, context := range []string{`{"id":7,"peerURLs":["u"],"name":"a"}`, `{"id":7,"isPromote":true}`, `{"id":8}`} {
		b, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: &id, Context: []byte(context)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(int32(raftpb.EntryConfChange), b)
	}
	f.Fuzz(func(t *testing.T, kind int32, data []byte) {
		var (
			e   machine.Entry
			err error
		)
		read := func() { e, err = decode(&raftpb.Entry{Type: raftpb.EntryType(kind).Enum(), Data: data}) }
		if n := footprint.Of(read); n > 1<<20+uint64(200*len(data)) {
			t.Errorf("%d bytes took %d", len(data), n)
		}
		if err != nil {
			return
		}
		if c := e.Change; c != nil {
			if c.Member.ID == 0 || len(e.Commands) > 0 {
				t.Errorf("a change of member %x, and %d commands", c.Member.ID, len(e.Commands))
			}
			if _, err := machine.DecodeChange(c.Encode()); err != nil {
				t.Errorf("a change that a machine does not read: %v", err)
			}
		}
		for _, command := range e.Commands {
			r := &pb.InternalRaftRequest{}
			if err := decoding.Unmarshal(command, r); err != nil {
				t.Fatalf("a command that cannot be decoded: %v", err)
			}
			if g := r.LeaseGrant; g != nil && r.Put == nil && g.TTL < shortestTTL && string(command) != string(data) {
				t.Errorf("a lease of %d seconds", g.TTL)
			}
		}
		_ = enablesAuth(e) // must not panic
	})
}
