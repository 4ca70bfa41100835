package peer

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// remote is one other member: the streams to it, which always try to be up,
// and those from it.
type remote struct {
	t       *Transport
	id      uint64
	streams [kinds]*stream
	count   counters
	logs    logLimit // of why streams are down

	// ctx ends when the member has left the cluster, or with the transport.
	ctx    context.Context
	cancel context.CancelFunc

	// Guarded by Transport.mu. A stranger is no member, as far as is known here.
	stranger bool
	// Guarded by Transport.mu. Not nil when the member has left; closed if it
	// comes back.
	leaving chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	endpoints []endpoint
	// Guarded by mu. The streams from the member.
	in [kinds]*inbound
	// Guarded by mu. The streams to the member that are up, and where.
	out [kinds]*opened
	// Guarded by mu. Since when all four have been up.
	since time.Time
	// Guarded by mu. How often that has ended.
	disconnects uint64
	// Guarded by mu. A stream was up, and the member has not been reported as
	// gone since.
	met bool
	// connections counts those that were made to the member.
	connections uint64
	// Guarded by mu. What the member said it runs.
	version string
}

type counters struct {
	sentBytes, sentMessages         atomic.Uint64
	receivedBytes, receivedMessages atomic.Uint64
	dropped, sendFailures           atomic.Uint64
	receiveFailures                 atomic.Uint64
	snapshotsSent, snapshotFailures atomic.Uint64
	snapshotsReceived               atomic.Uint64
	snapshotsRefused                atomic.Uint64
	sending, receiving              atomic.Int64 // snapshots
	roundTrip                       atomic.Int64
}

// Stats is what there is to know of the connections with a member.
type Stats struct {
	ID      uint64
	Version string // of Coterie, as the member says; empty until it was heard
	// ActiveSince is when all streams came up, both ways; zero if one is down.
	ActiveSince time.Time
	// Disconnects is how often ActiveSince has become zero.
	Disconnects uint64
	// RoundTrip is the last measured, on the control stream.
	RoundTrip time.Duration

	// Bytes and messages of streams and snapshots.
	SentBytes, ReceivedBytes       uint64
	SentMessages, ReceivedMessages uint64
	// Dropped counts messages that were not sent, or were lost in a queue.
	Dropped uint64
	// SendFailures counts streams to the member that broke or could not be made,
	// ReceiveFailures streams from it that broke.
	SendFailures, ReceiveFailures uint64

	SnapshotsSent, SnapshotSendFailures        uint64
	SnapshotsReceived, SnapshotReceiveFailures uint64
	// SnapshotsSending and SnapshotsReceiving are under way.
	SnapshotsSending, SnapshotsReceiving int64

	// What waits in the queues.
	QueuedMessages int
	QueuedBytes    int
}

func newRemote(t *Transport, id uint64, es []endpoint, stranger bool) *remote {
	r := &remote{t: t, id: id, endpoints: es, stranger: stranger}
	r.ctx, r.cancel = context.WithCancel(t.ctx)
	for k, limit := range [kinds]int{entries: maxQueuedEntries, control: maxQueuedControl} {
		r.streams[k] = &stream{peer: r, kind: kind(k), queue: newQueue(limit), kick: make(chan struct{}, 1)}
	}
	return r
}

// move tells where the member listens now.
func (r *remote) move(es []endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(r.endpoints, es) {
		return
	}
	r.endpoints = es
	for k, o := range r.out {
		if o != nil && !slices.Contains(es, o.endpoint) {
			o.cut() // its stream dials again
		}
		wake(r.streams[k].kick)
	}
}

func (r *remote) where() []endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.endpoints
}

// setOut notes that a stream to the member is up, or with nil that it is down.
func (r *remote) setOut(k kind, o *opened) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out[k] = o
	if bulk := r.out[entries]; k == control && o == nil && bulk != nil {
		bulk.cut() // it is as dead, and would take longer to find out
	}
	if o != nil {
		r.met = true
		r.connections++
		r.version = truncate(o.response.Header.Get(headerVersion), maxHeaderText)
		if !slices.Contains(r.endpoints, o.endpoint) {
			o.cut() // the member has moved while it was dialled
		}
	}
	r.judge()
}

// setIn replaces the stream of a kind from the member, and returns the one
// before.
func (r *remote) setIn(in *inbound) (before *inbound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, r.in[in.kind] = r.in[in.kind], in
	r.version = in.version
	if before != nil {
		r.interrupted()
	}
	r.judge()
	return before
}

// endIn notes that a stream from the member has ended, unless another has
// replaced it.
func (r *remote) endIn(in *inbound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.in[in.kind] == in {
		r.in[in.kind] = nil
	}
	r.judge()
}

// judge sets since. Called with mu held.
func (r *remote) judge() {
	for k := range kinds {
		if r.in[k] == nil || r.out[k] == nil {
			r.interrupted()
			return
		}
	}
	if r.since.IsZero() {
		r.since = time.Now()
	}
}

// interrupted notes that one of the streams is not up. Called with mu held.
func (r *remote) interrupted() {
	if !r.since.IsZero() {
		r.disconnects++
	}
	r.since = time.Time{}
}

// heard tells whether the member has a stream to this one.
func (r *remote) heard() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.in != [kinds]*inbound{}
}

// connected returns how many connections were made to the member.
func (r *remote) connected() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.connections
}

// wasMet tells, once for each time the member was connected to, that it was. It
// does not when another connection was made since there were as many as given:
// who asks has found out about the process before that one.
func (r *remote) wasMet(connections uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.connections != connections {
		return false
	}
	met := r.met
	r.met = false
	return met
}

func (r *remote) activeSince() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}

func (r *remote) stats() Stats {
	c := &r.count
	s := Stats{
		ID:                      r.id,
		RoundTrip:               time.Duration(c.roundTrip.Load()),
		SentBytes:               c.sentBytes.Load(),
		ReceivedBytes:           c.receivedBytes.Load(),
		SentMessages:            c.sentMessages.Load(),
		ReceivedMessages:        c.receivedMessages.Load(),
		Dropped:                 c.dropped.Load(),
		SendFailures:            c.sendFailures.Load(),
		ReceiveFailures:         c.receiveFailures.Load(),
		SnapshotsSent:           c.snapshotsSent.Load(),
		SnapshotSendFailures:    c.snapshotFailures.Load(),
		SnapshotsReceived:       c.snapshotsReceived.Load(),
		SnapshotReceiveFailures: c.snapshotsRefused.Load(),
		SnapshotsSending:        c.sending.Load(),
		SnapshotsReceiving:      c.receiving.Load(),
	}
	for _, st := range r.streams {
		n, bytes := st.queue.size()
		s.QueuedMessages += n
		s.QueuedBytes += bytes
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Version, s.ActiveSince, s.Disconnects = r.version, r.since, r.disconnects
	return s
}

func formatID(id uint64) string { return strconv.FormatUint(id, 16) }
