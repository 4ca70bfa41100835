package wire

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func decodeRange(b []byte, m *pb.RangeRequest) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
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
			return false
		}
	}
	return i == len(b)
}

func decodePut(b []byte, m *pb.PutRequest) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
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
			return false
		}
	}
	return i == len(b)
}

func decodeDeleteRange(b []byte, m *pb.DeleteRangeRequest) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
		switch tag {
		case 1<<3 | length:
			m.Key, i = bytesAt(b, i)
		case 2<<3 | length:
			m.RangeEnd, i = bytesAt(b, i)
		case 3<<3 | varint:
			m.PrevKv, i = boolAt(b, i)
		default:
			return false
		}
	}
	return i == len(b)
}

func decodeCompaction(b []byte, m *pb.CompactionRequest) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
		switch tag {
		case 1<<3 | varint:
			m.Revision, i = intAt(b, i)
		case 2<<3 | varint:
			m.Physical, i = boolAt(b, i)
		default:
			return false
		}
	}
	return i == len(b)
}

func decodeLeaseGrant(b []byte, m *pb.LeaseGrantRequest) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
		switch tag {
		case 1<<3 | varint:
			m.TTL, i = intAt(b, i)
		case 2<<3 | varint:
			m.ID, i = intAt(b, i)
		default:
			return false
		}
	}
	return i == len(b)
}

func decodeLeaseRevoke(b []byte, m *pb.LeaseRevokeRequest) bool {
	m.Reset()
	var ok bool
	m.ID, ok = onlyInt(b)
	return ok
}

func decodeLeaseKeepAlive(b []byte, m *pb.LeaseKeepAliveRequest) bool {
	m.Reset()
	var ok bool
	m.ID, ok = onlyInt(b)
	return ok
}

// onlyInt decodes a message whose only field is an integer with the number 1.
func onlyInt(b []byte) (v int64, ok bool) {
	i := 0
	for uint(i) < uint(len(b)) {
		if b[i] != 1<<3|varint {
			return 0, false
		}
		v, i = intAt(b, i+1)
	}
	return v, i == len(b)
}

func decodeLeaseTimeToLive(b []byte, m *pb.LeaseTimeToLiveRequest) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
		switch tag {
		case 1<<3 | varint:
			m.ID, i = intAt(b, i)
		case 2<<3 | varint:
			m.Keys, i = boolAt(b, i)
		default:
			return false
		}
	}
	return i == len(b)
}

func decodeLeaseCheckpoints(b []byte, m *pb.LeaseCheckpointRequest) bool {
	list := m.Checkpoints[:0]
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		if b[i] != 1<<3|length {
			return false
		}
		var in []byte
		in, i = bytesAt(b, i+1)
		list = extend(list)
		if i < 0 || !decodeLeaseCheckpoint(in, list[len(list)-1]) {
			return false
		}
	}
	m.Checkpoints = list
	return i == len(b)
}

func decodeLeaseCheckpoint(b []byte, m *pb.LeaseCheckpoint) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
		switch tag {
		case 1<<3 | varint:
			m.ID, i = intAt(b, i)
		case 2<<3 | varint:
			m.Remaining_TTL, i = intAt(b, i)
		default:
			return false
		}
	}
	return i == len(b)
}

func decodeWatch(b []byte, m *pb.WatchRequest) bool {
	m.Reset()
	i := 0
	for uint(i) < uint(len(b)) {
		if m.RequestUnion != nil {
			return false // the last one counts, or is merged
		}
		tag := b[i]
		var in []byte
		in, i = bytesAt(b, i+1)
		if i < 0 {
			return false
		}
		ok := true
		switch tag {
		case 1<<3 | length:
			create := &pb.WatchCreateRequest{}
			m.RequestUnion = &pb.WatchRequest_CreateRequest{CreateRequest: create}
			ok = decodeWatchCreate(in, create)
		case 2<<3 | length:
			cancel := &pb.WatchCancelRequest{}
			m.RequestUnion = &pb.WatchRequest_CancelRequest{CancelRequest: cancel}
			cancel.WatchId, ok = onlyInt(in)
		case 3<<3 | length:
			m.RequestUnion = &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}
			ok = len(in) == 0
		default:
			return false
		}
		if !ok {
			return false
		}
	}
	return i == len(b)
}

func decodeWatchCreate(b []byte, m *pb.WatchCreateRequest) bool {
	i := 0
	for uint(i) < uint(len(b)) {
		tag := b[i]
		i++
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
				return false
			}
		case 6<<3 | varint:
			m.PrevKv, i = boolAt(b, i)
		case 7<<3 | varint:
			m.WatchId, i = intAt(b, i)
		case 8<<3 | varint:
			m.Fragment, i = boolAt(b, i)
		default:
			return false
		}
	}
	return i == len(b)
}
