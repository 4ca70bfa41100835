package recovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine"
)

// shortestTTL is what etcd raises shorter times to live to when it applies a
// grant, with its default election timeout. The proposal has what was asked for.
const shortestTTL = 2

// decoding allows the nesting that the machine allows.
var decoding = proto.UnmarshalOptions{RecursionLimit: 2 * protowire.DefaultRecursionLimit}

// decodeAll returns what entries of etcd's log mean to a machine. Those that
// change nothing here are left out, so the indexes are for the caller to give.
func decodeAll(entries []*raftpb.Entry) ([]machine.Entry, error) {
	var all []machine.Entry
	for _, e := range entries {
		m, err := decode(e)
		if err != nil {
			return nil, fmt.Errorf("entry %d of the log: %w", e.GetIndex(), err)
		}
		if m.Change != nil || len(m.Commands) > 0 {
			all = append(all, m)
		}
	}
	return all, nil
}

func decode(e *raftpb.Entry) (machine.Entry, error) {
	switch {
	case e.GetType() == raftpb.EntryConfChange:
		c, err := decodeChange(e.Data)
		return machine.Entry{Change: c}, err
	case e.GetType() != raftpb.EntryNormal:
		return machine.Entry{}, fmt.Errorf("entries of type %v are unknown", e.GetType())
	case len(e.Data) == 0:
		return machine.Entry{}, nil // a new leader's
	}
	command, err := decodeCommand(e.Data)
	if err != nil || command == nil {
		return machine.Entry{}, err
	}
	return machine.Entry{Commands: [][]byte{command}}, nil
}

// decodeCommand returns the command for a machine; nil for one that changes
// nothing there.
func decodeCommand(data []byte) ([]byte, error) {
	if isV2(data) { // first: one without a path and a value can be read as a command too
		return nil, nil
	}
	r := &pb.InternalRaftRequest{}
	if err := decoding.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("undecodable: %w", err)
	}
	switch {
	case r.Put != nil, r.DeleteRange != nil, r.Txn != nil, r.Compaction != nil, r.LeaseRevoke != nil, r.Alarm != nil,
		r.ClusterMemberAttrSet != nil,
		r.AuthEnable != nil, r.AuthDisable != nil,
		r.AuthUserAdd != nil, r.AuthUserDelete != nil, r.AuthUserChangePassword != nil, r.AuthUserGrantRole != nil, r.AuthUserRevokeRole != nil,
		r.AuthRoleAdd != nil, r.AuthRoleDelete != nil, r.AuthRoleGrantPermission != nil, r.AuthRoleRevokePermission != nil:
		return data, nil
	case r.LeaseGrant != nil:
		r.LeaseGrant.TTL = max(r.LeaseGrant.TTL, shortestTTL)
		return proto.Marshal(r)
	case r.LeaseCheckpoint != nil:
		return checkpoint(r)
	case r.Range != nil, r.Authenticate != nil, r.AuthStatus != nil, r.AuthUserGet != nil, r.AuthUserList != nil, r.AuthRoleGet != nil, r.AuthRoleList != nil:
		return nil, nil // they only read
	case r.ClusterVersionSet != nil, r.DowngradeInfoSet != nil, r.DowngradeVersionTest != nil:
		return nil, nil // versions of etcd mean nothing to Coterie
	case hasV2(r):
		return nil, nil
	}
	return nil, errors.New("it is of a kind that is not known here")
}

// checkpoint leaves out the lease of id 0, which is none: to a machine it is the
// clock.
func checkpoint(r *pb.InternalRaftRequest) ([]byte, error) {
	kept := r.LeaseCheckpoint.Checkpoints[:0]
	for _, c := range r.LeaseCheckpoint.Checkpoints {
		if c.GetID() != 0 {
			kept = append(kept, c)
		}
	}
	r.LeaseCheckpoint.Checkpoints = kept
	return proto.Marshal(r)
}

// etcd 3.5 still sends requests of its v2 API through the log, for nothing but
// the names of members and the version of the cluster. They come alone, or in
// the field 2 of a command, which etcd 3.7 does not have any more.
const v2Field = 2

func hasV2(r *pb.InternalRaftRequest) bool {
	for b := []byte(r.ProtoReflect().GetUnknown()); len(b) > 0; {
		number, kind, n := protowire.ConsumeField(b)
		if n < 0 {
			return false
		}
		if number == v2Field && kind == protowire.BytesType {
			return true
		}
		b = b[n:]
	}
	return false
}

// isV2 recognises a request of the v2 API: an id, a method and a path. The field of a
// command that has the method's number holds a whole request, if anything, and no
// request is the name of a method.
func isV2(b []byte) bool {
	var method, path string
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if kind == protowire.BytesType && (number == 2 || number == 3) {
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return false
			}
			if b = b[n:]; number == 2 {
				method = string(v)
			} else {
				path = string(v)
			}
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return false
		}
		b = b[n:]
	}
	switch method {
	case "PUT", "POST", "DELETE", "QGET", "SYNC":
		return method == "SYNC" || strings.HasPrefix(path, "/0/") || strings.HasPrefix(path, "/1")
	}
	return false
}

// enablesAuth reports whether an entry enables authentication.
func enablesAuth(e machine.Entry) bool {
	for _, c := range e.Commands {
		r := &pb.InternalRaftRequest{}
		if decoding.Unmarshal(c, r) == nil && r.AuthEnable != nil {
			return true
		}
	}
	return false
}

// described is what etcd says of the member that a change is about.
type described struct {
	machine.Member
	IsPromote bool `json:"isPromote"`
}

func decodeChange(data []byte) (*machine.Change, error) {
	cc := &raftpb.ConfChange{}
	if err := proto.Unmarshal(data, cc); err != nil {
		return nil, fmt.Errorf("undecodable change of members: %w", err)
	}
	c := &machine.Change{Member: machine.Member{ID: cc.GetNodeId()}}
	if c.Member.ID == 0 {
		return nil, errors.New("a change of members names no member")
	}
	if cc.GetType() == raftpb.ConfChangeRemoveNode {
		c.Kind = machine.RemoveMember
		return c, nil
	}
	var d described
	if err := json.Unmarshal(cc.Context, &d); err != nil {
		return nil, fmt.Errorf("undecodable change of members: %w", err)
	}
	if d.ID != cc.GetNodeId() {
		return nil, fmt.Errorf("a change of member %x describes member %x", cc.GetNodeId(), d.ID)
	}
	switch {
	case cc.GetType() == raftpb.ConfChangeUpdateNode:
		c.Kind, c.Member.PeerURLs = machine.UpdateMember, d.PeerURLs
	case d.IsPromote:
		c.Kind = machine.PromoteMember
	default:
		c.Kind, c.Member = machine.AddMember, d.Member
		c.Member.IsLearner = cc.GetType() == raftpb.ConfChangeAddLearnerNode
	}
	return c, nil
}
