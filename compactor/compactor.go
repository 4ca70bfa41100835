// Package compactor forgets history on its own, by the rules that etcd documents for --auto-compaction-mode: keep
// a period of time, or keep a number of revisions.
//
// It owns when to compact and to which revision. It promises never to ask for a revision younger than its policy
// allows, and to ask only while it is active, which is while this member leads. It must not know how a compaction
// is proposed or carried out: it sees a revision and a function, and its clock is handed to it.
package compactor

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// samples is how many times per period (an hour at most) the current revision is noted.
	samples = 10
	// maxInterval bounds the time between two compactions, and so the granularity of long periods.
	maxInterval = time.Hour
	// revisionInterval is how often the revision mode looks.
	revisionInterval = 5 * time.Minute
)

// A Store is what a Compactor needs of the key-value store.
type Store interface {
	// Revision is the newest revision.
	Revision() int64
	// Compact forgets what only revisions before rev need. A revision that is compacted already is no error.
	Compact(ctx context.Context, rev int64) error
}

// A Clock tells the time. Only differences of Now matter.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

// Options are the parts of a Compactor that have defaults.
type Options struct {
	Clock  Clock       // nil: the system's
	Logger *zap.Logger // nil: none
}

// A Compactor applies a policy to a store. It starts inactive: it looks, but it compacts nothing.
type Compactor struct {
	policy Policy
	store  Store
	clock  Clock
	log    *zap.Logger
	active atomic.Bool
}

// New returns a Compactor that does nothing until Run is called, and compacts nothing until it is made active.
func New(policy Policy, store Store, o Options) *Compactor {
	c := &Compactor{policy: policy, store: store, clock: o.Clock, log: o.Logger}
	if c.clock == nil {
		c.clock = systemClock{}
	}
	if c.log == nil {
		c.log = zap.NewNop()
	}
	return c
}

// SetActive says whether this member leads. One member's proposal compacts all, so followers only watch: a
// follower that becomes leader knows the revisions of the past already.
func (c *Compactor) SetActive(active bool) { c.active.Store(active) }

// Run compacts until ctx is done. It returns at once if the policy keeps everything.
func (c *Compactor) Run(ctx context.Context) {
	switch {
	case c.policy.Period > 0:
		c.runPeriodic(ctx)
	case c.policy.Keep > 0:
		c.runRevision(ctx)
	}
}

// runPeriodic notes the revision ten times per interval, where the interval is the period but at most an hour, and
// keeps as many notes as span the period. When a sample's time is over, the oldest note is the revision a period and a
// sample ago. The first compaction waits for a whole period, later ones for an interval; a failed one is tried again at
// the next sample.
func (c *Compactor) runPeriodic(ctx context.Context) {
	interval := min(c.policy.Period, maxInterval)
	sampleEvery := interval / samples
	most := int(c.policy.Period/sampleEvery) + 1
	var notes []int64

	var last int64 // the revision last compacted to
	since := c.clock.Now()
	wait := c.policy.Period
	for {
		if len(notes) == most {
			notes = append(notes[:0], notes[1:]...)
		}
		notes = append(notes, c.store.Revision())

		if !c.sleep(ctx, sampleEvery) {
			return
		}
		rev := notes[0]
		if !c.active.Load() || c.clock.Now().Sub(since) < wait || rev == last {
			continue
		}
		wait = interval
		if c.compact(ctx, rev) {
			last, since = rev, c.clock.Now()
		}
	}
}

// runRevision looks every five minutes and compacts to the newest revision less the number to keep.
func (c *Compactor) runRevision(ctx context.Context) {
	var last int64
	for c.sleep(ctx, revisionInterval) {
		rev := c.store.Revision() - c.policy.Keep
		if !c.active.Load() || rev <= 0 || rev == last {
			continue
		}
		if c.compact(ctx, rev) {
			last = rev
		}
	}
}

// compact reports whether the store has forgotten what is before rev. A failure waits for the caller's next round.
func (c *Compactor) compact(ctx context.Context, rev int64) bool {
	began := c.clock.Now()
	if err := c.store.Compact(ctx, rev); err != nil {
		if ctx.Err() == nil {
			c.log.Warn("automatic compaction failed; it will be tried again",
				zap.Int64("revision", rev), zap.Stringer("policy", c.policy), zap.Error(err))
		}
		return false
	}
	c.log.Info("automatic compaction done", zap.Int64("revision", rev), zap.Stringer("policy", c.policy),
		zap.Duration("took", c.clock.Now().Sub(began)))
	return true
}

// sleep waits for d and reports whether ctx is still going.
func (c *Compactor) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-c.clock.After(d):
		return true
	}
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }
