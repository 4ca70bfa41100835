package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/goleak"

	"github.com/coteriedb/coterie/api"
	"github.com/coteriedb/coterie/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testNode is a member in whatever health a test wants.
type testNode struct {
	status   api.Status
	alarms   []*pb.AlarmMember
	indexErr error
	rangeErr error
}

func (n *testNode) Status() api.Status              { return n.status }
func (n *testNode) Alarms() []*pb.AlarmMember       { return n.alarms }
func (n *testNode) ReadIndex(context.Context) error { return n.indexErr }
func (n *testNode) KV() api.KV                      { return testKV{n: n} }

type testKV struct {
	api.KV
	n *testNode
}

func (kv testKV) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	return &pb.RangeResponse{}, kv.n.rangeErr
}

func newHandler(t *testing.T, n *testNode, change func(*Config)) http.Handler {
	t.Helper()
	c := Config{Node: n, Metrics: api.NewMetrics(false), Version: "9.9.9"}
	if change != nil {
		change(&c)
	}
	h, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func do(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		} else {
			r.Header.Set(header[i], header[i+1])
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func alarm(t pb.AlarmType) []*pb.AlarmMember { return []*pb.AlarmMember{{MemberID: 1, Alarm: t}} }

func TestEndpoints(t *testing.T) {
	well := testNode{status: api.Status{Leader: 1}}
	with := func(change func(*testNode)) *testNode {
		n := well
		change(&n)
		return &n
	}
	full := with(func(n *testNode) { n.alarms = alarm(pb.AlarmType_NOSPACE) })
	corrupt := with(func(n *testNode) { n.alarms = alarm(pb.AlarmType_CORRUPT) })
	alone := with(func(n *testNode) { n.status.Leader = 0; n.indexErr = errors.New("no leader") })
	broken := with(func(n *testNode) { n.rangeErr = errors.New("broken disk") })
	learner := with(func(n *testNode) { n.status.IsLearner = true })
	tests := []struct {
		name, target string
		node         *testNode
		code         int
		body         string
	}{
		{"version", "/version", &well, 200, `{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0","coterie":"9.9.9"}`},
		{"unknown path", "/v2/keys", &well, 404, "404 page not found\n"},
		{"no gateway", "/v3/kv/range", &well, 404, "404 page not found\n"},

		{"healthy", "/health", &well, 200, `{"health":"true","reason":""}`},
		{"full", "/health", full, 503, `{"health":"false","reason":"ALARM NOSPACE"}` + "\n"},
		{"full, excluded", "/health?exclude=NOSPACE", full, 200, `{"health":"true","reason":""}`},
		{"full, other excluded", "/health?exclude=CORRUPT&exclude=", full, 503, `{"health":"false","reason":"ALARM NOSPACE"}` + "\n"},
		{"corrupt", "/health", corrupt, 503, `{"health":"false","reason":"ALARM CORRUPT"}` + "\n"},
		{"no leader", "/health", alone, 503, `{"health":"false","reason":"RAFT NO LEADER"}` + "\n"},
		{"no leader, serializable", "/health?serializable=true", alone, 200, `{"health":"true","reason":""}`},
		{"broken", "/health?serializable=true", broken, 503, `{"health":"false","reason":"RANGE ERROR:broken disk"}` + "\n"},

		{"live", "/livez", &well, 200, "ok\n"},
		{"live, verbose", "/livez?verbose", alone, 200, "[+]serializable_read ok\nok\n"},
		{"not live", "/livez", broken, 503, "[-]serializable_read failed: broken disk\n\n"},
		{"one check of live", "/livez/serializable_read", broken, 503, "[-]serializable_read failed: broken disk\n\n"},
		{"live, all excluded", "/livez?exclude=serializable_read", broken, 200, "ok\n"},

		{"ready", "/readyz?verbose", full, 200, "[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\n[+]serializable_read ok\nok\n"},
		{"not ready", "/readyz", alone, 503, "[+]data_corruption ok\n[-]linearizable_read failed: no leader\n[+]non_learner ok\n[+]serializable_read ok\n\n"},
		{"not ready, excluded", "/readyz?exclude=linearizable_read&exclude=unknown", alone, 200, "ok\n"},
		{"corrupt is not ready", "/readyz/data_corruption", corrupt, 503, "[-]data_corruption failed: alarm activated: CORRUPT\n\n"},
		{"a learner is not ready", "/readyz/non_learner", learner, 503, "[-]non_learner failed: not supported for learner\n\n"},
		{"unknown check", "/readyz/unknown", &well, 404, "404 page not found\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := do(newHandler(t, tt.node, nil), "GET", tt.target, "")
			if w.Code != tt.code || w.Body.String() != tt.body {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, tt.code, tt.body)
			}
		})
	}
}

func TestOnlyGet(t *testing.T) {
	h := newHandler(t, &testNode{status: api.Status{Leader: 1}}, nil)
	for _, path := range []string{"/version", "/health", "/livez", "/readyz", "/readyz/non_learner", "/debug/vars"} {
		w := do(h, "POST", path, "")
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET" {
			t.Errorf("POST %s: %d, Allow %q", path, w.Code, w.Header().Get("Allow"))
		}
	}
}

func TestMetricsPort(t *testing.T) {
	n := &testNode{status: api.Status{Leader: 1}}
	h := NewMetrics(Config{Node: n, Metrics: api.NewMetrics(false)})
	if w := do(h, "GET", "/health", ""); w.Code != 200 {
		t.Errorf("/health: %d", w.Code)
	}
	if w := do(h, "GET", "/readyz", ""); w.Code != 200 {
		t.Errorf("/readyz: %d", w.Code)
	}
	w := do(h, "GET", "/metrics", "")
	for _, want := range []string{
		"etcd_server_health_success 1\n",
		`etcd_server_healthcheck{name="non_learner",type="readyz"} 1`,
		`etcd_server_healthchecks_total{name="linearizable_read",status="success",type="readyz"} 1`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if w := do(h, "GET", "/version", ""); w.Code != 404 {
		t.Errorf("/version: %d", w.Code)
	}
}

func TestAccess(t *testing.T) {
	n := &testNode{status: api.Status{Leader: 1}}
	strict := newHandler(t, n, func(c *Config) { c.Hosts, c.CORS = []string{"good.example"}, []string{"https://a.example"} })
	open := newHandler(t, n, func(c *Config) { c.Hosts, c.CORS = []string{"*"}, []string{"*"} })
	tests := []struct {
		name   string
		h      http.Handler
		method string
		target string
		header []string
		code   int
		origin string
	}{
		{"good host", strict, "GET", "/version", []string{"Host", "good.example:2379"}, 200, ""},
		{"bad host", strict, "GET", "/version", []string{"Host", "evil.example"}, 421, ""},
		{"bad host over TLS", strict, "GET", "https://evil.example/version", nil, 200, ""},
		{"any host", open, "GET", "/version", []string{"Host", "evil.example"}, 200, "*"},
		{"known origin", strict, "GET", "/version", []string{"Host", "good.example", "Origin", "https://a.example"}, 200, "https://a.example"},
		{"unknown origin", strict, "GET", "/version", []string{"Host", "good.example", "Origin", "https://b.example"}, 200, ""},
		{"preflight", strict, "OPTIONS", "/v3/kv/put", []string{"Host", "good.example", "Origin", "https://a.example"}, 200, "https://a.example"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := do(tt.h, tt.method, tt.target, "", tt.header...)
			if w.Code != tt.code || w.Header().Get("Access-Control-Allow-Origin") != tt.origin {
				t.Errorf("got %d, origin %q; want %d, %q", w.Code, w.Header().Get("Access-Control-Allow-Origin"), tt.code, tt.origin)
			}
		})
	}
}

func TestDebug(t *testing.T) {
	n := &testNode{status: api.Status{Leader: 1, Term: 5}}
	plain := newHandler(t, n, nil)
	if w := do(plain, "GET", "/debug/pprof/", ""); w.Code != 404 {
		t.Errorf("profiles are served without being asked for: %d", w.Code)
	}
	profiles := newHandler(t, n, func(c *Config) { c.Profiles = true })
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline"} {
		if w := do(profiles, "GET", path, ""); w.Code != 200 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	var vars map[string]json.RawMessage
	if err := json.Unmarshal(do(plain, "GET", "/debug/vars", "").Body.Bytes(), &vars); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(vars["raft.status"]), `"Term":5`) || vars["memstats"] == nil || vars["cmdline"] == nil {
		t.Errorf("vars are %v", vars)
	}
}

// backend answers what the gateway asks.
type backend struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
}

func (backend) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	return &pb.RangeResponse{
		Header: &pb.ResponseHeader{ClusterId: 1, Revision: 7},
		Kvs:    []*mvccpb.KeyValue{{Key: r.Key, Value: []byte("v"), ModRevision: 7}}, Count: 1,
	}, nil
}

func (backend) Watch(stream pb.Watch_WatchServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	for i := range int64(2) {
		if err := stream.Send(&pb.WatchResponse{WatchId: i, Created: i == 0}); err != nil {
			return err
		}
	}
	<-stream.Context().Done()
	return nil
}

func newGateway(t *testing.T) *httptest.Server {
	t.Helper()
	transport := rpc.NewServer(rpc.Options{Transport: rpc.Transport(os.Getenv("COTERIE_TEST_TRANSPORT"))}) // the default if it is not set
	pb.RegisterKVServer(transport, backend{})
	pb.RegisterWatchServer(transport, backend{})
	transport.Start()
	conn, err := transport.Dial()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(newHandler(t, &testNode{}, func(c *Config) { c.Gateway, c.MaxRequestBytes = conn, 1 }))
	t.Cleanup(func() {
		s.Close()
		conn.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		transport.Stop(ctx)
	})
	return s
}

func TestGateway(t *testing.T) {
	s := newGateway(t)
	defer s.Client().CloseIdleConnections()
	limit := jsonOverhead * api.MaxRecvBytes(1)
	tests := []struct {
		name, path, body string
		code             int
		want             string
	}{
		{"range", "/v3/kv/range", `{"key":"aw==","unknown":true}`, 200,
			`{"header":{"cluster_id":"1","revision":"7"},"kvs":[{"key":"aw==","mod_revision":"7","value":"dg=="}],"count":"1"}`},
		{"old path", "/v3beta/kv/range", `{"key":"aw=="}`, 200, `"count":"1"`},
		{"error", "/v3/kv/range", `{}`, 400, `{"code":3,"message":"etcdserver: key is not provided"}`},
		{"not JSON", "/v3/kv/range", `{"key":`, 400, `"code":3`},
		{"not implemented", "/v3/kv/put", `{"key":"aw=="}`, 501, `"code":12`},
		{"unknown", "/v3/kv/nothing", `{}`, 404, `"code":5`},
		{"too large", "/v3/kv/range", fmt.Sprintf(`{"key":"%s"}`, strings.Repeat("a", limit)), 400, `request body too large`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, err := s.Client().Post(s.URL+tt.path, "application/json", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			// protojson spaces its output at random, so that nobody relies on it.
			got := strings.ReplaceAll(string(body), " ", "")
			if want := strings.ReplaceAll(tt.want, " ", ""); resp.StatusCode != tt.code || !strings.Contains(got, want) {
				t.Errorf("got %d %s, want %d %s", resp.StatusCode, got, tt.code, want)
			}
		})
	}
}

func TestGatewayStreams(t *testing.T) {
	s := newGateway(t)
	defer s.Client().CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", s.URL+"/v3/watch", strings.NewReader(`{"create_request":{"key":"aw=="}}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	// Each message is a line, sent when it is made: the stream has no end here.
	lines := bufio.NewScanner(resp.Body)
	for _, want := range []string{`{"result":{"created":true}}`, `{"result":{"watch_id":"1"}}`} {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if got := strings.ReplaceAll(lines.Text(), " ", ""); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
