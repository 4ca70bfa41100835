package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

const (
	// A connection that cannot be made is tried again after a pause that doubles
	// from minPause to maxPause, or to a quarter of Patience if that is shorter.
	minPause = 50 * time.Millisecond
	maxPause = time.Second
	// steady is how long a connection must have held to be made anew at once, and
	// not after the shortest pause.
	steady = time.Second
	// writeBatch is how much is put into one write.
	writeBatch = 1 << 20
	// pingInterval is how often a sign of life is asked for, if Patience is not
	// too short for it.
	pingInterval = time.Second
)

// stream carries messages of one kind to one member. One goroutine, run, dials
// and writes; while a connection is up another one listens to the answers to
// its pings.
type stream struct {
	peer  *remote
	kind  kind
	queue *queue
	kick  chan struct{} // capacity 1: dial now, the member is there or has moved
	last  int           // the endpoint that worked last; run's
}

// run keeps the stream up until ctx ends.
func (s *stream) run(ctx context.Context) {
	defer s.lose()
	for pause := minPause; ctx.Err() == nil; {
		began, connections := time.Now(), s.peer.connected()
		conn, err := s.connect(ctx)
		if err == nil {
			err = s.carry(ctx, conn)
		}
		if ctx.Err() != nil {
			return
		}
		s.failed(err, conn != nil, connections)
		if conn != nil {
			pause = minPause
			if time.Since(began) >= steady {
				continue // at once: that tells whether the member's process is gone
			}
		}
		if s.wait(ctx, pause) {
			pause = minPause
		} else {
			pause = min(2*pause, maxPause, s.peer.t.cfg.Patience/4)
		}
	}
}

// wait sits out a pause, give or take a quarter. It returns true if it was cut
// short.
func (s *stream) wait(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause*3/4 + rand.N(pause/2))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-s.kick:
		return true
	}
	return false
}

// connect tries the endpoints of the member in turn.
func (s *stream) connect(ctx context.Context) (*opened, error) {
	h := s.peer.t.greeting(s.peer.id).header()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", protocol)
	h.Set(headerStream, s.kind.String())
	o, err := s.peer.open(ctx, s.peer.t.streams, &s.last, http.MethodGet, pathStream, h, http.StatusSwitchingProtocols)
	if err == nil && s.kind == entries {
		o.read = s.peer.t.cfg.ReadTimeout // a listener that has enough lets it wait
	}
	return o, err
}

// open makes a request of the member at one of its endpoints, beginning with
// that of *last. An answer with another status than want is an error.
func (r *remote) open(ctx context.Context, d dialer, last *int, method, path string, h http.Header, want int) (*opened, error) {
	es := r.where()
	if len(es) == 0 {
		return nil, fmt.Errorf("member %x has no peer URL that could be dialled", r.id)
	}
	var errs []error
	for i := range es {
		n := (*last + i) % len(es)
		o, err := d.open(ctx, es[n], method, path, h)
		if err == nil && o.response.StatusCode != want {
			err = r.t.refused(o.response)
			o.Close()
		}
		if err == nil {
			*last = n
			return o, nil
		}
		errs = append(errs, &endpointError{es[n], err})
	}
	return nil, errors.Join(errs...)
}

// endpointError is why a member could not be talked to at one of its endpoints.
type endpointError struct {
	endpoint endpoint
	err      error
}

func (e *endpointError) Error() string { return e.endpoint.String() + ": " + e.err.Error() }
func (e *endpointError) Unwrap() error { return e.err }

// failed tells of a connection that ended, if it was up, or could not be made.
// connections is how many there were to the member when the attempt began: that
// nobody listened then says nothing of a process that was connected to since.
func (s *stream) failed(err error, up bool, connections uint64) {
	s.peer.count.sendFailures.Add(1)
	if lost := s.lose(); lost || up {
		s.peer.t.reports.unreachable(s.peer.id)
	}
	if allGone(err) && s.peer.wasMet(connections) {
		s.peer.t.cfg.Handler.Refused(s.peer.id)
	}
	s.tell(err, up)
}

// allGone tells whether all endpoints of a failed attempt said that nobody
// listens.
func allGone(err error) bool {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return false
	}
	for _, e := range joined.Unwrap() {
		if !gone(e) {
			return false
		}
	}
	return true
}

// tell logs why the stream is down: a refusal in its own words, for it says
// what to check; anything else as one, for the texts name changing ports.
func (s *stream) tell(err error, up bool) {
	message, key := "a member cannot be reached; trying again", ""
	var no *refusal
	switch {
	case errors.As(err, &no):
		message, key = "a member refuses the connection; trying again", no.text
	case up:
		message = "lost the connection to a member; making a new one"
	}
	if s.peer.logs.allow(message+key, time.Now()) {
		s.peer.t.log.Warn(message, hexID("member", s.peer.id), zap.Stringer("stream", s.kind), zap.Error(err))
	}
}

// lose drops what is queued and tells whether that was anything.
func (s *stream) lose() bool {
	n := s.queue.clear()
	s.peer.count.dropped.Add(uint64(n))
	return n > 0
}

// carry writes what is queued to the connection until it breaks or ctx ends.
func (s *stream) carry(ctx context.Context, o *opened) error {
	t := s.peer.t
	stop := context.AfterFunc(ctx, func() { o.Close() })
	defer stop()
	w := &writer{stream: s, conn: o.timedConn, began: time.Now(), broken: make(chan struct{})}
	t.group.Go(func() { w.listen(o) }) // until the connection is closed, below
	s.peer.setOut(s.kind, o)
	t.log.Info("connected to a member", hexID("member", s.peer.id), zap.Stringer("stream", s.kind), zap.Stringer("at", o.endpoint))
	err := w.run(t.pingInterval())
	o.Close()
	<-w.broken
	s.peer.setOut(s.kind, nil)
	t.client.CloseIdleConnections() // calls must not wait for connections that are as dead as this one
	return errors.Join(err, w.err)
}

func (t *Transport) pingInterval() time.Duration { return min(pingInterval, t.cfg.Patience/3) }

// writer writes to one connection.
type writer struct {
	stream *stream
	conn   timedConn
	began  time.Time
	buf    []byte            // to be written
	taken  []*raftpb.Message // encoded in buf

	broken chan struct{} // closed when listen has ended
	err    error         // why; set before broken is closed
}

// run writes until the connection breaks.
func (w *writer) run(interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	w.ping() // so that there is a round trip to tell of at once
	for {
		if err := w.drain(ticker); err != nil {
			return err
		}
		select {
		case <-ticker.C:
			w.ping()
		case <-w.stream.queue.wake:
		case <-w.broken:
			return nil
		}
	}
}

// drain writes until nothing is queued, all that has come meanwhile at once.
func (w *writer) drain(ticker *time.Ticker) error {
	count := &w.stream.peer.count
	for {
		w.fill()
		if len(w.buf) == 0 {
			return nil
		}
		n, err := w.conn.Write(w.buf)
		count.sentBytes.Add(uint64(n))
		if err != nil {
			count.dropped.Add(uint64(len(w.taken)))
			return fmt.Errorf("write: %w", err)
		}
		count.sentMessages.Add(uint64(len(w.taken)))
		if w.buf = w.buf[:0]; cap(w.buf) > keepBuffer {
			w.buf = nil
		}
		select {
		case <-ticker.C:
			w.ping()
		default:
		}
	}
}

// fill encodes the oldest messages.
func (w *writer) fill() {
	clear(w.taken)
	w.taken = w.stream.queue.take(w.taken[:0], writeBatch)
	for _, m := range w.taken {
		var err error
		if w.buf, err = appendMessage(w.buf, m); err != nil {
			w.stream.peer.count.dropped.Add(1)
			w.stream.peer.t.reports.unreachable(w.stream.peer.id)
			w.stream.peer.t.log.Error("a message cannot be sent", zap.Stringer("type", m.GetType()), zap.Error(err))
		}
	}
}

// ping asks for a sign of life. Its number is the time, so that the answer
// tells the round trip.
func (w *writer) ping() {
	w.buf = appendNumber(w.buf, framePing, uint64(time.Since(w.began))+1)
}

// listen reads the answers to pings until the connection is closed, by either
// side, or is silent.
func (w *writer) listen(o *opened) {
	defer close(w.broken)
	defer o.Close() // so that a write does not wait
	o.limit.N = math.MaxInt64
	frames := &frameReader{r: o.reader, max: 8}
	for {
		kind, payload, err := frames.next()
		if err == nil && (kind != framePong || len(payload) != 8) {
			err = fmt.Errorf("a frame of kind %d with %d bytes came as an answer", kind, len(payload))
		}
		if err != nil {
			w.err = fmt.Errorf("read: %w", err)
			return
		}
		if sent := binary.LittleEndian.Uint64(payload); sent > 0 {
			w.roundTrip(time.Since(w.began) - time.Duration(sent-1))
		}
	}
}

func (w *writer) roundTrip(d time.Duration) {
	peer := w.stream.peer
	if d < 0 || w.stream.kind != control {
		return // what waits behind bulk does not measure the network
	}
	peer.count.roundTrip.Store(int64(d))
	if f := peer.t.cfg.RoundTrip; f != nil {
		f(peer.id, d)
	}
}
