package coterie

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/recovery"
	"github.com/coteriedb/coterie/replica"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

// NewCluster says of which cluster a member is that is made from a state: a new
// one, whose members all begin with the same state. Names, meanings and defaults
// are those of Config.
type NewCluster struct {
	Name                     string
	InitialCluster           string
	InitialClusterToken      string
	InitialAdvertisePeerURLs []string
}

// RestoreConfig says what Restore makes of what. One of Snapshot and EtcdDir is
// set.
type RestoreConfig struct {
	// Snapshot is a snapshot file, as Coterie and etcd alike make them. Its state
	// goes to the members of a new cluster.
	Snapshot string
	// EtcdDir is a data directory of etcd 3.5 to 3.7, of which no etcd runs, and
	// EtcdWALDir where its log is if not there.
	EtcdDir, EtcdWALDir string
	// Cluster, if it is not set for an EtcdDir, is the one that the directory is of,
	// which then has this member alone.
	Cluster *NewCluster

	// DataDir and WALDir are as in Config. What is there is empty, or does not
	// exist.
	DataDir, WALDir string

	// SkipHashCheck restores a file without looking at its checksum.
	SkipHashCheck bool
	// BumpRevision, if above 0, raises the revision, and all history before counts
	// as compacted: clients who have seen later revisions than the state has do not
	// take new ones for old.
	BumpRevision uint64
	// DisableAuth carries on without authentication where it was enabled. Without it
	// such a state is refused.
	DisableAuth bool
	// Uncommitted is one of recovery's values, for an EtcdDir of several members.
	Uncommitted string

	// OnProgress, if set, is told of how many bytes are read of how many.
	OnProgress func(done, total int64)
	Logger     *zap.Logger // nil means none
}

// Restored says what Restore has made.
type Restored struct {
	ClusterID, MemberID uint64
	Members             []machine.Member
}

// Restore makes the data directory of a member from a state. If it fails, no
// directory has been made, and the source is never changed.
func Restore(ctx context.Context, cfg RestoreConfig) (_ *Restored, err error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	var f *replica.Founding
	if cfg.Cluster != nil {
		if f, err = cfg.Cluster.found(); err != nil {
			return nil, err
		}
	} else if cfg.EtcdDir == "" {
		return nil, errors.New("a snapshot does not say whose it is: the new cluster must be given")
	}
	source, err := cfg.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	out, err := stage(cfg.DataDir, cfg.WALDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.discard()) }()
	if f, err = cfg.build(ctx, source, out, f); err != nil {
		return nil, fmt.Errorf("restore to %s: %w", cfg.DataDir, err)
	}
	if err := out.settle(replica.IdentityFile); err != nil { // last: without it a start refuses what is there
		return nil, fmt.Errorf("restore to %s: %w", cfg.DataDir, err)
	}
	return &Restored{ClusterID: f.ClusterID, MemberID: f.MemberID, Members: f.Members}, nil
}

// found checks the cluster as that of a first start.
func (c *NewCluster) found() (*replica.Founding, error) {
	whole := Config{
		Name: c.Name, InitialCluster: c.InitialCluster, InitialClusterToken: c.InitialClusterToken,
		InitialAdvertisePeerURLs: c.InitialAdvertisePeerURLs, InitialClusterState: ClusterStateNew,
	}
	if err := whole.checkBootstrap(); err != nil {
		return nil, err
	}
	configured, err := parseCluster(c.InitialCluster)
	if err != nil {
		return nil, err
	}
	return newFounding(c.Name, configured, c.InitialClusterToken), nil
}

func (cfg *RestoreConfig) open(ctx context.Context) (*recovery.Source, error) {
	o := recovery.Options{
		Unverified:  cfg.SkipHashCheck,
		DisableAuth: cfg.DisableAuth,
		Uncommitted: cfg.Uncommitted,
		OnProgress:  cfg.OnProgress,
		Logger:      cfg.Logger,
	}
	if cfg.EtcdDir != "" {
		if id, err := replica.ReadIdentity(vfs.Default, cfg.EtcdDir); err != nil || id != nil {
			return nil, errors.Join(fmt.Errorf("%s is Coterie's already", cfg.EtcdDir), err)
		}
		return recovery.OpenEtcd(ctx, cfg.EtcdDir, cfg.EtcdWALDir, o)
	}
	return recovery.OpenSnapshot(ctx, cfg.Snapshot, o)
}

// build makes what belongs in the directories. It returns whose they are: f's, or
// without it the source's.
func (cfg *RestoreConfig) build(ctx context.Context, source *recovery.Source, out *staging, f *replica.Founding) (*replica.Founding, error) {
	eng, err := engine.Open(engine.Options{Dir: out.path(replica.EngineDir), Merger: machine.Merger, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	target := recovery.Target{Index: replica.FirstIndex, Term: replica.FirstTerm, Bump: cfg.BumpRevision}
	if f != nil {
		target.Members = f.Members
	}
	members, err := source.Fill(ctx, eng, target)
	if err := errors.Join(err, eng.Close()); err != nil {
		return nil, err
	}
	if f == nil {
		f = &replica.Founding{ClusterID: source.ClusterID, MemberID: source.MemberID, Members: members}
		if err := refuseOthers(f); err != nil {
			return nil, err
		}
	}
	logDir, err := out.logPath(replica.LogDir)
	if err != nil {
		return nil, err
	}
	log, err := wal.Create(wal.Options{Dir: logDir, ClusterID: f.ClusterID, MemberID: f.MemberID, Logger: cfg.Logger}, replica.FirstIndex, replica.FirstTerm)
	if err != nil {
		return nil, err
	}
	if err := log.Close(); err != nil {
		return nil, err
	}
	id := replica.NewIdentity(f.ClusterID, f.MemberID)
	id.Complete = true
	return f, replica.WriteIdentity(vfs.Default, out.path(""), id)
}

// refuseOthers refuses to continue a cluster in one member of several.
func refuseOthers(f *replica.Founding) error {
	if len(f.Members) == 1 && f.Members[0].ID == f.MemberID && !f.Members[0].IsLearner {
		return nil
	}
	return fmt.Errorf("the cluster %x has %d members, and one directory cannot continue it: "+
		"make every member of a new cluster from the same source, with --initial-cluster", f.ClusterID, len(f.Members))
}
