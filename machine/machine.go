// Package machine is the replicated state: every member that has applied the
// same entries holds the same one. It takes committed entries in order,
// evaluates their commands on the parts below it (mvcc, lease, auth, alarms,
// members), and writes what changed, together with the index applied, as one
// engine batch.
//
// Apply is deterministic: it sees no clock, no randomness, no map order, and
// does no I/O but through the engine. Readers use the parts from any goroutine
// and never wait for it. The package knows nothing of raft, connections or
// the time.
package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/coteriedb/coterie/machine/auth"
	"github.com/coteriedb/coterie/machine/lease"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/wire"
)

var (
	// ErrNoSpace refuses what would grow the store while the NOSPACE alarm is on.
	ErrNoSpace = errors.New("machine: no space: the quota of the store is used up")
	// ErrEntryFull refuses the commands that come after others, in one entry, that
	// have written all that one entry may.
	ErrEntryFull = errors.New("machine: the commands before wrote too much at once: try again")
	// ErrCorrupt refuses everything while the CORRUPT alarm is on.
	ErrCorrupt = errors.New("machine: a member's state is damaged")
)

// Keys of the machine's own records in the engine; docs/format.md.
var (
	keyApplied = []byte("m/applied") // index, term: 8 bytes each, big-endian
	keyMembers = []byte("m/members") // JSON
	keyRemoved = []byte("m/removed") // JSON
)

// An engine batch takes whole entries, for it records which was the last, and no
// more of them once it holds batchBytes. An entry takes no more commands once
// they have written maxEntryBytes: short ones can write much, such as puts that
// keep large values. What they write is the same on all members. With what one
// command may write, see mvcc, a batch stays well below the 4 GiB that the
// engine can take.
const (
	batchBytes    = 64 << 20
	maxEntryBytes = 1 << 30
)

// Options configures Open.
type Options struct {
	Engine *engine.Engine
	KV     mvcc.Options
	Watch  watch.Options
	Auth   auth.Options
	// OnCommit, if set, is told how long committing a batch to the engine took.
	OnCommit func(time.Duration)
	// WarnApply is how long one Apply may take before it is logged.
	WarnApply time.Duration
	Logger    *zap.Logger
}

// Machine is an open state machine. Apply is called by one goroutine; the parts
// are read by any.
type Machine struct {
	KV      *mvcc.Store
	Leases  *lease.Table
	Watch   *watch.Hub
	Auth    *auth.Store
	Alarms  *Alarms
	Members *Members

	engine   *engine.Engine
	logger   *zap.Logger
	warn     time.Duration
	onCommit func(time.Duration)

	// batchBytes and entryBytes are the constants, but for tests.
	batchBytes, entryBytes int

	commands wire.Decoder // of Apply's

	applying sync.Mutex // held by Apply, and while a consistent copy is taken
	applied  atomic.Uint64
	term     atomic.Uint64

	granted, revoked, slow atomic.Uint64
}

// Merger is what the engine of a Machine must be opened with.
var Merger = mvcc.Merger

// Bootstrap writes the first state of a cluster with the given members into an
// empty engine, as if the entry with the index and term had made it, and makes
// it durable.
func Bootstrap(eng *engine.Engine, index, term uint64, members []Member) error {
	b := eng.NewBatch()
	defer b.Close()
	if err := mvcc.MarkFormat(b); err != nil {
		return err
	}
	if err := membersOf(members).store(b); err != nil {
		return err
	}
	if err := setApplied(b, index, term); err != nil {
		return err
	}
	if err := eng.Commit(b); err != nil {
		return err
	}
	return eng.Flush()
}

// BootstrapJoiner writes into an empty engine the state of a member that joins
// an existing cluster: nothing is applied yet, and the members are those that
// it was told of. The cluster gives it a snapshot that replaces this state.
func BootstrapJoiner(eng *engine.Engine, members []Member) error {
	return Bootstrap(eng, 0, 0, members)
}

// Open loads the state that the engine holds.
func Open(o Options) (*Machine, error) {
	index, term, err := appliedFrom(o.Engine.Get(keyApplied, nil))
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	m := &Machine{engine: o.Engine, logger: o.Logger, warn: o.WarnApply, onCommit: o.OnCommit,
		batchBytes: batchBytes, entryBytes: maxEntryBytes}
	if m.onCommit == nil {
		m.onCommit = func(time.Duration) {}
	}
	m.applied.Store(index)
	m.term.Store(term)
	if m.Members, err = openMembers(o.Engine); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	if m.Alarms, err = openAlarms(o.Engine); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	if m.Auth, err = auth.Open(o.Engine, o.Auth); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	if m.Leases, err = lease.Open(o.Engine); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	if m.KV, err = mvcc.Open(o.Engine, m.Leases, o.KV); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	m.Watch = watch.NewHub(m.KV, o.Watch)
	return m, nil
}

// Close ends the machine, as it is at the end of a member and when a snapshot
// takes its place. Apply must have ended. Streams of watchers end with
// watch.ErrClosed; readers of the key space are waited for, and later ones get
// mvcc.ErrClosed. Leases, alarms, members and users stay readable as they are.
//
// The engine stays open: before it is closed, every other method that uses it
// must have returned (Export, Checkpoint, DurableIndex, StartFlush), and what
// Contents has returned must be closed.
func (m *Machine) Close() {
	m.Watch.Close() // reads history from KV
	m.KV.Close()
}

// Stats are figures for metrics, counted since Open.
type Stats struct{ LeasesGranted, LeasesRevoked, SlowApplies uint64 }

// Stats returns the current figures.
func (m *Machine) Stats() Stats {
	return Stats{LeasesGranted: m.granted.Load(), LeasesRevoked: m.revoked.Load(), SlowApplies: m.slow.Load()}
}

// Applied returns the index of the last entry applied.
func (m *Machine) Applied() uint64 { return m.applied.Load() }

// DurableIndex returns the index that a crash at this instant leaves applied.
func (m *Machine) DurableIndex() (uint64, error) {
	index, _, err := appliedFrom(m.engine.DurableGet(keyApplied))
	if errors.Is(err, engine.ErrNotFound) {
		return 0, nil
	}
	return index, err
}

// Flushed receives when DurableIndex may have moved. It has one receiver.
func (m *Machine) Flushed() <-chan struct{} { return m.engine.Flushed() }

// StartFlush begins to make durable what is applied and does not wait.
func (m *Machine) StartFlush() error { return m.engine.StartFlush() }

// Apply applies entries, which follow the last ones applied, and returns a
// result for each command or change of members in order. What they change is visible, to readers
// and watchers, when it returns; it is durable by the raft log. An error means
// that the state on disk can no longer be trusted and the node must stop.
func (m *Machine) Apply(entries []Entry) ([]Result, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	start := time.Now()
	n := 0
	for i := range entries {
		n += max(len(entries[i].Commands), 1)
	}
	results := make([]Result, 0, n)
	for len(entries) > 0 {
		n, err := m.applyBatch(entries, &results)
		if err != nil {
			return nil, err
		}
		entries = entries[n:]
	}
	if took := time.Since(start); m.warn > 0 && took > m.warn {
		m.slow.Add(1)
		m.logger.Warn("apply took long", zap.Duration("took", took), zap.Int("commands", len(results)),
			zap.Duration("expected", m.warn), zap.Uint64("applied-index", m.applied.Load()))
	}
	return results, nil
}

// applyBatch applies the first entries, as many as one engine batch takes,
// appends their results, and returns their number.
func (m *Machine) applyBatch(entries []Entry, results *[]Result) (n int, err error) {
	b := m.engine.NewBatch()
	defer b.Close()
	m.KV.Begin(b)
	index, term := m.applied.Load(), m.term.Load()
	for n < len(entries) && m.pendingBytes(b) < m.batchBytes {
		e := &entries[n]
		if e.Index != index+1 {
			return 0, fmt.Errorf("machine: entry %d follows entry %d", e.Index, index)
		}
		if *results, err = m.applyEntry(b, e, *results); err != nil {
			return 0, fmt.Errorf("machine: entry %d: %w", e.Index, err)
		}
		index, term = e.Index, e.Term
		n++
	}
	m.KV.Complete()
	if err := setApplied(b, index, term); err != nil {
		return 0, err
	}
	committing := time.Now()
	if err := m.engine.Commit(b); err != nil {
		return 0, err
	}
	m.onCommit(time.Since(committing))
	m.applied.Store(index)
	m.term.Store(term)
	m.Watch.Publish(m.KV.Publish())
	return n, nil
}

// pendingBytes is what the commands of a batch write, those in progress included.
func (m *Machine) pendingBytes(b *pebble.Batch) int { return b.Len() + m.KV.PendingBytes() }

// applyEntry appends the results of an entry.
func (m *Machine) applyEntry(b *pebble.Batch, e *Entry, results []Result) ([]Result, error) {
	if e.Change != nil {
		return append(results, result(&pb.EmptyResponse{}, m.Members.apply(b, e.Change))), nil
	}
	begin := m.pendingBytes(b)
	for _, c := range e.Commands {
		if m.pendingBytes(b)-begin >= m.entryBytes {
			results = append(results, Result{Err: ErrEntryFull})
			continue
		}
		r, err := m.command(b, c)
		if err != nil {
			return nil, err
		}
		if e.Unasked {
			r.Response = nil
		}
		results = append(results, r)
	}
	return results, nil
}

// command evaluates one command. The error is not the client's: it says that
// this binary does not understand the log.
func (m *Machine) command(b *pebble.Batch, encoded []byte) (Result, error) {
	r, err := m.commands.Command(encoded) // nothing keeps r, or shares its memory
	if err != nil {
		return Result{}, fmt.Errorf("undecodable command: %w", err)
	}
	if err := m.refuse(r); err != nil {
		return Result{Err: err}, nil
	}
	switch {
	case r.Put != nil:
		return result(m.KV.Put(r.Put)), nil
	case r.DeleteRange != nil:
		return result(m.KV.DeleteRange(r.DeleteRange)), nil
	case r.Txn != nil:
		return result(m.KV.Txn(r.Txn)), nil
	case r.Compaction != nil:
		done, err := m.KV.Compact(r.Compaction.Revision)
		if err != nil {
			return Result{Err: err, Done: done}, nil // whoever asks again may wait for it, too
		}
		return Result{Response: &pb.CompactionResponse{Header: &pb.ResponseHeader{Revision: m.KV.PendingRevision()}}, Done: done}, nil
	case r.LeaseGrant != nil:
		return m.leaseGrant(b, r.LeaseGrant), nil
	case r.LeaseRevoke != nil:
		return m.leaseRevoke(b, r.LeaseRevoke), nil
	case r.LeaseCheckpoint != nil:
		return m.leaseCheckpoint(b, r.LeaseCheckpoint), nil
	case r.Alarm != nil:
		resp, err := m.Alarms.apply(b, r.Alarm)
		return result(resp, err), nil
	case r.ClusterMemberAttrSet != nil:
		return Result{Response: &pb.EmptyResponse{}, Err: m.Members.setAttributes(b, r.ClusterMemberAttrSet)}, nil
	}
	if resp, err, handled := m.Auth.Apply(b, r); handled {
		m.fillRevision(resp)
		return Result{Response: resp, Err: err}, nil
	}
	return Result{}, errors.New("unknown command: the log was written by a newer version of Coterie")
}

// refuse answers the commands that an alarm forbids.
func (m *Machine) refuse(r *pb.InternalRaftRequest) error {
	switch {
	case m.Alarms.On(pb.AlarmType_CORRUPT):
		if r.Put != nil || r.DeleteRange != nil || r.Txn != nil || r.Compaction != nil || r.LeaseGrant != nil || r.LeaseRevoke != nil {
			return ErrCorrupt
		}
	case m.Alarms.On(pb.AlarmType_NOSPACE):
		if r.Put != nil || r.LeaseGrant != nil || r.Txn != nil && Grows(r.Txn) {
			return ErrNoSpace
		}
	}
	return nil
}

// Grows reports whether a transaction has a put in any of its branches.
func Grows(t *pb.TxnRequest) bool {
	for _, ops := range [2][]*pb.RequestOp{t.Success, t.Failure} {
		for _, op := range ops {
			if op.GetRequestPut() != nil || op.GetRequestTxn() != nil && Grows(op.GetRequestTxn()) {
				return true
			}
		}
	}
	return false
}

func (m *Machine) leaseGrant(b *pebble.Batch, r *pb.LeaseGrantRequest) Result {
	if err := m.Leases.Grant(b, r.ID, r.TTL); err != nil {
		return Result{Err: err}
	}
	m.granted.Add(1)
	return Result{Response: &pb.LeaseGrantResponse{Header: m.header(), ID: r.ID, TTL: r.TTL}}
}

func (m *Machine) leaseRevoke(b *pebble.Batch, r *pb.LeaseRevokeRequest) Result {
	if err := m.KV.CheckDeleteKeys(m.Leases.Keys(r.ID)); err != nil {
		return Result{Err: err}
	}
	keys, err := m.Leases.Revoke(b, r.ID)
	if err != nil {
		return Result{Err: err}
	}
	if len(keys) > 0 {
		m.KV.DeleteKeys(keys)
	}
	m.revoked.Add(1)
	return Result{Response: &pb.LeaseRevokeResponse{Header: m.header()}}
}

func (m *Machine) leaseCheckpoint(b *pebble.Batch, r *pb.LeaseCheckpointRequest) Result {
	for _, c := range r.Checkpoints {
		if err := m.Leases.Checkpoint(b, c.ID, c.Remaining_TTL); err != nil && !errors.Is(err, lease.ErrNotFound) {
			return Result{Err: err}
		}
	}
	return Result{Response: &pb.LeaseCheckpointResponse{Header: m.header()}}
}

// header is the header of a response as of the command being evaluated.
func (m *Machine) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: m.KV.PendingRevision()}
}

// fillRevision gives a response its header.
func (m *Machine) fillRevision(resp proto.Message) {
	if resp == nil {
		return
	}
	msg := resp.ProtoReflect()
	if fd := msg.Descriptor().Fields().ByName("header"); fd != nil && msg.IsValid() && !msg.Has(fd) {
		msg.Set(fd, protoreflect.ValueOfMessage(m.header().ProtoReflect()))
	}
}

func result[T proto.Message](resp T, err error) Result {
	if err != nil {
		return Result{Err: err}
	}
	return Result{Response: resp}
}

func setApplied(b *pebble.Batch, index, term uint64) error {
	var v [16]byte
	binary.BigEndian.PutUint64(v[:], index)
	binary.BigEndian.PutUint64(v[8:], term)
	return b.Set(keyApplied, v[:], nil)
}

func appliedFrom(v []byte, err error) (index, term uint64, _ error) {
	if err != nil {
		return 0, 0, fmt.Errorf("read the applied index: %w", err)
	}
	if len(v) != 16 {
		return 0, 0, fmt.Errorf("the record of the applied index has %d bytes, not 16", len(v))
	}
	return binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:]), nil
}
