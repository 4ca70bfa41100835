package wire

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func decodeRange(b []byte, m *pb.RangeRequest) bool {
	m.Reset()
	return fields(b, m, rangeField)
}

func rangeField(m *pb.RangeRequest, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | length:
		m.Key, i = bytesAt(b, i)
	case 2<<3 | length:
		m.RangeEnd, i = bytesAt(b, i)
	case 3<<3 | varint:
		m.Limit, i = intAt(b, i)
	case 4<<3 | varint:
		m.Revision, i = intAt(b, i)
	case 5<<3 | varint:
		m.SortOrder, i = enumAt[pb.RangeRequest_SortOrder](b, i)
	case 6<<3 | varint:
		m.SortTarget, i = enumAt[pb.RangeRequest_SortTarget](b, i)
	case 7<<3 | varint:
		m.Serializable, i = boolAt(b, i)
	case 8<<3 | varint:
		m.KeysOnly, i = boolAt(b, i)
	case 9<<3 | varint:
		m.CountOnly, i = boolAt(b, i)
	case 10<<3 | varint:
		m.MinModRevision, i = intAt(b, i)
	case 11<<3 | varint:
		m.MaxModRevision, i = intAt(b, i)
	case 12<<3 | varint:
		m.MinCreateRevision, i = intAt(b, i)
	case 13<<3 | varint:
		m.MaxCreateRevision, i = intAt(b, i)
	default:
		return -1
	}
	return i
}

func decodePut(b []byte, m *pb.PutRequest) bool {
	m.Reset()
	return fields(b, m, putField)
}

func putField(m *pb.PutRequest, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | length:
		m.Key, i = bytesAt(b, i)
	case 2<<3 | length:
		m.Value, i = bytesAt(b, i)
	case 3<<3 | varint:
		m.Lease, i = intAt(b, i)
	case 4<<3 | varint:
		m.PrevKv, i = boolAt(b, i)
	case 5<<3 | varint:
		m.IgnoreValue, i = boolAt(b, i)
	case 6<<3 | varint:
		m.IgnoreLease, i = boolAt(b, i)
	default:
		return -1
	}
	return i
}

func decodeDeleteRange(b []byte, m *pb.DeleteRangeRequest) bool {
	m.Reset()
	return fields(b, m, deleteRangeField)
}

func deleteRangeField(m *pb.DeleteRangeRequest, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | length:
		m.Key, i = bytesAt(b, i)
	case 2<<3 | length:
		m.RangeEnd, i = bytesAt(b, i)
	case 3<<3 | varint:
		m.PrevKv, i = boolAt(b, i)
	default:
		return -1
	}
	return i
}

func decodeCompaction(b []byte, m *pb.CompactionRequest) bool {
	m.Reset()
	return fields(b, m, compactionField)
}

func compactionField(m *pb.CompactionRequest, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | varint:
		m.Revision, i = intAt(b, i)
	case 2<<3 | varint:
		m.Physical, i = boolAt(b, i)
	default:
		return -1
	}
	return i
}

func decodeLeaseGrant(b []byte, m *pb.LeaseGrantRequest) bool {
	m.Reset()
	return fields(b, m, leaseGrantField)
}

func leaseGrantField(m *pb.LeaseGrantRequest, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | varint:
		m.TTL, i = intAt(b, i)
	case 2<<3 | varint:
		m.ID, i = intAt(b, i)
	default:
		return -1
	}
	return i
}

func decodeLeaseRevoke(b []byte, m *pb.LeaseRevokeRequest) bool {
	m.Reset()
	return fields(b, &m.ID, onlyIntField)
}

func decodeLeaseKeepAlive(b []byte, m *pb.LeaseKeepAliveRequest) bool {
	m.Reset()
	return fields(b, &m.ID, onlyIntField)
}

// onlyIntField is of a message whose only field is an integer with the number 1.
func onlyIntField(v *int64, tag byte, b []byte, i int) int {
	if tag != 1<<3|varint {
		return -1
	}
	*v, i = intAt(b, i)
	return i
}

func decodeLeaseTimeToLive(b []byte, m *pb.LeaseTimeToLiveRequest) bool {
	m.Reset()
	return fields(b, m, leaseTimeToLiveField)
}

func leaseTimeToLiveField(m *pb.LeaseTimeToLiveRequest, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | varint:
		m.ID, i = intAt(b, i)
	case 2<<3 | varint:
		m.Keys, i = boolAt(b, i)
	default:
		return -1
	}
	return i
}

func decodeLeaseCheckpoints(b []byte, m *pb.LeaseCheckpointRequest) bool {
	list := m.Checkpoints[:0]
	m.Reset()
	m.Checkpoints = list
	return fields(b, m, leaseCheckpointsField)
}

func leaseCheckpointsField(m *pb.LeaseCheckpointRequest, tag byte, b []byte, i int) int {
	if tag != 1<<3|length {
		return -1
	}
	m.Checkpoints = extend(m.Checkpoints)
	return messageAt(b, i, m.Checkpoints[len(m.Checkpoints)-1], decodeLeaseCheckpoint)
}

func decodeLeaseCheckpoint(b []byte, m *pb.LeaseCheckpoint) bool {
	m.Reset()
	return fields(b, m, leaseCheckpointField)
}

func leaseCheckpointField(m *pb.LeaseCheckpoint, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | varint:
		m.ID, i = intAt(b, i)
	case 2<<3 | varint:
		m.Remaining_TTL, i = intAt(b, i)
	default:
		return -1
	}
	return i
}

func decodeWatch(b []byte, m *pb.WatchRequest) bool {
	m.Reset()
	return fields(b, m, watchField)
}

func watchField(m *pb.WatchRequest, tag byte, b []byte, i int) int {
	if m.RequestUnion != nil {
		return -1 // the last one counts, or is merged
	}
	switch tag {
	case 1<<3 | length:
		create := &pb.WatchCreateRequest{}
		m.RequestUnion = &pb.WatchRequest_CreateRequest{CreateRequest: create}
		return messageAt(b, i, create, decodeWatchCreate)
	case 2<<3 | length:
		cancel := &pb.WatchCancelRequest{}
		m.RequestUnion = &pb.WatchRequest_CancelRequest{CancelRequest: cancel}
		return messageAt(b, i, cancel, decodeWatchCancel)
	case 3<<3 | length:
		progress := &pb.WatchProgressRequest{}
		m.RequestUnion = &pb.WatchRequest_ProgressRequest{ProgressRequest: progress}
		return messageAt(b, i, progress, func(b []byte, _ *pb.WatchProgressRequest) bool { return len(b) == 0 })
	}
	return -1
}

func decodeWatchCancel(b []byte, m *pb.WatchCancelRequest) bool {
	return fields(b, &m.WatchId, onlyIntField)
}

func decodeWatchCreate(b []byte, m *pb.WatchCreateRequest) bool {
	return fields(b, m, watchCreateField)
}

func watchCreateField(m *pb.WatchCreateRequest, tag byte, b []byte, i int) int {
	switch tag {
	case 1<<3 | length:
		m.Key, i = bytesAt(b, i)
	case 2<<3 | length:
		m.RangeEnd, i = bytesAt(b, i)
	case 3<<3 | varint:
		m.StartRevision, i = intAt(b, i)
	case 4<<3 | varint:
		m.ProgressNotify, i = boolAt(b, i)
	case 5<<3 | varint:
		var f pb.WatchCreateRequest_FilterType
		f, i = enumAt[pb.WatchCreateRequest_FilterType](b, i)
		m.Filters = append(m.Filters, f)
	case 5<<3 | length: // a packed list
		var in []byte
		in, i = bytesAt(b, i)
		j := 0
		for uint(j) < uint(len(in)) {
			var f pb.WatchCreateRequest_FilterType
			f, j = enumAt[pb.WatchCreateRequest_FilterType](in, j)
			m.Filters = append(m.Filters, f)
		}
		if j != len(in) {
			return -1
		}
	case 6<<3 | varint:
		m.PrevKv, i = boolAt(b, i)
	case 7<<3 | varint:
		m.WatchId, i = intAt(b, i)
	case 8<<3 | varint:
		m.Fragment, i = boolAt(b, i)
	default:
		return -1
	}
	return i
}
