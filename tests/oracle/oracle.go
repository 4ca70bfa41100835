// Package oracle holds Coterie to what real etcd answers. It sends one seeded random sequence of
// operations to two servers, the reference and the subject, and compares every answer field by field, every
// watcher's events one by one, and at intervals the whole state by a full range and HashKV.
//
// The sequence is a function of the seed and of the reference's answers, which are themselves determined by
// the sequence; therefore a seed replays. An operation is sent to both servers at once and the next one
// follows when both have answered: what a server does concurrently by itself, such as feeding watchers that
// start in the past or compacting in the background, is waited for before it could become visible.
//
// The subject may be a cluster. Every operation then goes through one of its members, which the seed chooses, and members
// leave and return meanwhile. Before a request that a member answers from what it has applied by itself, the member is
// given the time to apply what was acknowledged before; a linearizable request is given none.
//
// Permitted to differ are cluster and member ids, raft terms, lease ids that the server has chosen, and
// remaining times to live within what the clock allows. The package knows both servers only as endpoints.
package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/coteriedb/coterie/tests/target"
)

// Starter starts a fresh server.
type Starter func(ctx context.Context, cfg target.Config) (target.Server, error)

// ClusterStarter starts a fresh cluster of so many members.
type ClusterStarter func(ctx context.Context, cfg target.Config, members int) (*target.Cluster, error)

// Pair names the two servers that are compared.
type Pair struct {
	Reference, Subject Starter
	// Cluster starts the subject of sequences with more than one member.
	Cluster ClusterStarter
	// SubjectDial are options of the subject's client, with which a test alters answers to prove that the
	// comparison notices.
	SubjectDial []grpc.DialOption
}

// Options describe one sequence.
type Options struct {
	Seed uint64
	Ops  int
	Dir  string // for the servers' data; the caller removes it
	// Members is how many the subject has; zero means one. One member of several is restarted at a time, and the
	// reference is not.
	Members int
	// NoRestarts keeps both servers up, for a subject that cannot be restarted.
	NoRestarts bool
	// WatchTimeout bounds the wait for what a server must send to its watchers; zero means enough for a busy
	// machine.
	WatchTimeout time.Duration
	// Trace, if not nil, is told every operation and the reference's answer.
	Trace func(step int, operation, answer string)
}

// Stats counts what a sequence did.
type Stats struct {
	Ops      int            // operations compared, each sent to both servers
	ByName   map[string]int // the same, by operation
	Refused  map[string]int // those of them that the servers answered with an error
	Events   int            // watch events compared
	Checks   int            // comparisons of the whole state
	Restarts int
}

func newStats() Stats { return Stats{ByName: map[string]int{}, Refused: map[string]int{}} }

// Difference is an answer of the subject that is not the reference's.
type Difference struct {
	Options   Options
	Step      int
	Operation string
	Reference string
	Subject   string
}

// Error tells all that is needed to understand the difference and to replay it.
func (d *Difference) Error() string {
	return fmt.Sprintf("seed %d, step %d: the answers differ\noperation: %s\nreference: %s\nsubject:   %s\nreplay:    %s",
		d.Options.Seed, d.Step, d.Operation, d.Reference, d.Subject, d.Options.replay())
}

func (o Options) clustered() bool { return o.Members > 1 }

func (o Options) replay() string {
	if o.clustered() {
		return fmt.Sprintf("cd tests && go test ./oracle -run 'TestCluster$' -oracle.seed=%d -oracle.length=%d -oracle.cluster=%d -v",
			o.Seed, o.Ops, o.Ops)
	}
	return fmt.Sprintf("cd tests && go test ./oracle -run 'TestSequences$' -oracle.seed=%d -oracle.length=%d -oracle.ops=%d -v",
		o.Seed, o.Ops, o.Ops)
}

// Run starts both servers, runs one sequence and stops them. The error is a *Difference where the servers
// disagree; any other error means that the comparison could not be made.
func Run(ctx context.Context, p Pair, o Options) (Stats, error) {
	if o.WatchTimeout == 0 {
		o.WatchTimeout = 15 * time.Second
	}
	g := newGenerator(o.Seed)
	cfg := g.serverConfig()
	r := &runner{
		opts:  o,
		gen:   g,
		plan:  g.plan(o),
		board: newBoard(),
		turns: rand.New(rand.NewPCG(o.Seed, 0x7475726e73)),
		stats: newStats(),
	}
	defer r.close()

	var err error
	if r.ref, err = startSide(ctx, p.Reference, cfg, filepath.Join(o.Dir, "reference"), nil); err != nil {
		return r.stats, fmt.Errorf("seed %d: %w", o.Seed, err)
	}
	if err = r.startSubject(ctx, p, cfg); err != nil {
		return r.stats, fmt.Errorf("seed %d: %w", o.Seed, err)
	}
	if err := r.run(ctx); err != nil {
		var diff *Difference
		if !errors.As(err, &diff) {
			err = fmt.Errorf("seed %d, step %d: %w\nreplay: %s", o.Seed, r.step, err, o.replay())
		}
		return r.stats, err
	}
	return r.stats, r.closeServers()
}

// startSubject starts the single server or the cluster.
func (r *runner) startSubject(ctx context.Context, p Pair, cfg target.Config) error {
	dir := filepath.Join(r.opts.Dir, "subject")
	if r.opts.clustered() {
		return r.startCluster(ctx, p, cfg, dir)
	}
	s, err := startSide(ctx, p.Subject, cfg, dir, p.SubjectDial)
	if err == nil {
		r.members = []*side{s}
	}
	return err
}

// answerTimeout bounds one operation on one server. It is far beyond what any of them takes, so that reaching
// it is a failure.
const answerTimeout = 30 * time.Second

// startSide starts a server on an empty directory and connects to it.
func startSide(ctx context.Context, start Starter, cfg target.Config, dir string, dial []grpc.DialOption) (*side, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	cfg.Dir = filepath.Join(dir, "data")
	server, err := start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s := &side{server: server, dial: dial}
	if err := s.connect(ctx); err != nil {
		return nil, errors.Join(err, server.Close())
	}
	return s, nil
}
