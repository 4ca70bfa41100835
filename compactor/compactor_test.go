package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// call is one compaction that was asked for.
type call struct {
	after time.Duration // since the start
	rev   int64
}

// growing is a store that gains a fixed number of revisions per second, from revision 1.
type growing struct {
	start     time.Time
	perSecond float64
	fail      int // how many calls are to fail
	calls     []call
}

func (g *growing) Revision() int64 {
	return 1 + int64(time.Since(g.start).Seconds()*g.perSecond)
}

func (g *growing) Compact(_ context.Context, rev int64) error {
	g.calls = append(g.calls, call{time.Since(g.start), rev})
	if g.fail > 0 {
		g.fail--
		return errors.New("no leader")
	}
	return nil
}

// runFor runs a compactor for d of a bubble's time, minus a moment so that nothing happens at the very end, and
// returns what it asked for.
func runFor(t *testing.T, d time.Duration, policy Policy, store *growing, script func(*Compactor)) []call {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store.start = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), d-time.Microsecond)
		defer cancel()
		c := New(policy, store, Options{})
		if script == nil {
			c.SetActive(true)
		} else {
			go script(c)
		}
		c.Run(ctx)
		synctest.Wait()
	})
	return store.calls
}

func TestPeriodicKeepsThePeriod(t *testing.T) {
	for _, tt := range []struct {
		period, runs time.Duration
		want         []call
	}{
		// A period of up to an hour: first after one period, then every period. The first compaction has a period of
		// history to keep, later ones a period and one sample.
		{5 * time.Second, 21 * time.Second, []call{
			{5 * time.Second, 1}, {10 * time.Second, 46}, {15 * time.Second, 96}, {20 * time.Second, 146},
		}},
		{time.Hour, 3*time.Hour + time.Minute, []call{
			{1 * time.Hour, 1}, {2 * time.Hour, 32_401}, {3 * time.Hour, 68_401},
		}},
		// A longer one: first after the period, then every hour.
		{24 * time.Hour, 26*time.Hour + time.Minute, []call{
			{24 * time.Hour, 1}, {25 * time.Hour, 32_401}, {26 * time.Hour, 68_401},
		}},
	} {
		t.Run(tt.period.String(), func(t *testing.T) {
			got := runFor(t, tt.runs, Policy{Period: tt.period}, &growing{perSecond: 10}, nil)
			if !slices.Equal(got, tt.want) {
				t.Errorf("compactions %v, want %v", got, tt.want)
			}
		})
	}
}

func TestPeriodicRetriesAtTheNextSample(t *testing.T) {
	got := runFor(t, 81*time.Minute, Policy{Period: time.Hour}, &growing{perSecond: 1, fail: 2}, nil)
	// A sample is a tenth of an hour, in which there are 360 revisions; the window slides on while it fails.
	want := []call{{60 * time.Minute, 1}, {66 * time.Minute, 1}, {72 * time.Minute, 361}}
	if !slices.Equal(got, want) {
		t.Errorf("compactions %v, want %v", got, want)
	}
}

func TestPeriodicSkipsAnIdleStore(t *testing.T) {
	got := runFor(t, 10*time.Hour, Policy{Period: time.Hour}, &growing{perSecond: 0}, nil)
	if want := []call{{time.Hour, 1}}; !slices.Equal(got, want) {
		t.Errorf("compactions %v, want %v", got, want)
	}
}

func TestRevisionKeepsTheNewest(t *testing.T) {
	got := runFor(t, 21*time.Minute, Policy{Keep: 1000}, &growing{perSecond: 3}, nil)
	// Revisions at 5, 10, 15 and 20 minutes: 901 (too few), 1801, 2701, 3601.
	want := []call{{10 * time.Minute, 801}, {15 * time.Minute, 1701}, {20 * time.Minute, 2601}}
	if !slices.Equal(got, want) {
		t.Errorf("compactions %v, want %v", got, want)
	}
}

func TestRevisionRetriesAndSkipsAnIdleStore(t *testing.T) {
	store := &growing{perSecond: 0, fail: 1}
	got := runFor(t, time.Hour, Policy{Keep: 1}, store, nil)
	if len(got) != 0 {
		t.Errorf("compacted a store with nothing to forget: %v", got)
	}
	got = runFor(t, 11*time.Minute, Policy{Keep: 1}, &growing{perSecond: 1, fail: 1}, nil)
	if want := []call{{5 * time.Minute, 300}, {10 * time.Minute, 600}}; !slices.Equal(got, want) {
		t.Errorf("compactions %v, want %v", got, want)
	}
}

func TestOnlyTheLeaderCompacts(t *testing.T) {
	got := runFor(t, 6*time.Hour, Policy{Period: time.Hour}, &growing{perSecond: 1}, func(c *Compactor) {
		time.Sleep(149 * time.Minute) // of the bubble's time
		c.SetActive(true)
		time.Sleep(60 * time.Minute)
		c.SetActive(false)
	})
	// It has watched before it led, so it compacts at its next sample, and to the revision of 66 minutes before.
	if want := []call{{150 * time.Minute, 1 + 84*60}}; !slices.Equal(got, want) {
		t.Errorf("compactions %v, want %v", got, want)
	}
}

func TestRunReturnsAtOnceWithoutPolicy(t *testing.T) {
	New(Policy{}, &growing{}, Options{}).Run(t.Context()) // would hang if it waited
}

func TestParsePolicy(t *testing.T) {
	for _, tt := range []struct {
		mode, retention string
		want            string
	}{
		{"periodic", "", "{0s 0}"},
		{"periodic", "0", "{0s 0}"},
		{"revision", "0", "{0s 0}"},
		{"periodic", "1", "{1h0m0s 0}"},
		{"periodic", "5m", "{5m0s 0}"},
		{"periodic", "0s", "{0s 0}"},
		{"revision", "1000", "{0s 1000}"},
		{"", "0", `unknown auto-compaction-mode "": want "periodic" or "revision"`},
		{"hourly", "1", `unknown auto-compaction-mode "hourly": want "periodic" or "revision"`},
		{"periodic", "-1", `auto-compaction-retention "-1" is negative`},
		{"revision", "-1", `auto-compaction-retention "-1" is negative`},
		{"periodic", "-5m", `auto-compaction-retention "-5m" is too short: the least is 10ms`},
		{"periodic", "5ns", `auto-compaction-retention "5ns" is too short: the least is 10ms`},
		{"periodic", "9223372036854775807", `auto-compaction-retention "9223372036854775807" is more hours than a duration holds`},
		{"periodic", "x", `auto-compaction-retention "x": mode "periodic" needs a duration such as 30m, or a number of hours`},
		{"revision", "5m", `auto-compaction-retention "5m": mode "revision" needs a number of revisions`},
	} {
		p, err := ParsePolicy(tt.mode, tt.retention)
		got := fmt.Sprintf("{%v %d}", p.Period, p.Keep)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("ParsePolicy(%q, %q) = %s, want %s", tt.mode, tt.retention, got, tt.want)
		}
		if p.Enabled() != (p != Policy{}) {
			t.Errorf("%v: Enabled is %v", p, p.Enabled())
		}
	}
}
