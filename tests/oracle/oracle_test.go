package oracle

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coteriedb/coterie/tests/target"
)

var (
	flagOps      = flag.Int("oracle.ops", 20_000, "operations to compare in all")
	flagLength   = flag.Int("oracle.length", 4_000, "operations in one sequence")
	flagSeed     = flag.Uint64("oracle.seed", 0, "seed of the first sequence; the others follow it (0: from the clock)")
	flagParallel = flag.Int("oracle.parallel", 6, "sequences that run at the same time")
	flagCluster  = flag.Int("oracle.cluster", 4_000, "operations to compare in all through the members of a cluster")
	flagTrace    = flag.Bool("oracle.trace", false, "log every operation; for the replay of a single sequence")
	flagAll      = flag.Bool("oracle.all", false, "go on after a difference with the sequences that are left")
	flagSelf     = flag.Bool("oracle.self", false, "compare etcd with etcd instead of with Coterie")
	flagEndpoint = flag.String("oracle.endpoint", os.Getenv("COTERIE_ENDPOINT"),
		"an empty server to compare with etcd, instead of one that is started; it serves one sequence, default limits differ from the test's")
)

// seedVariable, in the environment, is the seed in place of the clock's where the command has no place for a flag: CI's answers
// are the same every time.
const seedVariable = "COTERIE_ORACLE_SEED"

// coterieBinary builds Coterie when the first test needs it.
var coterieBinary = sync.OnceValues(func() (string, error) { return target.BuildCoterie(context.Background(), binDir) })

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "oracle-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// binDir is where Coterie's binary is built, once, when the first test needs it.
var binDir string

func etcd(ctx context.Context, cfg target.Config) (target.Server, error) {
	return target.StartEtcd(ctx, cfg)
}

func coterie(ctx context.Context, cfg target.Config) (target.Server, error) {
	binary, err := coterieBinary()
	if err != nil {
		return nil, err
	}
	return target.StartCoterie(ctx, binary, cfg)
}

// coterieCluster starts Coterie's members. The log is flushed and cut often.
func coterieCluster(ctx context.Context, cfg target.Config, members int) (*target.Cluster, error) {
	binary, err := coterieBinary()
	if err != nil {
		return nil, err
	}
	return target.StartCluster(ctx, target.ClusterConfig{
		Binary: binary, Kind: target.KindCoterie, Dir: cfg.Dir, Size: members,
		Flags: []string{
			"--unsafe-no-fsync=" + strconv.FormatBool(cfg.UnsafeNoFsync),
			"--max-txn-ops", strconv.FormatUint(uint64(cfg.MaxTxnOps), 10),
			"--max-request-bytes", strconv.FormatUint(uint64(cfg.MaxRequestBytes), 10),
			"--snapshot-count", "100", "--snapshot-catchup-entries", "50",
		},
	})
}

// subject is what the flags name: Coterie unless they say otherwise.
func subject() Starter {
	switch {
	case *flagEndpoint != "":
		return func(context.Context, target.Config) (target.Server, error) {
			return target.External{Addr: *flagEndpoint}, nil
		}
	case *flagSelf:
		return etcd
	}
	return coterie
}

// TestSequences compares fresh random sequences. A failure prints the seed; it belongs into testdata/seeds.txt.
func TestSequences(t *testing.T) {
	first := *flagSeed
	if first == 0 {
		first, _ = strconv.ParseUint(os.Getenv(seedVariable), 10, 64)
	}
	if first == 0 {
		first = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	pair := Pair{Reference: etcd, Subject: subject()}
	count := max(1, *flagOps / *flagLength)
	if *flagEndpoint != "" {
		count = 1 // a second sequence would not begin on an empty server
	}
	t.Logf("%d sequences of %d operations from seed %d on", count, *flagLength, first)
	began := time.Now()
	total := runAll(t, pair, count, func(i int) Options {
		return Options{Seed: first + uint64(i), Ops: *flagLength, NoRestarts: *flagEndpoint != ""}
	})
	t.Logf("%d operations in %v: %d watch events, %d comparisons of the whole state, %d restarts",
		total.Ops, time.Since(began).Round(time.Millisecond), total.Events, total.Checks, total.Restarts)
	for _, name := range slices.Sorted(maps.Keys(total.ByName)) {
		t.Logf("%8d %s, of them refused %d", total.ByName[name], name, total.Refused[name])
	}
}

// TestCluster compares sequences through the members of a cluster of three. Without a seed it runs the same each time.
func TestCluster(t *testing.T) {
	if *flagEndpoint != "" {
		t.Logf("the members of a server given by its endpoint are not known")
		return
	}
	first := max(1, *flagSeed)
	count := max(1, *flagCluster / *flagLength)
	began := time.Now()
	total := runAll(t, Pair{Reference: etcd, Cluster: coterieCluster}, count, func(i int) Options {
		return Options{Seed: first + uint64(i), Ops: min(*flagLength, *flagCluster), Members: 3}
	})
	t.Logf("%d operations through three members in %v: %d watch events, %d comparisons of the whole state, %d restarts of a member",
		total.Ops, time.Since(began).Round(time.Millisecond), total.Events, total.Checks, total.Restarts)
}

// TestSeeds runs the sequences that once found a difference.
func TestSeeds(t *testing.T) {
	if *flagEndpoint != "" {
		t.Logf("a server given by its endpoint serves one sequence, which is TestSequences'")
		return
	}
	seeds := readSeeds(t, "testdata/seeds.txt")
	runAll(t, Pair{Reference: etcd, Subject: subject()}, len(seeds), func(i int) Options { return seeds[i] })
}

// readSeeds reads lines of a seed, a length and the reason for keeping them.
func readSeeds(t *testing.T, path string) []Options {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var seeds []Options
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 3 {
			t.Fatalf("%s: %q is not a seed, a length and a reason", path, line)
		}
		seed, err1 := strconv.ParseUint(fields[0], 10, 64)
		ops, err2 := strconv.Atoi(fields[1])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		seeds = append(seeds, Options{Seed: seed, Ops: ops})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return seeds
}

// runAll runs sequences, several at a time, and adds up what they did. After a failure no more are begun.
func runAll(t *testing.T, pair Pair, count int, options func(int) Options) Stats {
	t.Helper()
	total := newStats()
	var mu sync.Mutex // guards total
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(*flagParallel, count) {
		wg.Go(func() {
			for i := range next {
				o := options(i)
				o.Dir = t.TempDir()
				if *flagTrace {
					o.Trace = func(step int, operation, answer string) { t.Logf("step %d: %s\n\t%s", step, operation, answer) }
				}
				stats, err := Run(t.Context(), pair, o)
				if err != nil {
					t.Error(err)
				}
				os.RemoveAll(o.Dir)
				mu.Lock()
				total.add(stats)
				mu.Unlock()
			}
		})
	}
	for i := range count {
		if t.Failed() && !*flagAll {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	return total
}

func (s *Stats) add(o Stats) {
	s.Ops += o.Ops
	s.Events += o.Events
	s.Checks += o.Checks
	s.Restarts += o.Restarts
	for name, n := range o.ByName {
		s.ByName[name] += n
		s.Refused[name] += o.Refused[name]
	}
}

// TestSelf compares etcd with etcd: what it finds would be an accident of the moment and no fault of a server.
func TestSelf(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	runAll(t, Pair{Reference: etcd, Subject: etcd}, 4, func(i int) Options {
		return Options{Seed: uint64(1000 + i), Ops: 1500}
	})
}

// TestAlterationsAreNoticed compares etcd with etcd whose answers are altered at one place. Each alteration must
// be reported as a difference.
func TestAlterationsAreNoticed(t *testing.T) {
	for _, m := range mutations() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			// A seed may give a sequence in which the response never occurs; there are others.
			for seed := uint64(1); seed < 20; seed++ {
				mut := &mutator{mutation: m}
				mut.spare.Store(20)
				pair := Pair{Reference: etcd, Subject: etcd, SubjectDial: mut.dialOptions()}
				_, err := Run(t.Context(), pair, Options{Seed: seed, Ops: 600, Dir: t.TempDir(), NoRestarts: true, WatchTimeout: 2 * time.Second})
				var diff *Difference
				switch {
				case mut.done.Load() && errors.As(err, &diff):
					return
				case mut.done.Load():
					t.Fatalf("seed %d: the alteration went unnoticed (%v)", seed, err)
				case err != nil:
					t.Fatal(err)
				}
			}
			t.Fatal("no sequence had a response to alter")
		})
	}
}
