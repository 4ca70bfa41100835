package machine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestCrashWhileTheEngineIsRewritten: a crash at any moment of a defragmentation,
// beside which commands are applied, leaves an engine whose applied index is that of
// what it holds: with the log from there on it comes to the same state.
func TestCrashWhileTheEngineIsRewritten(t *testing.T) {
	for seed := range uint64(6) {
		h := newHarness(t)
		rng := rand.New(rand.NewPCG(seed, 6))
		for range 3 {
			for i := range 30 {
				h.apply(grant(int64(len(h.log)+1), 60), put(fmt.Sprint("k", i), strings.Repeat("v", rng.IntN(3000)), int64(len(h.log)+1)))
			}
			must(t, h.engine.Flush())
		}
		rewritten := make(chan error, 1)
		go func() { rewritten <- h.engine.CompactAll(context.Background()) }() // awaited below
		var left []*vfs.MemFS
		for range 8 {
			h.apply(put("beside", fmt.Sprint(len(h.log)), 0))
			if rng.IntN(3) == 0 {
				must(t, h.StartFlush())
			}
			left = append(left, h.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(2) * 50, RNG: rng}))
		}
		if err := <-rewritten; err != nil {
			t.Error(err)
		}
		left = append(left, h.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng}))
		log := h.log
		for i, fs := range left {
			again := &harness{t: t, fs: fs, log: log}
			again.openEngine()
			again.open()
			for _, e := range log {
				if e.Index > again.Applied() {
					_, err := again.Apply([]Entry{e})
					must(t, err)
				}
			}
			if want, got := h.state(), again.state(); got != want {
				t.Errorf("seed %d, crash %d:\n%.300s\nwant:\n%.300s", seed, i, got, want)
			}
			again.close()
		}
		h.close()
	}
}
