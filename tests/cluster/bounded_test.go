package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coteriedb/coterie/tests/target"
)

const (
	// missed is how much is written while a member is away: a multiple of what the others may keep for it.
	missed = 1 << 30
	// logLimit is how large the log of the others may be meanwhile: Coterie keeps 256 MiB for those that lag, and its
	// files are of 64 MiB, which go as a whole.
	logLimit = (256 + 64 + 16) << 20
	// memoryLimit is how much the others may hold in memory.
	memoryLimit = 700 << 20
)

// installed is what a member logs when it has taken a snapshot of another's state for its own.
var installed = map[target.Kind]string{
	target.KindCoterie: "state replaced by a snapshot",
	target.KindEtcd:    "applied snapshot",
}

// TestAbsentMember keeps a member away while much is written: the others do not keep everything for it, in memory or in
// their logs, and it comes back by a snapshot.
func TestAbsentMember(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := startCluster(ctx, t, 3, nil)
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
	if err := c.WaitReady(ctx, absent); err != nil {
		t.Fatal(err)
	}
	back, err := c.Client(absent)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	newest, err := back.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("it was back after %v", time.Since(began).Round(time.Millisecond))
	if err := compareHashes(ctx, c, newest.Header.Revision); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(c.LogPath(absent))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(installed[target.Kind(*kind)])) {
		t.Error("the member that was away has not been sent a snapshot")
	}
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
	value := strings.Repeat("v", size)
	for w := range writers {
		all.Go(func() {
			for i := 0; written.Add(size) < total; i++ {
				resp, err := cli.Put(ctx, fmt.Sprintf("%s%d/%d", prefix, w, i%50), value)
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
