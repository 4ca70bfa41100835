// Package soak uses a cluster for a long time, kills its members meanwhile, and looks for what only time shows: memory,
// goroutines, open files or disk space that grow though the data does not. Clients write, read, watch, hold leases and compact
// (package witness); members are killed and restarted, lead in turn, and defragment. One member, the veteran, is never killed,
// so that its curves are those of one process.
//
// A run is made of periods. Each begins with no key and ends with a check of everything that clients were told in it, after
// which that is forgotten: the memory of the run is bounded, however long it takes. The package knows servers by their binary,
// etcd's API, the metrics of Go and what the system says of a process.
package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coteriedb/coterie/tests/target"
	"github.com/coteriedb/coterie/tests/witness"
)

// Config is how a cluster is used, and for how long.
type Config struct {
	Cluster *target.Cluster
	Seed    uint64
	For     time.Duration
	Period  time.Duration // what clients noted is checked and forgotten so often
	Every   time.Duration // between two samples of a member
	Warm    bool          // fill what fills with what is written, so that curves are flat from the beginning
	Report  func(format string, args ...any)
}

// The load of all clients together is some 200 writes and 400 reads a second: the run shares a machine with its cluster, and
// what it looks for needs time, not speed.
const (
	keys     = 40
	pace     = 20 * time.Millisecond
	timeout  = 2 * time.Second
	value    = 8000 // bytes at the most
	retained = 1500 // revisions
	holders  = 4    // of leases, at each member

	// warmth is written before the first period by who is in a hurry: more than what a member keeps in memory of what was
	// written last.
	warmth = 160 << 20
)

// run is a soak under way.
type run struct {
	Config
	began   time.Time
	trouble *trouble
	late    []witness.Op // of earlier periods, with an outcome that is not known

	periods, requests, acknowledged, watches, leases int
}

// Run soaks the cluster. It returns its samples also with an error, which is the first broken promise.
func Run(ctx context.Context, cfg Config) ([]Sample, error) {
	r := &run{
		Config: cfg, began: time.Now(),
		trouble: &trouble{cluster: cfg.Cluster, random: rand.New(rand.NewPCG(cfg.Seed, 0)), counts: map[string]int{}},
	}
	s := startSampler(ctx, cfg.Cluster, cfg.Every)
	defer s.finish()
	if cfg.Warm {
		if err := r.warm(ctx); err != nil {
			return s.finish(), fmt.Errorf("warm-up: %w", err)
		}
	}
	var reported time.Duration
	for r.since() < cfg.For {
		if err := r.period(ctx); err != nil {
			return s.finish(), fmt.Errorf("period %d, at %v: %w", r.periods, r.since().Round(time.Second), err)
		}
		if r.since()-reported >= min(time.Minute, cfg.For/3) {
			reported = r.since()
			r.Report("%v", r)
		}
	}
	r.Report("%v", r)
	if r.acknowledged < r.periods*100 || r.leases == 0 {
		return s.finish(), fmt.Errorf("the load was too light to prove anything: %v", r)
	}
	return s.finish(), nil
}

func (r *run) since() time.Duration { return time.Since(r.began) }

func (r *run) String() string {
	var happened []string
	for _, name := range slices.Sorted(maps.Keys(r.trouble.counts)) {
		happened = append(happened, fmt.Sprintf("%s %d", name, r.trouble.counts[name]))
	}
	return fmt.Sprintf("%v: %d periods, %d requests, %d writes acknowledged, %d watches, %d leases; %s", r.since().Round(time.Second), r.periods,
		r.requests, r.acknowledged, r.watches, r.leases, strings.Join(happened, ", "))
}

// warm writes much in a short time over a few keys. The next period begins without them.
func (r *run) warm(ctx context.Context) error {
	const writers, size = 8, 64 << 10
	cli, err := r.Cluster.Client()
	if err != nil {
		return err
	}
	defer cli.Close()
	var (
		all  sync.WaitGroup
		errs [writers]error
	)
	for w := range writers {
		noise := make([]byte, size)
		random := rand.New(rand.NewPCG(r.Seed, uint64(w)))
		all.Go(func() {
			for i := range warmth / size / writers {
				for at := range noise {
					noise[at] = byte(random.Uint32()) // or it would be small when it is stored
				}
				if _, errs[w] = cli.Put(ctx, fmt.Sprintf("%swarm/%d/%d", witness.Prefix, w, i%10), string(noise)); errs[w] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs[:]...)
}

// period uses the cluster for a while, and checks what clients were told in it.
func (r *run) period(ctx context.Context) error {
	r.periods++
	ctx, cancel := context.WithTimeout(ctx, r.Period+5*time.Minute)
	defer cancel()
	base, err := witness.Empty(ctx, r.Cluster)
	if err != nil {
		return err
	}
	traffic, err := witness.StartTraffic(ctx, r.Cluster, witness.TrafficConfig{
		Seed: r.Seed + uint64(r.periods), Keys: keys, Pace: pace, Timeout: timeout, Value: value, Compact: retained, Holders: holders,
		Base: base, Late: r.late,
	})
	if err != nil {
		return err
	}
	defer traffic.Close()
	if err := r.trouble.until(ctx, time.Now().Add(r.Period), traffic); err != nil {
		return err
	}
	histories, err := witness.Confront(ctx, r.Cluster, traffic)
	if err != nil {
		return witness.Shorten(err)
	}
	notes := traffic.Notes()
	r.late = notes.Outstanding(histories[veteran])
	r.requests += len(notes.Ops)
	r.acknowledged += notes.Acknowledged()
	r.watches += len(notes.Watches)
	r.leases += len(notes.Leases)
	return r.Cluster.Failed()
}
