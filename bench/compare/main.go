// Command compare runs the same loads against etcd and Coterie, both fresh, in turn, and prints how
// they compare, and whether what is required of Coterie holds. It also measures what the writes of one
// cluster notice of a member that catches up, and records profiles of Coterie under load.
//
// It owns the comparison: building and starting the servers, the order of the rounds, medians, what is
// required, the page and its charts. It promises that both sides get the same flags, file system, load and order of loads,
// and that a request that failed never counts as a fast one: a run with failures is marked. It knows
// Coterie only as a binary; the load is package bench, in this process.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/coteriedb/coterie/bench"
)

func main() {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the default is back: a second one ends the process.
	context.AfterFunc(ctx, restore)
	if len(os.Args) == 2 && os.Args[1] == watchMachineFlag {
		if err := lookOut(os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// generatorGCPercent keeps the collections of the generator's small heap off the CPUs that it shares
// with the servers.
const generatorGCPercent = 400

// settings are the command's flags.
type settings struct {
	etcd, coterie    string // binaries; empty: built
	dir              string
	page             string
	parts            []string
	rows             string
	rounds           int
	duration, warmUp time.Duration
	gigabytes        float64
	rate             float64
	profile          string

	stills *stills // when the machine stood still
}

// maxGigabytes bounds what a catch-up writes: it is still to fit beside two copies of itself.
const maxGigabytes = 100

func parse(args []string) (settings, error) {
	var s settings
	f := pflag.NewFlagSet("compare", pflag.ContinueOnError)
	f.SortFlags = false
	f.StringSliceVar(&s.parts, "parts", comparedParts(), "parts to measure; "+catchUpPart+" is one more")
	f.StringVar(&s.rows, "rows", ".", "only loads for which this regular expression matches \"part: load\"")
	f.IntVar(&s.rounds, "rounds", 5, "how often each server runs; numbers are medians")
	f.DurationVar(&s.duration, "duration", 1500*time.Millisecond, "how long each load is measured in a round")
	f.DurationVar(&s.warmUp, "warm-up", 400*time.Millisecond, "how long each load runs before that")
	f.StringVar(&s.page, "page", "", "write the tables into this Markdown page, and charts and the numbers of every round beside it")
	f.StringVar(&s.dir, "dir", os.TempDir(), "where the data directories are made: a file system that stands for real ones")
	f.StringVar(&s.etcd, "etcd", "", "binary to compare with (built if not given)")
	f.StringVar(&s.coterie, "coterie", "", "binary to compare (built if not given); one called etcd* is started as etcd is")
	f.Float64Var(&s.gigabytes, "gigabytes", 2, "of catch-up: what is written while the member is down in each round, in units of 1,000,000,000 bytes")
	f.Float64Var(&s.rate, "rate", 1000, "of catch-up and pauses: puts per second, at a fixed rate")
	f.StringVar(&s.profile, "profile", "", "record profiles of Coterie under load into this directory instead")
	err := f.Parse(args)
	switch {
	case err != nil:
	case !(s.gigabytes > 0 && s.gigabytes <= maxGigabytes):
		err = fmt.Errorf("%g gigabytes: must be more than 0 and at most %d", s.gigabytes, maxGigabytes)
	case !(s.rate > 0 && s.rate <= bench.MaxRate):
		err = fmt.Errorf("a rate of %g puts/s: must be more than 0 and at most %d", s.rate, bench.MaxRate)
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case s.rounds < 1 || s.rounds > 100:
		err = fmt.Errorf("%d rounds: must be between 1 and 100", s.rounds)
	case s.duration < 100*time.Millisecond || s.duration > 10*time.Minute:
		err = fmt.Errorf("a duration of %v: must be between 100ms and 10m", s.duration)
	}
	return s, err
}

func run(ctx context.Context, args []string, out, progressTo io.Writer) error {
	s, err := parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := s.chosen(); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(generatorGCPercent)
	}
	work, err := os.MkdirTemp(s.dir, "coterie-compare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	watching, enough := context.WithCancel(ctx)
	defer enough()
	s.stills = watchMachine(watching)
	c := comparison{settings: s, work: work, progress: newProgress(progressTo)}
	if c.sides, err = buildSides(ctx, s, work, c.progress); err != nil {
		return err
	}
	if s.profile != "" {
		return c.profiles(ctx)
	}
	env, err := surroundings(ctx, work, c.sides)
	if err != nil {
		return err
	}
	var failures []error
	err = c.run(ctx, env, func(m measured) error {
		fmt.Fprintf(out, "\n%s\n\n%s\n", m.section.name, m.found.markdown())
		failures = append(failures, m.found.failures())
		if s.page == "" {
			return nil
		}
		return m.section.publish(s.page, m.found)
	})
	return errors.Join(err, errors.Join(failures...))
}

// findings are what a part measured. As JSON they lie beside the page.
type findings interface {
	markdown() string
	failures() error // requests failed, and the numbers are not to be trusted
}
