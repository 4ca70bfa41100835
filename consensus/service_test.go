package consensus

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/machine"
)

// drawn returns what draws times below a bound, the same ones in each run.
func drawn() func(time.Duration) time.Duration {
	r := rand.New(rand.NewPCG(1, 0))
	return func(bound time.Duration) time.Duration { return time.Duration(r.Int64N(int64(bound))) }
}

// TestServiceResumesWhenAMajorityIsWholeAgain: with one of three members down, and
// the link between the others cut for longer than an election timeout, there is
// nobody to elect. When the link is whole again they need no longer either.
// call runs f on the goroutine that owns the core.
func (n *Node) call(ctx context.Context, f func(*core)) error {
	_, err := ask(ctx, n, func(c *core) struct{} { f(c); return struct{}{} })
	return err
}

func TestServiceResumesWhenAMajorityIsWholeAgain(t *testing.T) {
	const (
		tick    = 5 * time.Millisecond
		timeout = 10 * tick // as in newCluster
		rounds  = 60
	)
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, nil)
		for id := range uint64(3) {
			c.found(id+1, []uint64{1, 2, 3})
			time.Sleep(tick / 3)
		}
		c.follower().stop()
		within := drawn()
		var longest, sum time.Duration
		for range rounds {
			l := c.leader()
			time.Sleep(within(timeout))
			c.isolate(l.id, true)
			time.Sleep(timeout + within(2*timeout))
			c.isolate(l.id, false)
			began := time.Now()
			must(t, propose(c.all()[0].node, "x").Err)
			took := time.Since(began)
			longest, sum = max(longest, took), sum+took
		}
		t.Logf("%v at most, %v on average; the election timeout is %v", longest, sum/rounds, timeout)
		if longest > 2*timeout {
			t.Errorf("%v after the link was whole again; the election timeout is %v", longest, timeout)
		}
	})
}

// told passes on what a member sends.
type told chan *pb.Message

func (c told) Send(ms []*pb.Message) {
	for _, m := range ms {
		c <- m
	}
}

// A leader that says it is not heard is given up, and answered all the same: when
// it hears the answer it can lead on, and need not wait for an election.
func TestLeaderThatIsNotHeardIsAnswered(t *testing.T) {
	l, out := newLog(t, vfs.NewMem()), make(told, 100)
	cfg := config(l, newJournal())
	cfg.Voters, cfg.Tick, cfg.Peers = []uint64{1, 2, 5}, time.Hour, out
	n := start(t, cfg)
	fromLeader(n, 1, 1, 1)
	eventually(t, "a leader", func() bool { return n.Status().Leader == 1 })
	forget := func(term uint64) {
		n.Receive(&pb.Message{Type: pb.MsgForgetLeader.Enum(), From: new(uint64(1)), To: new(uint64(5)), Term: &term})
	}
	forget(1) // of an earlier term
	must(t, n.call(t.Context(), func(*core) {}))
	if n.Status().Leader != 1 {
		t.Error("given up for what was said in an earlier term")
	}
	forget(2)
	patience := time.After(20 * time.Second)
	for answered := false; !answered; {
		select {
		case m := <-out:
			answered = m.GetType() == pb.MsgHeartbeatResp && m.GetTo() == 1 && m.GetTerm() == 2
		case <-patience:
			t.Fatal("not answered")
		}
	}
	eventually(t, "the leader to be given up", func() bool { return n.Status().Leader == 0 })
	n.Close()
	must(t, l.Close())
}

// TestServiceResumesWithinTwoElectionTimeouts cuts the leader off in every way
// and measures, in simulated time, how long no write of any member succeeds.
func TestServiceResumesWithinTwoElectionTimeouts(t *testing.T) {
	const (
		tick    = 5 * time.Millisecond
		timeout = 10 * tick // as in newCluster
		rounds  = 60
	)
	for name, cut := range map[string]func(c *cluster, leader, other uint64){
		"alone":        func(c *cluster, l, o uint64) { c.cut[[2]uint64{l, o}], c.cut[[2]uint64{o, l}] = true, true },
		"unheard":      func(c *cluster, l, o uint64) { c.cut[[2]uint64{l, o}] = true },
		"hears nobody": func(c *cluster, l, o uint64) { c.cut[[2]uint64{o, l}] = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, nil)
				for id := range uint64(3) {
					c.found(id+1, []uint64{1, 2, 3})
					time.Sleep(tick / 3) // nowhere else do clocks tick at one time
				}
				within := drawn()
				var longest, sum time.Duration
				for range rounds {
					l := c.leader()
					time.Sleep(timeout + within(timeout)) // no two rounds meet the ticks at the same place
					succeeded := make(chan time.Time, 1<<12)
					stop := make(chan struct{})
					stopped := make(chan struct{})
					go func() { // ended and waited for below
						defer close(stopped)
						for {
							for _, m := range c.all() {
								m.node.Propose([]byte("x"), func(r machine.Result) {
									if r.Err == nil {
										succeeded <- time.Now()
									}
								})
							}
							select {
							case <-stop:
								return
							case <-time.After(tick / 2):
							}
						}
					}()
					c.mu.Lock()
					for other := range c.members {
						if other != l.id {
							cut(c, l.id, other)
						}
					}
					c.mu.Unlock()
					last, silence := time.Now(), time.Duration(0)
					end := time.After(4 * timeout)
					for more := true; more; {
						select {
						case at := <-succeeded:
							silence, last = max(silence, at.Sub(last)), at
						case <-end:
							more = false
						}
					}
					close(stop)
					<-stopped
					silence = max(silence, time.Since(last))
					longest, sum = max(longest, silence), sum+silence
					c.isolate(l.id, false)
				}
				t.Logf("silent for %v at most, %v on average; the election timeout is %v", longest, sum/rounds, timeout)
				if longest > 2*timeout {
					t.Errorf("no write succeeded for %v: more than two election timeouts of %v", longest, timeout)
				}
			})
		})
	}
}
