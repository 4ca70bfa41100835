package peer

import (
	"reflect"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// Three members send one another messages; each arrives, in the order of its
// stream.
func TestOrder(t *testing.T) {
	const count = 500
	nodes := []*node{start(t, 1), start(t, 2), start(t, 3)}
	meet(t, nodes...)
	for i := range uint64(count) {
		for _, n := range nodes {
			for _, o := range nodes {
				if n != o {
					n.Send([]*raftpb.Message{bulk(n.id, o.id, i, 100), message(raftpb.MsgHeartbeat, n.id, o.id, i)})
				}
			}
		}
	}
	for _, n := range nodes {
		n.await("all messages", func() bool { return len(n.received) == 4*count })
		for _, typ := range []raftpb.MessageType{raftpb.MsgApp, raftpb.MsgHeartbeat} {
			from := make(map[uint64][]uint64)
			for _, m := range n.messages(typ) {
				from[m.GetFrom()] = append(from[m.GetFrom()], m.GetIndex())
			}
			for id, got := range from {
				if !reflect.DeepEqual(got, upTo(count)) {
					t.Errorf("%s from %x to %x came as %d", typ, id, n.id, got)
				}
			}
		}
	}
}
