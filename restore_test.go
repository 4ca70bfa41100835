package coterie

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/replica"
	"github.com/coteriedb/coterie/storage/etcdfile"
)

// snapshotOf writes a snapshot file with some history.
func snapshotOf(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	c := etcdfile.Contents{
		Index: 70, Term: 3, StorageVersion: "3.7.0", ClusterVersion: "3.7.0", ScheduledCompaction: 5, FinishedCompaction: 4,
		Leases:  []etcdfile.Lease{{ID: 7, TTL: 100, RemainingTTL: 50}},
		Alarms:  []*pb.AlarmMember{{MemberID: 9, Alarm: pb.AlarmType_NOSPACE}, {MemberID: 9, Alarm: 77}},
		Members: []etcdfile.Member{{ID: 9, PeerURLs: []string{"http://old:1"}}}, RemovedMembers: []uint64{8},
		Revisions: func(fn etcdfile.RevisionFunc) error {
			for rev := int64(2); rev < 50; rev++ {
				key := fmt.Appendf(nil, "k%d", rev%5)
				if err := fn(rev, 0, false, &mvccpb.KeyValue{Key: key, CreateRevision: rev, ModRevision: rev, Version: 1, Lease: 7}); err != nil {
					return err
				}
				if err := fn(rev, 1, true, &mvccpb.KeyValue{Key: key}); err != nil { // changed twice by one revision
					return err
				}
			}
			return fn(50, 0, false, &mvccpb.KeyValue{Key: []byte("last"), CreateRevision: 50, ModRevision: 50, Version: 1, Lease: 7})
		},
	}
	if err := etcdfile.Write(t.Context(), path, c); err != nil {
		t.Fatal(err)
	}
	return path
}

var three = NewCluster{
	Name: "a", InitialCluster: "a=http://a:1,b=http://b:1,c=http://c:1", InitialClusterToken: "new", InitialAdvertisePeerURLs: []string{"http://a:1"},
}

func TestRestoreMakesMembersAlike(t *testing.T) {
	file := snapshotOf(t)
	var hashes []string
	for _, name := range []string{"a", "b", "c"} {
		cluster := three
		cluster.Name, cluster.InitialAdvertisePeerURLs = name, []string{"http://" + name + ":1"}
		dir := filepath.Join(t.TempDir(), "data")
		r, err := Restore(t.Context(), RestoreConfig{Snapshot: file, Cluster: &cluster, DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if want := memberID([]string{"http://" + name + ":1"}, "new"); r.MemberID != want || len(r.Members) != 3 {
			t.Errorf("made %+v, want member %x of 3", r, want)
		}
		d, m, err := openToRead(dir, "", zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		sum, rev, compacted, err := m.KV.HashKV(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		l, _ := m.Leases.Get(7)
		hashes = append(hashes, fmt.Sprintf("%08x at %d, compacted %d, lease %d of %d with %q, alarms %v, members %v, 8 removed %v, applied %d",
			sum, rev, compacted, l.RemainingTTL, l.TTL, m.Leases.Keys(7), m.Alarms.List(0), m.Members.List(), m.Members.Removed(8), m.Applied()))
		if last, err := d.Log.LastIndex(); err != nil || last != replica.FirstIndex {
			t.Errorf("the log ends at %d, %v", last, err)
		}
		m.Close()
		if err := errors.Join(d.Engine.Close(), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if hashes[0] != hashes[1] || hashes[1] != hashes[2] {
		t.Errorf("members differ: %q", hashes)
	}
	for _, want := range []string{"at 50, compacted 5, lease 50 of 100 with [\"last\"]", "8 removed false, applied 1"} {
		if !strings.Contains(hashes[0], want) {
			t.Errorf("%q, want %q in it", hashes[0], want)
		}
	}
}

func TestARestoreThatFailsLeavesNothing(t *testing.T) {
	file := snapshotOf(t)
	other := three
	other.InitialAdvertisePeerURLs = []string{"http://elsewhere:1"}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	huge := filepath.Join(t.TempDir(), "history.db")
	if err := etcdfile.Write(t.Context(), huge, etcdfile.Contents{Revisions: func(fn etcdfile.RevisionFunc) error {
		return fn(5, 0, false, &mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 9, ModRevision: 5, Version: 1})
	}}); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		ctx context.Context
		cfg RestoreConfig
	}{
		"no cluster":             {t.Context(), RestoreConfig{Snapshot: file}},
		"other URLs":             {t.Context(), RestoreConfig{Snapshot: file, Cluster: &other}},
		"no file":                {t.Context(), RestoreConfig{Snapshot: file + "x", Cluster: &three}},
		"no directory of etcd":   {t.Context(), RestoreConfig{EtcdDir: filepath.Dir(file)}},
		"interrupted":            {stopped, RestoreConfig{Snapshot: file, Cluster: &three}},
		"a history that is none": {t.Context(), RestoreConfig{Snapshot: huge, Cluster: &three}},
		"a bump out of range":    {t.Context(), RestoreConfig{Snapshot: file, Cluster: &three, BumpRevision: 1 << 63}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			tt.cfg.DataDir, tt.cfg.WALDir = filepath.Join(root, "x", "data"), filepath.Join(root, "log")
			if r, err := Restore(tt.ctx, tt.cfg); err == nil {
				t.Errorf("made %+v", r)
			}
			if left := listTree(t, root); len(left) > 0 {
				t.Errorf("left %q", left)
			}
		})
	}
}

// TestExportRefusesWhatIsOnlyInTheLog: which entries count is not for it to say.
func TestExportRefusesWhatIsOnlyInTheLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	alone := NewCluster{Name: "a", InitialCluster: "a=http://a:1", InitialAdvertisePeerURLs: []string{"http://a:1"}}
	if _, err := Restore(t.Context(), RestoreConfig{Snapshot: snapshotOf(t), Cluster: &alone, DataDir: dir}); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "etcd")
	if _, err := ExportToEtcd(t.Context(), ExportConfig{DataDir: dir, EtcdDir: to}); err != nil {
		t.Fatal(err)
	}
	appendEntry(t, dir, "")
	if _, err := ExportToEtcd(t.Context(), ExportConfig{DataDir: dir, EtcdDir: to + "2"}); err != nil {
		t.Errorf("an empty entry of a new leader is minded: %v", err)
	}
	appendEntry(t, dir, "a command")
	if _, err := ExportToEtcd(t.Context(), ExportConfig{DataDir: dir, EtcdDir: to + "3"}); err == nil || !strings.Contains(err.Error(), "was not stopped in order") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(to + "3"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
}

// appendEntry adds an entry to the log of a member that does not run.
func appendEntry(t *testing.T, dir, data string) {
	t.Helper()
	d, m, err := openToRead(dir, "", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	last, err := d.Log.LastIndex()
	if err == nil {
		err = d.Log.Append(nil, []*raftpb.Entry{{Index: new(last + 1), Term: new(uint64(2)), Data: []byte(data)}})
	}
	m.Close()
	if err := errors.Join(err, d.Engine.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
}
