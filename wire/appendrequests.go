package wire

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
)

func appendRange(b []byte, m *pb.RangeRequest) []byte {
	if m == nil {
		return b
	}
	b = appendBytes(b, 1, m.Key)
	b = appendBytes(b, 2, m.RangeEnd)
	b = appendInt(b, 3, m.Limit)
	b = appendInt(b, 4, m.Revision)
	b = appendInt(b, 5, int64(m.SortOrder))
	b = appendInt(b, 6, int64(m.SortTarget))
	b = appendBool(b, 7, m.Serializable)
	b = appendBool(b, 8, m.KeysOnly)
	b = appendBool(b, 9, m.CountOnly)
	b = appendInt(b, 10, m.MinModRevision)
	b = appendInt(b, 11, m.MaxModRevision)
	b = appendInt(b, 12, m.MinCreateRevision)
	b = appendInt(b, 13, m.MaxCreateRevision)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func guessPut(m *pb.PutRequest) int { return len(m.GetKey()) + len(m.GetValue()) + 6 }

func appendPut(b []byte, m *pb.PutRequest) []byte {
	if m == nil {
		return b
	}
	b = appendBytes(b, 1, m.Key)
	b = appendBytes(b, 2, m.Value)
	b = appendInt(b, 3, m.Lease)
	b = appendBool(b, 4, m.PrevKv)
	b = appendBool(b, 5, m.IgnoreValue)
	b = appendBool(b, 6, m.IgnoreLease)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendDeleteRange(b []byte, m *pb.DeleteRangeRequest) []byte {
	if m == nil {
		return b
	}
	b = appendBytes(b, 1, m.Key)
	b = appendBytes(b, 2, m.RangeEnd)
	b = appendBool(b, 3, m.PrevKv)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendTxn(b []byte, m *pb.TxnRequest) []byte {
	if m == nil {
		return b
	}
	for _, c := range m.Compare {
		b = appendMessage(b, 1, 0, c, appendCompare)
	}
	for _, op := range m.Success {
		b = appendMessage(b, 2, guessRequestOp(op), op, appendRequestOp)
	}
	for _, op := range m.Failure {
		b = appendMessage(b, 3, guessRequestOp(op), op, appendRequestOp)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendCompare(b []byte, m *pb.Compare) []byte {
	if m == nil {
		return b
	}
	b = appendInt(b, 1, int64(m.Result))
	b = appendInt(b, 2, int64(m.Target))
	b = appendBytes(b, 3, m.Key)
	if len(m.RangeEnd) > 0 {
		b = protowire.AppendTag(b, 64, protowire.BytesType)
		b = protowire.AppendBytes(b, m.RangeEnd)
	}
	// The official codec writes what is one of several at the end.
	switch u := m.TargetUnion.(type) {
	case *pb.Compare_Version:
		if u != nil {
			b = appendPresentInt(b, 4, u.Version)
		}
	case *pb.Compare_CreateRevision:
		if u != nil {
			b = appendPresentInt(b, 5, u.CreateRevision)
		}
	case *pb.Compare_ModRevision:
		if u != nil {
			b = appendPresentInt(b, 6, u.ModRevision)
		}
	case *pb.Compare_Value:
		if u != nil {
			b = protowire.AppendBytes(append(b, 7<<3|length), u.Value)
		}
	case *pb.Compare_Lease:
		if u != nil {
			b = appendPresentInt(b, 8, u.Lease)
		}
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

// appendPresentInt appends an integer also if it is zero.
func appendPresentInt(b []byte, number byte, v int64) []byte {
	return protowire.AppendVarint(append(b, number<<3|varint), uint64(v))
}

func guessRequestOp(m *pb.RequestOp) int {
	if m != nil {
		if r, ok := m.Request.(*pb.RequestOp_RequestPut); ok && r != nil {
			return guessPut(r.RequestPut) + 3 // tag and length
		}
	}
	return 0
}

func appendRequestOp(b []byte, m *pb.RequestOp) []byte {
	if m == nil {
		return b
	}
	switch r := m.Request.(type) {
	case *pb.RequestOp_RequestRange:
		if r != nil {
			b = appendMessage(b, 1, 0, r.RequestRange, appendRange)
		}
	case *pb.RequestOp_RequestPut:
		if r != nil {
			b = appendMessage(b, 2, guessPut(r.RequestPut), r.RequestPut, appendPut)
		}
	case *pb.RequestOp_RequestDeleteRange:
		if r != nil {
			b = appendMessage(b, 3, 0, r.RequestDeleteRange, appendDeleteRange)
		}
	case *pb.RequestOp_RequestTxn:
		if r != nil {
			b = appendMessage(b, 4, 0, r.RequestTxn, appendTxn)
		}
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendCompaction(b []byte, m *pb.CompactionRequest) []byte {
	b = appendInt(b, 1, m.Revision)
	b = appendBool(b, 2, m.Physical)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseGrant(b []byte, m *pb.LeaseGrantRequest) []byte {
	if m == nil {
		return b
	}
	b = appendInt(b, 1, m.TTL)
	b = appendInt(b, 2, m.ID)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseRevoke(b []byte, m *pb.LeaseRevokeRequest) []byte {
	if m == nil {
		return b
	}
	b = appendInt(b, 1, m.ID)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseKeepAlive(b []byte, m *pb.LeaseKeepAliveRequest) []byte {
	if m == nil {
		return b
	}
	b = appendInt(b, 1, m.ID)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseCheckpoints(b []byte, m *pb.LeaseCheckpointRequest) []byte {
	for _, c := range m.Checkpoints {
		b = appendMessage(b, 1, 0, c, appendLeaseCheckpoint)
	}
	return append(b, m.ProtoReflect().GetUnknown()...)
}

func appendLeaseCheckpoint(b []byte, m *pb.LeaseCheckpoint) []byte {
	if m == nil {
		return b
	}
	b = appendInt(b, 1, m.ID)
	b = appendInt(b, 2, m.Remaining_TTL)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

// appendCommand appends a command that has no other parts than those here.
func appendCommand(b []byte, m *pb.InternalRaftRequest) []byte {
	b = appendUint(b, 1, m.ID)
	if m.Range != nil {
		b = appendMessage(b, 3, 0, m.Range, appendRange)
	}
	if m.Put != nil {
		b = appendMessage(b, 4, guessPut(m.Put), m.Put, appendPut)
	}
	if m.DeleteRange != nil {
		b = appendMessage(b, 5, 0, m.DeleteRange, appendDeleteRange)
	}
	if m.Txn != nil {
		b = appendMessage(b, 6, 0, m.Txn, appendTxn)
	}
	if m.Compaction != nil {
		b = appendMessage(b, 7, 0, m.Compaction, appendCompaction)
	}
	if m.LeaseGrant != nil {
		b = appendMessage(b, 8, 0, m.LeaseGrant, appendLeaseGrant)
	}
	if m.LeaseRevoke != nil {
		b = appendMessage(b, 9, 0, m.LeaseRevoke, appendLeaseRevoke)
	}
	if m.LeaseCheckpoint != nil {
		b = appendMessage(b, 11, 0, m.LeaseCheckpoint, appendLeaseCheckpoints)
	}
	b = appendHeaderField(b, m.Header)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

// appendHeaderField appends the header of a command, if it has one.
func appendHeaderField(b []byte, h *pb.RequestHeader) []byte {
	if h == nil {
		return b
	}
	return lengthPrefixed(append(b, headerTag0, headerTag1), 0, h, appendRequestHeader)
}

func appendRequestHeader(b []byte, m *pb.RequestHeader) []byte {
	b = appendUint(b, 1, m.ID)
	b = appendBytes(b, 2, m.Username)
	b = appendUint(b, 3, m.AuthRevision)
	return append(b, m.ProtoReflect().GetUnknown()...)
}

// hasOtherParts tells whether a command has parts that appendCommand does not
// know.
func hasOtherParts(m *pb.InternalRaftRequest) bool {
	return m.Alarm != nil || m.AuthEnable != nil || m.AuthDisable != nil || m.AuthStatus != nil || m.Authenticate != nil ||
		m.AuthUserAdd != nil || m.AuthUserDelete != nil || m.AuthUserGet != nil || m.AuthUserChangePassword != nil ||
		m.AuthUserGrantRole != nil || m.AuthUserRevokeRole != nil || m.AuthUserList != nil || m.AuthRoleList != nil ||
		m.AuthRoleAdd != nil || m.AuthRoleDelete != nil || m.AuthRoleGet != nil || m.AuthRoleGrantPermission != nil ||
		m.AuthRoleRevokePermission != nil || m.ClusterVersionSet != nil || m.ClusterMemberAttrSet != nil ||
		m.DowngradeInfoSet != nil || m.DowngradeVersionTest != nil
}
