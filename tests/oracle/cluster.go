package oracle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/tests/target"
)

// absence is a member of the subject that is down, if one is.
type absence struct {
	member *side // nil: none
	until  int   // the step at which it returns
}

// electionTimeout is etcd's default, which the members keep: the shortest time to live depends on it.
const electionTimeout = time.Second

// absences are for how many steps a member is away.
var absences = []int{0, 0, 20, 400}

// member is a member of a cluster as a server.
type member struct {
	cluster *target.Cluster
	number  int
}

// Name implements target.Server.
func (m member) Name() string { return "coterie, " + m.cluster.Name(m.number) }

// Endpoint implements target.Server.
func (m member) Endpoint() string { return m.cluster.Endpoint(m.number) }

// Restart implements target.Server.
func (m member) Restart(ctx context.Context, how target.Stop) error {
	if err := m.stop(how); err != nil {
		return err
	}
	return m.start(ctx)
}

// Close implements target.Server. It ends the whole cluster, which may be closed more than once.
func (m member) Close() error { return m.cluster.Close() }

func (m member) stop(how target.Stop) error {
	if how == target.Kill {
		return m.cluster.Kill(m.number)
	}
	return m.cluster.Stop(m.number)
}

func (m member) start(ctx context.Context) error {
	if err := m.cluster.Start(m.number); err != nil {
		return err
	}
	return m.cluster.WaitReady(ctx, m.number)
}

// startCluster starts the subject and connects to each of its members.
func (r *runner) startCluster(ctx context.Context, p Pair, cfg target.Config, dir string) error {
	cfg.Dir = dir
	cluster, err := p.Cluster(ctx, cfg, r.opts.Members)
	if err != nil {
		return err
	}
	for i := range r.opts.Members {
		s := &side{server: member{cluster, i}, number: i, dial: p.SubjectDial}
		if err := s.connect(ctx); err != nil {
			return errors.Join(err, cluster.Close())
		}
		r.members = append(r.members, s)
	}
	return nil
}

// present are the members of the subject that are up.
func (r *runner) present() []*side {
	return slices.DeleteFunc(slices.Clone(r.members), func(m *side) bool { return m == r.away.member })
}

// turn chooses the member for what comes next. It draws from a source of its own, so that a sequence is the same for a
// cluster and for a single server.
func (r *runner) turn() *side {
	up := r.present()
	return up[r.turns.IntN(len(up))]
}

// through names the member of a cluster, for messages.
func (r *runner) through(m *side) string {
	if !r.opts.clustered() {
		return ""
	}
	return fmt.Sprintf(" (member %d)", m.number)
}

// local is whether a member may answer a request from what it has applied, without asking the others or waiting for
// them.
func local(m proto.Message) bool {
	switch req := m.(type) {
	case *pb.RangeRequest:
		return req.Serializable
	case *pb.TxnRequest:
		local := true
		for _, op := range slices.Concat(req.Success, req.Failure) {
			local = local && op.GetRequestRange().GetSerializable()
		}
		return local
	case *pb.HashKVRequest, *pb.LeaseLeasesRequest, *pb.LeaseTimeToLiveRequest, *pb.LeaseKeepAliveRequest:
		return true
	}
	return false
}

// catchUp returns when a member of a cluster has applied all that has been acknowledged. Not all of that has a
// revision, so that it takes a linearizable read, whose answer must be of the current revision.
func (r *runner) catchUp(ctx context.Context, m *side) error {
	if !r.opts.clustered() {
		return nil
	}
	resp, err := m.kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, CountOnly: true})
	if err != nil {
		return fmt.Errorf("waiting for member %d: %w", m.number, err)
	}
	if rev := resp.GetHeader().GetRevision(); rev != r.gen.rev {
		return r.difference("a linearizable read"+r.through(m), fmt.Sprintf("at revision %d", r.gen.rev), fmt.Sprintf("at revision %d", rev))
	}
	return nil
}

// leave stops one member for some steps. The watchers that it serves end with it, those of other members go on.
func (r *runner) leave(ctx context.Context, how target.Stop) error {
	if err := r.comeBack(ctx); err != nil {
		return err
	}
	if err := r.awaitWatchers(ctx); err != nil {
		return err
	}
	m := r.turn()
	r.closeWatchersOf(m)
	if err := m.disconnect(); err != nil {
		return err
	}
	if err := m.server.(member).stop(how); err != nil {
		return fmt.Errorf("member %d leaves (%s): %w", m.number, how, err)
	}
	r.away = absence{member: m, until: r.step + absences[r.turns.IntN(len(absences))]}
	r.stats.Restarts++
	if err := r.awaitService(ctx); err != nil {
		return fmt.Errorf("member %d has left (%s): %w", m.number, how, err)
	}
	if r.away.until == r.step {
		return r.comeBack(ctx)
	}
	return r.checkState(ctx)
}

// comeBack starts the member that is away, if one is.
func (r *runner) comeBack(ctx context.Context) error {
	m := r.away.member
	if m == nil {
		return nil
	}
	err := m.server.(member).start(ctx)
	if err == nil {
		err = m.connect(ctx)
	}
	if err != nil {
		return fmt.Errorf("member %d returns: %w", m.number, err)
	}
	r.away.member = nil
	if err := r.awaitService(ctx); err != nil {
		return fmt.Errorf("member %d has returned: %w", m.number, err)
	}
	return r.checkState(ctx)
}

// awaitService returns when all members that are up know a leader: requests are refused, or their fate is not known,
// while there is none.
func (r *runner) awaitService(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for _, m := range r.present() {
		for {
			attempt, stop := context.WithTimeout(ctx, time.Second)
			err := r.catchUp(attempt, m)
			stop()
			var diff *Difference
			if err == nil {
				break
			}
			if errors.As(err, &diff) {
				return err
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("no service for %v: %w", answerTimeout, err)
			case <-again.C:
			}
		}
	}
	return nil
}

// closeWatchersOf ends the watchers that a member serves, on the reference too.
func (r *runner) closeWatchersOf(m *side) {
	r.streams = slices.DeleteFunc(r.streams, func(p *streamPair) bool {
		if p.member == m {
			p.close()
		}
		return p.member == m
	})
	r.clients = slices.DeleteFunc(r.clients, func(p *clientWatchPair) bool {
		if p.member == m {
			p.close()
		}
		return p.member == m
	})
}
