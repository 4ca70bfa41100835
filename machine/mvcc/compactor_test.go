package mvcc

import (
	"testing"
	"time"
)

// TestCompactionPace: however batches are divided, compaction pauses as much as it
// is told to.
func TestCompactionPace(t *testing.T) {
	for _, c := range []struct {
		limit, wantLimit int
		sleep, wantSleep time.Duration
	}{
		{1000, 100, 10 * time.Millisecond, time.Millisecond},
		{100, 100, time.Second, time.Second},
		{7, 7, time.Second, time.Second},
		{1 << 40, 100, time.Hour, 327 * time.Nanosecond},
	} {
		got := newCompactor(nil, Options{CompactionBatchLimit: c.limit, CompactionSleep: c.sleep}, 0, 0)
		if got.limit != c.wantLimit || got.sleep != c.wantSleep {
			t.Errorf("%d revisions and %v: %d and %v, want %d and %v", c.limit, c.sleep, got.limit, got.sleep, c.wantLimit, c.wantSleep)
		}
	}
}
