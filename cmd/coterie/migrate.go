package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/coteriedb/coterie"
)

func migrateCommand() *cobra.Command {
	var m migration
	cmd := &cobra.Command{
		Use:   "migrate --from SOURCE --to DIRECTORY",
		Short: "Move the data of an etcd that is stopped to Coterie, or back",
		Long: `Move data between etcd and Coterie. The source is a data directory of etcd 3.5 to 3.7 that is not in use, or a snapshot file; with
--to-etcd it is a data directory of Coterie. It is never changed. Revisions, history, leases, users, roles and alarms stay as they are.

The directory of a cluster of one keeps its cluster and member id. A cluster of several is made anew: every member is made from
the same source, with the same --initial-cluster and its own --name. See docs/recovery.md.`,
		Example: `  coterie migrate --from /var/lib/etcd --to /var/lib/coterie
  coterie migrate --from backup.db --to /var/lib/coterie --name a --initial-cluster a=http://10.0.0.1:2380,b=http://10.0.0.2:2380 \
    --initial-advertise-peer-urls http://10.0.0.1:2380
  coterie migrate --to-etcd --from /var/lib/coterie --to /var/lib/etcd`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.run(cmd) },
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&m.from, "from", "", "data directory, or snapshot file")
	f.StringVar(&m.fromWAL, "from-wal-dir", "", "where the log of --from is, if it is not in there")
	f.StringVar(&m.to, "to", "", "directory to make; empty or not there yet")
	f.StringVar(&m.toWAL, "to-wal-dir", "", "where to put the log, if not in --to")
	f.BoolVar(&m.toEtcd, "to-etcd", false, "from Coterie to etcd")
	m.cluster.add(f, "")
	f.BoolVar(&m.skipHashCheck, "skip-hash-check", false, "read a snapshot file whatever its checksum is, such as one copied from a data directory")
	f.BoolVar(&m.disableAuth, "disable-auth", false, "carry on without authentication where it was enabled")
	f.StringVar(&m.uncommitted, "uncommitted", "", "'keep' or 'drop' entries that a member of several did not know to be committed")
	return cmd
}

type migration struct {
	from, fromWAL, to, toWAL   string
	toEtcd                     bool
	cluster                    clusterFlags
	skipHashCheck, disableAuth bool
	uncommitted                string
}

func (m *migration) run(cmd *cobra.Command) error {
	if m.from == "" || m.to == "" {
		return usageError{errors.New("--from and --to are needed")}
	}
	if u := m.uncommitted; u != "" && u != "keep" && u != "drop" {
		return usageError{fmt.Errorf("--uncommitted is %q, and can be keep or drop", u)}
	}
	if m.cluster.cluster.InitialCluster == "" {
		for _, name := range []string{"name", "initial-cluster-token", "initial-advertise-peer-urls"} {
			if cmd.Flags().Changed(name) {
				return usageError{fmt.Errorf("--%s is about a new cluster: --initial-cluster must name its members", name)}
			}
		}
	}
	info, err := os.Stat(m.from)
	if err != nil {
		return err
	}
	switch {
	case m.toEtcd && (m.skipHashCheck || m.disableAuth || m.uncommitted != ""):
		return usageError{errors.New("--skip-hash-check, --disable-auth and --uncommitted are about data of etcd's, not with --to-etcd")}
	case m.toEtcd && !info.IsDir():
		return usageError{errors.New("--to-etcd moves a data directory; etcdutl snapshot restore makes one of a snapshot file, also of Coterie's")}
	case m.toEtcd:
		return m.export(cmd)
	case info.IsDir() && m.skipHashCheck:
		return usageError{errors.New("--skip-hash-check is about snapshot files, and --from is a directory")}
	}
	config := coterie.RestoreConfig{
		DataDir: m.to, WALDir: m.toWAL, Cluster: m.cluster.newCluster(),
		SkipHashCheck: m.skipHashCheck, DisableAuth: m.disableAuth, Uncommitted: m.uncommitted,
	}
	if info.IsDir() {
		config.EtcdDir, config.EtcdWALDir = m.from, m.fromWAL
	} else {
		config.Snapshot = m.from
		if config.Cluster == nil { // a file does not say whose it is
			m.cluster.cluster.InitialCluster = defaultInitialCluster
			config.Cluster = m.cluster.newCluster()
		}
	}
	return restore(cmd, &config)
}

func (m *migration) export(cmd *cobra.Command) error {
	ctx, release := interruptible(cmd.Context())
	defer release()
	config := coterie.ExportConfig{DataDir: m.from, WALDir: m.fromWAL, EtcdDir: m.to, EtcdWALDir: m.toWAL, Cluster: m.cluster.newCluster()}
	tell, end := progress("writing changes")
	config.OnProgress = func(changes int64) { tell(changes, 0) }
	r, err := coterie.ExportToEtcd(ctx, config)
	end()
	if err != nil {
		return err
	}
	printRestored(cmd.OutOrStdout(), m.to, r)
	return nil
}
