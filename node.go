package coterie

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/api"
	"github.com/coteriedb/coterie/compactor"
	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/auth"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

// drainTimeout is how long Close lets requests in flight finish.
const drainTimeout = 5 * time.Second

// Node is a running member.
type Node struct {
	cfg  Config
	log  *zap.Logger
	data *dataDir

	machine   *machine.Machine
	consensus *consensus.Node
	lessor    *lessor.Lessor
	compactor *compactor.Compactor
	front     *front

	ctx      context.Context // of what runs in the background; ended by Close
	cancel   context.CancelFunc
	group    sync.WaitGroup // lead, guard, the compactor, and a defragmentation
	failures failures       // of the engine

	closeOnce sync.Once
	closeErr  error
	done      chan struct{} // closed when the member has stopped serving
	doneOnce  sync.Once
}

// Open starts a member as cfg says and returns when it serves clients. It makes
// the data directory if there is none. If it fails, what it started has been
// stopped, and a data directory that it refused has not been changed.
func Open(ctx context.Context, cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg.resolved(), done: make(chan struct{})}
	n.log = n.cfg.Logger
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	// Ports first: a port that is taken must not leave a data directory behind.
	if n.front, err = listen(ctx, &n.cfg); err != nil {
		return nil, err
	}
	if err := n.openState(); err != nil {
		return nil, err
	}
	if err := n.startConsensus(); err != nil {
		return nil, err
	}
	if err := n.becomeReady(ctx); err != nil {
		return nil, err
	}
	if err := n.front.serve(n); err != nil {
		return nil, err
	}
	return n, nil
}

// failures passes failures on to who can stop the member, once there is one.
type failures struct {
	mu    sync.Mutex
	first error       // guarded by mu
	to    func(error) // guarded by mu; nil until handTo
}

func (f *failures) report(err error) {
	f.mu.Lock()
	if f.first == nil {
		f.first = err
	}
	to := f.to
	f.mu.Unlock()
	if to != nil {
		to(err)
	}
}

// handTo has failures given to a function, also one that has been.
func (f *failures) handTo(to func(error)) {
	f.mu.Lock()
	f.to = to
	first := f.first
	f.mu.Unlock()
	if first != nil {
		to(first)
	}
}

// openState opens the data directory and loads the machine.
func (n *Node) openState() (err error) {
	n.data, err = openDataDir(&n.cfg, storageOptions{
		logger: n.log,
		wal:    wal.Options{Logger: n.log, NoSync: n.cfg.UnsafeNoFsync, OnSync: n.front.observeSync},
		engine: engine.Options{Logger: n.log, OnFatal: n.failures.report},
	})
	if err != nil {
		return err
	}
	n.machine, err = machine.Open(machine.Options{
		Engine: n.data.engine,
		KV: mvcc.Options{
			Logger:               n.log,
			CompactionBatchLimit: n.cfg.CompactionBatchLimit,
			CompactionSleep:      n.cfg.CompactionSleepInterval,
			StreamChunkBytes:     int(n.cfg.MaxRequestBytes),
		},
		Watch: watch.Options{
			Logger:           n.log,
			ProgressInterval: n.cfg.WatchProgressNotifyInterval,
			FragmentBytes:    api.MaxRecvBytes(n.cfg.MaxRequestBytes),
		},
		Auth:      auth.Options{Logger: n.log},
		OnCommit:  n.front.observeCommit,
		WarnApply: n.cfg.WarningApplyDuration,
		Logger:    n.log,
	})
	if err != nil {
		return engineAdvice(fmt.Errorf("load the state in %s: %w", filepath.Join(n.cfg.DataDir, engineDir), err))
	}
	// All has been read and fits together. Up to here nothing was changed.
	if err := consensus.CheckLog(n.data.log, n.machine.Applied()); err != nil {
		return err
	}
	return n.data.makeWritable(&n.cfg)
}

func (n *Node) startConsensus() (err error) {
	n.consensus, err = consensus.Start(consensus.Config{
		ID:             n.data.memberID,
		Log:            n.data.log,
		Machine:        n.machine,
		Voters:         n.machine.Members.Voters(),
		Tick:           n.cfg.HeartbeatInterval,
		ElectionTicks:  int(n.cfg.ElectionTimeout / n.cfg.HeartbeatInterval),
		PreVote:        n.cfg.PreVote,
		RequestTimeout: requestTimeout(&n.cfg),
		FlushEntries:   n.cfg.SnapshotCount,
		KeepEntries:    n.cfg.SnapshotCatchUpEntries,
		Logger:         n.log,
	})
	if err != nil {
		return err
	}
	n.failures.handTo(n.consensus.Fail)
	n.lessor = lessor.New(n.machine.Leases, leaseProposer{n}, lessor.Options{Logger: n.log, Extend: n.cfg.ElectionTimeout})
	policy, err := compactor.ParsePolicy(n.cfg.AutoCompactionMode, n.cfg.AutoCompactionRetention)
	if err != nil {
		return err
	}
	n.compactor = compactor.New(policy, compactionStore{n}, compactor.Options{Logger: n.log})
	n.group.Go(n.lead)
	n.group.Go(n.guard)
	n.group.Go(func() { n.compactor.Run(n.ctx) })
	return nil
}

// requestTimeout is etcd's: time for a request and for two elections.
func requestTimeout(cfg *Config) time.Duration { return 5*time.Second + 2*cfg.ElectionTimeout }

// becomeReady waits until this member can serve: a leader is known and what
// was acknowledged before is applied.
func (n *Node) becomeReady(ctx context.Context) error {
	for {
		err := n.readIndex(ctx)
		if err == nil {
			return n.publishAttributes(ctx)
		}
		if !errors.Is(err, consensus.ErrTimeout) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("wait for a leader: %w", err), n.Err())
		}
	}
}

// publishAttributes lets the cluster know this member's name and client URLs.
func (n *Node) publishAttributes(ctx context.Context) error {
	m, _ := n.machine.Members.Get(n.data.memberID)
	if m.Name == n.cfg.Name && slices.Equal(m.ClientURLs, n.cfg.AdvertiseClientURLs) {
		return nil
	}
	return n.Propose(ctx, &pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{
		Member_ID:        n.data.memberID,
		MemberAttributes: &membershippb.Attributes{Name: n.cfg.Name, ClientUrls: n.cfg.AdvertiseClientURLs},
	}}).Err
}

// lead follows leadership: the leader's lease clock counts, and the leader
// compacts. Close, or consensus when it stops, ends it.
func (n *Node) lead() {
	var again <-chan time.Time
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.consensus.Stopping():
			return
		case <-n.consensus.LeaderMoved():
		case <-again:
		}
		again = nil
		leading := n.consensus.Status().IsLeader
		if leading && n.readIndex(n.ctx) != nil {
			// A disk that is slow for a while does not move the leader, so nothing else would make it try again.
			again = time.After(n.cfg.ElectionTimeout)
			continue
		}
		// The table now has every lease that earlier leaders granted.
		if leading {
			n.lessor.Promote()
		} else {
			n.lessor.Demote()
		}
		n.compactor.SetActive(leading)
	}
}

// guard ends the member when consensus stops by itself. Close ends it.
func (n *Node) guard() {
	select {
	case <-n.ctx.Done():
	case <-n.consensus.Stopping():
		n.doneOnce.Do(func() { close(n.done) })
	}
}

// Done is closed when the member has stopped serving, because of Close or of a
// failure that Err tells.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err returns the failure that stopped the member, or nil.
func (n *Node) Err() error {
	if n.consensus == nil {
		return nil
	}
	return n.consensus.Err()
}

// Close stops the member and returns when nothing of it runs. It is safe to
// call more than once.
//
// The order follows the way of a request, from the outside in, so that each
// part still has what it needs while it ends:
//
//  1. the front: streams are told to go elsewhere, new connections refused,
//     requests in flight finished, for which consensus must still work;
//  2. lease clock and compactor, which propose;
//  3. consensus: nothing is acknowledged after it;
//  4. the machine, which consensus fed;
//  5. the engine, flushed first so that the next start replays nothing, and
//     the log, from which it would replay if the flush failed;
//  6. the locks on the directories.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		if n.front != nil {
			ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
			n.front.close(ctx)
			cancel()
		}
		n.cancel()
		if n.lessor != nil {
			n.lessor.Close()
		}
		n.group.Wait()
		if n.consensus != nil {
			n.consensus.Close()
		}
		var errs []error
		if n.machine != nil {
			n.machine.Close()
			if n.consensus != nil && n.Err() == nil {
				errs = append(errs, n.data.engine.Flush())
			}
		}
		if n.data != nil {
			errs = append(errs, n.data.close())
		}
		n.closeErr = errors.Join(errs...)
		n.doneOnce.Do(func() { close(n.done) })
	})
	return n.closeErr
}

// Propose replicates a command and waits for what the machine answers. When
// ctx ends first, the command may still take effect.
func (n *Node) Propose(ctx context.Context, r *pb.InternalRaftRequest) machine.Result {
	command, err := proto.Marshal(r)
	if err != nil {
		return machine.Result{Err: err}
	}
	answer := make(chan machine.Result, 1)
	n.consensus.Propose(command, func(r machine.Result) { answer <- r })
	select {
	case r := <-answer:
		return r
	case <-ctx.Done():
		return machine.Result{Err: ctx.Err()}
	}
}

func (n *Node) readIndex(ctx context.Context) error {
	answer := make(chan error, 1)
	n.consensus.ReadIndex(func(err error) { answer <- err })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leaseProposer is what the lessor proposes through.
type leaseProposer struct{ n *Node }

// Propose implements lessor.Proposer. It refuses where this member does not
// lead: another leader may have renewed the lease meanwhile.
func (p leaseProposer) Propose(ctx context.Context, r *pb.InternalRaftRequest) error {
	if !p.n.consensus.Status().IsLeader {
		return consensus.ErrNoLeader
	}
	return p.n.Propose(ctx, r).Err
}

// compactionStore is what the compactor works on.
type compactionStore struct{ n *Node }

func (s compactionStore) Revision() int64 { return s.n.machine.KV.Revision() }

func (s compactionStore) Compact(ctx context.Context, revision int64) error {
	return s.n.Propose(ctx, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: revision}}).Err
}
