package consensus

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coteriedb/coterie/machine"
)

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
				var longest, sum time.Duration
				for range rounds {
					l := c.leader()
					time.Sleep(timeout + rand.N(timeout)) // no two rounds meet the ticks at the same place
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
