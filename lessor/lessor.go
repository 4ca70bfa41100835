// Package lessor is the leader's lease clock: it decides when a lease has
// lived its time. It owns the deadlines, renews them on keep-alives, and
// proposes what must be agreed on, the revocation of expired leases and the
// checkpoints of remaining times.
//
// It promises that no lease is proposed for revocation before the time to live
// that was last granted or confirmed has passed in full since, whoever leads
// meanwhile; that an expired lease cannot be renewed; that expiry is noticed
// within a few tens of milliseconds; and that a revocation which fails is tried
// again for as long as this member leads. Changes of leaders lengthen lives, by
// no more than DESIGN.md says, and never shorten them.
//
// It must not know raft, keys or connections. What it needs of them are a
// Proposer, the lease table and a clock. It never changes the table: it
// follows it, so a revocation by a client and one of its own look the same.
package lessor

import (
	"cmp"
	"context"
	"errors"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine/lease"
)

// ErrNotPrimary is returned while this member does not lead: only the leader
// knows deadlines.
var ErrNotPrimary = errors.New("not a primary lessor")

// ErrNotRevoked is returned by a member that does not lead, for a lease that has expired and that its leader cannot
// revoke for a while.
var ErrNotRevoked = errors.New("lessor: the lease has expired and is not revoked yet")

// Proposer is one term of leadership. It belongs to the reign that Promote
// begins with it.
type Proposer interface {
	// Propose replicates a command and returns when it has been applied here.
	// It must fail, rather than hand the command to another leader or another
	// term, when this member no longer leads in the term: another leader may
	// just have renewed the lease that the command revokes.
	Propose(ctx context.Context, r *pb.InternalRaftRequest) error
	// Confirm returns nil if at some moment since the call no member led in a
	// later term, and what was committed until that moment is in the table: it
	// is a linearizable read.
	Confirm(ctx context.Context) error
	// Confirmed tells that Confirm would return nil without waiting. It must not
	// call the lessor.
	Confirmed() bool
}

// Leases is the table to follow.
type Leases interface {
	Get(id int64) (lease.Lease, bool)
	All() []lease.Lease
	Clock() time.Duration
	Follow() *lease.Feed
}

// Clock is a monotonic clock.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// Defaults of Options.
const (
	DefaultCheckpointInterval = 5 * time.Minute
	DefaultMaxInFlight        = 128
	DefaultRetryInterval      = 500 * time.Millisecond
)

// Options configures New. The zero value is usable.
type Options struct {
	Logger *zap.Logger
	// Clock is the time; nil is the system's.
	Clock Clock
	// Extend is added to every lease by Promote: an election timeout, during
	// which no leader could have taken keep-alives.
	Extend time.Duration
	// CheckpointInterval is how much of its lived time a lease may get back
	// when the leader changes or restarts, if that is less than half its time
	// to live. Negative turns checkpoints off.
	CheckpointInterval time.Duration
	// MaxInFlight bounds the revocations under way. It is what bounds their
	// rate: as many at a time as do not make a batch of the log slow for the
	// writes in it.
	MaxInFlight int
	// RetryInterval is the pause before a failed proposal is repeated.
	RetryInterval time.Duration
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = systemClock{}
	}
	if o.CheckpointInterval == 0 {
		o.CheckpointInterval = DefaultCheckpointInterval
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if o.RetryInterval <= 0 {
		o.RetryInterval = DefaultRetryInterval
	}
}

// Lessor is the lease clock of one member. Its methods may be called from any
// goroutine.
type Lessor struct {
	o Options
	// slots holds a token for each revocation under way.
	slots chan struct{}
	// tasks counts the loops of reigns and the proposals they started; Close
	// waits for them.
	tasks sync.WaitGroup

	renewed atomic.Uint64
	expired atomic.Uint64

	// mu guards the fields below and everything in the reign. Lock order:
	// Lessor.mu, then the locks of the table.
	mu     sync.Mutex
	table  Leases
	reign  *reign // nil while this member does not lead
	closed bool
}

// New returns a lessor of the table, demoted.
func New(table Leases, o Options) *Lessor {
	o.setDefaults()
	return &Lessor{
		o:     o,
		slots: make(chan struct{}, o.MaxInFlight),
		table: table,
	}
}

// Promote makes this member's clock the one that counts, for the term that p
// stands for. Every lease has its remaining time, and Options.Extend more, from
// now on. It is called when all that was committed before the term is in the
// table. A reign of an earlier term ends; for the p of the current one, which must
// be comparable, it does nothing: two reigns of a term would not know of each
// other's checkpoints under way.
func (l *Lessor) Promote(p Proposer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.reign != nil && l.reign.proposer == p {
		return
	}
	l.endReign()
	ctx, cancel := context.WithCancel(context.Background())
	l.reign = newReign(l.table, p, l.o, cancel, ctx.Done())
	// Ended by Demote, Reset or Close, through cancel; Close waits.
	l.tasks.Add(1)
	r := l.reign
	go pprof.Do(ctx, pprof.Labels("goroutine", "lessor"), func(ctx context.Context) { l.run(ctx, r) })
}

// Demote forgets all deadlines. It does not wait for proposals under way,
// which fail or are applied without it, so it may be called from where
// proposals are worked on.
func (l *Lessor) Demote() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endReign()
}

// endReign demotes; l.mu is held.
func (l *Lessor) endReign() {
	if l.reign == nil {
		return
	}
	l.reign.cancel()
	l.reign.feed.Close()
	l.reign = nil
}

// Reset follows another table from now on, that of a machine installed from a
// snapshot. It demotes.
func (l *Lessor) Reset(table Leases) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endReign()
	l.table = table
}

// Close demotes and waits for all that the lessor started.
func (l *Lessor) Close() {
	l.mu.Lock()
	l.closed = true
	l.endReign()
	l.mu.Unlock()
	l.tasks.Wait()
}

// Renew begins the life of lease id anew and returns its granted time to live
// in seconds. An expired lease that is not yet revoked cannot be saved: Renew
// waits for its end and returns lease.ErrNotFound.
func (l *Lessor) Renew(ctx context.Context, id int64) (ttl int64, err error) {
	ttl, expired, err := l.tryRenew(ctx, id)
	if expired == nil {
		return ttl, err
	}
	select {
	case <-expired.gone:
		return 0, lease.ErrNotFound
	case <-expired.reign:
		return 0, ErrNotPrimary
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// RenewNow is Renew where that takes no waiting, for those who must not. If ok is
// false the lease is to be renewed with Renew, which says what is wrong.
func (l *Lessor) RenewNow(id int64) (ttl int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.reign
	if r == nil {
		return 0, false
	}
	r.sync()
	t := r.terms[id]
	if t == nil || t.deadline <= r.now() || t.marked() || t.recording != nil {
		return 0, false
	}
	r.renew(t)
	if !r.proposer.Confirmed() {
		return 0, false
	}
	// By now a revocation may be there, as in settle.
	if r.sync(); r.terms[id] != t {
		return 0, false
	}
	l.renewed.Add(1)
	return t.TTL, true
}

// expired is a lease that is about to be revoked. The channels are closed when
// it is gone, and when the reign ends.
type expired struct{ gone, reign <-chan struct{} }

// tryRenew is Renew, but does not wait for an expired lease. A lease that is not
// in the table may be one that another member, which applies faster, has just
// answered the grant of, so the table is waited for before it is called unknown.
func (l *Lessor) tryRenew(ctx context.Context, id int64) (ttl int64, _ *expired, _ error) {
	ttl, expired, err := l.renewKnown(ctx, id)
	if !errors.Is(err, lease.ErrNotFound) {
		return ttl, expired, err
	}
	if err := l.confirm(ctx); err != nil {
		return 0, nil, err
	}
	return l.renewKnown(ctx, id)
}

// confirm is Proposer.Confirm for the reign of the moment.
func (l *Lessor) confirm(ctx context.Context) error {
	l.mu.Lock()
	r := l.reign
	l.mu.Unlock()
	if r == nil {
		return ErrNotPrimary
	}
	return r.proposer.Confirm(ctx)
}

// renewKnown is tryRenew for a lease in the table.
func (l *Lessor) renewKnown(ctx context.Context, id int64) (ttl int64, _ *expired, _ error) {
	l.mu.Lock()
	r := l.reign
	if r == nil {
		l.mu.Unlock()
		return 0, nil, ErrNotPrimary
	}
	r.sync()
	t := r.terms[id]
	if t == nil {
		l.mu.Unlock()
		return 0, nil, lease.ErrNotFound
	}
	if t.deadline <= r.now() {
		defer l.mu.Unlock()
		return 0, &expired{gone: t.whenGone(), reign: r.ended}, nil
	}
	r.renew(t)
	granted, marked, recording := t.Lease, t.marked(), t.recording
	l.mu.Unlock()

	var err error
	cleared := marked || recording != nil
	// Either way the owner hears of it only if no later term can have begun
	// without knowing of it, or with less than all of its time from then on.
	if cleared {
		// Only a lease with a checkpoint costs a proposal, so one that is kept
		// alive more often than it is checkpointed costs none.
		err = l.clearCheckpoint(ctx, r, granted, recording)
	} else {
		err = r.proposer.Confirm(ctx)
	}
	if err == nil {
		err = l.settle(r, granted, cleared)
	}
	if err != nil {
		return 0, nil, err
	}
	l.renewed.Add(1)
	return granted.TTL, nil, nil
}

// settle ends a renewal of the lease that was granted as the table had it: by now
// a revocation may be there that was committed, and answered, before the renewal
// came.
func (l *Lessor) settle(r *reign, granted lease.Lease, cleared bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reign != r {
		return ErrNotPrimary
	}
	r.sync()
	t := r.terms[granted.ID]
	if t == nil || t.Incarnation != granted.Incarnation {
		return lease.ErrNotFound
	}
	if cleared {
		t.uncertain = false
	}
	return nil
}

// clearCheckpoint makes the full time to live of a renewed lease known to
// future leaders before its owner hears of it. A checkpoint that is under way
// is waited for, lest it take effect after it was cleared.
func (l *Lessor) clearCheckpoint(ctx context.Context, r *reign, granted lease.Lease, recording <-chan struct{}) error {
	if recording != nil {
		select {
		case <-recording:
		case <-r.ended:
			return ErrNotPrimary
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return r.proposer.Propose(ctx, checkpointRequest([]*pb.LeaseCheckpoint{{ID: granted.ID}}))
}

// TimeToLive returns the granted and the remaining time of lease id in whole
// seconds, cut towards zero. The remaining time of an expired lease that is
// not yet revoked is 0 or negative; that of an unknown one is -1, with
// lease.ErrNotFound. It is a linearizable read.
func (l *Lessor) TimeToLive(ctx context.Context, id int64) (granted, remaining int64, err error) {
	if err := l.confirm(ctx); err != nil {
		return 0, -1, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.reign
	if r == nil {
		return 0, -1, ErrNotPrimary
	}
	r.sync()
	t := r.terms[id]
	if t == nil {
		return 0, -1, lease.ErrNotFound
	}
	return t.TTL, int64((t.deadline - r.now()) / time.Second), nil
}

// Leases returns the ids of all leases, on the leader those first that expire
// first.
func (l *Lessor) Leases() []int64 {
	l.mu.Lock()
	r, table := l.reign, l.table
	if r == nil {
		l.mu.Unlock()
		all := table.All()
		ids := make([]int64, len(all))
		for i := range all {
			ids[i] = all[i].ID
		}
		return ids
	}
	r.sync()
	type due struct {
		id       int64
		deadline time.Duration
	}
	dues := make([]due, 0, len(r.terms))
	for id, t := range r.terms {
		dues = append(dues, due{id, t.deadline})
	}
	l.mu.Unlock()
	slices.SortFunc(dues, func(a, b due) int {
		if a.deadline != b.deadline {
			return cmp.Compare(a.deadline, b.deadline)
		}
		return cmp.Compare(a.id, b.id)
	})
	ids := make([]int64, len(dues))
	for i := range dues {
		ids[i] = dues[i].id
	}
	return ids
}

// Stats are counts since New.
type Stats struct {
	// Renewed counts successful keep-alives.
	Renewed uint64
	// Expired counts leases revoked by this lessor.
	Expired uint64
}

// Stats returns the counts so far.
func (l *Lessor) Stats() Stats {
	return Stats{Renewed: l.renewed.Load(), Expired: l.expired.Load()}
}
