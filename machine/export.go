package machine

import (
	"context"
	"errors"
	"io"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/coteriedb/coterie/storage/etcdfile"
)

// apiVersion is the level of etcd's API and storage that is implemented, as
// etcd names it in its files.
const apiVersion = "3.7.0"

// Export writes the state of this instant to a new file in etcd's snapshot
// format. Writes go on meanwhile.
func (m *Machine) Export(ctx context.Context, path string) error {
	c, snapshot, err := m.Contents(ctx)
	if err != nil {
		return err
	}
	return errors.Join(etcdfile.Write(ctx, path, c), snapshot.Close())
}

// Contents takes the state between two Applies. Only the taking holds Apply
// up, for as long as it takes to copy leases, alarms, members and users. The
// caller closes what else is returned, from which Revisions reads.
func (m *Machine) Contents(ctx context.Context) (etcdfile.Contents, io.Closer, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	snapshot := m.engine.NewSnapshot()
	users := m.Auth.Export()
	scheduled, finished, err := m.KV.Compactions(snapshot)
	if err != nil {
		return etcdfile.Contents{}, nil, errors.Join(err, snapshot.Close())
	}
	c := etcdfile.Contents{
		Index:               m.applied.Load(),
		Term:                m.term.Load(),
		StorageVersion:      apiVersion,
		ClusterVersion:      apiVersion,
		ScheduledCompaction: scheduled,
		FinishedCompaction:  finished,
		Alarms:              m.Alarms.List(0),
		AuthEnabled:         users.Enabled,
		AuthRevision:        users.Revision,
		Users:               users.Users,
		Roles:               users.Roles,
		Revisions: func(fn func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
			return m.KV.ForEachRevision(ctx, snapshot, fn)
		},
	}
	for _, l := range m.Leases.All() {
		c.Leases = append(c.Leases, etcdfile.Lease{ID: l.ID, TTL: l.TTL, RemainingTTL: l.RemainingTTL})
	}
	members := m.Members.now.Load()
	for _, member := range members.list {
		c.Members = append(c.Members, etcdfile.Member(member))
	}
	c.RemovedMembers = members.removed
	return c, snapshot, nil
}
