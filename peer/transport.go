package peer

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Defaults of Config, and the bounds of a Transport.
const (
	DefaultReadTimeout  = 5 * time.Second
	DefaultWriteTimeout = 5 * time.Second
	DefaultSnapshotRate = 64 << 20

	// defaultGrace is how long a member that was removed is still sent what is
	// meant for it: not least that it was removed.
	defaultGrace = 5 * time.Second
	// maxStrangers bounds the senders that are served though the membership, as
	// known here, does not have them.
	maxStrangers = 16
)

// Member is a member as the transport sees it.
type Member struct {
	ID       uint64
	PeerURLs []string
}

// Config says who this member is and whom the transport serves.
type Config struct {
	ClusterID, MemberID uint64
	// PeerURLs are this member's. Others use them to answer it before they have
	// applied its entry into the cluster.
	PeerURLs  []string
	Handler   Handler
	Snapshots Snapshots
	// DialTLS is asked for each connection to an https or unixs URL, so that
	// certificates can be replaced. Nil: such URLs cannot be dialled.
	DialTLS func() (*tls.Config, error)
	// A connection on which nothing comes for ReadTimeout, or can be written for
	// WriteTimeout, is given up.
	ReadTimeout, WriteTimeout time.Duration
	// Patience is how long a control stream may be without an answer before both
	// streams to the member are made anew. It should be an election timeout: when
	// a network is whole again, TCP may take as long to notice as it was cut, and
	// members would hear of one another too late. A new stream is tried at least
	// once in it. At most ReadTimeout, which is the default.
	Patience time.Duration
	// SnapshotRate bounds the bytes per second of one snapshot being sent.
	// Negative: no bound.
	SnapshotRate int64
	// Strained, if set, tells that this member's own work takes longer than it
	// should. It is asked ten times a second while a snapshot is being sent, which
	// then goes slower, but not below an eighth of the rate.
	Strained func() bool
	// Version is told to other members.
	Version string
	// RoundTrip, if set, is given each measured round trip to a member.
	RoundTrip func(to uint64, d time.Duration)
	// SendTook and ReceiveTook, if set, are given how long each snapshot took that
	// was sent to a member, or received from one.
	SendTook    func(to uint64, d time.Duration)
	ReceiveTook func(from uint64, d time.Duration)
	Logger      *zap.Logger
}

// Handler is told what other members send and what becomes of what is sent to
// them. Its methods may block for a bounded time, shorter than ReadTimeout; one
// that blocks holds back the stream it was called for, and no other. They are
// called until Close has returned, so what they call must not wait for Close.
type Handler interface {
	Receive(m *raftpb.Message)
	// Unreachable says that messages to the member were lost.
	Unreachable(id uint64)
	// Refused says that a connection to the member has ended and that its host
	// refuses new ones: its process is gone. It is said once for a connection.
	Refused(id uint64)
	// SnapshotSent is called exactly once for each MsgSnap passed to Send before
	// Close.
	SnapshotSent(id uint64, ok bool)
	// Removed says that another member of this cluster knows that this one has
	// been removed. It is said once.
	Removed()
}

// Transport connects a member to all others.
//
// Lock order: Transport.mu, remote.mu, queue.mu. Nothing waits under them.
type Transport struct {
	cfg     Config
	log     *zap.Logger
	dialer  dialer
	streams dialer          // of streams, less patient
	client  *http.Transport // for calls
	reports *reports
	calls   map[string]callFunc // complete before the first request
	grace   time.Duration       // of a member that has left
	handler http.Handler

	// ctx ends when Close begins; group is whom Close waits for.
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup

	sending     chan struct{} // holds a token for each snapshot being sent
	receiving   chan struct{} // holds a token while a snapshot is received
	answering   chan struct{} // holds a token for each call being answered
	toldRemoved atomic.Bool

	mu sync.Mutex
	// Guarded by mu.
	peers map[uint64]*remote
	// Guarded by mu. Nil before the first Update.
	removed func(id uint64) bool
	// Guarded by mu. When true nothing joins group any more.
	closed bool
}

// New makes a transport that knows no members yet.
func New(cfg Config) (*Transport, error) {
	if cfg.Handler == nil || cfg.Snapshots == nil {
		return nil, errors.New("peer: Config needs a Handler and Snapshots")
	}
	if cfg.ClusterID == 0 || cfg.MemberID == 0 {
		return nil, errors.New("peer: Config needs the ids of the cluster and of this member")
	}
	cfg.ReadTimeout = cmp.Or(max(cfg.ReadTimeout, 0), DefaultReadTimeout)
	cfg.WriteTimeout = cmp.Or(max(cfg.WriteTimeout, 0), DefaultWriteTimeout)
	cfg.Patience = min(cmp.Or(max(cfg.Patience, 0), cfg.ReadTimeout), cfg.ReadTimeout)
	cfg.SnapshotRate = cmp.Or(cfg.SnapshotRate, DefaultSnapshotRate)
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	t := &Transport{
		cfg:       cfg,
		log:       cfg.Logger,
		dialer:    dialer{cfg.DialTLS, connectTimeout, cfg.ReadTimeout, cfg.WriteTimeout},
		streams:   dialer{cfg.DialTLS, min(connectTimeout, cfg.Patience/2), cfg.Patience, cfg.WriteTimeout},
		reports:   newReports(),
		calls:     make(map[string]callFunc),
		grace:     defaultGrace,
		sending:   make(chan struct{}, maxSending),
		receiving: make(chan struct{}, 1),
		answering: make(chan struct{}, maxAnswering),
		peers:     make(map[uint64]*remote),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.client = t.dialer.client(t.ctx)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathStream, t.serveStream)
	mux.HandleFunc("POST "+pathSnapshot, t.serveSnapshot)
	mux.HandleFunc("POST "+pathCall+"{method...}", t.serveCall)
	t.handler = mux
	t.group.Go(func() { t.reports.run(t.ctx, cfg.Handler) }) // until Close
	return t, nil
}

// Handler answers other members. It serves everything below /coterie/v1/, and
// must be reached over HTTP/1.1.
func (t *Transport) Handler() http.Handler { return t.handler }

// Send passes messages on to the members that they are for. It never blocks:
// what finds no room is dropped and reported as Unreachable.
func (t *Transport) Send(ms []*raftpb.Message) {
	for _, m := range ms {
		t.send(m)
	}
}

func (t *Transport) send(m *raftpb.Message) {
	if m.GetTo() == t.cfg.MemberID {
		return // raft steps what it says to itself
	}
	t.mu.Lock()
	r, closed := t.peers[m.GetTo()], t.closed
	if !closed && m.GetType() == raftpb.MsgSnap {
		t.startSnapshot(r, m)
		t.mu.Unlock()
		return
	}
	t.mu.Unlock()
	switch {
	case closed:
	case r == nil:
		t.reports.unreachable(m.GetTo())
	case !r.streams[kindOf(m)].queue.put(m):
		r.count.dropped.Add(1)
		t.reports.unreachable(r.id)
	}
}

// kindOf chooses the stream. All MsgApp share one: an empty one, which moves
// the commit index, would be rejected if it overtook the entries before it, and
// raft would go back to probing.
func kindOf(m *raftpb.Message) kind {
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgProp:
		return entries
	}
	return control
}

// Update sets the membership; this member may be in it. Who has left it still
// gets what is queued, and is parted with after some seconds. removed tells
// whether an id has once been a member and is none now.
func (t *Transport) Update(members []Member, removed func(id uint64) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.removed = removed
	left := make(map[uint64]*remote)
	for id, r := range t.peers {
		if !r.stranger || removed != nil && removed(id) {
			left[id] = r
		}
	}
	for _, m := range members {
		if m.ID == t.cfg.MemberID {
			continue
		}
		delete(left, m.ID)
		es, err := parseEndpoints(m.PeerURLs)
		if err != nil {
			t.log.Warn("a member has a peer URL that cannot be used", hexID("member", m.ID), zap.Error(err))
		}
		r := t.peers[m.ID]
		if r == nil {
			t.admit(m.ID, es, false)
			continue
		}
		r.stranger = false
		if r.leaving != nil {
			close(r.leaving)
			r.leaving = nil
		}
		r.move(es)
	}
	for _, r := range left {
		t.part(r)
	}
}

// admit makes a remote and starts to dial it. Called with mu held.
func (t *Transport) admit(id uint64, es []endpoint, stranger bool) *remote {
	r := newRemote(t, id, es, stranger)
	t.peers[id] = r
	for _, s := range r.streams {
		t.group.Go(func() { // until the remote is dropped
			pprof.Do(r.ctx, pprof.Labels("coterie", "stream to a peer"), s.run)
		})
	}
	return r
}

// part drops a remote when its grace is over, unless it is admitted again.
// Called with mu held.
func (t *Transport) part(r *remote) {
	if r.leaving != nil {
		return
	}
	leaving := make(chan struct{})
	r.leaving = leaving
	t.group.Go(func() { // ends with the grace
		grace := time.NewTimer(t.grace)
		defer grace.Stop()
		select {
		case <-grace.C:
		case <-leaving:
			return
		case <-t.ctx.Done():
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if r.leaving == leaving {
			t.drop(r)
		}
	})
}

// drop ends a remote's streams, in and out. Called with mu held.
func (t *Transport) drop(r *remote) {
	delete(t.peers, r.id)
	r.cancel()
}

// remoteFor returns who sends a greeting. A sender that is no member, as far as
// is known here, is answered at the URLs that it names: this member's list may
// be old.
func (t *Transport) remoteFor(g *greeting) (*remote, *refusal) {
	es, _ := parseEndpoints(g.urls) // the ones that can be used
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, &refusal{http.StatusServiceUnavailable, "this member is stopping"}
	}
	if r := t.peers[g.from]; r != nil {
		if r.stranger {
			r.move(es)
		}
		return r, nil
	}
	strangers := 0
	for _, r := range t.peers {
		if r.stranger {
			strangers++
		}
	}
	if strangers >= maxStrangers {
		return nil, &refusal{http.StatusServiceUnavailable, "too many senders that are not members, as far as this member knows"}
	}
	return t.admit(g.from, es, true), nil
}

// farewell drops a stranger that has no stream to this member any more.
func (t *Transport) farewell(r *remote) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.stranger && t.peers[r.id] == r && !r.heard() {
		t.drop(r)
	}
}

func (t *Transport) isRemoved(id uint64) bool {
	t.mu.Lock()
	removed := t.removed
	t.mu.Unlock()
	return removed != nil && removed(id)
}

func (t *Transport) remote(id uint64) *remote {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[id]
}

// enter lets a request's handler count as the transport's own until it calls
// leave. It is false when the transport is closing.
func (t *Transport) enter() (leave func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, false
	}
	t.group.Add(1)
	return t.group.Done, true
}

// refused notes a refusal in an answer; who was removed is told so.
func (t *Transport) refused(res *http.Response) *refusal {
	err, removed := refusedBy(res, t.cfg.ClusterID)
	if removed && !t.toldRemoved.Swap(true) {
		t.cfg.Handler.Removed()
	}
	return err
}

func (t *Transport) greeting(to uint64) *greeting {
	return &greeting{t.cfg.ClusterID, t.cfg.MemberID, to, t.cfg.PeerURLs, t.cfg.Version}
}

// ActiveSince returns since when both streams to and both from a member have
// been up; zero if they are not.
func (t *Transport) ActiveSince(id uint64) time.Time {
	if r := t.remote(id); r != nil {
		return r.activeSince()
	}
	return time.Time{}
}

// Stats returns what there is to know of each other member, sorted by id.
func (t *Transport) Stats() []Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Stats
	for _, r := range t.peers {
		out = append(out, r.stats())
	}
	slices.SortFunc(out, func(a, b Stats) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Close ends all streams, snapshots and calls, in and out, and waits for
// whatever was started.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.group.Wait()
	t.client.CloseIdleConnections() // last: what was in use is idle now
}

func hexID(key string, id uint64) zap.Field { return zap.String(key, formatID(id)) }
