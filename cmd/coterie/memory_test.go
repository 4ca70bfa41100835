package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	const mb = 1 << 20
	for live, want := range map[uint64]int{0: 400, mb: 400, 16 * mb: 400, 20 * mb: 300, 32 * mb: 200, 50 * mb: 125, 64 * mb: 100, 1 << 40: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("with %d MB alive the heap may grow by %d%%, want %d%%", live/mb, got, want)
		}
	}
}

// TestRoomFollowsTheHeap: the percentage falls when much is alive, and rises again.
func TestRoomFollowsTheHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before) // which the next collection may undo: no other test depends on it
	wait := func(what string, reached func(percent int) bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until the finalizer has run
			runtime.GC()
			sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
			metrics.Read(sample)
			percent := int(sample[0].Value.Uint64())
			if reached(percent) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s the heap may grow by %d%%", what, percent)
			}
		}
	}
	leaveRoom()
	wait("with little alive", func(p int) bool { return p > 100 })
	held := make([]byte, 80<<20)
	wait("with 80 MiB alive", func(p int) bool { return p == 100 })
	runtime.KeepAlive(held)
	held = nil
	wait("with little alive again", func(p int) bool { return p > 100 })
}

func TestThrift(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		name  string
		rates []uint64 // megabytes allocated from one look to the next
		want  []int    // the looks that give memory back
	}{
		{"nothing", []uint64{0, 0, 0}, nil},
		{"little", []uint64{1, 1, 1, 1, 1, 1}, nil},
		{"one burst", []uint64{500, 0, 0, 0}, []int{1}},
		{"a long burst", []uint64{30, 500, 500, 40, 4, 0}, []int{4}},
		{"what follows is less, but not quiet", []uint64{500, 20, 20, 20}, nil},
		{"a burst after a burst", []uint64{100, 0, 0, 100, 0}, []int{1, 4}},
		{"a small burst is not over before its share is small", []uint64{70, 4, 3, 2}, []int{3}},
		{"a steady trickle", []uint64{3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3}, []int{31}},
	} {
		var th thrift
		var got []int
		total := uint64(0)
		for i, r := range c.rates {
			total += r * mb
			if th.look(total) {
				got = append(got, i)
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: given back at %v, want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: given back at %v, want %v", c.name, got, c.want)
			}
		}
	}
}
