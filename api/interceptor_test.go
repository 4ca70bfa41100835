package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

func TestLearner(t *testing.T) {
	s := newTestServer(t, nil)
	s.node.set(func(n *testNode) { n.status.IsLearner = true })
	ctx, k := t.Context(), []byte("k")
	_, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k})
	wantError(t, err, rpctypes.ErrGRPCNotSupportedForLearner)
	_, err = s.kv.Put(ctx, &pb.PutRequest{Key: k})
	wantError(t, err, rpctypes.ErrGRPCNotSupportedForLearner)
	_, err = s.kv.Range(ctx, &pb.RangeRequest{Key: k, Serializable: true})
	wantError(t, err, nil)
	_, err = s.maint.Status(ctx, &pb.StatusRequest{})
	wantError(t, err, nil)
	w, err := s.watch.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Recv()
	wantError(t, err, rpctypes.ErrGRPCNotSupportedForLearner)
	snap, err := s.maint.Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = snap.Recv()
	wantError(t, err, nil)
}

func TestClientVersion(t *testing.T) {
	s := newTestServer(t, nil)
	get := func(version string) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), rpctypes.MetadataClientAPIVersionKey, version)
		_, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k")})
		return err
	}
	// A header that is not text does not reach a server over HTTP/2, but may in process.
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "\xff"))
	wantError(t, s.admit(contextCaller{ctx}, "unary", &pb.StatusRequest{}, "x"), rpctypes.ErrGRPCInvalidClientAPIVersion)
	// Whatever clients call themselves, the number of metrics is bounded.
	for i := range 3 * maxVersions {
		wantError(t, get(fmt.Sprintf("v%d", i)), nil)
	}
	if n := versionsCounted(t, s); n > maxVersions+1 {
		t.Errorf("%d client versions are told apart", n)
	}
}

func TestGRPCHealth(t *testing.T) {
	s := newTestServer(t, nil)
	c := healthpb.NewHealthClient(s.conn)
	got, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || got.Status != healthpb.HealthCheckResponse_SERVING {
		t.Error(got, err)
	}
	s.Close()
	got, err = c.Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || got.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Error(got, err)
	}
}

func TestSlowRequestsAreLogged(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	s := newTestServer(t, func(c *Config) { c.SlowRequest, c.Logger = time.Nanosecond, zap.New(core) })
	if _, err := s.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("the-key"), Value: []byte("the-secret")}); err != nil {
		t.Fatal(err)
	}
	slow := logs.FilterMessage("request took long").All()
	if len(slow) != 1 {
		t.Fatalf("%d lines", len(slow))
	}
	line := fmt.Sprint(slow[0].ContextMap())
	if !strings.Contains(line, "the-key") || !strings.Contains(line, "/etcdserverpb.KV/Put") || strings.Contains(line, "the-secret") {
		t.Errorf("line is %s", line)
	}
}

func TestMetrics(t *testing.T) {
	s := newTestServer(t, nil)
	s.mustPut(t, "k", "v")
	if _, err := s.kv.Put(t.Context(), &pb.PutRequest{}); err == nil {
		t.Fatal("an empty key was put")
	}
	w, err := s.watch.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustSend(t, w, create("k", 0))
	mustRecv(t, w)
	if _, err := s.maint.Alarm(t.Context(), &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: testMember}); err != nil {
		t.Fatal(err)
	}
	count := func() float64 { return 42 }
	s.metrics.Watch(Sources{LeaderChanges: count, Keys: count})

	got := gathered(t, s.metrics)
	for name, want := range map[string]float64{
		"grpc_server_started_total Put etcdserverpb.KV unary":                       2,
		"grpc_server_handled_total OK Put etcdserverpb.KV unary":                    1,
		"grpc_server_handled_total InvalidArgument Put etcdserverpb.KV unary":       1,
		"grpc_server_handled_total Internal LeaseGrant etcdserverpb.Lease unary":    0,
		"grpc_server_msg_received_total Put etcdserverpb.KV unary":                  2,
		"grpc_server_msg_sent_total Put etcdserverpb.KV unary":                      1,
		"grpc_server_handling_seconds Put etcdserverpb.KV unary":                    2,
		"grpc_server_started_total Watch bidi_stream etcdserverpb.Watch":            1,
		"grpc_server_msg_received_total Watch bidi_stream etcdserverpb.Watch":       1,
		"grpc_server_msg_sent_total Watch bidi_stream etcdserverpb.Watch":           1,
		"grpc_server_started_total Snapshot etcdserverpb.Maintenance server_stream": 0,
		"etcd_server_client_requests_total stream unknown":                          1,
		"etcd_server_has_leader":                    1,
		"etcd_server_is_leader":                     1,
		"etcd_server_is_learner":                    0,
		"etcd_server_leader_changes_seen_total":     42,
		"etcd_server_proposals_committed_total":     1,
		"etcd_server_quota_backend_bytes":           2 << 30,
		"etcd_server_version 3.7.3":                 1,
		"etcd_cluster_version 3.7":                  1,
		"etcd_server_id a1":                         1,
		"etcd_debugging_mvcc_keys_total":            42,
		"etcd_debugging_mvcc_current_revision":      2,
		"etcd_debugging_server_alarms NOSPACE a1":   1,
		"etcd_disk_wal_fsync_duration_seconds":      0,
		"etcd_disk_backend_commit_duration_seconds": 0,
		"etcd_mvcc_db_total_size_in_bytes":          0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, %t; want %v", name, v, ok, want)
		}
	}
	for _, name := range []string{"etcd_network_client_grpc_sent_bytes_total", "etcd_network_client_grpc_received_bytes_total", "go_goroutines", "process_open_fds", "etcd_mvcc_db_total_size_in_use_in_bytes"} {
		if got[name] == 0 {
			t.Errorf("%s is 0 or missing", name)
		}
	}
}

// Two members in one process share no metrics.
func TestMetricsAreSeparate(t *testing.T) {
	a, b := newTestServer(t, nil), newTestServer(t, nil)
	a.mustPut(t, "k", "v")
	const put = "/etcdserverpb.KV/Put"
	if n := counted(t, b.metrics.rpc.of(put).started); n != 0 {
		t.Errorf("the other member counted %v", n)
	}
	if n := counted(t, a.metrics.rpc.of(put).started); n != 1 {
		t.Errorf("the member counted %v", n)
	}
}

func counted(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// gathered returns all metrics, each under its name and its labels' values, sorted. Of a
// histogram it is how much was observed.
func gathered(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	families, err := m.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetValue())
			}
			slices.Sort(labels)
			name := strings.Join(append([]string{f.GetName()}, labels...), " ")
			switch {
			case m.Counter != nil:
				got[name] = m.Counter.GetValue()
			case m.Gauge != nil:
				got[name] = m.Gauge.GetValue()
			case m.Histogram != nil:
				got[name] = float64(m.Histogram.GetSampleCount())
			}
		}
	}
	return got
}

func versionsCounted(t *testing.T, s *testServer) int {
	t.Helper()
	families, err := s.metrics.Registry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "etcd_server_client_requests_total" })
	return len(families[i].Metric)
}

func BenchmarkIntercept(b *testing.B) {
	s := newTestServer(b, nil)
	ctx := metadata.NewIncomingContext(b.Context(), metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "3.7.3", rpctypes.MetadataRequireLeaderKey, "true"))
	calls := s.metrics.rpc.of("/etcdserverpb.KV/Put")
	b.ReportAllocs()
	for b.Loop() {
		calls.started.Inc()
		if err := s.admit(contextCaller{ctx}, "unary", nil, "/etcdserverpb.KV/Put"); err != nil {
			b.Fatal(err)
		}
		calls.end(nil, time.Millisecond)
	}
}
