package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/tw"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie"
)

func snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save, inspect and restore snapshots of a server",
		Long: `Save, inspect and restore snapshots. The files are etcd's: what either of the two has saved, the other restores.
See docs/recovery.md for how to bring a cluster back.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(snapshotSaveCommand(), snapshotStatusCommand(), snapshotRestoreCommand())
	return cmd
}

// oneFile requires one argument and names it.
func oneFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("snapshot %s requires exactly one argument: the name of the file", cmd.Name())}
	}
	return nil
}

// interruptible ends the context at the first signal; a second one ends the process.
func interruptible(ctx context.Context) (context.Context, func()) {
	ctx, restore := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	stop := context.AfterFunc(ctx, restore)
	return ctx, func() { stop(); restore() }
}

func snapshotSaveCommand() *cobra.Command {
	var c clientFlags
	cmd := &cobra.Command{
		Use:     "save FILE",
		Short:   "Save the state of a running server to a file",
		Example: "  coterie snapshot save backup.db\n  coterie snapshot save --endpoints https://10.0.0.1:2379 --cacert ca.crt backup.db",
		Args:    oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ctlVariables(cmd.Flags()); err != nil {
				return usageError{err}
			}
			ctx, restore := interruptible(cmd.Context())
			defer restore()
			if c.commandTimeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.commandTimeout)
				defer cancel()
			}
			version, err := c.saveSnapshot(ctx, args[0])
			if err != nil {
				return fmt.Errorf("save a snapshot: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Snapshot saved at %s\n", args[0])
			if version != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "Server version %s\n", version)
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	c.add(cmd.Flags())
	return cmd
}

// saveSnapshot writes beside path and renames at the end, so that what has the name is whole.
func (c *clientFlags) saveSnapshot(ctx context.Context, path string) (version string, err error) {
	client, err := c.dial()
	if err != nil {
		return "", err
	}
	defer client.Close()
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part))
		}
	}()
	stream, err := pb.NewMaintenanceClient(client.ActiveConnection()).Snapshot(ctx, &pb.SnapshotRequest{})
	if err == nil {
		version, err = receive(stream.Recv, f)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	if err := coterie.VerifySnapshot(ctx, part); err != nil {
		return "", fmt.Errorf("what the server sent is not a whole snapshot: %w", err)
	}
	if err := os.Rename(part, path); err != nil {
		return "", err
	}
	return version, syncDir(filepath.Dir(path))
}

// receive writes the pieces of a snapshot.
func receive(next func() (*pb.SnapshotResponse, error), to io.Writer) (version string, err error) {
	tell, end := progress("saving")
	defer end()
	done := int64(0)
	for {
		piece, err := next()
		if errors.Is(err, io.EOF) {
			return version, nil
		}
		if err != nil {
			return "", err
		}
		version = piece.Version
		if _, err := to.Write(piece.Blob); err != nil {
			return "", err
		}
		done += int64(len(piece.Blob))
		tell(done, done+int64(piece.RemainingBytes))
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func snapshotStatusCommand() *cobra.Command {
	var format string
	var skipHashCheck bool
	cmd := &cobra.Command{
		Use:   "status FILE",
		Short: "Check a snapshot file and tell what is in it",
		Args:  oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			printStatus, ok := statusFormats[format]
			if !ok {
				return usageError{fmt.Errorf("unsupported output format %q: choose fields, json, simple or table", format)}
			}
			ctx, restore := interruptible(cmd.Context())
			defer restore()
			tell, end := progress("reading")
			s, err := coterie.ReadSnapshotStatus(ctx, args[0], skipHashCheck, tell)
			end()
			if err != nil {
				return withHashHint(err)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().StringVarP(&format, "write-out", "w", "simple", "output format: fields, json, simple or table")
	cmd.Flags().BoolVar(&skipHashCheck, "skip-hash-check", false, "read a file whatever its checksum is, such as one copied from a data directory")
	return cmd
}

// withHashHint tells of the flag that makes up for a missing checksum.
func withHashHint(err error) error {
	if coterie.IsMissingChecksum(err) {
		return fmt.Errorf("%w; --skip-hash-check reads it all the same", err)
	}
	return err
}

// statusFormats are etcdutl's.
var statusFormats = map[string]func(io.Writer, *coterie.SnapshotStatus) error{
	"simple": func(w io.Writer, s *coterie.SnapshotStatus) error {
		_, err := fmt.Fprintln(w, strings.Join(statusRow(s), ", "))
		return err
	},
	"fields": func(w io.Writer, s *coterie.SnapshotStatus) error {
		_, err := fmt.Fprintf(w, "\"Hash\" : %d\n\"Revision\" : %d\n\"Keys\" : %d\n\"Size\" : %d\n\"Version\" : %s\n",
			s.Hash, s.Revision, s.Keys, s.Size, s.Version)
		return err
	},
	"json": func(w io.Writer, s *coterie.SnapshotStatus) error {
		return json.NewEncoder(w).Encode(struct {
			Hash      uint32 `json:"hash"`
			Revision  int64  `json:"revision"`
			TotalKey  int    `json:"totalKey"`
			TotalSize int64  `json:"totalSize"`
			Version   string `json:"version"`
		}{s.Hash, s.Revision, s.Keys, s.Size, s.Version})
	},
	"table": func(w io.Writer, s *coterie.SnapshotStatus) error {
		table := tablewriter.NewTable(w, tablewriter.WithConfig(tablewriter.NewConfigBuilder().WithRowAlignment(tw.AlignRight).Build()))
		table.Header([]string{"hash", "revision", "total keys", "total size", "version"})
		return errors.Join(table.Append(statusRow(s)), table.Render())
	},
}

func statusRow(s *coterie.SnapshotStatus) []string {
	return []string{fmt.Sprintf("%x", s.Hash), fmt.Sprint(s.Revision), fmt.Sprint(s.Keys), humanize.Bytes(uint64(s.Size)), s.Version}
}

// clusterFlags say of which new cluster a member is made, with etcdutl's names and defaults.
type clusterFlags struct {
	cluster coterie.NewCluster
	urls    string
}

func (c *clusterFlags) add(f *pflag.FlagSet, initialCluster string) {
	f.StringVar(&c.cluster.Name, "name", "default", "name of this member, as --initial-cluster lists it")
	f.StringVar(&c.cluster.InitialCluster, "initial-cluster", initialCluster, "members of the new cluster, as name=url,name=url")
	f.StringVar(&c.cluster.InitialClusterToken, "initial-cluster-token", "etcd-cluster", "text that goes into the ids of the new cluster")
	f.StringVar(&c.urls, "initial-advertise-peer-urls", "http://localhost:2380", "peer URLs of this member, as --initial-cluster lists them")
}

// newCluster is nil without members.
func (c *clusterFlags) newCluster() *coterie.NewCluster {
	if c.cluster.InitialCluster == "" {
		return nil
	}
	c.cluster.InitialAdvertisePeerURLs = strings.Split(c.urls, ",")
	return &c.cluster
}

const defaultInitialCluster = "default=http://localhost:2380"

func snapshotRestoreCommand() *cobra.Command {
	var config coterie.RestoreConfig
	var cluster clusterFlags
	var markCompacted bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make the data directory of a member of a new cluster from a snapshot file",
		Long: `Make the data directory of a member of a new cluster from a snapshot file. Every member of the cluster is made from the
same file, with the same --initial-cluster and --initial-cluster-token and its own --name. Flags and their defaults are etcdutl's.`,
		Example: `  coterie snapshot restore backup.db --data-dir /var/lib/coterie
  coterie snapshot restore backup.db --data-dir /var/lib/coterie --name a \
    --initial-cluster a=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380 \
    --initial-advertise-peer-urls http://10.0.0.1:2380`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if markCompacted != (config.BumpRevision > 0) {
				return usageError{errors.New("--mark-compacted required if --bump-revision > 0, and the other way round")}
			}
			config.Snapshot = args[0]
			if config.DataDir == "" {
				config.DataDir = cluster.cluster.Name + ".coterie"
			}
			config.Cluster = cluster.newCluster()
			if config.Cluster == nil {
				return usageError{errors.New("--initial-cluster must name the members of the new cluster")}
			}
			return restore(cmd, &config)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&config.DataDir, "data-dir", "", "directory to make; empty or not there yet (default: the name and .coterie)")
	f.StringVar(&config.WALDir, "wal-dir", "", "directory for the raft log, if it is not to be under --data-dir")
	cluster.add(f, defaultInitialCluster)
	f.BoolVar(&config.SkipHashCheck, "skip-hash-check", false, "restore a file whatever its checksum is, such as one copied from a data directory")
	f.Uint64Var(&config.BumpRevision, "bump-revision", 0, "how much to raise the revision, so that clients see none twice")
	f.BoolVar(&markCompacted, "mark-compacted", false, "make all history before the raised revision count as compacted; needed with --bump-revision")
	f.BoolVar(&config.DisableAuth, "disable-auth", false, "carry on without authentication where it was enabled")
	return cmd
}

// restore makes a data directory and says what became of it.
func restore(cmd *cobra.Command, config *coterie.RestoreConfig) error {
	ctx, release := interruptible(cmd.Context())
	defer release()
	var end func()
	config.OnProgress, end = progress("restoring")
	r, err := coterie.Restore(ctx, *config)
	end()
	if err != nil {
		return withHashHint(err)
	}
	printRestored(cmd.OutOrStdout(), config.DataDir, r)
	return nil
}

func printRestored(w io.Writer, dir string, r *coterie.Restored) {
	fmt.Fprintf(w, "%s is of member %x of cluster %x, which has:\n", dir, r.MemberID, r.ClusterID)
	for _, m := range r.Members {
		fmt.Fprintf(w, "  %x %s\n", m.ID, strings.Join(m.PeerURLs, ","))
	}
}
