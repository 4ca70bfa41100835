package coterie

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/auth"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/recovery"
	"github.com/coteriedb/coterie/replica"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/etcdfile"
	"github.com/coteriedb/coterie/storage/etcdlog"
	"github.com/coteriedb/coterie/storage/wal"
)

// ExportConfig says what ExportToEtcd makes of what.
type ExportConfig struct {
	// DataDir and WALDir are of a member that was stopped in order and does not run.
	DataDir, WALDir string
	// Cluster is the one that the new directory is a member of. If it is not set, it
	// is that of DataDir, which then has this member alone.
	Cluster *NewCluster
	// EtcdDir and EtcdWALDir are where etcd is to find data and log. What is there is
	// empty, or does not exist. EtcdWALDir may be empty.
	EtcdDir, EtcdWALDir string

	// OnProgress, if set, is told of how many changes of keys are written.
	OnProgress func(changes int64)
	Logger     *zap.Logger // nil means none
}

// ExportToEtcd makes a data directory on which etcd starts, of the version that
// Coterie's API has. If it fails, no directory has been made, and the member's is
// never changed.
func ExportToEtcd(ctx context.Context, cfg ExportConfig) (_ *Restored, err error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	var f *replica.Founding
	if cfg.Cluster != nil {
		if f, err = cfg.Cluster.found(); err != nil {
			return nil, err
		}
	}
	d, m, err := openToRead(cfg.DataDir, cfg.WALDir, cfg.Logger)
	if err != nil {
		return nil, err
	}
	defer func() {
		m.Close()
		err = errors.Join(err, d.Engine.Close(), d.Close())
	}()
	if f == nil {
		f = &replica.Founding{ClusterID: d.ClusterID, MemberID: d.MemberID, Members: m.Members.List()}
		if err := refuseOthers(f); err != nil {
			return nil, err
		}
	}
	if err := cfg.write(ctx, m, f); err != nil {
		return nil, fmt.Errorf("export to %s: %w", cfg.EtcdDir, err)
	}
	return &Restored{ClusterID: f.ClusterID, MemberID: f.MemberID, Members: f.Members}, nil
}

// openToRead opens the data directory of a member that does not run, and its
// state, without changing anything. All that the member has acknowledged must be
// in that state.
func openToRead(dir, logDir string, logger *zap.Logger) (_ *replica.Dir, _ *machine.Machine, err error) {
	if id, err := replica.ReadIdentity(vfs.Default, dir); err != nil {
		return nil, nil, err
	} else if id == nil || !id.Complete {
		return nil, nil, fmt.Errorf("%s is no data directory of Coterie, or was never started on", dir)
	}
	d, err := replica.Open(replica.Options{
		Path: dir, LogPath: logDir, Logger: logger, Log: wal.Options{Logger: logger}, Engine: engine.Options{Logger: logger},
	}, func() (*replica.Founding, error) {
		return nil, fmt.Errorf("%s has changed meanwhile", dir)
	})
	if err != nil {
		return nil, nil, err
	}
	m, err := machine.Open(machine.Options{
		Engine: d.Engine,
		KV:     mvcc.Options{Logger: logger},
		Watch:  watch.Options{Logger: logger},
		Auth:   auth.Options{Logger: logger},
		Logger: logger,
	})
	if err != nil {
		return nil, nil, errors.Join(replica.Advise(fmt.Errorf("load the state in %s: %w", dir, err)), d.Engine.Close(), d.Close())
	}
	if err := refuseUnapplied(d, m.Applied()); err != nil {
		m.Close()
		return nil, nil, errors.Join(err, d.Engine.Close(), d.Close())
	}
	return d, m, nil
}

// refuseUnapplied refuses a log with entries that the state does not have. Which
// of them are committed is for a start to find out.
func refuseUnapplied(d *replica.Dir, applied uint64) error {
	if err := consensus.CheckLog(d.Log, applied); err != nil {
		return err
	}
	last, err := d.Log.LastIndex()
	if err != nil {
		return err
	}
	for at := applied + 1; at <= last; {
		entries, err := d.Log.Entries(at, last+1, 1<<20)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if len(e.Data) > 0 { // else a new leader's
				return fmt.Errorf("%s was not stopped in order: entry %d of its log is not in its state; start it once more and stop it with SIGTERM", d.Path, e.GetIndex())
			}
		}
		at += uint64(len(entries))
	}
	return nil
}

func (cfg *ExportConfig) write(ctx context.Context, m *machine.Machine, f *replica.Founding) error {
	c, snapshot, err := m.Contents(ctx)
	if err != nil {
		return err
	}
	if cfg.Cluster != nil {
		c.RemovedMembers = nil
	}
	if cfg.OnProgress != nil {
		c.Revisions = counted(c.Revisions, cfg.OnProgress)
	}
	start := etcdlog.Start{ClusterID: f.ClusterID, MemberID: f.MemberID}
	for _, member := range f.Members {
		start.Members = append(start.Members, etcdlog.Member(member))
	}
	out, err := stage(cfg.EtcdDir, cfg.EtcdWALDir)
	if err != nil {
		return errors.Join(err, snapshot.Close())
	}
	logDir, err := out.logPath(filepath.Join("member", "wal"))
	if err == nil {
		err = recovery.WriteEtcd(ctx, out.path(""), logDir, c, start)
	}
	if err == nil {
		err = out.settle("member") // without it etcd has no data there
	}
	return errors.Join(err, out.discard(), snapshot.Close())
}

// countedPerTell is how many changes pass between two calls of a progress
// function.
const countedPerTell = 1000

// counted tells how many changes have passed.
func counted(revisions func(etcdfile.RevisionFunc) error, tell func(int64)) func(etcdfile.RevisionFunc) error {
	return func(fn etcdfile.RevisionFunc) error {
		n := int64(0)
		err := revisions(func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error {
			if n++; n%countedPerTell == 0 {
				tell(n)
			}
			return fn(main, sub, tombstone, kv)
		})
		tell(n)
		return err
	}
}
