package engine

import (
	"runtime"

	"github.com/cockroachdb/pebble/v2"
)

// yieldPolicy is a filter policy that lets others have their turn. Flushes and
// compactions compute for seconds without a break, and where there are as many of
// them as processors, every step of a request would wait for the scheduler to
// interrupt one, which it does after 10 ms. A filter is told of every key as it
// is written, by the goroutine that does the work.
type yieldPolicy struct{ pebble.FilterPolicy }

// keysPerTurn take about 50 µs.
const keysPerTurn = 32

// NewWriter implements pebble.FilterPolicy.
func (p yieldPolicy) NewWriter(t pebble.FilterType) pebble.FilterWriter {
	return &yieldWriter{FilterWriter: p.FilterPolicy.NewWriter(t)}
}

type yieldWriter struct {
	pebble.FilterWriter
	keys int
}

// AddKey implements pebble.FilterWriter.
func (w *yieldWriter) AddKey(key []byte) {
	w.FilterWriter.AddKey(key)
	if w.keys++; w.keys%keysPerTurn == 0 {
		runtime.Gosched()
	}
}
