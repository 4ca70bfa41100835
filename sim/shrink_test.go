package sim

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// shrinking makes less of a run that fails: what it still fails without is left out.
type shrinking struct {
	t     *testing.T
	first *world // that failed
	least *world // that failed in the same way
	end   time.Time
	runs  int
}

// shrink looks for the least that fails as w does, for a time by the wall clock.
func shrink(t *testing.T, w *world, lasting time.Duration) *shrinking {
	s := &shrinking{t: t, first: w, least: w, end: time.Now().Add(lasting)}
	for left := 0; left != len(s.least.parts()) && !s.over(); { // what was needed once may not be any more
		left = len(s.least.parts())
		s.leaveOut()
		s.shorten()
	}
	return s
}

func (s *shrinking) over() bool { return !time.Now().Before(s.end) }

// try runs a course, and keeps it if that fails in the same way.
func (s *shrinking) try(c course) bool {
	if s.over() {
		return false
	}
	s.runs++
	w := run(s.t, c)
	if w.failed == "" || w.kind != s.first.kind {
		return false
	}
	s.least = w
	return true
}

// leaveOut tries to do without more and more parts, at first without half of them at
// once, then without ever fewer. Faults that had not begun when the run failed are no
// parts of it.
func (s *shrinking) leaveOut() {
	names := s.least.parts()
	for size := (len(names) + 1) / 2; size > 0; size /= 2 {
		for at := 0; at < len(names) && !s.over(); {
			c := s.least.course
			some := names[at:min(at+size, len(names))]
			c.without = c.without.with(some)
			if s.try(c) {
				names = slices.Delete(names, at, at+len(some))
			} else {
				at += len(some)
			}
		}
	}
}

// shorten tries to end the faults sooner.
func (s *shrinking) shorten() {
	most := s.least.plan.Faults
	for least := time.Duration(0); most-least > 100*time.Millisecond && !s.over(); {
		c := s.least.course
		if c.until = ((least + most) / 2).Round(time.Millisecond); s.try(c) {
			most = c.until
		} else {
			least = c.until
		}
	}
}

// String says what is left.
func (s *shrinking) String() string {
	had, has := s.first.parts(), s.least.parts()
	of := func(kind string) string { return fmt.Sprintf("%d of %d", count(has, kind), count(had, kind)) }
	return fmt.Sprintf("after %d runs %s faults are left, %s clients and %s watchers, and %.3f of %.3f s",
		s.runs, of(aFault), of(aClient), of(aWatcher), s.least.failedAt.Seconds(), s.first.failedAt.Seconds())
}

// TestFailuresShrink shows that less than a run that fails is found, which fails in
// the same way, and that its line replays it.
func TestFailuresShrink(t *testing.T) {
	if testing.Short() {
		t.Skip("runs many seeds")
	}
	for _, canary := range []string{hastyLease, skippedSync} {
		t.Run(canary, func(t *testing.T) {
			w := firstFound(t, canary, 4)
			s := shrink(t, w, 20*time.Second)
			t.Logf("%s\n%s: %s", w.failed, s, s.least.failed)
			if had, has := count(w.parts(), aFault), count(s.least.parts(), aFault); has >= had {
				t.Errorf("%d faults are left of %d", has, had)
			}
			if s.least.kind != w.kind {
				t.Errorf("it fails otherwise: %s", s.least.failed)
			}
			again := run(t, parseLine(t, s.least.course.String()))
			if again.failed != s.least.failed || again.trace != s.least.trace {
				t.Errorf("the line %s\nfails with %q, trace %x, not with %q, trace %x", s.least.course, again.failed, again.trace, s.least.failed, s.least.trace)
			}
		})
	}
}

// parseLine returns the course that a line replays.
func parseLine(t *testing.T, line string) course {
	t.Helper()
	_, args, ok := strings.Cut(line, " -args ")
	if !ok {
		t.Fatalf("no arguments in %q", line)
	}
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c := courseFlags(fs)
	fs.Int("sim.seeds", 0, "")
	if err := fs.Parse(strings.Fields(args)); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return *c
}

// TestLinesSayAll parses what lines say.
func TestLinesSayAll(t *testing.T) {
	want := course{seed: 7, canary: lostEvent, without: partSet{}.with([]string{"f0", "f1", "f2", "f9", "f11", "c1", "put", lossPart}), until: 1500 * time.Millisecond}
	const line = "go test ./sim -count 1 -run '^TestSeeds$' -args -sim.seed=7 -sim.seeds=1 -sim.canary=lost-event -sim.without=loss,put,c1,f0-2,f9,f11 -sim.until=1.5s"
	if want.String() != line {
		t.Errorf("got %s", want)
	}
	if got := parseLine(t, line); got.String() != line {
		t.Errorf("got %s", got)
	}
}

// TestFaultsDoNotDependOnEachOther shows that a fault that is left out changes
// nothing of the others.
func TestFaultsDoNotDependOnEachOther(t *testing.T) {
	w := run(t, course{seed: 1})
	out := numbered(aFault, 2)
	v := run(t, course{seed: 1, without: partSet{out: true}})
	want := slices.DeleteFunc(slices.Clone(w.drawn), func(f drawnFault) bool { return f.name == out })
	if len(want) == len(w.drawn) || !slices.Equal(v.drawn, want) {
		t.Errorf("of %v are left %v without %s", w.drawn, v.drawn, out)
	}
}
