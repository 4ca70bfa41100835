package coterie

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/coteriedb/coterie/guard"
	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/auth"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/peer"
	"github.com/coteriedb/coterie/replica"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

// drainTimeout is how long Close lets requests in flight finish.
const drainTimeout = 5 * time.Second

// Node is a running member.
type Node struct {
	cfg  Config
	log  *zap.Logger
	data *replica.Dir

	replica   *replica.Replica
	events    *events
	peers     *peer.Transport
	consensus *consensus.Node
	compactor *compactor.Compactor
	guardian  *guard.Guard
	front     *front
	strain    strain // of the log

	lessor       *lessor.Lessor
	remoteLessor *lessor.Remote // the leader's, where this member does not lead

	ctx      context.Context // of what runs in the background; ended by Close
	cancel   context.CancelFunc
	group    sync.WaitGroup // lead, watchOver, the compactor, the guard, and a defragmentation
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
	if err := n.openState(ctx); err != nil {
		return nil, err
	}
	n.lessor = lessor.New(n.machine().Leases, lessor.Options{Logger: n.log, Extend: n.cfg.ElectionTimeout})
	n.remoteLessor = lessor.NewRemote(n.callLeader)
	if err := n.startPeers(); err != nil {
		return nil, err
	}
	if err := n.startConsensus(); err != nil {
		return nil, err
	}
	if err := n.front.servePeers(n); err != nil {
		return nil, err
	}
	if err := n.becomeReady(ctx); err != nil {
		return nil, err
	}
	if n.cfg.InitialCorruptCheck {
		if err := n.guardian.CheckInitial(ctx); err != nil {
			return nil, err
		}
	}
	if err := n.front.serveClients(n); err != nil {
		return nil, err
	}
	return n, nil
}

// machine returns the machine of the moment.
func (n *Node) machine() *machine.Machine { return n.replica.Machine() }

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

// observeSync notes how long the log took to sync.
func (n *Node) observeSync(d time.Duration) {
	n.front.metrics.LogSync.Observe(d.Seconds())
	n.strain.observe(d)
}

// openState opens the data directory and loads the machine.
func (n *Node) openState(ctx context.Context) (err error) {
	n.data, err = replica.Open(replica.Options{
		Path: n.cfg.DataDir, LogPath: n.cfg.WALDir,
		Logger: n.log,
		Log:    wal.Options{Logger: n.log, NoSync: n.cfg.UnsafeNoFsync, OnSync: n.observeSync},
		Engine: engine.Options{Logger: n.log, OnFatal: n.failures.report},
	}, func() (*replica.Founding, error) { return n.cfg.plan(ctx) })
	if err != nil {
		return err
	}
	m, err := n.openMachine(n.data.Engine, false)
	if err != nil {
		return errors.Join(err, n.data.Engine.Close())
	}
	n.replica = replica.New(n.data, m, replica.Config{
		Logger:   n.log,
		Open:     func(eng *engine.Engine) (*machine.Machine, error) { return n.openMachine(eng, true) },
		Switched: n.stateReplaced,
		Changed:  n.membersChanged,
	})
	// All has been read and fits together. Up to here nothing was changed.
	if err := consensus.CheckLog(n.data.Log, m.Applied()); err != nil {
		return err
	}
	if err := n.data.MakeWritable(); err != nil {
		return err
	}
	if m.Members.Removed(n.data.MemberID) {
		return ErrRemoved
	}
	if n.cfg.ForceNewCluster {
		return consensus.ForceAlone(n.data.Log, m.Applied(), n.data.MemberID, m.Members.List())
	}
	return nil
}

// openMachine loads the machine that an engine holds; gently, beside one that serves.
func (n *Node) openMachine(eng *engine.Engine, gently bool) (*machine.Machine, error) {
	m, err := machine.Open(machine.Options{
		Engine: eng,
		KV: mvcc.Options{
			Logger:               n.log,
			CompactionBatchLimit: n.cfg.CompactionBatchLimit,
			CompactionSleep:      n.cfg.CompactionSleepInterval,
			StreamChunkBytes:     int(n.cfg.MaxRequestBytes),
			Gently:               gently,
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
		return nil, replica.Advise(fmt.Errorf("load the state in %s: %w", n.cfg.DataDir, err))
	}
	return m, nil
}

func (n *Node) startConsensus() (err error) {
	cfg := consensus.Config{
		ID:              n.data.MemberID,
		Log:             n.data.Log,
		Machine:         n.replica,
		Peers:           n.peers,
		Tick:            n.cfg.HeartbeatInterval,
		ElectionTicks:   int(n.cfg.ElectionTimeout / n.cfg.HeartbeatInterval),
		PreVote:         n.cfg.PreVote,
		AdvanceElection: n.cfg.InitialElectionTickAdvance,
		RequestTimeout:  requestTimeout(&n.cfg),
		FlushEntries:    n.cfg.SnapshotCount,
		KeepEntries:     n.cfg.SnapshotCatchUpEntries,
		KeepBytes:       n.cfg.keepLogBytes,
		Logger:          n.log,
	}
	if m := n.machine(); m.Applied() > 0 { // else this member has yet to be sent a state
		cfg.Voters, cfg.Learners = m.Members.Voters(), m.Members.Learners()
	}
	if n.consensus, err = consensus.Start(cfg); err != nil {
		return err
	}
	n.events.passTo(n.consensus)
	n.failures.handTo(n.consensus.Fail)
	policy, err := compactor.ParsePolicy(n.cfg.AutoCompactionMode, n.cfg.AutoCompactionRetention)
	if err != nil {
		return err
	}
	n.compactor = compactor.New(policy, compactionStore{n}, compactor.Options{Logger: n.log})
	n.guardian = n.newGuard()
	n.group.Go(n.lead)
	n.group.Go(n.watchOver)
	n.group.Go(func() { n.compactor.Run(n.ctx) })
	n.group.Go(func() { n.guardian.Run(n.ctx) })
	return nil
}

// requestTimeout is etcd's: time for a request and for two elections.
func requestTimeout(cfg *Config) time.Duration { return 5*time.Second + 2*cfg.ElectionTimeout }

// defaultPatience is how long a start waits for a leader before clients are
// served without one, as far as that goes; etcd waits as long.
const defaultPatience = 5 * time.Second

// becomeReady waits until this member can serve: a leader is known, what was
// acknowledged before is applied, and the cluster knows this member's name. When
// that takes long, it goes on in the background.
func (n *Node) becomeReady(ctx context.Context) error {
	ready := make(chan error, 1)
	n.group.Go(func() { ready <- n.introduce(n.ctx) }) // ended by Close
	late := time.NewTimer(n.cfg.patience)
	defer late.Stop()
	select {
	case err := <-ready:
		if err != nil {
			return errors.Join(fmt.Errorf("wait for a leader: %w", err), n.Err())
		}
	case <-late.C:
		if n.machine().Applied() == 0 {
			n.log.Warn("this member has not been sent a state yet: waiting for the cluster")
			return n.awaitState(ctx, ready)
		}
		n.log.Warn("not caught up with the cluster yet, or no leader is known: serving what can be served so")
	case <-ctx.Done():
		return fmt.Errorf("wait for a leader: %w", ctx.Err())
	}
	return nil
}

// awaitState waits for a member that has nothing to serve.
func (n *Node) awaitState(ctx context.Context, ready <-chan error) error {
	select {
	case err := <-ready:
		return errors.Join(err, n.Err())
	case <-ctx.Done():
		return fmt.Errorf("wait for a state from the cluster: %w", ctx.Err())
	}
}

// introduce catches up with the cluster and makes this member known to it. It
// ends when it has, when ctx ends, or when consensus stops.
func (n *Node) introduce(ctx context.Context) error {
	for {
		err := n.readIndex(ctx)
		if err == nil {
			err = n.publishAttributes(ctx)
		}
		if !errors.Is(err, consensus.ErrTimeout) || ctx.Err() != nil {
			return err
		}
	}
}

// publishAttributes lets the cluster know this member's name and client URLs.
func (n *Node) publishAttributes(ctx context.Context) error {
	m, _ := n.machine().Members.Get(n.data.MemberID)
	if m.Name == n.cfg.Name && slices.Equal(m.ClientURLs, n.cfg.AdvertiseClientURLs) {
		return nil
	}
	return n.Propose(ctx, &pb.InternalRaftRequest{ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{
		Member_ID:        n.data.MemberID,
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
		st := n.consensus.Status()
		leading := st.IsLeader
		if leading && n.readIndex(n.ctx) != nil {
			// A disk that is slow for a while does not move the leader, so nothing else would make it try again.
			again = time.After(n.cfg.ElectionTimeout)
			continue
		}
		// The table now has every lease that earlier leaders granted.
		if leading {
			n.lessor.Promote(leaseProposer{n, st.Term})
		} else {
			n.lessor.Demote()
		}
		n.compactor.SetActive(leading)
		n.guardian.SetActive(leading)
	}
}

// watchOver ends the member when consensus stops by itself. Close ends it.
func (n *Node) watchOver() {
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
//  1. leadership is passed on, so that nobody has to wait for an election;
//  2. the front: streams are told to go elsewhere, new connections refused,
//     requests in flight finished, for which consensus must still work;
//  3. lease clock and compactor, which propose;
//  4. consensus: nothing is acknowledged after it;
//  5. the transport to the other members, which consensus fed;
//  6. the machine, which it fed too, and the engine, flushed first so that the
//     next start replays nothing;
//  7. the log, from which it would replay if the flush failed, and the locks on
//     the directories.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		if n.consensus != nil {
			n.consensus.Retire(context.Background())
		}
		if n.front != nil {
			n.closeFront()
		}
		n.cancel()
		if n.lessor != nil {
			n.lessor.Close()
			n.remoteLessor.Close()
		}
		n.group.Wait()
		ended := n.consensus == nil || n.consensus.Close()
		if n.peers != nil {
			n.peers.Close()
		}
		if n.front != nil {
			n.front.closePeers()
		}
		if ended {
			n.closeErr = n.closeData()
		} else {
			// What the disk still holds of this member would be written between what the next start writes: that has to wait for it.
			n.closeErr = fmt.Errorf("the disk has not answered: %s stays locked until it does, or this process ends", n.data.Path)
			go func() { // ends when the disk answers
				<-n.consensus.Done()
				if err := n.closeData(); err != nil {
					n.log.Error("closed after the disk has answered", zap.Error(err))
				}
			}()
		}
		n.doneOnce.Do(func() { close(n.done) })
	})
	return n.closeErr
}

// closeData closes what consensus has used.
func (n *Node) closeData() error {
	var errs []error
	if n.replica != nil {
		errs = append(errs, n.replica.Close(n.consensus != nil && n.Err() == nil))
	}
	if n.data != nil {
		errs = append(errs, n.data.Close())
	}
	return errors.Join(errs...)
}

// closeFront ends what faces clients. After a failure it waits for a bounded time: a
// disk that hangs may hold a request for ever.
func (n *Node) closeFront() {
	ended := make(chan struct{})
	go func() { // ends when the front has; waited for unless a disk hangs
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		n.front.close(ctx)
	}()
	var patience <-chan time.Time
	if n.Err() != nil {
		patience = time.After(2 * drainTimeout)
	}
	select {
	case <-ended:
	case <-patience:
		n.log.Error("gave up waiting for requests that the disk holds")
	}
}

// Propose replicates a command and waits for what the machine answers. When
// ctx ends first, the command may still take effect.
func (n *Node) Propose(ctx context.Context, r *pb.InternalRaftRequest) machine.Result {
	command, err := proto.Marshal(r)
	if err != nil {
		return machine.Result{Err: err}
	}
	return await(ctx, func(done func(machine.Result)) { n.consensus.Propose(command, done) })
}

// await waits for the result of what propose has proposed, or for the end of ctx.
func await(ctx context.Context, propose func(done func(machine.Result))) machine.Result {
	answer := make(chan machine.Result, 1)
	propose(func(r machine.Result) { answer <- r })
	select {
	case r := <-answer:
		return r
	case <-ctx.Done():
		return machine.Result{Err: ctx.Err()}
	}
}

func (n *Node) readIndex(ctx context.Context) error {
	if n.consensus.UpToDate() {
		return nil
	}
	answer := make(chan error, 1)
	n.consensus.ReadIndex(func(err error) { answer <- err })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// compactionStore is what the compactor works on.
type compactionStore struct{ n *Node }

func (s compactionStore) Revision() int64 { return s.n.machine().KV.Revision() }

func (s compactionStore) Compact(ctx context.Context, revision int64) error {
	err := s.n.Propose(ctx, &pb.InternalRaftRequest{Compaction: &pb.CompactionRequest{Revision: revision}}).Err
	if errors.Is(err, mvcc.ErrCompacted) {
		return nil
	}
	return err
}
