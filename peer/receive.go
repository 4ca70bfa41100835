package peer

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/direct"
)

var (
	noDeadline = time.Time{}
	past       = time.Unix(1, 0)
)

// serveSnapshot answers a member that sends a snapshot.
func (t *Transport) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	g, no := t.check(r.Header)
	var from *remote
	if no == nil {
		from, no = t.remoteFor(&g)
	}
	if no != nil {
		no.write(w, t.cfg.ClusterID)
		return
	}
	defer t.farewell(from)
	select {
	case t.receiving <- struct{}{}:
		defer func() { <-t.receiving }()
	default:
		(&refusal{http.StatusConflict, "another snapshot is being received"}).write(w, t.cfg.ClusterID)
		return
	}
	leave, ok := t.enter()
	if !ok {
		(&refusal{http.StatusServiceUnavailable, "this member is stopping"}).write(w, t.cfg.ClusterID)
		return
	}
	defer leave()
	began := time.Now()
	from.count.receiving.Add(1)
	err := t.receiveSnapshot(from, w, r)
	from.count.receiving.Add(-1)
	took := time.Since(began)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(t.cfg.WriteTimeout)) // of the answer; Close waits for it
	fields := []zap.Field{hexID("from", from.id), zap.Int64("bytes", r.ContentLength), zap.Duration("took", took)}
	if err != nil {
		from.count.snapshotsRefused.Add(1)
		t.log.Warn("a snapshot was not received", append(fields, zap.Error(err))...)
		(&refusal{http.StatusInternalServerError, err.Error()}).write(w, t.cfg.ClusterID)
		return
	}
	from.count.snapshotsReceived.Add(1)
	if f := t.cfg.ReceiveTook; f != nil {
		f(from.id, took)
	}
	t.log.Info("received a snapshot", fields...)
}

func (t *Transport) receiveSnapshot(from *remote, w http.ResponseWriter, r *http.Request) error {
	c := http.NewResponseController(w)
	body := &timedBody{ctx: from.ctx, body: r.Body, control: c, timeout: t.stall(), count: &from.count.receivedBytes}
	defer context.AfterFunc(from.ctx, func() { _ = c.SetReadDeadline(past) })()
	frames := newFrameReader(body, maxSnapshotHead)
	head, err := t.readHead(frames, from, r.ContentLength)
	if err != nil {
		return err
	}
	dir, err := t.cfg.Snapshots.Begin(head.message.Snapshot.Metadata)
	if err != nil {
		return fmt.Errorf("begin to receive a snapshot: %w", err)
	}
	if err := ReceiveFiles(frames.r, direct.New(vfs.Default, received), dir, head.files); err != nil {
		t.cfg.Snapshots.Aborted(dir)
		return err
	}
	// From here on the sender is not needed: should it go away, net/http must
	// not take it for the end of the work.
	if err := c.SetReadDeadline(noDeadline); err != nil {
		t.cfg.Snapshots.Aborted(dir)
		return err
	}
	return t.whileTelling(w, c, func() error { return t.cfg.Snapshots.Received(t.ctx, head.message, dir) })
}

// readHead reads and checks what a snapshot says of itself.
func (t *Transport) readHead(frames *frameReader, from *remote, length int64) (*snapshotHead, error) {
	kind, payload, err := frames.next()
	if err != nil {
		return nil, fmt.Errorf("read a snapshot's head: %w", err)
	}
	if kind != frameSnapshot {
		return nil, fmt.Errorf("a frame of kind %d came in place of a snapshot's head", kind)
	}
	head, err := decodeSnapshotHead(payload)
	if err != nil {
		return nil, err
	}
	m := head.message
	if m.GetTo() != t.cfg.MemberID || m.GetFrom() != from.id {
		return nil, fmt.Errorf("a snapshot from member %x for member %x came from %x to %x", m.GetFrom(), m.GetTo(), from.id, t.cfg.MemberID)
	}
	if want := int64(frameHeaderLen+len(payload)) + head.bytes(); length != want {
		return nil, fmt.Errorf("a snapshot has %d bytes; its head announces %d", length, want)
	}
	return head, nil
}

// whileTelling does work that may take long, and meanwhile tells the sender
// that it goes on.
func (t *Transport) whileTelling(w http.ResponseWriter, c *http.ResponseController, work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }() // waited for below
	ticker := time.NewTicker(t.pingInterval())
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			_ = c.SetWriteDeadline(time.Now().Add(t.cfg.WriteTimeout)) // if it is gone, it is gone
			w.WriteHeader(http.StatusProcessing)
		}
	}
}

// timedBody is a request's body of which each read has its time.
type timedBody struct {
	ctx     context.Context // of the request, for io.Reader takes none
	body    io.Reader
	control *http.ResponseController
	timeout time.Duration
	count   *atomic.Uint64
}

func (b *timedBody) Read(p []byte) (int, error) {
	if err := b.control.SetReadDeadline(time.Now().Add(b.timeout)); err != nil {
		return 0, err
	}
	if err := b.ctx.Err(); err != nil {
		return 0, err // it may have ended before the deadline was set, which would undo its effect
	}
	n, err := b.body.Read(p)
	b.count.Add(uint64(n))
	return n, err
}
