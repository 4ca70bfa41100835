package api

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// PeerTraffic is what metrics tell of the connections with another member.
type PeerTraffic struct {
	ID          uint64
	Active      bool   // all connections are up
	Disconnects uint64 // how often that has ended

	SentBytes, ReceivedBytes      uint64
	SendFailures, ReceiveFailures uint64

	SnapshotsSent, SnapshotSendFailures        uint64
	SnapshotsReceived, SnapshotReceiveFailures uint64
	SnapshotsSending, SnapshotsReceiving       int64 // under way
}

// peerTimes are what is observed as it happens, by the other member's id.
type peerTimes struct{ roundTrip, sent, received *prometheus.HistogramVec }

func (t *peerTimes) init(reg *prometheus.Registry) {
	vec := func(name, help, label string, buckets []float64) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{label})
		reg.MustRegister(v)
		return v
	}
	// The buckets are those that etcd's dashboards expect.
	t.roundTrip = vec("etcd_network_peer_round_trip_time_seconds", "Round trips to other members.", "To", prometheus.ExponentialBuckets(0.0001, 2, 16))
	t.sent = vec("etcd_network_snapshot_send_total_duration_seconds", "Duration of sending a snapshot to a member.", "To", prometheus.ExponentialBuckets(0.1, 2, 10))
	t.received = vec("etcd_network_snapshot_receive_total_duration_seconds", "Duration of receiving a snapshot from a member.", "From", prometheus.ExponentialBuckets(0.1, 2, 10))
}

// PeerRoundTrip notes a round trip to another member.
func (m *Metrics) PeerRoundTrip(to uint64, d time.Duration) { observe(m.peers.roundTrip, to, d) }

// SnapshotSent notes how long a snapshot took that was sent to another member.
func (m *Metrics) SnapshotSent(to uint64, d time.Duration) { observe(m.peers.sent, to, d) }

// SnapshotReceived notes how long a snapshot took that was received from another member.
func (m *Metrics) SnapshotReceived(from uint64, d time.Duration) { observe(m.peers.received, from, d) }

func observe(v *prometheus.HistogramVec, id uint64, d time.Duration) {
	v.WithLabelValues(hex(id)).Observe(d.Seconds())
}

func hex(id uint64) string { return fmt.Sprintf("%x", id) }

// Promoted notes how the promotion of a learner went that this member decided as the leader.
func (m *Metrics) Promoted(err error) {
	if err == nil {
		m.promoted.Inc()
		return
	}
	reason := "other"
	if st := status.Convert(StatusError(err)); st.Code() != codes.Unknown {
		reason = st.Message() // one of etcd's, so their number is bounded
	}
	m.notPromoted.WithLabelValues(reason).Inc()
}

// peerMetrics are those that are read from PeerTraffic.
var peerMetrics = []struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	value  func(*PeerTraffic) float64
	ofPair bool // labelled with both members, not with the other alone
}{
	{pairDesc("known_peers", "1 for each other member."), prometheus.GaugeValue, func(*PeerTraffic) float64 { return 1 }, true},
	{pairDesc("active_peers", "1 if all connections with the member are up, else 0."), prometheus.GaugeValue, func(p *PeerTraffic) float64 { return whether(p.Active) }, true},
	{pairDesc("disconnected_peers_total", "Times that a connection with the member was lost."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.Disconnects) }, true},

	{peerDesc("peer_sent_bytes_total", "To", "Bytes sent to the member."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.SentBytes) }, false},
	{peerDesc("peer_received_bytes_total", "From", "Bytes received from the member."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.ReceivedBytes) }, false},
	{peerDesc("peer_sent_failures_total", "To", "Connections to the member that broke or could not be made."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.SendFailures) }, false},
	{peerDesc("peer_received_failures_total", "From", "Connections from the member that broke."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.ReceiveFailures) }, false},

	{peerDesc("snapshot_send_success", "To", "Snapshots sent to the member."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.SnapshotsSent) }, false},
	{peerDesc("snapshot_send_failures", "To", "Snapshots that could not be sent to the member."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.SnapshotSendFailures) }, false},
	{peerDesc("snapshot_send_inflights_total", "To", "Snapshots being sent to the member."), prometheus.GaugeValue, func(p *PeerTraffic) float64 { return float64(p.SnapshotsSending) }, false},
	{peerDesc("snapshot_receive_success", "From", "Snapshots received from the member."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.SnapshotsReceived) }, false},
	{peerDesc("snapshot_receive_failures", "From", "Snapshots that could not be received from the member."), prometheus.CounterValue, func(p *PeerTraffic) float64 { return float64(p.SnapshotReceiveFailures) }, false},
	{peerDesc("snapshot_receive_inflights_total", "From", "Snapshots being received from the member."), prometheus.GaugeValue, func(p *PeerTraffic) float64 { return float64(p.SnapshotsReceiving) }, false},
}

func peerDesc(name, label, help string) *prometheus.Desc {
	return prometheus.NewDesc("etcd_network_"+name, help, []string{label}, nil)
}

func pairDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("etcd_network_"+name, help, []string{"Local", "Remote"}, nil)
}

// peerCollector reports the traffic of the moment with each other member.
type peerCollector struct {
	local uint64
	peers func() []PeerTraffic
}

// Describe implements prometheus.Collector.
func (c peerCollector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range peerMetrics {
		out <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c peerCollector) Collect(out chan<- prometheus.Metric) {
	for _, p := range c.peers() {
		for _, m := range peerMetrics {
			labels := []string{hex(p.ID)}
			if m.ofPair {
				labels = []string{hex(c.local), hex(p.ID)}
			}
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&p), labels...)
		}
	}
}

func whether(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
