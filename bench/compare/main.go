// Command compare runs the same loads against etcd and Coterie, both fresh, in turn, and prints how
// they compare.
//
// It owns the comparison: building and starting the servers, the order of the rounds, medians and
// the page. It promises that both sides get the same flags, file system, load and order of loads,
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
	"path/filepath"
	"regexp"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

func main() {
	ctx, restore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the default is back: a second one ends the process.
	context.AfterFunc(ctx, restore)
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
	rows             string
	rounds           int
	duration, warmUp time.Duration
}

func parse(args []string) (settings, error) {
	var s settings
	f := pflag.NewFlagSet("compare", pflag.ContinueOnError)
	f.SortFlags = false
	f.IntVar(&s.rounds, "rounds", 5, "how often each server runs; numbers are medians")
	f.DurationVar(&s.duration, "duration", 1500*time.Millisecond, "how long each load is measured in a round")
	f.DurationVar(&s.warmUp, "warm-up", 400*time.Millisecond, "how long each load runs before that")
	f.StringVar(&s.rows, "rows", ".", "only the loads whose name matches this regular expression")
	f.StringVar(&s.page, "page", "", "write the table into this Markdown page, and the numbers of every round beside it")
	f.StringVar(&s.dir, "dir", os.TempDir(), "where the data directories are made: a file system that stands for real ones")
	f.StringVar(&s.etcd, "etcd", "", "binary to compare with (built if not given)")
	f.StringVar(&s.coterie, "coterie", "", "binary to compare (built if not given); one called etcd* is started as etcd is")
	err := f.Parse(args)
	switch {
	case err != nil:
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", f.Arg(0))
	case s.rounds < 1 || s.rounds > 100:
		err = fmt.Errorf("%d rounds: must be between 1 and 100", s.rounds)
	case s.duration < 100*time.Millisecond || s.duration > 10*time.Minute:
		err = fmt.Errorf("a duration of %v: must be between 100ms and 10m", s.duration)
	}
	return s, err
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	s, err := parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	pattern, err := regexp.Compile(s.rows)
	if err != nil {
		return fmt.Errorf("--rows: %w", err)
	}
	rows := matching(oneNode(), pattern)
	if len(rows) == 0 {
		return fmt.Errorf("--rows: no load is called %q", s.rows)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(generatorGCPercent)
	}
	work, err := os.MkdirTemp(s.dir, "coterie-compare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)

	sides, err := buildSides(ctx, s, work, progress)
	if err != nil {
		return err
	}
	env, err := surroundings(ctx, work, sides)
	if err != nil {
		return err
	}
	c := comparison{settings: s, rows: rows, sides: sides, work: work, progress: progress}
	result, err := c.rounds(ctx)
	if err != nil {
		return err
	}
	result.Environment = env
	table := result.markdown()
	fmt.Fprintln(out, table)
	if s.page != "" {
		if err := updatePage(s.page, table); err != nil {
			return err
		}
		base := s.page[:len(s.page)-len(filepath.Ext(s.page))]
		if err := result.writeJSON(filepath.Join(base, result.Name+".json")); err != nil {
			return err
		}
	}
	return result.failures()
}
