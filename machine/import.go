package machine

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/machine/auth"
	"github.com/coteriedb/coterie/machine/lease"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/etcdfile"
)

// APIVersion is the level of etcd's API and storage that is implemented.
const APIVersion = apiVersion

// ImportOptions says how Import departs from the contents.
type ImportOptions struct {
	// Index and Term are of the entry as if which the state is made.
	Index, Term uint64
	// Bump raises the revision, if it is above 0, and then all history up to
	// there counts as compacted: watchers and caches of clients, who may know
	// later revisions than the contents have, start over.
	Bump uint64
}

// Import writes contents in etcd's form into an empty engine, as Bootstrap
// writes the first state of a cluster, and makes them durable. Equal contents
// give equal state on every member. It is the inverse of Export.
func Import(ctx context.Context, eng *engine.Engine, c *etcdfile.Contents, o ImportOptions) error {
	if err := importHistory(ctx, eng, c, o.Bump); err != nil {
		return fmt.Errorf("import the key space: %w", err)
	}
	b := eng.NewBatch()
	defer b.Close()
	if err := errors.Join(
		importLeases(b, c.Leases),
		importAlarms(b, c.Alarms),
		auth.Import(b, &auth.Export{Enabled: c.AuthEnabled, Revision: c.AuthRevision, Users: c.Users, Roles: c.Roles}),
		importMembers(b, c),
		setApplied(b, o.Index, o.Term),
	); err != nil {
		return err
	}
	if err := eng.Commit(b); err != nil {
		return err
	}
	return eng.Flush()
}

func importHistory(ctx context.Context, eng *engine.Engine, c *etcdfile.Contents, bump uint64) (err error) {
	to := mvcc.NewImporter(eng.NewBatch, eng.Commit)
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := c.Revisions(func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return to.Add(main, sub, tombstone, kv)
	}); err != nil {
		return err
	}
	scheduled := c.ScheduledCompaction
	if bump > 0 {
		if scheduled, err = to.Bump(bump, max(c.ScheduledCompaction, c.FinishedCompaction)); err != nil {
			return err
		}
	}
	return to.Finish(scheduled, c.FinishedCompaction)
}

func importLeases(b *pebble.Batch, from []etcdfile.Lease) error {
	leases := make([]lease.Lease, 0, len(from))
	for _, l := range from {
		leases = append(leases, lease.Lease{ID: l.ID, TTL: l.TTL, RemainingTTL: l.RemainingTTL})
	}
	return lease.Import(b, leases)
}

func importAlarms(b *pebble.Batch, alarms []*pb.AlarmMember) error {
	for _, a := range alarms {
		if a.Alarm != pb.AlarmType_NOSPACE && a.Alarm != pb.AlarmType_CORRUPT {
			continue // etcd keeps what a client raised under a number without a meaning
		}
		if err := b.Set(alarmKey(a), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

func importMembers(b *pebble.Batch, c *etcdfile.Contents) error {
	m := &membership{removed: c.RemovedMembers}
	for _, member := range c.Members {
		m.list = append(m.list, Member(member))
	}
	SortMembers(m.list)
	return m.store(b)
}

// Rebase makes durable that the state which the engine holds is that of the
// entry with the index and term, and with members that is not nil also that it
// is of another cluster, which has those. No machine is open on it.
func Rebase(eng *engine.Engine, index, term uint64, members []Member) error {
	b := eng.NewBatch()
	defer b.Close()
	if members != nil {
		// Who was removed from the old cluster may be a member of the new one.
		if err := errors.Join(b.Delete(keyRemoved, nil), membersOf(members).store(b)); err != nil {
			return err
		}
	}
	if err := setApplied(b, index, term); err != nil {
		return err
	}
	if err := eng.Commit(b); err != nil {
		return err
	}
	return eng.Flush()
}
