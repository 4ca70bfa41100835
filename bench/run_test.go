package bench

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowLoad stands for a server whose n-th answer takes as long as it says. Tests run it on a fake
// clock, so that durations are exact.
type slowLoad struct {
	takes  func(n int64) time.Duration
	fails  error
	sent   atomic.Int64
	closed bool
}

func (l *slowLoad) Name() string                         { return "slow" }
func (l *slowLoad) Kinds() []string                      { return []string{"request"} }
func (l *slowLoad) Prepare(context.Context, *Pool) error { return nil }
func (l *slowLoad) Close(context.Context) error          { l.closed = true; return nil }

func (l *slowLoad) Client(int) Operation {
	return func(ctx context.Context, _ time.Time) (Outcome, error) {
		n := l.sent.Add(1) - 1
		if !sleepUntil(ctx, time.Now().Add(l.takes(n))) {
			return Outcome{}, ctx.Err()
		}
		return Outcome{}, l.fails
	}
}

func always(d time.Duration) func(int64) time.Duration {
	return func(int64) time.Duration { return d }
}

// close3 says whether a histogram's value is the wanted one to three digits.
func close3(us float64, want time.Duration) bool {
	return math.Abs(us-micros(want)) <= micros(want)/500
}

func onFakeClock(t *testing.T, load *slowLoad, plan Plan, check func(*Report)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		rep, err := Run(t.Context(), &Pool{}, load, plan)
		if err != nil {
			t.Fatal(err)
		}
		if !load.closed {
			t.Error("the load was not closed")
		}
		check(rep)
	})
}

func TestClosedLoop(t *testing.T) {
	load := &slowLoad{takes: always(10 * time.Millisecond)}
	onFakeClock(t, load, Plan{Clients: 5, Duration: time.Second, WarmUp: time.Second}, func(r *Report) {
		if r.Succeeded != 500 || r.Seconds != 1 || r.PerSecond != 500 || r.Service != nil {
			t.Errorf("%+v", r)
		}
		if sent := load.sent.Load(); sent != 1000 {
			t.Errorf("%d requests were sent, the warm-up's included", sent)
		}
		if !close3(r.Latency.P50US, 10*time.Millisecond) || !close3(r.Latency.MaxUS, 10*time.Millisecond) {
			t.Errorf("%+v", r.Latency)
		}
	})
}

func TestTotalEndsTheRun(t *testing.T) {
	for name, rate := range map[string]float64{"closed": 0, "open": 100} {
		t.Run(name, func(t *testing.T) {
			load := &slowLoad{takes: always(10 * time.Millisecond)}
			onFakeClock(t, load, Plan{Clients: 7, Duration: time.Minute, Total: 33, Rate: rate}, func(r *Report) {
				if r.Succeeded != 33 || load.sent.Load() != 33 || r.Unsent != 0 || r.Seconds > 1 {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

// A server stalls once for a second. Clients that wait for answers send nothing meanwhile, and the
// stall is one slow request of a thousand; at a fixed rate every request that was due during the
// stall is late.
func TestOpenLoopDoesNotOmitAStall(t *testing.T) {
	stall := func(n int64) time.Duration {
		if n == 100 {
			return time.Second
		}
		return time.Millisecond
	}
	plan := Plan{Clients: 1, Duration: 10 * time.Second, Total: 1001}

	onFakeClock(t, &slowLoad{takes: stall}, plan, func(r *Report) {
		if !close3(r.Latency.P99US, time.Millisecond) || !close3(r.Latency.MaxUS, time.Second) {
			t.Errorf("closed loop: %+v", r.Latency)
		}
	})

	plan.Rate = 100
	onFakeClock(t, &slowLoad{takes: stall}, plan, func(r *Report) {
		// Request 100+k falls due 10k ms into the stall and waits for what is left of it, and for
		// the k-1 requests before it: about 1000-9k ms.
		if r.Latency.P90US < 1000 || !close3(r.Latency.MaxUS, time.Second) || r.Latency.P99US < 800_000 {
			t.Errorf("open loop: %+v", r.Latency)
		}
		if !close3(r.Service.P99US, time.Millisecond) {
			t.Errorf("from sending: %+v", r.Service)
		}
	})
}

func TestOpenLoopReportsWhatItCouldNotSend(t *testing.T) {
	// Two clients can send 20 requests a second of the 100 that are due.
	onFakeClock(t, &slowLoad{takes: always(100 * time.Millisecond)}, Plan{Clients: 2, Duration: 5 * time.Second, Rate: 100}, func(r *Report) {
		if r.Succeeded+r.Unsent != 500 || r.Succeeded < 99 || r.Succeeded > 102 {
			t.Errorf("%d sent, %d unsent", r.Succeeded, r.Unsent)
		}
		if len(r.notes()) != 1 {
			t.Errorf("notes: %q", r.notes())
		}
	})
}

func TestServerThatStopsAnswering(t *testing.T) {
	never := always(time.Hour)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := Run(t.Context(), &Pool{}, &slowLoad{takes: never}, Plan{Clients: 3, Duration: time.Second, WarmUp: time.Second, Grace: 2 * time.Second})
		if err == nil || time.Since(start) != 3*time.Second {
			t.Errorf("during the warm-up: %v after %v", err, time.Since(start))
		}
	})
	load := &slowLoad{takes: func(n int64) time.Duration {
		if n < 10 {
			return time.Millisecond
		}
		return time.Hour
	}}
	onFakeClock(t, load, Plan{Clients: 3, Duration: time.Second}, func(r *Report) {
		if r.Succeeded != 10 || r.Abandoned != 3 || r.Failed != 0 {
			t.Errorf("%+v", r)
		}
	})
}

func TestInterrupt(t *testing.T) {
	for name, rate := range map[string]float64{"closed": 0, "open": 100} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 505*time.Millisecond)
				defer cancel()
				start := time.Now()
				rep, err := Run(ctx, &Pool{}, &slowLoad{takes: always(10 * time.Millisecond)}, Plan{Clients: 1, Duration: time.Minute, Rate: rate})
				if err != nil {
					t.Fatal(err)
				}
				// The request under way ends well; nothing after it is sent or called unsent.
				if took := time.Since(start); !rep.Interrupted || rep.Succeeded != 51 || rep.Unsent > 1 || took != 510*time.Millisecond {
					t.Errorf("after %v: %+v", took, rep)
				}
			})
		})
	}
	t.Run("during the warm-up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := Run(ctx, &Pool{}, &slowLoad{takes: always(time.Millisecond)}, Plan{Clients: 1, Duration: time.Minute, WarmUp: time.Minute})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	})
}

func TestFailuresAreNotRepeatedAtFullSpeed(t *testing.T) {
	load := &slowLoad{takes: always(0), fails: errors.New("down")}
	onFakeClock(t, load, Plan{Clients: 1, Duration: 10 * time.Second}, func(r *Report) {
		// 1+2+4+...+128 ms, then one each 250 ms.
		if r.Failed < 40 || r.Failed > 50 || r.Errors[0].Code != "Unknown" {
			t.Errorf("%+v", r)
		}
	})
}

func TestProgress(t *testing.T) {
	var seen []Progress
	plan := Plan{Clients: 1, Duration: time.Second, WarmUp: time.Second, Progress: func(p Progress) { seen = append(seen, p) }}
	onFakeClock(t, &slowLoad{takes: always(10 * time.Millisecond)}, plan, func(*Report) {
		stages := map[string]int{}
		for _, p := range seen {
			stages[p.Stage]++
		}
		if stages["preparing"] != 1 || stages["warming up"] < 9 || stages["measuring"] < 9 {
			t.Errorf("%v", stages)
		}
		if last := seen[len(seen)-1]; last.Done != 100 || last.Elapsed != time.Second {
			t.Errorf("%+v", last)
		}
	})
}

func TestPlanValidate(t *testing.T) {
	good := Plan{Clients: 1, Duration: time.Second}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Plan){
		"no clients":      func(p *Plan) { p.Clients = 0 },
		"too many":        func(p *Plan) { p.Clients = MaxClients + 1 },
		"no end":          func(p *Plan) { p.Duration = 0 },
		"too long":        func(p *Plan) { p.Duration = MaxDuration + 1 },
		"negative total":  func(p *Plan) { p.Total = -1 },
		"negative warmup": func(p *Plan) { p.WarmUp = -1 },
		"no number":       func(p *Plan) { p.Rate = math.NaN() },
		"negative grace":  func(p *Plan) { p.Grace = -1 },
	} {
		p := good
		spoil(&p)
		if p.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSchedule(t *testing.T) {
	start := time.Unix(0, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	s := schedule{start: start, end: at(10 * time.Second), rate: 3}
	for n, want := range map[int64]time.Duration{0: 0, 1: 333333333, 3: time.Second, 3_000_000: 1_000_000 * time.Second} {
		if got := s.due(n).Sub(start); got != want {
			t.Errorf("request %d is due at %v, want %v", n, got, want)
		}
	}
	for _, c := range []struct {
		before time.Duration
		total  int64
		want   int64
	}{
		{-time.Second, 0, 0}, {0, 0, 0}, {1, 0, 1}, {time.Second, 0, 3}, {time.Second + 1, 0, 4},
		{10 * time.Second, 0, 30}, {time.Hour, 0, 30}, {time.Hour, 7, 7}, {time.Second, 7, 3},
	} {
		s.total = c.total
		if got := s.dueBefore(at(c.before)); got != c.want {
			t.Errorf("of %d, %d are due before %v, want %d", c.total, got, c.before, c.want)
		}
	}
}
