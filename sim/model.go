package sim

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine/lease"
	"github.com/coteriedb/coterie/machine/mvcc"
)

// model is what etcd's API says that a store is: every version of every key, in
// maps, evaluated one command at a time. It forgets nothing, and shares no code
// with the store that it is compared with.
type model struct {
	rev     int64
	compact int64                // -1 before the first compaction
	keys    map[string][]version // ascending
	leases  map[int64]*modelLease
	events  [][]*mvccpb.Event // by revision
}

type version struct {
	kv      *mvccpb.KeyValue
	deleted bool
}

type modelLease struct {
	ttl  int64
	keys map[string]bool
}

func newModel() *model {
	return &model{rev: 1, compact: -1, keys: map[string][]version{}, leases: map[int64]*modelLease{}, events: make([][]*mvccpb.Event, 2)}
}

// at returns the state of a key as of a revision, nil if it does not exist.
func (m *model) at(key string, rev int64) *mvccpb.KeyValue {
	for _, v := range slices.Backward(m.keys[key]) {
		if v.kv.ModRevision <= rev {
			if v.deleted {
				return nil
			}
			return v.kv
		}
	}
	return nil
}

// in returns the keys in a range, in order, that exist as of a revision.
func (m *model) in(key, end []byte, rev int64) (kvs []*mvccpb.KeyValue) {
	for _, k := range slices.Sorted(maps.Keys(m.keys)) {
		if within([]byte(k), key, end) {
			if kv := m.at(k, rev); kv != nil {
				kvs = append(kvs, kv)
			}
		}
	}
	return kvs
}

// within tells whether a key is in a range as etcd writes it.
func within(k, key, end []byte) bool {
	switch {
	case len(end) == 0:
		return bytes.Equal(k, key)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(k, key) >= 0
	}
	return bytes.Compare(k, key) >= 0 && bytes.Compare(k, end) < 0
}

// apply evaluates a command and returns the response or the error that the
// machine must give.
func (m *model) apply(r *pb.InternalRaftRequest) (proto.Message, error) {
	switch {
	case r.Put != nil:
		if err := m.checkPut(r.Put); err != nil {
			return nil, err
		}
		t := m.begin()
		resp := t.put(r.Put)
		t.end()
		resp.Header = m.header()
		return resp, nil
	case r.DeleteRange != nil:
		t := m.begin()
		resp := t.deleteRange(r.DeleteRange)
		t.end()
		resp.Header = m.header()
		return resp, nil
	case r.Txn != nil:
		return m.txn(r.Txn)
	case r.Compaction != nil:
		switch rev := r.Compaction.Revision; {
		case rev <= m.compact:
			return nil, mvcc.ErrCompacted
		case rev > m.rev:
			return nil, mvcc.ErrFutureRev
		default:
			m.compact = rev
		}
		return &pb.CompactionResponse{Header: m.header()}, nil
	case r.LeaseGrant != nil:
		if m.leases[r.LeaseGrant.ID] != nil {
			return nil, lease.ErrExists
		}
		m.leases[r.LeaseGrant.ID] = &modelLease{ttl: r.LeaseGrant.TTL, keys: map[string]bool{}}
		return &pb.LeaseGrantResponse{Header: m.header(), ID: r.LeaseGrant.ID, TTL: r.LeaseGrant.TTL}, nil
	case r.LeaseRevoke != nil:
		l := m.leases[r.LeaseRevoke.ID]
		if l == nil {
			return nil, lease.ErrNotFound
		}
		t := m.begin()
		for _, k := range slices.Sorted(maps.Keys(l.keys)) {
			t.delete(k)
		}
		t.end()
		delete(m.leases, r.LeaseRevoke.ID)
		return &pb.LeaseRevokeResponse{Header: m.header()}, nil
	case r.LeaseCheckpoint != nil:
		return &pb.LeaseCheckpointResponse{Header: m.header()}, nil
	case r.ClusterMemberAttrSet != nil:
		return &pb.EmptyResponse{}, nil
	}
	return nil, fmt.Errorf("sim: the model does not know this command: %v", r)
}

func (m *model) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: m.rev} }

// modelTxn is a command under way: all that it changes has one revision.
type modelTxn struct {
	*model
	events []*mvccpb.Event
}

func (m *model) begin() *modelTxn { return &modelTxn{model: m} }

// now is the revision of what is changed.
func (t *modelTxn) now() int64 { return t.rev + 1 }

// seen is the revision that reads inside the command are of.
func (t *modelTxn) seen() int64 {
	if len(t.events) > 0 {
		return t.now()
	}
	return t.rev
}

func (t *modelTxn) end() {
	if len(t.events) > 0 {
		t.rev++
		t.model.events = append(t.model.events, t.events)
	}
}

func (m *model) checkPut(r *pb.PutRequest) error {
	if r.Lease != 0 && m.leases[r.Lease] == nil {
		return lease.ErrNotFound
	}
	return nil
}

func (t *modelTxn) put(r *pb.PutRequest) *pb.PutResponse {
	k := string(r.Key)
	old := t.at(k, t.now())
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, Lease: r.Lease, CreateRevision: t.now(), ModRevision: t.now(), Version: 1}
	if old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		t.detach(old)
	}
	if r.Lease != 0 {
		t.leases[r.Lease].keys[k] = true
	}
	t.keys[k] = append(t.keys[k], version{kv: kv})
	t.events = append(t.events, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv})
	resp := &pb.PutResponse{}
	if r.PrevKv {
		resp.PrevKv = old
	}
	return resp
}

func (m *model) detach(kv *mvccpb.KeyValue) {
	if l := m.leases[kv.Lease]; l != nil {
		delete(l.keys, string(kv.Key))
	}
}

func (t *modelTxn) deleteRange(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	resp := &pb.DeleteRangeResponse{}
	for _, kv := range t.in(r.Key, r.RangeEnd, t.now()) {
		resp.Deleted++
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, kv)
		}
		t.delete(string(kv.Key))
	}
	return resp
}

func (t *modelTxn) delete(k string) {
	t.detach(t.at(k, t.now()))
	kv := &mvccpb.KeyValue{Key: []byte(k), ModRevision: t.now()}
	t.keys[k] = append(t.keys[k], version{kv: kv, deleted: true})
	t.events = append(t.events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: kv})
}

// read answers a range whose newest revision is rev.
func (m *model) read(r *pb.RangeRequest, rev int64) (*pb.RangeResponse, error) {
	at := rev
	if r.Revision > 0 {
		if at = r.Revision; at > rev {
			return nil, mvcc.ErrFutureRev
		}
		if at < m.compact {
			return nil, mvcc.ErrCompacted
		}
	}
	kvs := m.in(r.Key, r.RangeEnd, at)
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: rev}, Count: int64(len(kvs))}
	if r.CountOnly {
		return resp, nil
	}
	if r.Limit > 0 && int64(len(kvs)) > r.Limit {
		kvs, resp.More = kvs[:r.Limit], true
	}
	for _, kv := range kvs {
		if r.KeysOnly {
			kv = proto.CloneOf(kv)
			kv.Value, kv.Lease = nil, 0 // as etcd has it since 3.7: both are in the history alone
		}
		resp.Kvs = append(resp.Kvs, kv)
	}
	return resp, nil
}

// txn evaluates a transaction: first all its comparisons, and those of the transactions
// in the branches that are taken, then whether all of it can be done, and only then is
// anything done.
func (m *model) txn(r *pb.TxnRequest) (*pb.TxnResponse, error) {
	taken := map[*pb.TxnRequest]bool{}
	m.decide(r, taken)
	if err := m.checkTxn(r, taken); err != nil {
		return nil, err
	}
	t := m.begin()
	resp, err := t.txn(r, taken)
	if err != nil {
		return nil, err
	}
	t.end()
	resp.Header = m.header()
	return resp, nil
}

func chosen(r *pb.TxnRequest, succeeded bool) []*pb.RequestOp {
	if succeeded {
		return r.Success
	}
	return r.Failure
}

// decide notes which transactions succeed.
func (m *model) decide(r *pb.TxnRequest, taken map[*pb.TxnRequest]bool) {
	taken[r] = !slices.ContainsFunc(r.Compare, func(c *pb.Compare) bool { return !m.holds(c) })
	for _, op := range chosen(r, taken[r]) {
		if nested := op.GetRequestTxn(); nested != nil {
			m.decide(nested, taken)
		}
	}
}

// checkTxn finds what cannot be done.
func (m *model) checkTxn(r *pb.TxnRequest, taken map[*pb.TxnRequest]bool) error {
	for _, op := range chosen(r, taken[r]) {
		var err error
		switch {
		case op.GetRequestPut() != nil:
			err = m.checkPut(op.GetRequestPut())
		case op.GetRequestTxn() != nil:
			err = m.checkTxn(op.GetRequestTxn(), taken)
		case op.GetRequestRange() != nil:
			switch rev := op.GetRequestRange().Revision; {
			case rev > m.rev:
				err = mvcc.ErrFutureRev
			case rev > 0 && rev < m.compact:
				err = mvcc.ErrCompacted
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// txn does what the branches say that are taken.
func (t *modelTxn) txn(r *pb.TxnRequest, taken map[*pb.TxnRequest]bool) (*pb.TxnResponse, error) {
	resp := &pb.TxnResponse{Succeeded: taken[r]}
	for _, op := range chosen(r, taken[r]) {
		out := &pb.ResponseOp{}
		switch {
		case op.GetRequestPut() != nil:
			p := t.put(op.GetRequestPut())
			p.Header = &pb.ResponseHeader{Revision: t.seen()}
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: p}
		case op.GetRequestDeleteRange() != nil:
			d := t.deleteRange(op.GetRequestDeleteRange())
			d.Header = &pb.ResponseHeader{Revision: t.seen()}
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: d}
		case op.GetRequestRange() != nil:
			g, err := t.read(op.GetRequestRange(), t.seen())
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: g}
		case op.GetRequestTxn() != nil:
			nested, err := t.txn(op.GetRequestTxn(), taken)
			if err != nil {
				return nil, err
			}
			nested.Header = &pb.ResponseHeader{} // as etcd has it: the outermost alone names its revision
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: nested}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp, nil
}

// holds evaluates a comparison: with every key in its range, or if there is none with a
// key that has nothing.
func (m *model) holds(c *pb.Compare) bool {
	kvs := m.in(c.Key, c.RangeEnd, m.rev)
	if len(kvs) == 0 {
		return c.Target != pb.Compare_VALUE && satisfies(c, &mvccpb.KeyValue{})
	}
	return !slices.ContainsFunc(kvs, func(kv *mvccpb.KeyValue) bool { return !satisfies(c, kv) })
}

// satisfies compares with one key.
func satisfies(c *pb.Compare, kv *mvccpb.KeyValue) bool {
	n := 0
	switch c.Target {
	case pb.Compare_VALUE:
		n = bytes.Compare(kv.Value, c.GetValue())
	case pb.Compare_VERSION:
		n = cmp.Compare(kv.Version, c.GetVersion())
	case pb.Compare_CREATE:
		n = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		n = cmp.Compare(kv.ModRevision, c.GetModRevision())
	case pb.Compare_LEASE:
		n = cmp.Compare(kv.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return n == 0
	case pb.Compare_NOT_EQUAL:
		return n != 0
	case pb.Compare_GREATER:
		return n > 0
	}
	return n < 0
}

// differs says how what the machine answered differs from what it must.
func differs(got proto.Message, gotErr error, want proto.Message, wantErr error) string {
	switch {
	case wantErr != nil:
		if !errors.Is(gotErr, wantErr) {
			return fmt.Sprintf("answered %v, %v, not the error %v", got, gotErr, wantErr)
		}
	case gotErr != nil:
		return fmt.Sprintf("failed with %v, and must answer %v", gotErr, want)
	case !proto.Equal(got, want):
		return fmt.Sprintf("answered %v, and must answer %v", got, want)
	}
	return ""
}
