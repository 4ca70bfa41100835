package lessor

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine/lease"
)

const (
	// granularity is the shortest pause between two looks at the deadlines,
	// so that leases that expire one after the other share a look.
	granularity = 20 * time.Millisecond
	// maxRound bounds the events handled between two looks at the feed, and
	// the checkpoints of one proposal.
	maxRound = 1000
)

// run proposes what falls due until the reign ends.
func (l *Lessor) run(ctx context.Context, r *reign) {
	defer l.tasks.Done()
	var (
		timer <-chan time.Time
		until time.Time // when timer fires
	)
	for ctx.Err() == nil {
		l.mu.Lock()
		r.sync()
		revoke, more := r.collect(maxRound)
		record := r.nextRecord()
		wait, any := r.wait()
		l.mu.Unlock()

		l.startRecord(ctx, r, record)
		l.revokeAll(ctx, r, revoke)
		if more {
			continue
		}
		if any {
			wait = max(wait, granularity)
			if at := l.o.Clock.Now().Add(wait); timer == nil || at.Before(until) {
				timer, until = l.o.Clock.After(wait), at
			}
		}
		select {
		case <-timer:
			timer = nil
		case <-r.wake:
		case <-r.feed.Ready():
		case <-ctx.Done():
		}
	}
}

// revokeAll starts to revoke terms, each as soon as one of the slots is free.
func (l *Lessor) revokeAll(ctx context.Context, r *reign, terms []*term) {
	for _, t := range terms {
		select {
		case l.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		// Ends when its proposal does, at the latest soon after the reign's
		// end; Close waits.
		l.tasks.Add(1)
		go func() {
			defer l.tasks.Done()
			defer func() { <-l.slots }()
			l.revoke(ctx, r, t)
		}()
	}
}

func (l *Lessor) revoke(ctx context.Context, r *reign, t *term) {
	if !l.exists(ctx, r, t) {
		return // its owner was faster, and may have granted another one by its name
	}
	err := r.proposer.Propose(ctx, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: t.ID}})
	if err == nil {
		l.expired.Add(1)
	}
	if errors.Is(err, lease.ErrNotFound) {
		err = nil // someone was faster
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	r.sync()
	if r.terms[t.ID] == t {
		t.retry = r.now() + r.o.RetryInterval
		r.enqueue(t)
		r.rouse()
	}
	if err == nil {
		r.succeeded()
	} else if first := t.failed == 0; r.failed(t) == 1 && first {
		l.o.Logger.Warn("cannot revoke an expired lease, will keep trying", zap.Int64("lease", t.ID), zap.Error(err))
	}
}

// failed notes that the revocation of t did, and returns how many have since one
// succeeded.
func (r *reign) failed(t *term) int {
	if t.failed == r.streak {
		return r.failures
	}
	t.failed = r.streak
	if r.failures++; r.failures == maxFailures {
		r.o.Logger.Warn("cannot revoke expired leases, will keep trying with one at a time", zap.Int("failed", r.failures))
		r.probe = r.now() + r.o.RetryInterval
	}
	return r.failures
}

// succeeded notes that a revocation did.
func (r *reign) succeeded() {
	if r.failures >= maxFailures {
		r.o.Logger.Info("revoking expired leases again")
	}
	if r.failures > 0 {
		r.failures = 0
		r.streak++
	}
}

// exists reports whether the lease of t does, in the reign r.
func (l *Lessor) exists(ctx context.Context, r *reign, t *term) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	r.sync()
	return r.terms[t.ID] == t
}

// record is a proposal of checkpoints. The first one moves the table's clock, by
// which the others are stamped.
type record struct {
	checkpoints []*pb.LeaseCheckpoint
	terms       []*term
	decided     chan struct{}
}

// nextRecord makes the next proposal of checkpoints, of up to maxRound pending
// terms. There is none while one is under way: one at a time is what bounds
// their rate, and what keeps the clock's readings in order. What ended or was
// renewed since it fell due has nothing to record.
func (r *reign) nextRecord() *record {
	if r.recording {
		return nil
	}
	now := r.now()
	rec := &record{
		checkpoints: []*pb.LeaseCheckpoint{{ID: 0, Remaining_TTL: int64(r.led + now)}},
		decided:     make(chan struct{}),
	}
	for len(r.pending) > 0 && len(rec.terms) < maxRound {
		t := r.pending[0]
		if r.pending = r.pending[1:]; len(r.pending) == 0 {
			r.pending = nil
		}
		if r.terms[t.ID] != t || t.checkpoint != 0 {
			continue
		}
		t.recording = rec.decided
		rec.terms = append(rec.terms, t)
		rec.checkpoints = append(rec.checkpoints, &pb.LeaseCheckpoint{ID: t.ID, Remaining_TTL: t.left(now)})
	}
	if len(rec.terms) == 0 && (r.stored == 0 || now < r.ticking) {
		return nil
	}
	r.recording, r.ticking = true, now+tick
	return rec
}

// left is what t has left of its time to live, in seconds, rounded up. It is at
// least 1, for 0 stands for all: what is in its grace may live a second more.
func (t *term) left(now time.Duration) int64 {
	return max(1, int64((t.deadline-t.grace-now+time.Second-1)/time.Second))
}

// startRecord proposes rec, if there is one.
func (l *Lessor) startRecord(ctx context.Context, r *reign, rec *record) {
	if rec == nil {
		return
	}
	// Ends when its proposal does, at the latest soon after the reign's end;
	// Close waits.
	l.tasks.Add(1)
	go func() {
		defer l.tasks.Done()
		l.finishRecord(ctx, r, rec, r.proposer.Propose(ctx, checkpointRequest(rec.checkpoints)))
	}()
}

func (l *Lessor) finishRecord(ctx context.Context, r *reign, rec *record, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(rec.decided)
	r.recording = false
	for _, t := range rec.terms {
		t.recording = nil
		if err != nil {
			t.uncertain = true // the next renewal clears it
			r.hasten(t)
		}
	}
	if ctx.Err() != nil {
		return
	}
	r.rouse()
	switch {
	case err != nil && !r.mute:
		r.mute = true
		l.o.Logger.Warn("cannot record the remaining time of leases, will keep trying", zap.Int("leases", len(rec.terms)), zap.Error(err))
	case err == nil && r.mute:
		r.mute = false
		l.o.Logger.Info("recording the remaining time of leases again")
	}
}

// hasten repeats the checkpoint of t after the retry interval, unless it was
// renewed.
func (r *reign) hasten(t *term) {
	if t.pos == notQueued || t.checkpoint != 0 {
		return
	}
	t.checkpoint = r.now() + r.o.RetryInterval
	r.advance(t)
}

func checkpointRequest(cs []*pb.LeaseCheckpoint) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: cs}}
}
