package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/api"
)

// Node is what health is judged by.
type Node interface {
	Status() api.Status
	Alarms() []*pb.AlarmMember
	ReadIndex(ctx context.Context) error
	KV() api.KV
}

// health answers the health checks.
type health struct {
	node    Node
	metrics *api.Metrics
	log     *zap.Logger
	timeout time.Duration
}

func (h health) register(mux *http.ServeMux) {
	mux.HandleFunc("/health", only(http.MethodGet, h.serveHealth))
	h.registerChecks(mux, "livez", []check{
		{"serializable_read", func(ctx context.Context) error { return h.read(ctx, true) }},
	})
	h.registerChecks(mux, "readyz", []check{
		{"data_corruption", h.noCorruption},
		{"linearizable_read", func(ctx context.Context) error { return h.read(ctx, false) }},
		{"non_learner", h.votes},
		{"serializable_read", func(ctx context.Context) error { return h.read(ctx, true) }},
	})
}

// read tries a read, of a key that need not exist.
func (h health) read(ctx context.Context, serializable bool) error {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	if !serializable {
		if err := h.node.ReadIndex(ctx); err != nil {
			return err
		}
	}
	_, err := h.node.KV().Range(ctx, &pb.RangeRequest{Key: []byte{0}, KeysOnly: true, Limit: 1, Serializable: serializable})
	return err
}

func (h health) noCorruption(context.Context) error {
	for _, a := range h.node.Alarms() {
		if a.Alarm == pb.AlarmType_CORRUPT {
			return fmt.Errorf("alarm activated: %s", a.Alarm)
		}
	}
	return nil
}

func (h health) votes(context.Context) error {
	if h.node.Status().IsLearner {
		return errors.New("not supported for learner")
	}
	return nil
}

// serveHealth answers /health: unhealthy because of alarms, but for those excluded, for want of
// a leader, or because a read fails. With serializable=true only this member counts.
func (h health) serveHealth(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	reason := h.unhealthy(r.Context(), q["exclude"], q.Get("serializable") == "true")
	answer := struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{fmt.Sprint(reason == ""), reason}
	body, err := json.Marshal(answer)
	if err != nil {
		panic(err) // two strings
	}
	h.metrics.Health(reason == "")
	if reason != "" {
		h.log.Warn("unhealthy", zap.String("path", r.URL.Path), zap.String("reason", reason))
		http.Error(w, string(body), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write(body)
}

// unhealthy returns the reason, or nothing.
func (h health) unhealthy(ctx context.Context, excluded []string, serializable bool) string {
	for _, a := range h.node.Alarms() {
		switch name := a.Alarm.String(); {
		case slices.Contains(excluded, name):
		case a.Alarm == pb.AlarmType_NOSPACE, a.Alarm == pb.AlarmType_CORRUPT:
			return "ALARM " + name
		default:
			return "ALARM UNKNOWN"
		}
	}
	if !serializable && h.node.Status().Leader == 0 {
		return "RAFT NO LEADER"
	}
	if err := h.read(ctx, serializable); err != nil {
		return "RANGE ERROR:" + err.Error()
	}
	return ""
}

// check is one of the checks behind /livez or /readyz.
type check struct {
	name string
	run  func(context.Context) error
}

// registerChecks serves all checks together, but for those excluded, and each by itself.
func (h health) registerChecks(mux *http.ServeMux, kind string, checks []check) {
	mux.HandleFunc("/"+kind, only(http.MethodGet, func(w http.ResponseWriter, r *http.Request) {
		excluded := r.URL.Query()["exclude"]
		h.serveChecks(w, r, kind, slices.DeleteFunc(slices.Clone(checks), func(c check) bool {
			return slices.Contains(excluded, c.name)
		}))
	}))
	for _, c := range checks {
		mux.HandleFunc("/"+kind+"/"+c.name, only(http.MethodGet, func(w http.ResponseWriter, r *http.Request) {
			h.serveChecks(w, r, kind, []check{c})
		}))
	}
}

func (h health) serveChecks(w http.ResponseWriter, r *http.Request, kind string, checks []check) {
	var report strings.Builder
	failed := false
	for _, c := range checks {
		err := c.run(r.Context())
		h.metrics.Check(kind, c.name, err == nil)
		if err != nil {
			failed = true
			fmt.Fprintf(&report, "[-]%s failed: %v\n", c.name, err)
		} else {
			fmt.Fprintf(&report, "[+]%s ok\n", c.name)
		}
	}
	if failed {
		h.log.Warn("unhealthy", zap.String("path", r.URL.Path), zap.String("checks", report.String()))
		http.Error(w, report.String(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Query().Has("verbose") {
		fmt.Fprint(w, report.String())
	}
	fmt.Fprint(w, "ok\n")
}
