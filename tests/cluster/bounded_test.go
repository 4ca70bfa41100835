package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coteriedb/coterie/tests/target"
	"github.com/coteriedb/coterie/tests/witness"
)

const (
	// missed is how much is written while a member is away: a multiple of what the others may keep for it.
	missed = 768 << 20
	// logLimit is how large the log of the others may be meanwhile: Coterie keeps 256 MiB for those that lag, and its
	// files are of 32 MiB, which go as a whole.
	logLimit = (256 + 64 + 16) << 20
	// memoryLimit is how much the others may hold in memory.
	memoryLimit = 700 << 20
)

// installed is what a member logs when it takes a snapshot of another's state for its own.
var installed = map[target.Kind]string{
	target.KindCoterie: "installing a snapshot",
	target.KindEtcd:    "applying snapshot",
}

// TestAbsentMember keeps a member away while much is written: the others do not keep everything for it, in memory or in
// their logs, and it comes back by a snapshot. It is killed again and again while it receives and installs that, and the
// leader that sends it once. Then a new member joins in the same way.
func TestAbsentMember(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var slowly []string
	if target.Kind(*kind) == target.KindCoterie {
		slowly = []string{"--snapshot-send-rate", "67108864"} // so that it takes a second or two
	}
	c := startCluster(ctx, t, 3, nil, slowly...)
	leader, err := c.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	absent := (leader + 1) % 3
	if err := c.Kill(absent); err != nil {
		t.Fatal(err)
	}
	cli, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()

	m := measure(c)
	err = fill(ctx, cli, missed)
	peak := m.finish()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("while %d MiB were written: up to %d MiB of memory, up to %d MiB of log", missed>>20, peak.memory>>20, peak.log>>20)
	if peak.memory == 0 || peak.log == 0 {
		t.Error("nothing was measured")
	}
	if target.Kind(*kind) == target.KindCoterie { // etcd keeps files of its log for half a minute whatever they are
		if peak.log > logLimit {
			t.Errorf("a log grew to %d MiB, the limit is %d MiB", peak.log>>20, logLimit>>20)
		}
		if peak.memory > memoryLimit {
			t.Errorf("a member grew to %d MiB, the limit is %d MiB", peak.memory>>20, memoryLimit>>20)
		}
	}

	began := time.Now()
	if err := c.Start(absent); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(*seed, 0))
	if err := interrupt(ctx, c, absent, r); err != nil {
		t.Fatal(err)
	}
	if err := interruptLeader(ctx, c, r); err != nil {
		t.Fatal(err)
	}
	if err := settled(ctx, c, absent); err != nil {
		t.Error(err)
	}
	t.Logf("it was back after %v", time.Since(began).Round(time.Millisecond))

	began = time.Now()
	joiner, err := c.AddMember(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := interrupt(ctx, c, joiner, r); err != nil {
		t.Fatal(err)
	}
	if err := promote(ctx, c, joiner); err != nil {
		t.Fatal(err)
	}
	if err := settled(ctx, c, joiner); err != nil {
		t.Error(err)
	}
	t.Logf("one more had joined after %v", time.Since(began).Round(time.Millisecond))
}

// interrupt kills a member that has just started, and starts it again, again and again: each time a moment later on the
// way from its start to the end of the snapshot that it receives.
func interrupt(ctx context.Context, c *target.Cluster, i int, r *rand.Rand) error {
	const step = 250 * time.Millisecond
	for n := range time.Duration(6) {
		if err := last(ctx, n*step+time.Duration(r.Int64N(int64(step)))); err != nil {
			return err
		}
		if err := c.Kill(i); err != nil {
			return err
		}
		if err := c.Start(i); err != nil {
			return err
		}
	}
	return nil
}

// interruptLeader kills the leader soon, and starts it again.
func interruptLeader(ctx context.Context, c *target.Cluster, r *rand.Rand) error {
	leader, err := c.Leader(ctx)
	if err != nil {
		return err
	}
	if err := last(ctx, time.Duration(r.Int64N(int64(time.Second)))); err != nil {
		return err
	}
	if err := c.Kill(leader); err != nil {
		return err
	}
	return c.Start(leader)
}

// promote makes a learner a voter, as soon as it has caught up.
func promote(ctx context.Context, c *target.Cluster, i int) error {
	leader, err := c.Leader(ctx)
	if err != nil {
		return err
	}
	cli, err := c.Client(leader)
	if err != nil {
		return err
	}
	defer cli.Close()
	id, err := c.ID(ctx, i)
	if err != nil {
		return err
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		if _, err = cli.MemberPromote(ctx, id); err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("promote %s: %w (%w)", c.Name(i), ctx.Err(), err)
		}
	}
}

// settled waits until a member has been sent a snapshot, has all data and holds the same as the others.
func settled(ctx context.Context, c *target.Cluster, i int) error {
	if err := c.WaitReady(ctx); err != nil {
		return err
	}
	leader, err := c.Leader(ctx)
	if err != nil {
		return err
	}
	revision, err := revisionOf(ctx, c, leader)
	if err != nil {
		return err
	}
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		if at, err := revisionOf(ctx, c, i); err == nil && at >= revision {
			break
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not catch up: %w", c.Name(i), ctx.Err())
		}
	}
	text, err := os.ReadFile(c.LogPath(i))
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte(installed[target.Kind(*kind)])) {
		return fmt.Errorf("%s has not been sent a snapshot", c.Name(i))
	}
	if err := witness.CompareHashes(ctx, c, revision); err != nil {
		return err
	}
	return c.Failed()
}

// revisionOf asks a member how far it is.
func revisionOf(ctx context.Context, c *target.Cluster, i int) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cli, err := c.Client(i)
	if err != nil {
		return 0, err
	}
	defer cli.Close()
	status, err := cli.Status(ctx, c.Endpoint(i))
	if err != nil {
		return 0, err
	}
	return status.Header.Revision, nil
}

// fill writes so many bytes over a few keys, and compacts what is behind.
func fill(ctx context.Context, cli *clientv3.Client, total int64) error {
	const (
		writers = 8
		size    = 64 << 10
	)
	var (
		written atomic.Int64
		all     sync.WaitGroup
		errs    [writers]error
	)
	// Values that do not become small when they are stored, and differ.
	r := rand.New(rand.NewPCG(*seed, 0))
	noise := make([]byte, 4<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for w := range writers {
		r := rand.New(rand.NewPCG(*seed, uint64(w)))
		all.Go(func() {
			for i := 0; written.Add(size) < total; i++ {
				at := r.IntN(len(noise) - size)
				resp, err := cli.Put(ctx, fmt.Sprintf("%s%d/%d", witness.Prefix, w, i%50), string(noise[at:at+size]))
				if err == nil && w == 0 && i%50 == 0 && resp.Header.Revision > 1000 {
					_, err = cli.Compact(ctx, resp.Header.Revision-1000)
				}
				if err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs[:]...)
}

// peak is the most that any member had.
type peak struct{ memory, log int64 }

// meter measures the members that run, until it is finished.
type meter struct {
	stop   chan struct{}
	worker sync.WaitGroup
	peak   peak // Guarded by worker.
}

func measure(c *target.Cluster) *meter {
	m := &meter{stop: make(chan struct{})}
	m.worker.Go(func() { // finish ends it and waits
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, i := range c.Running() {
				if rss, err := c.RSS(i); err == nil {
					m.peak.memory = max(m.peak.memory, rss)
				}
				m.peak.log = max(m.peak.log, logSize(c.DataDir(i)))
			}
			select {
			case <-tick.C:
			case <-m.stop:
				return
			}
		}
	})
	return m
}

func (m *meter) finish() peak {
	close(m.stop)
	m.worker.Wait()
	return m.peak
}

// logSize is the size of the files below the directories of logs, as both kinds of servers name them.
func logSize(dir string) int64 {
	var total int64
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(filepath.Dir(path)) != "wal" {
			return nil // a file may go while others are counted
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}
