package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// The collector lets the heap grow by what is alive, after which it marks all of that again. Where little is alive that is
// often: five times a second under a load of puts, and a tenth of their processor time. So it is left some room.
const (
	roomBytes   = 64 << 20
	roomPercent = 400 // of what is alive, at most: should that grow, what was set before it is known is in force for a moment
	roomStep    = 25  // to set the percentage stops the world
)

// gcPercent is how far the heap may grow before it is collected, if so many bytes are alive. It is Go's 100 from roomBytes on.
func gcPercent(live uint64) int {
	percent := uint64(roomPercent)
	if live > 0 {
		percent = min(percent, max(100, 100*roomBytes/live))
	}
	return int(percent / roomStep * roomStep)
}

// leaveRoom sets the collector's percentage after each collection, for as long as the process lives, unless GOGC does.
func leaveRoom() {
	if os.Getenv("GOGC") != "" {
		return
	}
	setRoom(&room{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/gogc:percent"}})
}

// room is an object that nothing refers to: its finalizer is called after every collection.
type room [2]metrics.Sample

func setRoom(r *room) {
	metrics.Read(r[:])
	if percent := gcPercent(r[0].Value.Uint64()); uint64(percent) != r[1].Value.Uint64() {
		debug.SetGCPercent(percent)
	}
	runtime.SetFinalizer(r, setRoom)
}

// Go keeps the memory of a burst, such as the answer to a list of everything, for a next one: for minutes where little
// else is allocated that would make it collect, and a part of it for as long as the process lives. A server is one of
// several on its machine, so it gives that memory back when the burst is over.
const (
	lookEvery = time.Second
	// A burst is so many bytes allocated since memory was last given back.
	burstBytes = 64 << 20
	// It is over when a second allocates no more than this, and no more than a share of the burst. What is in constant use
	// is therefore never given back: to get it again costs more than to keep it.
	quietBytes = 4 << 20
	quietShare = 32
)

// thrift decides when memory is given back, from the number of bytes that were ever allocated.
type thrift struct {
	last, returned uint64 // that number at the last look, and when memory was last given back
}

// look takes that number, once a second, and reports whether it is time.
func (t *thrift) look(allocated uint64) bool {
	burst, now := allocated-t.returned, allocated-t.last
	t.last = allocated
	if burst < burstBytes || now > min(quietBytes, burst/quietShare) {
		return false
	}
	t.returned = allocated
	return true
}

// giveMemoryBack gives back what bursts leave until ctx ends.
func giveMemoryBack(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var t thrift
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(sample)
		if t.look(sample[0].Value.Uint64()) {
			runtime.GC() // what a sync.Pool holds goes with the second collection
			debug.FreeOSMemory()
		}
	}
}
