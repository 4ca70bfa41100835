package machine

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/storage/engine"
)

const alarmPrefix = 'a'

// Alarms is the set of alarms that are on, by member and type. Apply changes
// it; anyone reads it.
type Alarms struct {
	on atomic.Pointer[[]*pb.AlarmMember] // sorted by type and member; never changed in place
}

func openAlarms(eng *engine.Engine) (*Alarms, error) {
	it, err := eng.NewIter([]byte{alarmPrefix}, []byte{alarmPrefix + 1})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var on []*pb.AlarmMember
	for it.First(); it.Valid(); it.Next() {
		k := it.Key()
		if len(k) != 10 || k[1] > byte(pb.AlarmType_CORRUPT) {
			return nil, fmt.Errorf("damaged alarm record %x", k)
		}
		on = append(on, &pb.AlarmMember{Alarm: pb.AlarmType(k[1]), MemberID: binary.BigEndian.Uint64(k[2:])})
	}
	a := &Alarms{}
	a.on.Store(&on)
	return a, it.Error()
}

// On reports whether any member has raised an alarm of the type.
func (a *Alarms) On(t pb.AlarmType) bool {
	for _, m := range *a.on.Load() {
		if m.Alarm == t {
			return true
		}
	}
	return false
}

// List returns the alarms of a type, or all for NONE.
func (a *Alarms) List(t pb.AlarmType) []*pb.AlarmMember {
	var out []*pb.AlarmMember
	for _, m := range *a.on.Load() {
		if t == pb.AlarmType_NONE || m.Alarm == t {
			out = append(out, &pb.AlarmMember{Alarm: m.Alarm, MemberID: m.MemberID})
		}
	}
	return out
}

func (a *Alarms) apply(b *pebble.Batch, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	resp := &pb.AlarmResponse{}
	subject := &pb.AlarmMember{MemberID: r.MemberID, Alarm: r.Alarm}
	on := *a.on.Load()
	i, found := slices.BinarySearchFunc(on, subject, compareAlarms)
	switch r.Action {
	case pb.AlarmRequest_GET:
		resp.Alarms = a.List(r.Alarm)
	case pb.AlarmRequest_ACTIVATE:
		if r.Alarm != pb.AlarmType_NOSPACE && r.Alarm != pb.AlarmType_CORRUPT {
			break // a client can send any number; what it means is unknown here
		}
		resp.Alarms = []*pb.AlarmMember{subject}
		if found {
			break
		}
		on = slices.Insert(slices.Clone(on), i, subject)
		if err := b.Set(alarmKey(subject), nil, nil); err != nil {
			return nil, err
		}
	case pb.AlarmRequest_DEACTIVATE:
		if !found {
			break
		}
		resp.Alarms = []*pb.AlarmMember{subject}
		on = slices.Delete(slices.Clone(on), i, i+1)
		if err := b.Delete(alarmKey(subject), nil); err != nil {
			return nil, err
		}
	}
	a.on.Store(&on)
	return resp, nil
}

func compareAlarms(x, y *pb.AlarmMember) int {
	return cmp.Or(cmp.Compare(x.Alarm, y.Alarm), cmp.Compare(x.MemberID, y.MemberID))
}

func alarmKey(m *pb.AlarmMember) []byte {
	return binary.BigEndian.AppendUint64([]byte{alarmPrefix, byte(m.Alarm)}, m.MemberID)
}
