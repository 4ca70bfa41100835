package coterie

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/guard"
)

// callHash asks a member for the hash of its history up to a revision.
const callHash = "hash" // hashRequest; guard.Hash

type hashRequest struct {
	Revision int64 `json:"revision"`
}

// hashes is the members' data as the guard compares it.
type hashes struct{ n *Node }

var _ guard.Members = hashes{}

// newGuard makes the guard of this member.
func (n *Node) newGuard() *guard.Guard {
	o := guard.Options{ID: n.data.MemberID, Interval: n.cfg.CorruptCheckTime, Logger: n.log}
	if n.cfg.CompactHashCheck {
		o.CompactInterval = n.cfg.CompactHashCheckTime
	}
	return guard.New(hashes{n}, o)
}

// Local implements guard.Members.
func (h hashes) Local(ctx context.Context, rev int64) (guard.Hash, error) {
	kv := h.n.machine().KV
	sum, hashed, compacted, err := kv.HashKV(ctx, rev)
	if err != nil {
		return guard.Hash{}, err
	}
	return guard.Hash{Hash: sum, HashRevision: hashed, CompactRevision: compacted, Revision: kv.Revision()}, nil
}

// Peers implements guard.Members.
func (h hashes) Peers(ctx context.Context, rev int64) []guard.PeerHash {
	var all []guard.PeerHash
	for _, m := range h.n.machine().Members.List() {
		if m.ID != h.n.data.MemberID {
			all = append(all, guard.PeerHash{ID: m.ID})
		}
	}
	var group sync.WaitGroup // waited for here; each ends with ctx
	for i := range all {
		group.Go(func() { all[i].Hash, all[i].Err = h.ask(ctx, all[i].ID, rev) })
	}
	group.Wait()
	return all
}

func (h hashes) ask(ctx context.Context, id uint64, rev int64) (hash guard.Hash, err error) {
	in, err := json.Marshal(hashRequest{rev})
	if err != nil {
		return hash, err
	}
	out, err := h.n.peers.Call(ctx, id, callHash, in)
	if err != nil {
		return hash, err
	}
	return hash, json.Unmarshal(out, &hash)
}

// serve answers callHash.
func (h hashes) serve(ctx context.Context, in []byte) ([]byte, error) {
	var r hashRequest
	if err := json.Unmarshal(in, &r); err != nil {
		return nil, fmt.Errorf("decode a call for a hash: %w", err)
	}
	hash, err := h.Local(ctx, r.Revision)
	if err != nil {
		return nil, callError(err)
	}
	return json.Marshal(hash)
}

// Revisions implements guard.Members.
func (h hashes) Revisions() (newest, compacted int64) {
	kv := h.n.machine().KV
	return kv.Revision(), kv.CompactRevision()
}

// Linearize implements guard.Members.
func (h hashes) Linearize(ctx context.Context) error { return h.n.readIndex(ctx) }

// Raise implements guard.Members.
func (h hashes) Raise(ctx context.Context, member uint64) error {
	return h.n.Propose(ctx, &pb.InternalRaftRequest{Alarm: &pb.AlarmRequest{
		MemberID: member, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT,
	}}).Err
}
