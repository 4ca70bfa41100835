package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// maxSending bounds the snapshots being sent, over all members.
const maxSending = 2

// Snapshot is a copy of the state at a moment, in files.
type Snapshot struct {
	Metadata *raftpb.SnapshotMetadata
	Dir      string
	Files    []string // names in Dir
	// Release lets go of the copy. It is called once, when it was sent or not.
	Release func()
}

// Snapshots makes and takes copies of the state.
type Snapshots interface {
	// Take makes a consistent copy of the state of a moment.
	Take(ctx context.Context) (*Snapshot, error)
	// Begin returns an empty directory to receive a snapshot in. One is received
	// at a time; another is refused.
	Begin(meta *raftpb.SnapshotMetadata) (dir string, err error)
	// Received is called when all files are in dir, synced and verified; m is
	// the MsgSnap with the metadata of what was received. It returns when raft
	// has been given m. If anything fails before, Aborted is called instead.
	Received(ctx context.Context, m *raftpb.Message, dir string) error
	Aborted(dir string)
}

// startSnapshot sends a snapshot in answer to a MsgSnap, or says that it does
// not. Called with mu held; r is nil when the member is not known.
func (t *Transport) startSnapshot(r *remote, m *raftpb.Message) {
	if r == nil {
		t.reports.snapshotFailed(m.GetTo())
		return
	}
	select {
	case t.sending <- struct{}{}:
	default: // raft asks again
		t.reports.snapshotFailed(r.id)
		return
	}
	t.group.Go(func() { // ends with the snapshot, or the remote's context
		began := time.Now()
		r.count.sending.Add(1)
		bytes, err := r.sendSnapshot(r.ctx, m)
		r.count.sending.Add(-1)
		took := time.Since(began)
		fields := []zap.Field{hexID("to", r.id), zap.Int64("bytes", bytes), zap.Duration("took", took)}
		if err != nil {
			r.count.snapshotFailures.Add(1)
			t.log.Warn("a snapshot was not sent; it is tried again when the member still needs it", append(fields, zap.Error(err))...)
		} else {
			r.count.snapshotsSent.Add(1)
			if f := t.cfg.SendTook; f != nil {
				f(r.id, took)
			}
			t.log.Info("sent a snapshot", fields...)
		}
		<-t.sending // before raft hears of it and may ask for the next
		t.cfg.Handler.SnapshotSent(r.id, err == nil)
	})
}

// sendSnapshot takes a snapshot and sends it. It returns how many bytes the
// snapshot has.
func (r *remote) sendSnapshot(ctx context.Context, m *raftpb.Message) (int64, error) {
	s, err := r.t.cfg.Snapshots.Take(ctx)
	if err != nil {
		return 0, fmt.Errorf("take a snapshot: %w", err)
	}
	defer s.Release()
	head, err := newSnapshotHead(m, s)
	if err != nil {
		return 0, err
	}
	frame, err := head.frame()
	if err != nil {
		return 0, err
	}
	total := int64(len(frame)) + head.bytes()
	h := r.t.greeting(r.id).header()
	h.Set("Content-Length", strconv.FormatInt(total, 10))
	h.Set("Expect", "100-continue")
	first := 0
	o, err := r.open(ctx, r.t.dialer, &first, http.MethodPost, pathSnapshot, h, http.StatusContinue)
	if err != nil {
		return total, err
	}
	defer o.Close()
	defer context.AfterFunc(ctx, func() { o.Close() })()
	o.read, o.write = r.t.stall(), r.t.stall()
	if err := r.sendFiles(ctx, o, frame, s.Dir, head.files); err != nil {
		// What the receiver says tells more than that it does not listen.
		o.read = time.Second
		if no := r.t.verdict(o); errors.As(no, new(*refusal)) {
			err = no
		}
		return total, err
	}
	return total, r.t.verdict(o)
}

// stall is how long a snapshot may make no progress: a disk takes longer than
// the network.
func (t *Transport) stall() time.Duration { return 6 * max(t.cfg.ReadTimeout, t.cfg.WriteTimeout) }

// sendFiles writes a snapshot's head and files, at the configured rate.
func (r *remote) sendFiles(ctx context.Context, o *opened, head []byte, dir string, files []File) error {
	w := &pacedWriter{ctx: ctx, w: o, pace: pacer{rate: r.t.cfg.SnapshotRate, strained: r.t.cfg.Strained}, count: &r.count.sentBytes}
	w.most = w.pace.within(r.t.stall() / 4)
	if _, err := w.Write(head); err != nil {
		return err
	}
	return SendFiles(w, vfs.Default, dir, files)
}

// verdict waits until the receiver has answered. As long as it works it says
// so, with informational answers.
func (t *Transport) verdict(o *opened) error {
	for {
		if err := o.answer(http.MethodPost); err != nil {
			return fmt.Errorf("wait for the receiver of a snapshot: %w", err)
		}
		switch code := o.response.StatusCode; {
		case code == http.StatusOK:
			return nil
		case code >= 200:
			return t.refused(o.response)
		}
	}
}

// pacedWriter writes at a rate.
type pacedWriter struct {
	ctx   context.Context // of the one who writes, for io.Writer takes none
	w     io.Writer
	pace  pacer
	most  int // bytes at once, lest who reads takes a low rate for a stall
	count *atomic.Uint64
}

func (w *pacedWriter) Write(p []byte) (written int, err error) {
	for len(p) > 0 && err == nil {
		piece := p[:min(len(p), w.most)]
		if err = w.pace.wait(w.ctx, len(piece)); err != nil {
			break
		}
		var n int
		n, err = w.w.Write(piece)
		w.count.Add(uint64(n))
		written += n
		p = p[n:]
	}
	return written, err
}

// pacer is a token bucket: it lets bytes pass at a rate, and what was not used
// lately at once. The rate is halved while the member is strained, and then comes
// back little by little.
type pacer struct {
	rate     int64     // bytes per second; none if negative
	due      time.Time // when all that has passed should have
	strained func() bool
	asked    time.Time // when strained was
	held     int64     // how much of rate is kept back
}

const (
	// askEvery is how often the pacer looks whether the member is strained.
	askEvery = 100 * time.Millisecond
	// minShare and backShare are parts of the rate: what is never kept back, and
	// what comes back each time that there is no strain.
	minShare, backShare = 8, 32
)

// look adapts the rate and returns it.
func (p *pacer) look(now time.Time) int64 {
	if p.strained != nil && now.Sub(p.asked) >= askEvery {
		p.asked = now
		if p.strained() {
			p.held = min((p.rate+p.held)/2, p.rate-p.rate/minShare)
		} else {
			p.held = max(p.held-p.rate/backShare, 0)
		}
	}
	return p.rate - p.held
}

// within returns how many bytes pass in a time, whatever the strain is; it is at least one.
func (p *pacer) within(d time.Duration) int {
	if p.rate < 0 {
		return math.MaxInt
	}
	return int(max(1, min(float64(p.rate)/minShare*d.Seconds(), math.MaxInt32)))
}

// pacerCredit is how much of the past may be made up for: more than timers are
// late, less than others on the line would notice.
const pacerCredit = 20 * time.Millisecond

// wait returns when n bytes may pass.
func (p *pacer) wait(ctx context.Context, n int) error {
	if p.rate < 0 {
		return ctx.Err()
	}
	now := time.Now()
	if earliest := now.Add(-pacerCredit); p.due.Before(earliest) {
		p.due = earliest
	}
	pause := p.due.Sub(now)
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.look(now)) * float64(time.Second)))
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
