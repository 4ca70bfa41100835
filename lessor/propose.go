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
	// maxRound bounds the events handled between two looks at the feed.
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
		revoke, checkpoint := r.collect(maxRound)
		wait, any := r.wait()
		l.mu.Unlock()

		l.checkpointAll(ctx, r, checkpoint)
		l.revokeAll(ctx, r, revoke)
		if len(revoke)+len(checkpoint) == maxRound {
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

// start runs f on a goroutine of its own as soon as one of the slots is free.
func (l *Lessor) start(ctx context.Context, f func()) {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	// Ends when its proposal does, at the latest soon after the reign's end;
	// Close waits.
	l.tasks.Add(1)
	go func() {
		defer l.tasks.Done()
		defer func() { <-l.slots }()
		f()
	}()
}

func (l *Lessor) revokeAll(ctx context.Context, r *reign, terms []*term) {
	for _, t := range terms {
		l.start(ctx, func() { l.revoke(ctx, r, t) })
	}
}

func (l *Lessor) revoke(ctx context.Context, r *reign, t *term) {
	err := l.proposer.Propose(ctx, &pb.InternalRaftRequest{LeaseRevoke: &pb.LeaseRevokeRequest{ID: t.ID}})
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
	switch {
	case err != nil && !r.failing:
		r.failing = true
		l.o.Logger.Warn("cannot revoke expired leases, will keep trying", zap.Int64("lease", t.ID), zap.Error(err))
	case err == nil && r.failing:
		r.failing = false
		l.o.Logger.Info("revoking expired leases again")
	}
}

func (l *Lessor) checkpointAll(ctx context.Context, r *reign, terms []*term) {
	if len(terms) > 0 {
		l.start(ctx, func() { l.checkpoint(ctx, r, terms) })
	}
}

func (l *Lessor) checkpoint(ctx context.Context, r *reign, terms []*term) {
	recorded := make(chan struct{})
	l.mu.Lock()
	cs := r.record(terms, recorded)
	l.mu.Unlock()
	if len(cs) == 0 {
		return
	}
	err := l.proposer.Propose(ctx, checkpointRequest(cs))

	l.mu.Lock()
	defer l.mu.Unlock()
	close(recorded)
	for _, t := range terms {
		t.recording = nil
		if err != nil {
			t.RemainingTTL = t.TTL // may yet be recorded: the next renewal clears it
			r.hasten(t)
		}
	}
	if err != nil && ctx.Err() == nil {
		l.o.Logger.Warn("cannot record the remaining time of leases, will try again", zap.Int("leases", len(cs)), zap.Error(err))
	}
}

// record makes the checkpoints of terms and marks the terms as being recorded
// until the channel is closed. What ended or was renewed since it fell due has
// nothing to record.
func (r *reign) record(terms []*term, until <-chan struct{}) []*pb.LeaseCheckpoint {
	now := r.now()
	var cs []*pb.LeaseCheckpoint
	for _, t := range terms {
		left := int64((t.deadline - now + time.Second - 1) / time.Second)
		if r.terms[t.ID] == t && 0 < left && left < t.TTL {
			cs = append(cs, &pb.LeaseCheckpoint{ID: t.ID, Remaining_TTL: left})
			t.recording = until
		}
	}
	return cs
}

// hasten repeats the checkpoint of t after the retry interval.
func (r *reign) hasten(t *term) {
	if t.pos == notQueued || t.deadline-r.now() <= r.o.CheckpointInterval {
		return
	}
	t.checkpoint = r.now() + r.o.RetryInterval
	r.advance(t)
}

func checkpointRequest(cs []*pb.LeaseCheckpoint) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: cs}}
}
