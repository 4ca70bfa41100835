package peer

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// protocol is what a stream is upgraded to. Its number changes when members
	// of the version before could not understand what is sent.
	protocol = "coterie-raft/1"

	pathStream   = "/coterie/v1/stream"
	pathSnapshot = "/coterie/v1/snapshot"
	pathCall     = "/coterie/v1/call/"

	headerCluster = "Coterie-Cluster"
	headerFrom    = "Coterie-From"
	headerTo      = "Coterie-To"
	headerStream  = "Coterie-Stream"
	headerURLs    = "Coterie-Peer-Urls"
	headerVersion = "Coterie-Version"
	headerCode    = "Coterie-Code"

	maxURLs       = 16
	maxURLsBytes  = 8 << 10
	maxRefusal    = 1 << 10
	maxHeaderText = 64
)

// kind is which of a member's two streams.
type kind int

const (
	entries kind = iota // bulk, in the order in which raft made it
	control             // all that must not wait behind bulk
	kinds
)

func (k kind) String() string { return [kinds]string{"entries", "control"}[k] }

func parseKind(s string) (kind, error) {
	for k := range kinds {
		if k.String() == s {
			return k, nil
		}
	}
	return 0, fmt.Errorf("%s: no kind of stream is called %q", headerStream, s)
}

// greeting is how a member presents itself with each request.
type greeting struct {
	cluster, from, to uint64
	urls              []string
	version           string
}

func (g *greeting) header() http.Header {
	return http.Header{
		headerCluster: {strconv.FormatUint(g.cluster, 16)},
		headerFrom:    {strconv.FormatUint(g.from, 16)},
		headerTo:      {strconv.FormatUint(g.to, 16)},
		headerURLs:    {strings.Join(g.urls, ",")},
		headerVersion: {g.version},
	}
}

func parseGreeting(h http.Header) (g greeting, err error) {
	id := func(name string) uint64 {
		v, perr := strconv.ParseUint(h.Get(name), 16, 64)
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %q is not a hexadecimal id", name, truncate(h.Get(name), maxHeaderText)))
		}
		return v
	}
	g.cluster, g.from, g.to = id(headerCluster), id(headerFrom), id(headerTo)
	g.version = truncate(h.Get(headerVersion), maxHeaderText)
	joined := h.Get(headerURLs)
	if len(joined) > maxURLsBytes || strings.Count(joined, ",") >= maxURLs {
		return g, errors.Join(err, fmt.Errorf("%s: too long", headerURLs))
	}
	if joined != "" {
		g.urls = strings.Split(joined, ",")
	}
	return g, err
}

func truncate(s string, n int) string { return s[:min(len(s), n)] }

// refusal is a member's answer to a greeting that it does not accept.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// write answers a request with the refusal. The cluster's id makes it count:
// see refusedBy.
func (r *refusal) write(w http.ResponseWriter, cluster uint64) {
	w.Header().Set(headerCluster, strconv.FormatUint(cluster, 16))
	if r.status == http.StatusUpgradeRequired {
		w.Header().Set("Upgrade", protocol)
		w.Header().Set("Connection", "Upgrade")
	}
	http.Error(w, r.text, r.status)
}

// refusedBy reads the refusal in an answer. removed tells that it says, in the
// name of our cluster, that this member was removed.
func refusedBy(res *http.Response, cluster uint64) (err *refusal, removed bool) {
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxRefusal)) // what came of it is better than nothing
	err = &refusal{res.StatusCode, strings.TrimSpace(string(text))}
	if err.text == "" {
		err.text = "HTTP status " + res.Status
	}
	id, perr := strconv.ParseUint(res.Header.Get(headerCluster), 16, 64)
	return err, res.StatusCode == http.StatusGone && perr == nil && id == cluster
}

// check decides whether to listen to who sends a greeting.
func (t *Transport) check(h http.Header) (greeting, *refusal) {
	g, err := parseGreeting(h)
	if err != nil {
		return g, &refusal{http.StatusBadRequest, err.Error()}
	}
	switch {
	case g.cluster != t.cfg.ClusterID:
		return g, &refusal{http.StatusPreconditionFailed, fmt.Sprintf(
			"this is member %x of cluster %x, and a member of cluster %x asks: the two clusters share a peer URL; "+
				"check --initial-cluster and --initial-cluster-token", t.cfg.MemberID, t.cfg.ClusterID, g.cluster)}
	case g.to != t.cfg.MemberID:
		return g, &refusal{http.StatusPreconditionFailed, fmt.Sprintf(
			"this is member %x, and member %x is asked for: its peer URL leads here; "+
				"check --initial-advertise-peer-urls and the member list", t.cfg.MemberID, g.to)}
	case g.from == t.cfg.MemberID || g.from == 0:
		return g, &refusal{http.StatusPreconditionFailed, fmt.Sprintf(
			"a member that calls itself %x asks, as this one does: check that no two members share a data directory's copy", g.from)}
	case t.isRemoved(g.from):
		return g, &refusal{http.StatusGone, fmt.Sprintf(
			"member %x has been removed from the cluster: to bring it back, delete its data directory and add it as a new member", g.from)}
	}
	return g, nil
}

// logLimit lets each text pass once a minute.
type logLimit struct {
	mu sync.Mutex
	// Guarded by mu. At most maxLogTexts.
	last map[string]time.Time
}

const (
	logInterval = time.Minute
	maxLogTexts = 32
)

func (l *logLimit) allow(text string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last, ok := l.last[text]; ok && now.Sub(last) < logInterval {
		return false
	}
	if l.last == nil || len(l.last) >= maxLogTexts {
		l.last = make(map[string]time.Time)
	}
	l.last[text] = now
	return true
}
