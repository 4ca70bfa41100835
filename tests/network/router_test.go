package network

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// arrivals notes when what arrives.
type arrivals struct {
	began time.Time
	names []string
	times []time.Duration
}

func (a *arrivals) Write(p []byte) (int, error) {
	a.names = append(a.names, string(p))
	a.times = append(a.times, time.Since(a.began))
	return len(p), nil
}

// routed runs a test on a router between hosts 0 and 1, in time of its own.
func routed(t *testing.T, seed uint64, test func(t *testing.T, rt *router, arrived *arrivals)) {
	synctest.Test(t, func(t *testing.T) {
		arrived := &arrivals{began: time.Now()}
		rt := newRouter(map[int]io.Writer{0: io.Discard, 1: arrived}, rand.New(rand.NewPCG(seed, 0)))
		defer rt.close()
		test(t, rt, arrived)
	})
}

func send(rt *router, count int) {
	for i := range count {
		rt.pass(0, 1, fmt.Appendf(nil, "%04d", i))
	}
}

// settle lets everything arrive that is under way.
func settle() {
	time.Sleep(time.Hour) // of the test's own time
	synctest.Wait()
}

func TestPassesAtOnceWithoutRule(t *testing.T) {
	routed(t, 1, func(t *testing.T, rt *router, arrived *arrivals) {
		send(rt, 100)
		if len(arrived.names) != 100 || !slices.IsSorted(arrived.names) || arrived.times[99] != 0 {
			t.Errorf("arrived: %v at %v", arrived.names, arrived.times)
		}
	})
}

func TestCutIsOneDirection(t *testing.T) {
	routed(t, 1, func(t *testing.T, rt *router, arrived *arrivals) {
		rt.set(1, 0, Cut)
		send(rt, 10)
		rt.set(0, 1, Cut)
		send(rt, 10)
		settle()
		if len(arrived.names) != 10 {
			t.Errorf("%d arrived of 10 that were sent before the cut", len(arrived.names))
		}
		rt.heal()
		send(rt, 10)
		if len(arrived.names) != 20 {
			t.Errorf("%d arrived, 20 were sent without a cut", len(arrived.names))
		}
		if c := rt.counted(); c.Lost != 10 || c.Passed != 20 {
			t.Errorf("counts: %+v", c)
		}
	})
}

func TestDelayKeepsOrderAndJitterDoesNot(t *testing.T) {
	routed(t, 1, func(t *testing.T, rt *router, arrived *arrivals) {
		rt.set(0, 1, Rule{Delay: 30 * time.Millisecond})
		send(rt, 100)
		settle()
		if len(arrived.names) != 100 || !slices.IsSorted(arrived.names) || arrived.times[0] != 30*time.Millisecond {
			t.Fatalf("with a delay arrived %v at %v", arrived.names, arrived.times)
		}
		arrived.names = nil
		rt.set(0, 1, Rule{Jitter: 30 * time.Millisecond})
		send(rt, 100)
		settle()
		if len(arrived.names) != 100 || slices.IsSorted(arrived.names) {
			t.Errorf("with jitter arrived %v", arrived.names)
		}
	})
}

func TestLossAndDuplicatesAreShares(t *testing.T) {
	routed(t, 1, func(t *testing.T, rt *router, arrived *arrivals) {
		rt.set(0, 1, Rule{Loss: 0.3})
		send(rt, 1000)
		settle()
		if got := len(arrived.names); got < 600 || got > 800 {
			t.Errorf("%d of 1000 arrived at a loss of 0.3", got)
		}
		arrived.names = nil
		rt.set(0, 1, Rule{Duplicate: 0.3})
		send(rt, 1000)
		settle()
		if got := len(arrived.names); got < 1200 || got > 1400 {
			t.Errorf("%d arrived of 1000, 0.3 of them twice", got)
		}
	})
}

func TestRateAndItsBound(t *testing.T) {
	routed(t, 1, func(t *testing.T, rt *router, arrived *arrivals) {
		rt.set(0, 1, Rule{Rate: 400}) // a hundred packets of four bytes in a second
		send(rt, 200)
		settle()
		if last := arrived.times[len(arrived.times)-1]; last != 2*time.Second {
			t.Errorf("200 packets at 100 in a second took %v", last)
		}
		send(rt, maxUnderWay+50)
		if c := rt.counted(); c.Overflowed != 50 {
			t.Errorf("%d packets overflowed, not 50", c.Overflowed)
		}
	})
}

func TestOneSeedIsOneOutcome(t *testing.T) {
	outcome := func(seed uint64) (names []string) {
		routed(t, seed, func(_ *testing.T, rt *router, arrived *arrivals) {
			rt.set(0, 1, Rule{Loss: 0.2, Duplicate: 0.2, Jitter: time.Millisecond})
			send(rt, 200)
			settle()
			names = arrived.names
		})
		return names
	}
	if !slices.Equal(outcome(1), outcome(1)) {
		t.Error("one seed gives two outcomes")
	}
	if slices.Equal(outcome(1), outcome(2)) {
		t.Error("two seeds give one outcome")
	}
}
