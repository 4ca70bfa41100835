package engine

import (
	"runtime"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// yieldPolicy is a filter policy that lets others have their turn. Flushes and
// compactions compute for seconds without a break, and where there are as many of
// them as processors, every step of a request would wait for the scheduler to
// interrupt one, which it does after 10 ms. A filter is told of every key as it
// is written, by the goroutine that does the work.
//
// Who yields to goroutines that can run goes on when there are none; and as long as
// all processors find one that yields, nobody looks whether sockets have something
// to read. So the work also rests, unless it is in a hurry.
type yieldPolicy struct {
	pebble.FilterPolicy
	pace *pace
}

const (
	// keysPerTurn take about 50 µs.
	keysPerTurn = 32
	// turnsPerRest is after how many turns the work rests.
	turnsPerRest = 4
	// rest is how long, at least: the system's timers make some 60 µs of it.
	rest = time.Microsecond
)

// NewWriter implements pebble.FilterPolicy.
func (p yieldPolicy) NewWriter(t pebble.FilterType) pebble.FilterWriter {
	return &yieldWriter{FilterWriter: p.FilterPolicy.NewWriter(t), pace: p.pace}
}

type yieldWriter struct {
	pebble.FilterWriter
	pace *pace
	keys int
}

// AddKey implements pebble.FilterWriter.
func (w *yieldWriter) AddKey(key []byte) {
	w.FilterWriter.AddKey(key)
	switch w.keys++; {
	case w.keys%(keysPerTurn*turnsPerRest) == 0 && !w.pace.hurries():
		time.Sleep(rest)
	case w.keys%keysPerTurn == 0:
		runtime.Gosched()
	}
}
