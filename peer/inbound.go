package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/pprof"
	"time"

	"go.uber.org/zap"
)

// inbound is a stream from another member.
type inbound struct {
	peer    *remote
	kind    kind
	version string // of the other member
	conn    timedConn
	frames  *frameReader
	alive   time.Duration // how often to give a sign of life while bytes come
	said    time.Time     // when the last was given
	done    chan struct{} // closed when read has ended
}

// serveStream answers a member that opens a stream. When it has agreed the
// connection is no longer net/http's, but the transport's.
func (t *Transport) serveStream(w http.ResponseWriter, r *http.Request) {
	g, no := t.check(r.Header)
	if got := r.Header.Get("Upgrade"); got != protocol || r.ProtoMajor != 1 {
		no = &refusal{http.StatusUpgradeRequired, fmt.Sprintf(
			"this member speaks %s over HTTP/1.1, and was asked for %q over %s: let the members run versions that fit together",
			protocol, truncate(got, maxHeaderText), r.Proto)}
	}
	k, err := parseKind(r.Header.Get(headerStream))
	if no == nil && err != nil {
		no = &refusal{http.StatusBadRequest, err.Error()}
	}
	var from *remote
	if no == nil {
		from, no = t.remoteFor(&g)
	}
	if no != nil {
		t.log.Debug("a stream was refused", hexID("from", g.from), zap.String("at", r.RemoteAddr), zap.Error(no))
		no.write(w, t.cfg.ClusterID)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		(&refusal{http.StatusInternalServerError, err.Error()}).write(w, t.cfg.ClusterID)
		t.farewell(from)
		return
	}
	in := &inbound{
		peer:    from,
		kind:    k,
		version: g.version,
		conn:    timedConn{conn, t.cfg.ReadTimeout, t.cfg.WriteTimeout},
		alive:   t.pingInterval(),
		said:    time.Now(),
		done:    make(chan struct{}),
	}
	in.frames = newFrameReader(io.MultiReader(io.LimitReader(buffered.Reader, int64(buffered.Reader.Buffered())), in), maxFrame)
	leave, ok := t.enter()
	if !ok {
		conn.Close()
		return
	}
	go func() { // ends with the connection, which closes with the remote's context; Close waits
		defer leave()
		pprof.Do(from.ctx, pprof.Labels("coterie", "stream from a peer"), in.serve)
	}()
}

// serve carries the stream until it breaks or ctx ends.
func (in *inbound) serve(ctx context.Context) {
	from, t := in.peer, in.peer.t
	defer t.farewell(from)
	defer close(in.done)
	defer in.conn.Close()
	defer context.AfterFunc(ctx, func() { in.conn.Close() })()
	if before := from.setIn(in); before != nil {
		// The member has given it up. Wait, so that nothing of it comes later.
		before.conn.Close()
		<-before.done
	}
	err := in.agree()
	if err == nil {
		for _, s := range from.streams {
			wake(s.kick) // the member is there
		}
		err = in.read()
	}
	from.endIn(in)
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return
	}
	from.count.receiveFailures.Add(1)
	t.log.Info("a member's stream has ended", hexID("member", from.id), zap.Stringer("stream", in.kind), zap.Error(err))
}

// agree answers the request.
func (in *inbound) agree() error {
	t := in.peer.t
	_, err := fmt.Fprintf(in.conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %x\r\n%s: %s\r\n\r\n",
		protocol, headerCluster, t.cfg.ClusterID, headerVersion, t.cfg.Version)
	return err
}

// read hands on what comes until the stream breaks.
func (in *inbound) read() error {
	for {
		kind, payload, err := in.frames.next()
		if err != nil {
			return err
		}
		switch {
		case kind == frameMessage:
			err = in.receive(payload)
		case kind == framePing && len(payload) == 8:
			err = in.say(binary.LittleEndian.Uint64(payload))
		default:
			err = fmt.Errorf("a frame of kind %d with %d bytes came", kind, len(payload))
		}
		if err != nil {
			return err
		}
	}
}

func (in *inbound) receive(payload []byte) error {
	t := in.peer.t
	m, err := decodeMessage(payload)
	if err != nil {
		return err
	}
	if m.GetTo() != t.cfg.MemberID {
		return fmt.Errorf("a message for member %x came to member %x", m.GetTo(), t.cfg.MemberID)
	}
	in.peer.count.receivedMessages.Add(1)
	t.cfg.Handler.Receive(m)
	return nil
}

// say answers a ping, or with 0 gives a sign of life.
func (in *inbound) say(number uint64) error {
	in.said = time.Now()
	_, err := in.conn.Write(appendNumber(nil, framePong, number))
	return err
}

// Read reads from the connection. When bytes come for long without a ping among
// them, for it waits behind a bulk, the sender is told that they do come.
func (in *inbound) Read(p []byte) (int, error) {
	n, err := in.conn.Read(p)
	in.peer.count.receivedBytes.Add(uint64(n))
	if err == nil && time.Since(in.said) >= in.alive {
		err = in.say(0)
	}
	return n, err
}
