package api

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/coteriedb/coterie/machine"
)

func TestPeerMetrics(t *testing.T) {
	m := NewMetrics(false)
	peers := []PeerTraffic{
		{
			ID: 0xb2, Active: true, Disconnects: 1, SentBytes: 2, ReceivedBytes: 3, SendFailures: 4, ReceiveFailures: 5,
			SnapshotsSent: 6, SnapshotSendFailures: 7, SnapshotsReceived: 8, SnapshotReceiveFailures: 9,
			SnapshotsSending: 10, SnapshotsReceiving: 11,
		},
		{ID: 0xc3},
	}
	m.Watch(Sources{Peers: func() []PeerTraffic { return peers }, MemberID: 0xa1, SnapshotsApplying: func() float64 { return 1 }})
	m.PeerRoundTrip(0xb2, time.Millisecond)
	m.SnapshotSent(0xb2, time.Second)
	m.SnapshotReceived(0xc3, time.Second)
	m.Promoted(nil)
	m.Promoted(fmt.Errorf("promote: %w", machine.ErrMemberNotLearner))
	m.Promoted(rpctypes.ErrMemberLearnerNotReady)
	m.Promoted(errors.New("no two are alike"))

	got := gathered(t, m)
	for name, want := range map[string]float64{
		"etcd_network_active_peers a1 b2":                                                    1,
		"etcd_network_known_peers a1 c3":                                                     1,
		"etcd_network_active_peers a1 c3":                                                    0,
		"etcd_network_disconnected_peers_total a1 b2":                                        1,
		"etcd_network_peer_sent_bytes_total b2":                                              2,
		"etcd_network_peer_sent_bytes_total c3":                                              0,
		"etcd_network_peer_received_bytes_total b2":                                          3,
		"etcd_network_peer_sent_failures_total b2":                                           4,
		"etcd_network_peer_received_failures_total b2":                                       5,
		"etcd_network_snapshot_send_success b2":                                              6,
		"etcd_network_snapshot_send_failures b2":                                             7,
		"etcd_network_snapshot_receive_success b2":                                           8,
		"etcd_network_snapshot_receive_failures b2":                                          9,
		"etcd_network_snapshot_send_inflights_total b2":                                      10,
		"etcd_network_snapshot_receive_inflights_total b2":                                   11,
		"etcd_network_peer_round_trip_time_seconds b2":                                       1,
		"etcd_network_snapshot_send_total_duration_seconds b2":                               1,
		"etcd_network_snapshot_receive_total_duration_seconds c3":                            1,
		"etcd_server_snapshot_apply_in_progress_total":                                       1,
		"etcd_server_learner_promote_successes":                                              1,
		"etcd_server_learner_promote_failures other":                                         1,
		"etcd_server_learner_promote_failures etcdserver: can only promote a learner member": 1,
		"etcd_server_learner_promote_failures etcdserver: can only promote a learner member which is in sync with leader": 1,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (there: %v), want %v", name, v, ok, want)
		}
	}
	peers = peers[:1] // the other has left
	if _, ok := gathered(t, m)["etcd_network_active_peers a1 c3"]; ok {
		t.Error("a member that has left is still active, or not active, instead of gone")
	}
}
