package engine

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// TestYieldPolicy: what is on disk is the plain policy's, so either reads it.
func TestYieldPolicy(t *testing.T) {
	plain, yielding := bloom.FilterPolicy(10), yieldPolicy{bloom.FilterPolicy(10)}
	if plain.Name() != yielding.Name() {
		t.Errorf("the name is %q, want %q", yielding.Name(), plain.Name())
	}
	v, w := plain.NewWriter(pebble.TableFilter), yielding.NewWriter(pebble.TableFilter)
	for i := range 10 * keysPerTurn {
		key := fmt.Append(nil, i)
		v.AddKey(key)
		w.AddKey(key)
	}
	if !bytes.Equal(v.Finish(nil), w.Finish(nil)) {
		t.Error("the filters differ")
	}
}
