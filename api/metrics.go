package api

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Metrics are one member's metrics, under the names that operators of etcd know. They live in
// a registry of their own: members in one process share nothing.
type Metrics struct {
	registry *prometheus.Registry
	rpc      callTable

	sent, received prometheus.Counter
	versions       versionCounts

	// LogSync and EngineCommit take how long the log's fdatasync and the engine's commit of
	// a batch took, in seconds; SnapshotSave how long the engine took to write a snapshot.
	LogSync, EngineCommit, SnapshotSave prometheus.Observer

	peers       peerTimes
	promoted    prometheus.Counter
	notPromoted *prometheus.CounterVec

	healthSuccess, healthFailure prometheus.Counter
	healthGauge                  *prometheus.GaugeVec
	healthCount                  *prometheus.CounterVec
}

// NewMetrics returns metrics that count nothing yet. If extensive, the latency of gRPC methods
// is kept in histograms, as etcd does with --metrics=extensive.
func NewMetrics(extensive bool) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.rpc.init(m.registry, extensive)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	m.sent = m.counter("etcd_network_client_grpc_sent_bytes_total", "Bytes of messages sent to gRPC clients.")
	m.received = m.counter("etcd_network_client_grpc_received_bytes_total", "Bytes of messages received from gRPC clients.")
	m.versions.vec = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "etcd_server_client_requests_total", Help: "Requests by the API version that clients say they speak.",
	}, []string{"type", "client_api_version"})

	// From 1 ms to 8 s, in powers of two: the buckets that etcd's dashboards expect.
	buckets := prometheus.ExponentialBuckets(0.001, 2, 14)
	m.LogSync = m.histogram("etcd_disk_wal_fsync_duration_seconds", "Duration of the fdatasync of the raft log.", buckets)
	m.EngineCommit = m.histogram("etcd_disk_backend_commit_duration_seconds", "Duration of committing a batch of applied commands to the engine.", buckets)
	m.SnapshotSave = m.histogram("etcd_disk_backend_snapshot_duration_seconds", "Duration of producing a snapshot.", prometheus.ExponentialBuckets(.01, 2, 17))

	m.peers.init(m.registry)
	m.promoted = m.counter("etcd_server_learner_promote_successes", "Learners promoted while this member led.")
	m.notPromoted = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "etcd_server_learner_promote_failures", Help: "Promotions of learners that failed while this member led, by reason.",
	}, []string{"Reason"})

	m.healthSuccess = m.counter("etcd_server_health_success", "Successful checks of /health.")
	m.healthFailure = m.counter("etcd_server_health_failures", "Failed checks of /health.")
	m.healthGauge = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "etcd_server_healthcheck", Help: "The last result of each health check: 1 is success.",
	}, []string{"type", "name"})
	m.healthCount = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "etcd_server_healthchecks_total", Help: "Health checks by result.",
	}, []string{"type", "name", "status"})
	m.registry.MustRegister(m.versions.vec, m.notPromoted, m.healthGauge, m.healthCount)
	return m
}

// Registry holds the metrics. Others may register theirs too.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Sent implements rpc.Traffic.
func (m *Metrics) Sent(n int) { m.sent.Add(float64(n)) }

// Received implements rpc.Traffic.
func (m *Metrics) Received(n int) { m.received.Add(float64(n)) }

// Health notes the result of a check of /health.
func (m *Metrics) Health(ok bool) {
	if ok {
		m.healthSuccess.Inc()
	} else {
		m.healthFailure.Inc()
	}
}

// Check notes the result of one of the checks of /livez or /readyz.
func (m *Metrics) Check(kind, name string, ok bool) {
	result, value := "error", 0.0
	if ok {
		result, value = "success", 1
	}
	m.healthGauge.WithLabelValues(kind, name).Set(value)
	m.healthCount.WithLabelValues(kind, name, result).Inc()
}

func (m *Metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	m.registry.MustRegister(h)
	return h
}

func (m *Metrics) gaugeFunc(name, help string, value func() float64) {
	if value != nil {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
}

func (m *Metrics) counterFunc(name, help string, value func() float64) {
	if value != nil {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
	}
}

// constant is a gauge whose label is the message.
func (m *Metrics) constant(name, help, label, value string) {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: prometheus.Labels{label: value}})
	g.Set(1)
	m.registry.MustRegister(g)
}

// Sources are values that other packages count. Each is read when metrics are collected; nil
// ones are left out.
type Sources struct {
	LeaderChanges, ProposalsPending, ProposalsFailed func() float64

	Puts, Deletes, Txns, Ranges             func() float64
	Keys, CompactedKeys                     func() float64
	WatchStreams, Watchers, SlowWatchers    func() float64
	Events, PendingEvents                   func() float64
	LeasesGranted, LeasesRevoked            func() float64
	LeasesRenewed, LeasesExpired, SlowApply func() float64
	LogWrittenBytes                         func() float64
	SnapshotsApplying                       func() float64

	// Peers tells of the other members; MemberID is this one.
	Peers    func() []PeerTraffic
	MemberID uint64
}

// Watch registers the sources. It is called once.
func (m *Metrics) Watch(s Sources) {
	m.counterFunc("etcd_server_leader_changes_seen_total", "Changes of the leader that this member has seen.", s.LeaderChanges)
	m.gaugeFunc("etcd_server_proposals_pending", "Proposals whose outcome is not known yet.", s.ProposalsPending)
	m.counterFunc("etcd_server_proposals_failed_total", "Proposals that failed.", s.ProposalsFailed)

	m.counterFunc("etcd_mvcc_put_total", "Puts applied by this member.", s.Puts)
	m.counterFunc("etcd_mvcc_delete_total", "Deletions applied by this member.", s.Deletes)
	m.counterFunc("etcd_mvcc_txn_total", "Transactions applied by this member.", s.Txns)
	m.counterFunc("etcd_mvcc_range_total", "Ranges read from this member.", s.Ranges)
	m.gaugeFunc("etcd_debugging_mvcc_keys_total", "Keys in the store.", s.Keys)
	m.counterFunc("etcd_debugging_mvcc_db_compaction_keys_total", "Revisions removed by compaction.", s.CompactedKeys)
	m.gaugeFunc("etcd_debugging_mvcc_watch_stream_total", "Watch streams open.", s.WatchStreams)
	m.gaugeFunc("etcd_debugging_mvcc_watcher_total", "Watchers open.", s.Watchers)
	m.gaugeFunc("etcd_debugging_mvcc_slow_watcher_total", "Watchers that are behind and catch up from history.", s.SlowWatchers)
	m.counterFunc("etcd_debugging_mvcc_events_total", "Events sent to watchers.", s.Events)
	m.gaugeFunc("etcd_debugging_mvcc_pending_events_total", "Events that watchers have yet to be sent.", s.PendingEvents)

	m.counterFunc("etcd_debugging_lease_granted_total", "Leases granted.", s.LeasesGranted)
	m.counterFunc("etcd_debugging_lease_revoked_total", "Leases revoked.", s.LeasesRevoked)
	m.counterFunc("etcd_debugging_lease_renewed_total", "Keep-alives answered by this member as the leader.", s.LeasesRenewed)
	m.counterFunc("etcd_debugging_server_lease_expired_total", "Leases that expired.", s.LeasesExpired)
	m.counterFunc("etcd_server_slow_apply_total", "Batches that took longer to apply than expected.", s.SlowApply)
	m.counterFunc("etcd_disk_wal_write_bytes_total", "Bytes written to the raft log.", s.LogWrittenBytes)
	m.gaugeFunc("etcd_server_snapshot_apply_in_progress_total", "1 while a snapshot from another member replaces the state, else 0.", s.SnapshotsApplying)
	if s.Peers != nil {
		m.registry.MustRegister(peerCollector{s.MemberID, s.Peers})
	}
}

// watchNode registers what a Node itself tells.
func (m *Metrics) watchNode(s *Server) {
	n := s.node
	is := func(f func(Status) bool) func() float64 {
		return func() float64 { return whether(f(n.Status())) }
	}
	m.gaugeFunc("etcd_server_has_leader", "1 if a leader is known, else 0.", is(func(st Status) bool { return st.Leader != 0 }))
	m.gaugeFunc("etcd_server_is_leader", "1 if this member leads, else 0.", is(func(st Status) bool { return st.Leader == s.cfg.MemberID }))
	m.gaugeFunc("etcd_server_is_learner", "1 if this member does not vote, else 0.", is(func(st Status) bool { return st.IsLearner }))
	m.gaugeFunc("etcd_server_proposals_committed_total", "Index of the last raft entry committed.", func() float64 { return float64(n.Status().Committed) })
	m.gaugeFunc("etcd_server_proposals_applied_total", "Index of the last raft entry applied.", func() float64 { return float64(n.Status().Applied) })
	m.gaugeFunc("etcd_server_quota_backend_bytes", "The quota, in bytes.", func() float64 { return float64(s.cfg.QuotaBackendBytes) })

	m.constant("etcd_server_version", "The API version served, as a label.", "server_version", Version())
	m.constant("etcd_cluster_version", "The cluster's API version, as a label.", "cluster_version", version2(ClusterVersion()))
	m.constant("etcd_server_go_version", "The Go version, as a label.", "server_go_version", runtime.Version())
	m.constant("etcd_server_id", "The member's id in hexadecimal, as a label.", "server_id", fmt.Sprintf("%x", s.cfg.MemberID))

	m.gaugeFunc("etcd_mvcc_db_total_size_in_bytes", "Space that the data takes on disk.", func() float64 { return float64(n.DBSize()) })
	m.gaugeFunc("etcd_mvcc_db_total_size_in_use_in_bytes", "Space that the retained history needs.", func() float64 { return float64(n.KV().SizeInUse()) })
	m.gaugeFunc("etcd_debugging_mvcc_current_revision", "The store's revision.", func() float64 { return float64(n.KV().Revision()) })
	m.gaugeFunc("etcd_debugging_mvcc_compact_revision", "The revision of the last compaction.", func() float64 { return float64(n.KV().CompactRevision()) })
	m.registry.MustRegister(alarmCollector{n})
}

// version2 is a version without its patch level.
func version2(v string) string { return v[:strings.LastIndexByte(v, '.')] }

var alarmDesc = prometheus.NewDesc("etcd_debugging_server_alarms", "Alarms that are on.", []string{"server_id", "alarm_type"}, nil)

// alarmCollector reports the alarms of the moment.
type alarmCollector struct{ n Node }

// Describe implements prometheus.Collector.
func (c alarmCollector) Describe(out chan<- *prometheus.Desc) { out <- alarmDesc }

// Collect implements prometheus.Collector.
func (c alarmCollector) Collect(out chan<- prometheus.Metric) {
	for _, a := range c.n.Alarms() {
		out <- prometheus.MustNewConstMetric(alarmDesc, prometheus.GaugeValue, 1, fmt.Sprintf("%x", a.MemberID), pb.AlarmType_name[int32(a.Alarm)])
	}
}

// maxVersions bounds the versions that are told apart: clients choose them, and a metric is
// kept for each for ever.
const maxVersions = 64

// versionCounts counts requests by kind and client version.
type versionCounts struct {
	vec  *prometheus.CounterVec
	mu   sync.RWMutex
	seen map[[2]string]prometheus.Counter // guarded by mu
}

func (m *Metrics) clientRequest(kind, version string) { m.versions.of(kind, version).Inc() }

func (v *versionCounts) of(kind, version string) prometheus.Counter {
	key := [2]string{kind, version}
	v.mu.RLock()
	c := v.seen[key]
	v.mu.RUnlock()
	if c != nil {
		return c
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if c := v.seen[key]; c != nil {
		return c
	}
	if len(v.seen) >= maxVersions {
		return v.vec.WithLabelValues(kind, "other")
	}
	if v.seen == nil {
		v.seen = map[[2]string]prometheus.Counter{}
	}
	c = v.vec.WithLabelValues(kind, version)
	v.seen[key] = c
	return c
}

// callTable counts calls by method, under the names of the usual gRPC middleware.
type callTable struct {
	started, handled, received, sent *prometheus.CounterVec
	took                             *prometheus.HistogramVec // nil unless extensive
	// byMethod is complete before the first call.
	byMethod map[string]*callMetrics
	other    *callMetrics
}

// callMetrics are the metrics of one method, looked up once.
type callMetrics struct {
	started, received, sent prometheus.Counter
	handled                 [codes.Unauthenticated + 1]prometheus.Counter
	took                    prometheus.Observer // nil unless extensive
}

func (t *callTable) init(reg *prometheus.Registry, extensive bool) {
	labels := []string{"grpc_type", "grpc_service", "grpc_method"}
	vec := func(name, help string, labels []string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	t.started = vec("grpc_server_started_total", "RPCs started on the server.", labels)
	t.handled = vec("grpc_server_handled_total", "RPCs completed on the server, by code.", append(labels, "grpc_code"))
	t.received = vec("grpc_server_msg_received_total", "Messages received by RPCs.", labels)
	t.sent = vec("grpc_server_msg_sent_total", "Messages sent by RPCs.", labels)
	if extensive {
		t.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "grpc_server_handling_seconds", Help: "Time from the start of an RPC to its end.", Buckets: prometheus.DefBuckets,
		}, labels)
		reg.MustRegister(t.took)
	}
	t.byMethod = map[string]*callMetrics{}
	t.other = t.newCall("unary", "unknown", "unknown")
}

func (t *callTable) newCall(kind, service, method string) *callMetrics {
	c := &callMetrics{
		started:  t.started.WithLabelValues(kind, service, method),
		received: t.received.WithLabelValues(kind, service, method),
		sent:     t.sent.WithLabelValues(kind, service, method),
	}
	for code := range c.handled {
		c.handled[code] = t.handled.WithLabelValues(kind, service, method, codes.Code(code).String())
	}
	if t.took != nil {
		c.took = t.took.WithLabelValues(kind, service, method)
	}
	return c
}

// of returns the metrics of a method, which has been registered.
func (t *callTable) of(fullMethod string) *callMetrics {
	if c := t.byMethod[fullMethod]; c != nil {
		return c
	}
	return t.other
}

// begin notes a call of one message that has been received.
func (c *callMetrics) begin() {
	c.started.Inc()
	c.received.Inc()
}

// end notes the outcome of a call.
func (c *callMetrics) end(err error, took time.Duration) {
	code := codes.OK
	if err != nil {
		code = status.Code(err)
	}
	if int(code) < len(c.handled) {
		c.handled[code].Inc()
	}
	if c.took != nil {
		c.took.Observe(took.Seconds())
	}
}

// registrar learns the methods of the services that are registered through it.
func (t *callTable) registrar(to grpc.ServiceRegistrar) grpc.ServiceRegistrar {
	return methodRegistrar{to, t}
}

type methodRegistrar struct {
	grpc.ServiceRegistrar
	t *callTable
}

// RegisterService implements grpc.ServiceRegistrar.
func (r methodRegistrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	add := func(kind, method string) {
		name := "/" + desc.ServiceName + "/" + method
		if r.t.byMethod[name] == nil {
			r.t.byMethod[name] = r.t.newCall(kind, desc.ServiceName, method)
		}
	}
	for _, m := range desc.Methods {
		add("unary", m.MethodName)
	}
	for _, st := range desc.Streams {
		switch {
		case st.ClientStreams && st.ServerStreams:
			add("bidi_stream", st.StreamName)
		case st.ClientStreams:
			add("client_stream", st.StreamName)
		default:
			add("server_stream", st.StreamName)
		}
	}
	r.ServiceRegistrar.RegisterService(desc, impl)
}
