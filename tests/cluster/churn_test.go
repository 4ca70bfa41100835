package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coteriedb/coterie/tests/target"
	"github.com/coteriedb/coterie/tests/witness"
)

// stepTime bounds one step of a script. A cluster that refuses a change because it has not yet seen all its members in
// health for some seconds is asked again until then.
const stepTime = 40 * time.Second

// TestChurn runs the scripts of testdata: members come and go while clients use the cluster, and everything is checked in
// the end. Real etcd gives the same transcripts.
func TestChurn(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		s := &script{ctx: ctx}
		defer s.close()
		datadriven.RunTest(t, path, s.step)
	})
}

// script is a cluster that a script changes, and its clients.
type script struct {
	ctx     context.Context
	cluster *target.Cluster
	traffic *witness.Traffic
	gone    map[int]bool
}

func (s *script) close() {
	if s.traffic != nil {
		s.traffic.Close()
	}
}

// step does one directive and returns what it prints.
func (s *script) step(t *testing.T, d *datadriven.TestData) string {
	ctx, cancel := context.WithTimeout(s.ctx, stepTime)
	defer cancel()
	steps := map[string]func(context.Context, *testing.T, *datadriven.TestData) (string, error){
		"start": s.start, "traffic": s.begin, "check": s.check, "members": s.members,
		"add": s.add, "promote": s.promote, "remove": s.remove, "move": s.move, "kill": s.kill, "restart": s.restart, "lose": s.lose,
		"go-on": s.goOn,
	}
	f := steps[d.Cmd]
	if f == nil {
		t.Fatalf("%s: no such directive: %s", d.Pos, d.Cmd)
	}
	out, err := f(ctx, t, d)
	if errors.Is(err, context.DeadlineExceeded) || s.cluster == nil {
		t.Fatalf("%s: %s: %v", d.Pos, d.Cmd, err)
	}
	if err != nil {
		return err.Error() + "\n"
	}
	return out
}

// start founds a cluster of so many members.
func (s *script) start(ctx context.Context, t *testing.T, d *datadriven.TestData) (string, error) {
	var size int
	d.ScanArgs(t, "members", &size)
	s.gone = map[int]bool{}
	s.cluster = startCluster(ctx, t, size, nil)
	return s.members(ctx, t, d)
}

// begin lets clients use all members.
func (s *script) begin(context.Context, *testing.T, *datadriven.TestData) (string, error) {
	traffic, err := witness.StartTraffic(s.ctx, s.cluster, witness.TrafficConfig{
		Seed: *seed, Keys: 8, Pace: 30 * time.Millisecond, Timeout: 2 * election, Value: 200,
		Apart: target.Kind(*kind) == target.KindEtcd,
	})
	s.traffic = traffic
	return "", err
}

// goOn lets the clients work.
func (s *script) goOn(ctx context.Context, t *testing.T, d *datadriven.TestData) (string, error) {
	var writes int
	d.ScanArgs(t, "writes", &writes)
	return "", s.traffic.AwaitChanges(ctx, writes)
}

// check ends the clients and checks everything.
func (s *script) check(ctx context.Context, t *testing.T, _ *datadriven.TestData) (string, error) {
	traffic := s.traffic
	s.traffic = nil
	defer traffic.Close()
	if err := s.cluster.Failed(); err != nil {
		return "", err
	}
	judge(ctx, t, s.cluster, traffic)
	if t.Failed() {
		return "what the clients were told is not right\n", nil
	}
	return "what the clients were told is right\n", nil
}

// members lists the members as the cluster knows them.
func (s *script) members(ctx context.Context, _ *testing.T, _ *datadriven.TestData) (string, error) {
	cli, err := s.cluster.Client(s.voters()...)
	if err != nil {
		return "", err
	}
	defer cli.Close()
	list, err := cli.MemberList(ctx)
	if err != nil {
		return "", err
	}
	var lines []string
	for _, m := range list.Members {
		role := "voter"
		if m.IsLearner {
			role = "learner"
		}
		lines = append(lines, fmt.Sprintf("%s %s\n", m.Name, role))
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), nil
}

// voters are the members that run and are used by clients.
func (s *script) voters() []int {
	all := s.cluster.Running()
	if s.traffic == nil {
		return all
	}
	return slices.DeleteFunc(all, func(i int) bool { return s.traffic.Client(i) == nil })
}

// member reads an argument: a number, or the leader, or some follower.
func (s *script) member(ctx context.Context, t *testing.T, d *datadriven.TestData) (int, error) {
	var who string
	d.ScanArgs(t, "member", &who)
	if who != "leader" && who != "follower" {
		for i := range s.cluster.Size() {
			if s.cluster.Name(i) == who {
				return i, nil
			}
		}
		t.Fatalf("%s: no such member: %s", d.Pos, who)
	}
	leader, err := s.cluster.Leader(ctx)
	if err != nil || who == "leader" {
		return leader, err
	}
	for _, i := range s.voters() {
		if i != leader {
			return i, nil
		}
	}
	return 0, errors.New("there is no follower")
}

// add adds a member and waits until it serves. A voter is used by clients from then on.
func (s *script) add(ctx context.Context, _ *testing.T, d *datadriven.TestData) (string, error) {
	learner := d.HasArg("learner")
	i, err := s.cluster.AddMember(ctx, learner)
	if err != nil {
		return "", bare(err)
	}
	if err := s.cluster.WaitReady(ctx, i); err != nil {
		return "", err
	}
	if !learner {
		if err := s.traffic.Join(i); err != nil {
			return "", err
		}
	}
	return s.cluster.Name(i) + " is added\n", nil
}

// bare leaves of an error what the cluster said.
func bare(err error) error {
	if _, said, ok := strings.Cut(err.Error(), "etcdserver: "); ok {
		return errors.New("etcdserver: " + said)
	}
	return err
}

// change makes a change through a member that is not the one to be changed, again while the cluster wants to wait.
func (s *script) change(ctx context.Context, i int, f func(cli *clientv3.Client, id uint64) error) error {
	if _, err := s.cluster.Leader(ctx); err != nil {
		return err
	}
	id, err := s.id(ctx, i)
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(s.voters(), func(o int) bool { return o == i })
	cli, err := s.cluster.Client(others...)
	if err != nil {
		return err
	}
	defer cli.Close()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		err := f(cli, id)
		passes := err != nil && (strings.Contains(err.Error(), "unhealthy cluster") || strings.Contains(err.Error(), "in sync with leader"))
		if !passes {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// id asks a voter, because a member that has just come cannot say.
func (s *script) id(ctx context.Context, i int) (uint64, error) {
	cli, err := s.cluster.Client(s.voters()...)
	if err != nil {
		return 0, err
	}
	defer cli.Close()
	list, err := cli.MemberList(ctx)
	if err != nil {
		return 0, err
	}
	for _, m := range list.Members {
		if slices.Contains(m.PeerURLs, s.cluster.PeerURL(i)) {
			return m.ID, nil
		}
	}
	return 0, errors.New("etcdserver: member not found")
}

// promote makes a learner a voter, as soon as it has caught up, and lets clients use it.
func (s *script) promote(ctx context.Context, t *testing.T, d *datadriven.TestData) (string, error) {
	i, err := s.member(ctx, t, d)
	if err != nil {
		return "", err
	}
	err = s.change(ctx, i, func(cli *clientv3.Client, id uint64) error {
		_, err := cli.MemberPromote(ctx, id)
		return err
	})
	if err != nil {
		return "", bare(err)
	}
	if err := s.traffic.Join(i); err != nil {
		return "", err
	}
	return "", nil
}

// remove removes a member, which ends by itself.
func (s *script) remove(ctx context.Context, t *testing.T, d *datadriven.TestData) (string, error) {
	i, err := s.member(ctx, t, d)
	if err != nil {
		return "", err
	}
	if s.gone[i] {
		return "", errors.New("etcdserver: member not found")
	}
	s.traffic.Leave(i)
	err = s.change(ctx, i, func(cli *clientv3.Client, id uint64) error {
		_, err := cli.MemberRemove(ctx, id)
		return err
	})
	if err != nil {
		return "", bare(err)
	}
	s.gone[i] = true
	return "", s.cluster.AwaitExit(ctx, i)
}

// move gives a member another peer URL: the cluster is told, and it is restarted with it.
func (s *script) move(ctx context.Context, t *testing.T, d *datadriven.TestData) (string, error) {
	i, err := s.member(ctx, t, d)
	if err != nil {
		return "", err
	}
	err = s.change(ctx, i, func(cli *clientv3.Client, id uint64) error {
		url, err := s.cluster.MovePeer(i)
		if err != nil {
			return err
		}
		_, err = cli.MemberUpdate(ctx, id, []string{url})
		return err
	})
	if err != nil {
		return "", bare(err)
	}
	return "", restart(ctx, s.cluster, i)
}

func (s *script) kill(ctx context.Context, t *testing.T, d *datadriven.TestData) (string, error) {
	i, err := s.member(ctx, t, d)
	if err != nil {
		return "", err
	}
	return "", s.cluster.Kill(i)
}

// restart starts a member that was killed.
func (s *script) restart(ctx context.Context, t *testing.T, d *datadriven.TestData) (string, error) {
	i, err := s.member(ctx, t, d)
	if err != nil {
		return "", err
	}
	if err := s.cluster.Start(i); err != nil {
		return "", err
	}
	return "", s.cluster.WaitReady(ctx, i)
}

// lose kills a member for good, and its disk is lost.
func (s *script) lose(ctx context.Context, t *testing.T, d *datadriven.TestData) (string, error) {
	i, err := s.member(ctx, t, d)
	if err != nil {
		return "", err
	}
	s.traffic.Leave(i)
	if err := s.cluster.Kill(i); err != nil {
		return "", err
	}
	return "", os.RemoveAll(s.cluster.DataDir(i))
}
