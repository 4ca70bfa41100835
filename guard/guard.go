// Package guard compares the data of the members of a cluster. Members that have
// applied the same entries hold the same history, so their hashes of it are
// equal; where they are not, a disk, a memory or a program has failed, and
// nobody may go on writing.
//
// It owns when hashes are compared and what follows from a difference: a member
// refuses to start, or the leader raises the CORRUPT alarm. It promises that
//
//   - two hashes are compared only if they are of one revision above one
//     compaction, so that members that lag, compact, restart, join or cannot be
//     reached are never accused;
//   - nobody is accused who was not found different in two looks in a row;
//   - where most members have equal hashes, the alarm names those that differ
//     from them, the leader too. Where no hash has a majority of the members, it
//     names those that differ from the leader; it is then not certain which side
//     is right, so before that the guard looks again for a while, in case those
//     that did not answer decide it.
//
// It must not know how members talk or how an alarm is raised.
package guard

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Hash is what a member says of its history.
type Hash struct {
	// Hash is that of the history up to HashRevision.
	Hash         uint32
	HashRevision int64
	// CompactRevision is the revision below which the hash knows only what is
	// retained.
	CompactRevision int64
	// Revision is the member's newest at that moment.
	Revision int64
}

// PeerHash is the answer of another member.
type PeerHash struct {
	ID   uint64
	Hash Hash
	// Err says why there is no hash: the member does not answer, or lags
	// behind the revision, or has compacted it. It cannot be compared now.
	Err error
}

// Members is what a Guard knows of the cluster.
type Members interface {
	// Local hashes this member's history up to a revision, its newest for 0.
	Local(ctx context.Context, rev int64) (Hash, error)
	// Peers asks every other member for the same, all at a time, and returns
	// an answer for each.
	Peers(ctx context.Context, rev int64) []PeerHash
	// Revisions are this member's newest revision and the one compacted to.
	Revisions() (newest, compacted int64)
	// Linearize returns when this member has applied all that was committed
	// anywhere before the call.
	Linearize(ctx context.Context) error
	// Raise raises the CORRUPT alarm in the name of a member.
	Raise(ctx context.Context, member uint64) error
}

// Clock is what a Guard waits with.
type Clock interface {
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Defaults of Options.
const (
	DefaultTimeout = 10 * time.Minute
	DefaultPause   = time.Second
)

// Options configures New.
type Options struct {
	// ID is this member.
	ID uint64
	// Interval is the time between comparisons of the newest revision; 0 for
	// never.
	Interval time.Duration
	// CompactInterval is how often is looked whether there was a compaction to
	// compare; 0 for never.
	CompactInterval time.Duration
	// Timeout bounds one look. Hashing reads all of the history.
	Timeout time.Duration
	// Pause is how long members that are about to apply a revision are given
	// before they are asked about it.
	Pause  time.Duration
	Clock  Clock       // nil: the system's
	Logger *zap.Logger // nil: none
}

func (o *Options) setDefaults() {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Pause <= 0 {
		o.Pause = DefaultPause
	}
	if o.Clock == nil {
		o.Clock = systemClock{}
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
}

const (
	// maxLooks bounds the looks at one difference. The last one decides.
	maxLooks = 5
	// maxAttempts is how often a compaction is compared that not all members
	// could be compared at.
	maxAttempts = 5
)

// Guard compares the data of members. It starts inactive.
type Guard struct {
	m      Members
	o      Options
	active atomic.Bool

	// Of the goroutine in Run: the compaction that has been compared, and the
	// one that is being, with how often it was.
	compared, comparing int64
	attempts            int
}

// New returns a Guard that compares nothing until Run is called and it is active.
func New(m Members, o Options) *Guard {
	o.setDefaults()
	return &Guard{m: m, o: o}
}

// SetActive says whether this member leads. Only the leader compares.
func (g *Guard) SetActive(active bool) { g.active.Store(active) }

// Run compares at the intervals of the options until ctx is done. It returns at
// once if there are none.
func (g *Guard) Run(ctx context.Context) {
	newest, compaction := g.after(g.o.Interval), g.after(g.o.CompactInterval)
	for newest != nil || compaction != nil {
		select {
		case <-ctx.Done():
			return
		case <-newest:
			g.checkNewest(ctx)
			newest = g.after(g.o.Interval)
		case <-compaction:
			g.checkCompaction(ctx)
			compaction = g.after(g.o.CompactInterval)
		}
	}
}

// after is a timer, or nil for none.
func (g *Guard) after(d time.Duration) <-chan time.Time {
	if d <= 0 {
		return nil
	}
	return g.o.Clock.After(d)
}

// checkNewest compares the newest revision.
func (g *Guard) checkNewest(ctx context.Context) {
	if !g.active.Load() {
		return
	}
	if _, err := g.examine(ctx, 0); err != nil && ctx.Err() == nil {
		g.o.Logger.Warn("the data of the members could not be compared, will try again",
			zap.Duration("interval", g.o.Interval), zap.Error(err))
	}
}

// checkCompaction compares the revision last compacted to, once. At it members
// keep no more than what is alive, and that for as long as they compact nothing
// newer.
func (g *Guard) checkCompaction(ctx context.Context) {
	_, compacted := g.m.Revisions()
	if !g.active.Load() || compacted <= 0 || compacted == g.compared {
		return
	}
	if compacted != g.comparing {
		g.comparing, g.attempts = compacted, 0
	}
	g.attempts++
	complete, err := g.examine(ctx, compacted)
	if err != nil && ctx.Err() == nil {
		g.o.Logger.Warn("the data of the members could not be compared at a compaction, will try again",
			zap.Int64("compact-revision", compacted), zap.Error(err))
	}
	if complete || g.attempts == maxAttempts {
		g.compared = compacted
	}
}

// examine looks at a revision until all agree or it is certain who does not, and
// raises the alarm against those. It is complete if all members were found equal.
func (g *Guard) examine(ctx context.Context, rev int64) (complete bool, err error) {
	var before verdict
	for n := 1; n <= maxLooks; n++ {
		l, err := g.look(ctx, rev)
		if err != nil {
			return false, err
		}
		v := l.judge(g.o.ID)
		switch {
		case len(v.suspects) == 0:
			g.o.Logger.Debug("compared the data of the members", l.fields(v)...)
			return v.missing == 0, nil
		case v.confirms(before) && (v.certain() || n == maxLooks):
			return false, g.accuse(ctx, l, v)
		case !g.active.Load():
			return false, nil // its successor will find out
		}
		g.o.Logger.Warn("the data of members differ, looking again", l.fields(v)...)
		before, rev = v, l.local.HashRevision
	}
	g.o.Logger.Warn("differences between the data of members were not the same in two looks in a row",
		zap.Int("looks", maxLooks), zap.Int64("revision", rev))
	return false, nil
}

func (g *Guard) accuse(ctx context.Context, l *look, v verdict) error {
	g.o.Logger.Error("the data of members differ, raising the CORRUPT alarm: writes are refused until the members named are "+
		"removed and added anew with empty data directories, and the alarm is disarmed", l.fields(v)...)
	ctx, cancel := context.WithTimeout(ctx, g.o.Timeout)
	defer cancel()
	for _, id := range v.suspects {
		if err := g.m.Raise(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
