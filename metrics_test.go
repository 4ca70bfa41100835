package coterie

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/coteriedb/coterie/replica"
)

// metric returns what a member reports under a name and labels, separated by
// spaces. Of a histogram it is how much was observed.
func metric(t testing.TB, n *Node, name string) float64 {
	t.Helper()
	families, err := n.front.metrics.Registry().Gather()
	must(t, err)
	for _, f := range families {
		for _, m := range f.Metric {
			got := f.GetName()
			for _, l := range m.Label {
				got += " " + l.GetValue()
			}
			if got == name {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	t.Errorf("no metric %s", name)
	return 0
}

// A learner joins, is sent the state, and is promoted: both members count it.
func TestMetricsOfPeers(t *testing.T) {
	defer goleak.VerifyNone(t)
	first := openNode(t, lagConfigs(t, 1)[0])
	defer first.Close()
	fill(t, first, "k")
	joining := testCluster(t, 1)[0]
	joining.Name, joining.InitialClusterState = "m2", ClusterStateExisting
	joining.InitialCluster = first.cfg.InitialCluster + ",m2=" + joining.ListenPeerURLs[0]
	added, err := first.Client().MemberAddAsLearner(t.Context(), joining.ListenPeerURLs)
	must(t, err)
	_, err = first.Client().MemberPromote(t.Context(), added.Member.ID)
	if err == nil {
		t.Fatal("a learner that has nothing was promoted")
	}
	reason := err.Error()
	second := openNode(t, joining)
	defer second.Close()
	eventually(t, func() string {
		if _, err := first.Client().MemberPromote(t.Context(), added.Member.ID); err != nil {
			return err.Error()
		}
		return ""
	})

	one, two := fmt.Sprintf("%x", first.data.MemberID), fmt.Sprintf("%x", second.data.MemberID)
	for _, c := range []struct {
		n    *Node
		name string
	}{
		{first, "etcd_network_active_peers " + one + " " + two},
		{second, "etcd_network_active_peers " + two + " " + one},
		{first, "etcd_network_snapshot_send_success " + two},
		{first, "etcd_network_snapshot_send_total_duration_seconds " + two},
		{second, "etcd_network_snapshot_receive_success " + one},
		{second, "etcd_network_snapshot_receive_total_duration_seconds " + one},
		{first, "etcd_server_learner_promote_successes"},
	} {
		if v := metric(t, c.n, c.name); v != 1 {
			t.Errorf("%s is %v, want 1", c.name, v)
		}
	}
	if v := metric(t, first, "etcd_server_learner_promote_failures "+strings.TrimSpace(reason)); v < 1 {
		t.Errorf("%v promotions failed because %s", v, reason)
	}
	if sent, received := metric(t, first, "etcd_network_peer_sent_bytes_total "+two), metric(t, second, "etcd_network_peer_received_bytes_total "+one); received < 64<<10 || sent < received/2 {
		t.Errorf("%v bytes were sent, and %v received", sent, received)
	}
	eventually(t, func() string {
		if metric(t, first, "etcd_network_peer_round_trip_time_seconds "+two) == 0 {
			return "no round trip was measured"
		}
		return ""
	})
}

func TestMetricsWhileASnapshotIsInstalled(t *testing.T) {
	const name = "etcd_server_snapshot_apply_in_progress_total"
	cfg := testConfig(t)
	var n *Node
	during := 0.0
	quiet := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zap.InfoLevel)
	cfg.Logger = zap.New(quiet, zap.Hooks(func(e zapcore.Entry) error {
		if e.Message == "state replaced by a snapshot" {
			during = metric(t, n, name)
		}
		return nil
	}))
	n = openNode(t, cfg)
	defer n.Close()
	s, err := (snapshots{n}).Take(t.Context())
	must(t, err)
	defer s.Release()
	index := s.Metadata.GetIndex()
	must(t, os.Rename(s.Dir, filepath.Join(n.data.Path, replica.SnapshotDir(index))))
	must(t, n.replica.Install(index, s.Metadata.GetTerm()))
	if after := metric(t, n, name); during != 1 || after != 0 {
		t.Errorf("%s is %v while a snapshot is installed, and %v after", name, during, after)
	}
}
