package soak

import (
	"context"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coteriedb/coterie/tests/target"
)

var (
	length  = flag.Duration("soak.for", 20*time.Second, "how long to soak")
	seed    = flag.Uint64("soak.seed", 1, "seed of the load and of the trouble")
	samples = flag.String("soak.samples", "", "a file for all samples, as comma-separated values")
)

// settled is how long a run must be for its curves to be judged. In a shorter one the memory of the veteran is still rising when
// the second quarter begins, though it was warmed up: what is written last takes the place of what came first only then.
const settled = 10 * time.Minute

// flags are the members': elections are short, so that a kill costs little of the run, and so is the log, so that it gets
// its final length in a short run too.
var flags = []string{
	"--heartbeat-interval", "50", "--election-timeout", "500", "--watch-progress-notify-interval", "500ms",
	"--snapshot-count", "2000", "--snapshot-catchup-entries", "500", "--enable-pprof",
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func TestSoak(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), *length+10*time.Minute)
	defer cancel()
	binary, err := target.BuildCoterie(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "soak-")
	if err != nil {
		t.Fatal(err)
	}
	c, err := target.StartCluster(ctx, target.ClusterConfig{Binary: binary, Kind: target.KindCoterie, Dir: dir, Size: 3, Flags: flags})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the members' data, logs and profiles are in %s", dir)
			t.Logf("again: go -C tests test ./soak -count 1 -timeout 0 -v -run '^TestSoak$' -args -soak.for=%v -soak.seed=%d", *length, *seed)
			return
		}
		os.RemoveAll(dir)
	})
	all, err := Run(ctx, Config{
		Cluster: c, Seed: *seed, For: *length, Period: min(20*time.Second, *length/3), Every: min(2*time.Second, *length/60),
		Warm: *length >= settled, Report: t.Logf,
	})
	if err != nil {
		t.Error(err)
	}
	keep(t, all)
	judge(t, all)
	if t.Failed() {
		// The members run still, unless they are what failed.
		if err := saveProfiles(ctx, c, dir); err != nil {
			t.Log(err)
		}
	}
}

// keep writes the samples where the flag says.
func keep(t *testing.T, all []Sample) {
	if *samples == "" {
		return
	}
	file, err := os.Create(*samples)
	if err != nil {
		t.Error(err)
		return
	}
	defer file.Close()
	if err := writeSamples(file, all); err != nil {
		t.Error(err)
	}
}

func judge(t *testing.T, all []Sample) {
	found, err := curves(all, *length)
	if err != nil {
		t.Error(err)
		return
	}
	var table strings.Builder
	if err := writeTable(&table, found); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", table.String())
	if *length < settled {
		t.Logf("the curves are not judged in less than %v", settled)
		return
	}
	if err := checkFlat(found); err != nil {
		t.Error(err)
	}
}
